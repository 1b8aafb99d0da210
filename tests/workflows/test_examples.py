"""The Python snippet of the README and the notebook run as they are written, with fewer images."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from segsmith.files import png_bytes

ROOT = Path(__file__).parents[2]
SMALL = {
    "SEGSMITH_EVALUATION__IMAGES": "4",
    "SEGSMITH_IMAGES__SIZE": "64",
    "SEGSMITH_LABELER__EPOCHS": "1",
    "SEGSMITH_LABELER__FOLDS": "2",
    "SEGSMITH_TRAINER__EPOCHS": "1",
}


def readme_snippet():
    text = (ROOT / "README.md").read_text("utf-8")
    return re.search(r"^## Python\n.*?```python\n(.*?)```", text, re.DOTALL | re.MULTILINE).group(1)


def notebook_cells():
    cells = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text("utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        pytest.param(readme_snippet, id="README"),
        pytest.param(notebook_cells, id="notebook", marks=pytest.mark.long),
    ],
)
def test_an_example_runs_offline(source, tmp_path):
    pytest.importorskip("xllamacpp")
    code, replaced = re.subn(r"per_class=\d+", "per_class=3", source())
    assert replaced == 1
    (tmp_path / "example.py").write_text(code)
    environment = {
        **os.environ, **SMALL, "PYTHONPATH": str(ROOT), "SEGSMITH_CACHE": str(tmp_path / "cache"), "SEGSMITH_OFFLINE": "true",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"\b0\.\d+", done.stdout)
    assert list(tmp_path.glob("runs/*/dataset/coco/annotations/*.json"))


def voc_folder(folder):
    """Four images in the layout of VOC 2012, which has no list of its classes; cat is 8, dog is 12."""
    for name in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, value in enumerate((8, 12, 8, 12)):
        image, mask = rng.integers(0, 255, (48, 64, 3)).astype(np.uint8), np.zeros((48, 64), np.uint8)
        mask[10:40, 10:50], mask[9] = value, 255
        (folder / f"JPEGImages/{number}.jpg").write_bytes(png_bytes(image))
        (folder / f"SegmentationClass/{number}.png").write_bytes(png_bytes(mask))
        name = {8: "cat", 12: "dog"}[value]
        (folder / f"Annotations/{number}.xml").write_text(
            f"<annotation><object><name>{name}</name></object></annotation>"
        )
    (folder / "ImageSets/Segmentation/val.txt").write_text("0\n1\n2\n3\n")
    return folder


@pytest.mark.long
def test_the_recipe_for_voc_runs_to_its_row_on_stand_ins(tmp_path):
    pytest.importorskip("xllamacpp")
    command = tmp_path / "segsmith"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m segsmith.cli "$@"\n')
    command.chmod(0o755)
    environment = {
        **os.environ, **SMALL, "PYTHONPATH": str(ROOT), "SEGSMITH_CACHE": str(tmp_path / "cache"),
        "SEGSMITH": str(command), "VOC": str(voc_folder(tmp_path / "VOC2012")), "PRESET": "sim", "PER_CLASS": "8",
        "CLASSES": "cat,dog", "OUT": str(tmp_path / "run"), "MORE": "--offline",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "voc_zero_shot.sh")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=570, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    assert re.search(r"\| segsmith \| synthetic, this run \| \d+\.\d \|", done.stdout)
