import json
import subprocess
import sys

import pytest
from pydantic import ValidationError
from squares_dataset import TINY

from segsmith.errors import SegsmithError
from segsmith.tools.training import evaluate_segmenter, train_segmenter, trainer_tool


def test_the_tools_take_and_return_json(squares, tmp_path):
    seen = []
    call = {"dataset": str(squares), "out": str(tmp_path), "settings": {**TINY, "epochs": 1}, "seed": 1}
    reply = json.loads(json.dumps(trainer_tool(on_epoch=seen.append).invoke(call)))
    assert reply["classes"] == ["red", "blue"]
    assert reply["last_epoch"] == seen[-1]
    json.dumps(seen)
    score = evaluate_segmenter.invoke({"checkpoint": reply["checkpoint"], "dataset": str(squares)})
    assert set(score["iou_per_class"]) == {"background", "red", "blue"}
    assert json.loads(json.dumps(score, allow_nan=False)) == score


def test_the_image_tower_is_only_opened_if_the_encoder_starts_from_it(squares, tmp_path):
    def tower():
        raise LookupError("opened")

    call = {"dataset": str(squares), "out": str(tmp_path), "settings": {**TINY, "epochs": 1}}
    trainer_tool(clip_tower=tower).invoke(call)
    call["settings"]["encoder_init"] = "clip"
    with pytest.raises(LookupError, match="opened"):
        trainer_tool(clip_tower=tower).invoke(call)


def test_the_tools_describe_their_arguments():
    assert set(train_segmenter.args) == {"dataset", "out", "settings", "seed"}
    assert set(evaluate_segmenter.args) == {"checkpoint", "dataset", "split"}
    with pytest.raises(ValidationError):
        train_segmenter.invoke({"dataset": "d", "out": "o", "settings": {"epoch": 3}})


def test_errors_pass_through(tmp_path):
    with pytest.raises(SegsmithError, match="no checkpoint"):
        evaluate_segmenter.invoke({"checkpoint": str(tmp_path), "dataset": str(tmp_path)})


def test_importing_the_tools_loads_no_torch():
    code = "import segsmith.tools.training, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
