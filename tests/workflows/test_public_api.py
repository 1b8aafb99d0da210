"""`import segsmith`: what it exports, that it loads nothing heavy, and a small run through it."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import segsmith
from segsmith.testing import InstantImages, ScriptedChat, made_up_run, small_config

ROOT = Path(__file__).parents[2]


def test_every_name_is_importable_and_known_to_type_checkers():
    tree = ast.parse((ROOT / "segsmith" / "__init__.py").read_text("utf-8"))
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name for node in guarded.body for alias in node.names}
    assert typed == set(segsmith.__all__)
    for name in segsmith.__all__:
        assert getattr(segsmith, name) is not None
    assert (ROOT / "segsmith" / "py.typed").exists()
    with pytest.raises(AttributeError, match="no attribute 'bild'"):
        getattr(segsmith, "bi" + "ld")


def test_importing_segsmith_loads_no_torch():
    code = "import segsmith, sys; segsmith.SegsmithError; segsmith.load_config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_two_exports_in_one_process_and_the_run_stays_readable(tmp_path):
    _, ledger, _ = made_up_run(tmp_path / "run", 6)
    ledger.close()
    run = segsmith.open_run(tmp_path / "run")
    coco, voc = run.export("coco"), run.export("voc", tmp_path / "voc")
    assert (coco / "annotations").is_dir()
    assert (voc / "ImageSets").is_dir()
    assert sum(tally.accepted for tally in run.tallies.values()) == 6
    images = list(run.images)
    assert len(images) == len(run.images) == 6
    assert images[0].image.shape[:2] == images[0].mask.shape
    assert images[0].labels
    assert images[0].lineage.prompt
    assert "prompt" in str(run.why(images[0].id))


def test_a_build_through_the_api_resumes_and_gives_a_run(tmp_path, capsys):
    config = small_config(
        judge={"enabled": False}, evaluation={"images": 0}, per_class=2, trainer={"epochs": 1}
    )
    parts = {"chat": ScriptedChat(), "backend": InstantImages(64)}
    events = []
    run = segsmith.build(out=tmp_path / "run", config=config, parts=parts, on_event=events.append)
    assert capsys.readouterr().out == ""
    assert {"start", "route", "draw", "judge", "stage", "segment", "epoch", "end"} <= {e.kind for e in events}
    assert run.ended == events[-1]
    assert run.ended.status is segsmith.Status.FINISHED
    assert run.is_finished
    assert run.report.exists()
    label_maps = segsmith.predict(run.segmenter, [image.image for image in run.images])
    assert label_maps[0].shape == (64, 64)
    assert label_maps[0].dtype == np.uint8
    again = segsmith.build(out=tmp_path / "run", config=config, parts=parts, progress=False)
    assert again.ended.status is segsmith.Status.ALREADY_FINISHED
    run.segmenter.unlink()
    made = segsmith.build(out=tmp_path / "run", config=config, parts=parts, progress=False)
    assert made.ended.status is segsmith.Status.FINISHED
    assert made.segmenter.exists()
