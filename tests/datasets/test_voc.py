import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from segsmith.config import load_config
from segsmith.datasets.export import export_dataset
from segsmith.datasets.palette import voc_palette
from segsmith.datasets.splits import split_by_group
from segsmith.errors import SegsmithError
from segsmith.files import png_bytes, read_index_map, write_atomic
from segsmith.memory.ledger import ImageRow, LabelRow, Ledger, MaskRow, PromptRow, VerdictRow, prompt_families
from segsmith.memory.run_folder import RunFolder

CLASSES = ("cat", "potted plant")


def prompt(id_, name="cat", parent=None, text=None):
    return PromptRow(id_, name, text or f"a {name}, '{id_}'", (name,), {}, parent, 0, "admitted", {})


@pytest.fixture
def filled(tmp_path):
    """Ten prompts (p1 refines p0) with two images each; i0-0 is rejected, i1-1 has no mask."""
    run = RunFolder(tmp_path / "run")
    run.create()
    ledger = Ledger(run.ledger)
    config = load_config(flags={"classes": CLASSES, "splits": (0.6, 0.2, 0.2)})
    rng = np.random.default_rng(0)
    for n in range(10):
        ledger.add_prompts([prompt(f"p{n}", CLASSES[n % 2], "p0" if n == 1 else None)])
        for k in range(2):
            id_ = f"i{n}-{k}"
            write_atomic(
                run.new_image(id_, "png"), png_bytes(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
            )
            ledger.add_images([ImageRow(id_, f"p{n}", k, "sim", 0, "")])
            ledger.add_verdicts([VerdictRow(id_, id_ != "i0-0", "ok", {})])
            ledger.add_labels([LabelRow(id_, "prompt", (CLASSES[n % 2],)), LabelRow(id_, "clip", CLASSES)])
            if id_ != "i1-1":
                mask = rng.choice(np.array([0, 1, 2, 255], np.uint8), (20, 30))
                write_atomic(run.new_mask(id_), png_bytes(mask, voc_palette()))
                ledger.add_masks([MaskRow(id_, {}, 0.0, {})])
    ledger.add_labels([LabelRow("i2-0", "relabel", ("potted plant",))])
    yield run, ledger, config
    ledger.close()


def ids(folder: Path, name: str) -> list[str]:
    return (folder / "ImageSets/Segmentation" / f"{name}.txt").read_text().split()


def test_palette_is_the_one_of_the_voc_devkit():
    palette = voc_palette()
    assert palette.shape == (256, 3)
    assert palette.dtype == np.uint8
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    assert {i: tuple(int(v) for v in palette[i]) for i in known} == known


def test_export_reads_back_as_voc(filled, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    run, ledger, config = filled
    summary = export_dataset(run, ledger, config, "voc2012", tmp_path / "data")
    out = tmp_path / "data/VOCdevkit/VOC2012"
    assert summary.images == 18
    assert summary.written
    assert summary.folder == tmp_path / "data"
    seen = set()
    for split in ("trainval", "train", "val", "test"):
        year = "2007" if split == "test" else "2012"
        data = torchvision.datasets.VOCSegmentation(str(tmp_path / "data"), year=year, image_set=split)
        names = ids(out, split)
        assert len(data) == len(names)
        for (image, mask), id_ in zip(data, names, strict=True):
            source = np.asarray(PILImage.open(run.image(id_)))
            assert image.size == (30, 20)
            assert np.abs(np.asarray(image).astype(int) - source).mean() < 12
            assert mask.mode == "P"
            np.testing.assert_array_equal(np.asarray(mask), read_index_map(run.mask(id_)))
            np.testing.assert_array_equal(np.array(mask.getpalette()).reshape(-1, 3), voc_palette())
        seen |= set(names)
    assert {s: len(ids(out, s)) for s in ("train", "val", "test")} == summary.splits
    assert seen | set(ids(out, "test")) == {i.stem for i in run.mask_files()} - {"i0-0"}
    assert sorted(ids(out, "trainval")) == sorted(ids(out, "train") + ids(out, "val"))
    assert (out / "classes.txt").read_text().splitlines() == list(CLASSES)


def test_families_stay_together_in_the_export(filled):
    run, ledger, config = filled
    out = export_dataset(run, ledger, config).folder
    homes = {
        i.split("-")[0].replace("i1", "i0"): set() for s in ("train", "val", "test") for i in ids(out, s)
    }
    for split in ("train", "val", "test"):
        for id_ in ids(out, split):
            homes[id_.split("-")[0].replace("i1", "i0")].add(split)
    assert all(len(splits) == 1 for splits in homes.values())
    assert set().union(*homes.values()) == {"train", "val", "test"}


def test_labels_csv_prefers_relabel_then_clip_and_survives_odd_text(filled):
    run, ledger, config = filled
    ledger.add_prompts([prompt("p4", text='a cat, "red"\nand a comma')])
    out = export_dataset(run, ledger, config).folder
    with (out / "labels.csv").open(newline="") as file:
        rows = {r["image_id"]: r for r in csv.DictReader(file)}
    assert rows["i2-0"]["classes"] == "potted plant"
    assert rows["i2-1"]["classes"] == "cat|potted plant"
    assert rows["i4-0"]["prompt"] == 'a cat, "red"\nand a comma'
    assert rows["i4-0"]["split"] in ("train", "val", "test")
    assert rows["i4-1"]["seed"] == "1"


def test_same_run_is_not_written_twice_and_a_changed_one_is(filled):
    run, ledger, config = filled
    first = export_dataset(run, ledger, config)
    before = os.stat(first.folder).st_ino
    assert not export_dataset(run, ledger, config).written
    assert os.stat(first.folder).st_ino == before
    ledger.add_verdicts([VerdictRow("i9-0", False, "blurred", {})])
    again = export_dataset(run, ledger, config)
    assert again.written
    assert again.images == 17
    assert not (again.folder / "JPEGImages/i9-0.png").exists()
    assert sorted(p.name for p in again.folder.parent.iterdir()) == ["voc"]


def test_a_damaged_export_is_written_again(filled):
    run, ledger, config = filled
    out = export_dataset(run, ledger, config).folder
    (out / "SegmentationClass/i2-0.png").write_bytes(b"")
    assert export_dataset(run, ledger, config).written
    assert read_index_map(out / "SegmentationClass/i2-0.png").shape == (20, 30)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_swap_keeps_the_old_export(filled, monkeypatch, failing):
    run, ledger, config = filled
    out = export_dataset(run, ledger, config).folder
    kept = (out / "manifest.json").read_text()
    ledger.add_verdicts([VerdictRow("i9-0", False, "blurred", {})])
    calls, real = [], os.replace

    def replace(a, b):
        calls.append(a)
        if len(calls) == failing:
            raise OSError("disk full")
        real(a, b)

    monkeypatch.setattr("segsmith.datasets.staging.os.replace", replace)
    with pytest.raises(SegsmithError, match="disk full"):
        export_dataset(run, ledger, config)
    assert (out / "manifest.json").read_text() == kept


def test_a_kill_between_the_renames_loses_nothing(filled):
    run, ledger, config = filled
    out = export_dataset(run, ledger, config).folder
    os.replace(out, out.with_name(".voc.old"))
    (out.with_name(".voc.part") / "JPEGImages").mkdir(parents=True)
    assert not export_dataset(run, ledger, config).written
    assert json.loads((out / "manifest.json").read_text())["files"]


def test_errors_state_the_remedy(filled, tmp_path):
    run, ledger, config = filled
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    with pytest.raises(SegsmithError, match="Name a new or empty folder"):
        export_dataset(run, ledger, config, out=foreign)
    assert (foreign / "thesis.tex").exists()
    write_atomic(run.new_mask("i3-0"), png_bytes(np.full((20, 30), 3, np.uint8)))
    with pytest.raises(SegsmithError, match="index 3"):
        export_dataset(run, ledger, config)
    assert not (run.dataset / "voc").exists()
    write_atomic(run.new_mask("i3-0"), png_bytes(np.zeros((20, 20), np.uint8)))
    with pytest.raises(SegsmithError, match="its mask"):
        export_dataset(run, ledger, config)
    run.mask("i3-0").unlink()
    with pytest.raises(SegsmithError, match="not in its folder"):
        export_dataset(run, ledger, config)


def test_nothing_to_export(tmp_path):
    run = RunFolder(tmp_path)
    run.create()
    ledger = Ledger(run.ledger)
    with pytest.raises(SegsmithError, match="nothing to export"):
        export_dataset(run, ledger, load_config(flags={"classes": ["cat"]}))
    ledger.close()


def test_prompt_families_follow_refinements_to_the_root():
    rows = [
        prompt("a"),
        prompt("b", parent="a"),
        prompt("c", parent="b"),
        prompt("d", parent="gone"),
        prompt("x", parent="y"),
        prompt("y", parent="x"),
    ]
    families = prompt_families(rows)
    assert families["a"] == families["b"] == families["c"] == "a"
    assert families["d"] == "gone"
    assert len({families["x"], families["y"]} & {"x", "y"}) >= 1  # a cycle ends


@st.composite
def populations(draw):
    n = draw(st.integers(0, 40))
    groups = {f"i{k}": f"g{draw(st.integers(0, 12))}" for k in range(n)}
    labels = {k: tuple(draw(st.sets(st.sampled_from("abc"), max_size=3))) for k in groups}
    return groups, labels


@settings(max_examples=80, deadline=None)
@given(
    populations(),
    st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5, 0.0), (0.7, 0.0, 0.3), (1.0, 0.0, 0.0)]),
    st.integers(0, 5),
)
def test_split_properties(population, shares, seed):
    groups, labels = population
    parts = split_by_group(groups, labels, shares, seed)
    assert sorted(i for ids_ in parts.values() for i in ids_) == sorted(groups)
    homes = [{groups[i] for i in parts[s]} for s in ("train", "val", "test")]
    assert not (homes[0] & homes[1])
    assert not (homes[0] & homes[2])
    assert not (homes[1] & homes[2])
    assert {c for i in parts["train"] for c in labels[i]} == {c for i in groups for c in labels[i]}
    assert all(not parts[s] for s, share in zip(parts, shares, strict=True) if share == 0)
    if groups:
        assert parts["train"]
    spare = len(set(groups.values())) >= 4  # three classes need three groups at most
    assert parts["val"] or not spare or shares[1] == 0
    backwards = split_by_group(dict(reversed(groups.items())), labels, shares, seed)
    assert backwards == parts


def test_two_groups_of_one_class_already_give_a_val():
    parts = split_by_group({"i": "a", "j": "b"}, {"i": ("cat",), "j": ("cat",)}, (0.8, 0.1, 0.1), 0)
    assert [len(parts[s]) for s in ("train", "val", "test")] == [1, 1, 0]
    parts = split_by_group({"i": "a", "j": "a"}, {}, (0.8, 0.1, 0.1), 0)
    assert [len(parts[s]) for s in ("train", "val", "test")] == [2, 0, 0]


def test_shares_are_kept_for_the_whole_and_for_each_class():
    groups = {f"i{k}": f"g{k // 2}" for k in range(400)}
    labels = {f"i{k}": ("abcd"[k // 2 % 4],) for k in range(400)}
    parts = split_by_group(groups, labels, (0.8, 0.1, 0.1), 1)
    for split, share in zip(("train", "val", "test"), (0.8, 0.1, 0.1), strict=True):
        for name in "abcd":
            got = sum(labels[i] == (name,) for i in parts[split])
            assert abs(got - 100 * share) <= 2
    assert split_by_group(groups, labels, (0.8, 0.1, 0.1), 2) != parts
