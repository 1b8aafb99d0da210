"""A CLIP folder or repository runs no code and loads no other model, whatever its configuration says."""

import copy
import json

import open_clip
import pytest
from open_clip.factory import _MODEL_CONFIGS

from segsmith.config import load_config
from segsmith.errors import SegsmithError
from segsmith.tools.vision.clip import OpenClipEncoder
from segsmith.tools.vision.clip_config import ModelConfig, check_clip
from segsmith.tools.vision.mini_clip import packaged_checkpoint
from segsmith.workflows.doctor import examine

EVIL = "from pathlib import Path\nPath({mark!r}).touch()\nclass Tokenizer: pass\n"


@pytest.fixture
def folder(tmp_path):
    """A copy of the packaged CLIP with a tokenizer that is a Python file; `mark` would be its trace."""
    copied = tmp_path / "clip"
    copied.mkdir()
    for file in packaged_checkpoint("mini_clip").iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    mark = tmp_path / "code-was-run"
    (copied / "evil.py").write_text(EVIL.format(mark=str(mark)))
    tokenizer = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Tokenizer"}
    (copied / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (copied / "config.json").write_text(json.dumps({"model_type": "bert", **tokenizer}))
    yield copied
    assert not mark.exists()


def change(folder, **parts):
    """Update parts of the configuration: `text_cfg`, `vision_cfg`, `model_cfg`, `preprocess_cfg` or "top"."""
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    model = config["model_cfg"]
    places = {"top": config, "model_cfg": model, "preprocess_cfg": config["preprocess_cfg"]}
    for part, values in parts.items():
        places.get(part, model.get(part)).update(values)
    file.write_text(json.dumps(config))


REMOTE = {"hf_tokenizer_name": "a/b", "tokenizer_kwargs": {"trust_remote_code": True}}


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_tokenizer_of_python_code_is_rejected_and_not_run(folder, prefix):
    change(folder, text_cfg=REMOTE)
    with pytest.raises(SegsmithError, match="trust_remote_code"):
        OpenClipEncoder.load(f"{prefix}{folder}", device="cpu")


def test_without_the_keyword_the_tokenizers_own_files_cannot_ask_for_code(folder):
    change(folder, text_cfg={"hf_tokenizer_name": "a/b"})
    with pytest.raises(SegsmithError, match="Cannot load"):
        OpenClipEncoder.load(str(folder), device="cpu")


def test_a_repository_is_checked_like_a_folder(folder, monkeypatch):
    change(folder, text_cfg=REMOTE)
    config = str(folder / "open_clip_config.json")
    monkeypatch.setattr("segsmith.tools.vision.clip.hf_hub_download", lambda *_: config)
    with pytest.raises(SegsmithError, match="trust_remote_code"):
        OpenClipEncoder.load("hf-hub:evil/repo", device="cpu")


def test_doctor_reports_the_folder(folder):
    change(folder, text_cfg=REMOTE)
    config = load_config(flags={"classes": ("cat",), "offline": True, "judge": {"clip": str(folder)}})
    judge = next(line for line in examine(config) if line.what == "judge")
    assert not judge.ok
    assert "trust_remote_code" in judge.found


@pytest.mark.parametrize(
    "parts",
    [
        {"text_cfg": {"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}}},
        {"text_cfg": {"tokenizer_kwargs": {"tokenizer_file": "x"}}},
        {"text_cfg": {"hf_model_name": "evil/repo"}},
        {"text_cfg": {"hf_model_name": "./clip"}},
        {"text_cfg": {"hf_tokenizer_name": "../../evil"}},
        {"text_cfg": {"norm_kwargs": {"elementwise_affine": "x"}}},
        {"text_cfg": {"layers": 10**9}},
        {"text_cfg": {"width": -1}},
        {"vision_cfg": {"timm_model_name": "hf_hub:evil/repo"}},
        {"vision_cfg": {"timm_model_name": "hf-hub:evil/repo"}},
        {"vision_cfg": {"timm_model_name": "local-dir:/tmp"}},
        {"vision_cfg": {"timm_model_name": "vit_tiny_patch16_224.hf-hub:evil/repo"}},
        {"vision_cfg": {"unknown": 1}},
        {"model_cfg": {"cast_dtype": "x"}},
        {"model_cfg": {"embed_dim": "128"}},
        {"preprocess_cfg": {"interpolation": "__import__"}},
        {"top": {"preprocess_cfg": []}},
        {"top": {"extra": 1}},
    ],
    ids=str,
)
def test_settings_that_are_not_on_the_list_are_rejected_in_one_line(folder, parts):
    change(folder, **parts)
    with pytest.raises(SegsmithError, match="is not allowed as a CLIP configuration") as caught:
        check_clip(str(folder))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"\xff", b"{" * 100_000, b'{"model_cfg":' * 20_000, b" " * (1 << 21)],
    ids=range(7),
)
def test_a_file_that_is_no_configuration_is_one_line(folder, content):
    (folder / "open_clip_config.json").write_bytes(content)
    with pytest.raises(SegsmithError):
        check_clip(str(folder))


@pytest.mark.parametrize("name", open_clip.list_models())
def test_every_configuration_of_open_clip_itself_is_allowed(name):
    ModelConfig.model_validate_json(json.dumps(copy.deepcopy(_MODEL_CONFIGS[name])))


def test_the_packaged_clip_is_allowed():
    assert check_clip(str(packaged_checkpoint("mini_clip"))) is not None
    assert check_clip("ViT-B-32:openai") is None
