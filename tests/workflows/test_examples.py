"""The Python snippet of the README and the notebook run as they are written, with fewer images."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
@pytest.mark.parametrize("source", [readme_snippet, notebook_cells], ids=["README", "notebook"])
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
