import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from segsmith.datasets.card import write_card
from segsmith.datasets.detect import EXPORTS
from segsmith.datasets.export import export_dataset
from segsmith.errors import SegsmithError
from segsmith.graph.context import RunContext
from segsmith.types import Evaluation


def test_export_then_validate_and_the_exit_codes(made_up, tmp_path, segsmith):
    run, out = made_up.run.root, tmp_path / "out 100% {a}"
    code, said, problem = segsmith("export", run, "--format", "webdataset", "--out", out)
    assert code == 0, problem
    assert "40 images" in said
    code, said, _ = segsmith("validate", out, "--run", run)
    assert (code, "No problems found" in said) == (0, True)
    (out / "train-000000.tar").unlink()
    code, said, _ = segsmith("validate", out, "--run", run)
    assert code == 1
    assert "lost_image" in said
    assert "train-000000.tar" in said
    code, _, problem = segsmith("export", run, "--format", "parquet")
    assert code == 2
    assert "Use one of voc" in problem


def test_a_killed_export_leaves_no_half_dataset(made_up, tmp_path):
    run, out = made_up.run.root, tmp_path / "coco"
    words = [sys.executable, "-m", "segsmith.cli", "export", str(run), "--format", "coco", "--out", str(out)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / ".coco.part").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists() or (out / "manifest.json").exists()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["coco"]
    files = json.loads((out / "manifest.json").read_text())["files"]
    assert all((out / name).is_file() for name in files)


@pytest.mark.parametrize("form", EXPORTS)
def test_every_format_says_where_each_image_comes_from(made_up, form):
    data, folders = made_up.data, made_up.folders
    root, want = folders[form], {r.id: r.provenance() for r in data.records}
    if form in ("voc", "voc2012"):
        root = root if form == "voc" else root / "VOCdevkit/VOC2012"
        with (root / "labels.csv").open(newline="") as file:
            got = {r["image_id"]: (r["prompt"], int(r["seed"]), r["backend"]) for r in csv.DictReader(file)}
        assert got == {i: (w["prompt"], w["seed"], w["backend"]) for i, w in want.items()}
        return
    if form in ("coco", "coco-stuff"):
        files = [json.loads(p.read_text()) for p in root.glob("annotations/*.json")]
        rows = [image["segsmith"] for file in files for image in file["images"]]
    elif form == "webdataset":
        import webdataset

        shards = [str(p) for p in root.glob("*.tar")]
        rows = [json.loads(s["json"]) for s in webdataset.WebDataset(shards, shardshuffle=False)]
    else:
        paths = [root / "metadata.jsonl"] if form != "hf" else sorted(root.glob("*/metadata.jsonl"))
        rows = [json.loads(line) for p in paths for line in p.read_text("utf-8").splitlines()]
    for row in rows:
        if form == "hf":
            row = {k: v for k, v in row.items() if not k.endswith("file_name") and k != "original"} | {
                "scores": json.loads(row["scores"])
            }
        assert row == want[row["id"]]
    assert len(rows) == len(want)


def test_data_yaml_has_no_path_of_this_machine_and_background_first(made_up):
    content = yaml.safe_load((made_up.folders["yolo"] / "data.yaml").read_text())
    assert content["names"][0] == "background"
    assert "path" not in content


def test_the_hub_metadata_of_the_card_and_the_users_loader(made_up, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import DatasetCard

    data, folders = made_up.data, made_up.folders
    card = DatasetCard.load(folders["hf"] / "README.md")
    assert card.data.to_dict()["class_names"] == list(data.classes)
    assert card.data.license == "other"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = datasets.load_dataset(str(folders["hf"]), cache_dir=str(tmp_path))
    assert {name: len(part) for name, part in loaded.items()} == {
        "train": data.counts["train"],
        "validation": data.counts["val"],
        "test": data.counts["test"],
    }
    assert loaded["train"][0]["mask"].mode == "L"


def test_the_card_names_models_licences_yield_quality_and_limits(made_up, tmp_path):
    deps = RunContext.open(shutil.copytree(made_up.run.root, tmp_path / "copy"))
    try:
        text = write_card(deps.ledger, deps.config, made_up.data.records)
        assert "| images | made-up | 1 | Apache-2.0 | package |" in text
        assert "| 1 | cat |" in text
        assert "10 of 10" in text
        assert "Not measured yet" in text
        assert "No reviewer has checked them" in text
        assert "\n\n    a cat | number 0" in text
        deps.ledger.evaluation = {"test_set": Evaluation(0.4321, {}, 0.5, ())}
        deps.ledger.log("missing", **{"class": "bus", "have": 3, "want": 9})
        text = write_card(deps.ledger, deps.config, made_up.data.records)
        assert "0.432" in text
        assert "Class bus has 3 of 9" in text
    finally:
        deps.close()


def test_an_image_that_is_not_the_one_drawn_is_rejected(made_up, tmp_path):
    deps = RunContext.open(shutil.copytree(made_up.run.root, tmp_path / "copy"))
    one, other = made_up.data.records[0].id, made_up.data.records[1].id
    shutil.copy(deps.run.image(one), deps.run.image(other))
    try:
        with pytest.raises(SegsmithError, match="not the file that the run drew"):
            export_dataset(deps.run, deps.ledger, deps.config, "hf", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert os.listdir(tmp_path) == ["copy"]
    finally:
        deps.close()
