"""The command: every mistake gets one line with the remedy, exit code 2, and leaves nothing behind."""

import json
import struct

import pytest

BAD = [
    ([], "No classes"),
    (["--classes", "cat,flurbodin"], "flurbodin"),
    (["--classes", "cat,,dog"], "empty"),
    (["--classes", "cat,cat"], "named twice"),
    (["--classes", "sofa,couch"], "same sprite"),
    (["--classes", "x" * 300], "300 characters"),
    (["--classes", "../x"], "may only contain"),
    (["--classes", "<b>cat</b>"], "may only contain"),
    (["--classes", "cat'"], "may only contain"),
    (["--classes", "cat", "--per-class", "0"], "per_class"),
    (["--classes", "cat", "--preset", "giant"], "giant"),
    (["--classes", "cat", "--set", "judge.topk=3"], "top_k"),
    (["--classes", "cat", "--set", "nonsense"], "KEY=VALUE"),
    (["--classes", "cat", "--config", "nowhere.toml"], "does not exist"),
    (["--classes", "cat", "--max-images", "0"], "max_images"),
    (["--classes", "background"], "reserved"),
    (["--classes", "cat", "--set", "judge.clip=/nowhere"], "/nowhere"),
    (["--classes", "cat", "--set", "labeler.sam=/nowhere.pth"], "/nowhere.pth"),
    (["--classes", "cat", "--set", "llm.gguf=/nowhere.gguf"], "/nowhere.gguf"),
    (["--classes", "cat", "--set", "llm.gguf=hf:lab/none"], "names no file"),
    (["--classes", "cat", "--set", "llm.server=openai"], "OPENAI_API_KEY"),
    (["--classes", "cat", "--set", "llm.server=openai", "--set", "llm.base_url=http://127.0.0.1:9/v1"], "No language"),
    (["--classes", "cat", "--set", "llm.server=vllm", "--set", "llm.vllm_command=/nowhere", "--set", "llm.model=."],
     "vLLM is not installed"),
    (["--classes", "cat", "--set", "llm.server=vllm", "--set", "llm.vllm_command=ls", "--set", "llm.model=."],
     "contains no language model"),
    (["--classes", "cat", "--set", "images.backend=hosted", "--set", "images.model=x"], "OPENAI_API_KEY"),
    (["--classes", "cat", "--set", "images.backend=diffusion"], "no model is named"),
    (["--classes", "cat", "--set", "images.backend=diffusion", "--set", "images.model=/nowhere"], "/nowhere"),
    (["--classes", "cat", "--set", "images.backend=diffusion", "--set", "images.model=lab/none", "--offline"],
     "--offline allows no downloads"),
    (["--classes", "cat", "--preset", "cpu", "--offline"], "--offline allows no downloads"),
    (["--classes", "cat", "--preset", "hosted", "--offline"], "--offline allows no requests"),
    (["--classes", "cat", "--set", "judge.clip=ViT-B-32:none"], "and 16 more"),
    (["--classes", "cat", "--set", "judge.clip=ViT-Nope:x"], "ViT-Nope"),
    (["--classes", "cat", "--set", "labeler.vit=vit_nope"], "vit_nope"),
    (["--classes", "cat", "--set", "labeler.sam=sam_vit_z"], "sam_vit_z"),
    (["--classes", "cat", "--set", "trainer.encoder=nope"], "timm has no model 'nope'"),
    (["--classes", "cat", "--set", "trainer.architecture=nope"], "DeepLabV3Plus"),
    (["--classes", "cat", "--set", "compute.device=cuda:99"], "no device 'cuda:99'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[b[1] for b in BAD])
def test_mistakes_cost_one_line_and_nothing_else(segsmith, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, complaint = segsmith("build", *arguments, "--out", tmp_path / "run")
    assert code == 2
    assert words in complaint
    assert complaint.count("\n") == 1
    assert "Traceback" not in complaint
    assert not list(tmp_path.iterdir())


BROKEN = [
    ("model.gguf", b"no model", "llm.gguf", "not a GGUF file"),
    ("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1, 0), "llm.gguf", "ends within its header"),
    ("sam_vit_b.pth", bytes(range(256)) * 40, "labeler.sam", "sam_vit_b.pth"),
    ("weights.safetensors", b"\xff" * 4000, "judge.clip=ViT-B-32:", "weights.safetensors"),
    ("weights.safetensors", b"\xff" * 4000, "labeler.vit=vit_tiny_patch16_224:", "weights.safetensors"),
    ("model_index.json", b"{}", "images.model", "no safetensors weights"),
    ("model_index.json", b"[", "images.model", "does not describe a pipeline"),
    ("readme.txt", b"", "images.model", "contains no model_index.json"),
]


@pytest.mark.parametrize(
    ("name", "content", "setting", "words"), BROKEN, ids=[f"{b[2]}-{b[3]}" for b in BROKEN]
)
def test_a_broken_model_file_costs_one_line_and_nothing_else(
    segsmith, tmp_path, name, content, setting, words
):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / name).write_bytes(content)
    of_folder = setting == "images.model"
    value = f"{setting}{'' if '=' in setting else '='}{folder if of_folder else folder / name}"
    more = ["--set", "images.backend=diffusion"] if of_folder else []
    code, _, complaint = segsmith(
        "build", "--classes", "cat", "--set", value, *more, "--out", tmp_path / "run"
    )
    assert code == 2
    assert words in complaint
    assert complaint.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["models"]


def test_a_broken_config_file_is_named(segsmith, tmp_path):
    (tmp_path / "my.toml").write_text("[judge\n")
    code, _, complaint = segsmith("build", "--classes", "cat", "--config", tmp_path / "my.toml")
    assert code == 2
    assert "my.toml" in complaint


def test_a_folder_with_other_things_in_it_is_left_alone(segsmith, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    code, _, complaint = segsmith("build", "--classes", "cat", "--out", tmp_path)
    assert code == 2
    assert "thesis.tex" in complaint
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_folder_of_another_config_is_refused_by_the_key_that_differs(segsmith, tmp_path):
    from segsmith.config import load_config
    from segsmith.memory.run_config import RunRecord, write_record

    config = load_config(flags={"preset": "sim", "classes": ("cat",), "seed": 7})
    write_record(tmp_path / "run.toml", RunRecord(config))
    code, _, complaint = segsmith("build", "--classes", "cat", "--seed", "9", "--out", tmp_path)
    assert code == 2
    assert "seed = 7" in complaint
    assert [p.name for p in tmp_path.iterdir()] == ["run.toml"]


def test_a_file_where_the_folder_should_be(segsmith, tmp_path):
    (tmp_path / "run").write_text("")
    code, _, complaint = segsmith("build", "--classes", "cat", "--out", tmp_path / "run")
    assert code == 2
    assert "--out" in complaint


def test_a_folder_one_may_not_write(segsmith, tmp_path, monkeypatch):
    from segsmith.memory import run_folder as store

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store.Path, "mkdir", denied)  # root may write anywhere, so permissions cannot say it
    code, _, complaint = segsmith("build", "--classes", "cat", "--out", tmp_path / "run")
    assert code == 2
    assert "Permission denied" in complaint


def test_missing_checkpoint_and_dataset(segsmith, tmp_path):
    code, _, complaint = segsmith("evaluate", tmp_path / "none.safetensors", "--dataset", tmp_path)
    assert code == 2
    assert "none.safetensors" in complaint or str(tmp_path) in complaint
    assert "Traceback" not in complaint


def test_report_of_no_run(segsmith, tmp_path):
    code, _, complaint = segsmith("report", tmp_path)
    assert code == 2
    assert "not a run folder" in complaint


def test_nouns_and_diagram_print(segsmith):
    code, names, _ = segsmith("nouns")
    assert code == 0
    assert "potted" in names
    code, text, _ = segsmith("diagram")
    assert code == 0
    assert text.startswith("flowchart TD")


def test_step_and_why_of_no_run(segsmith, tmp_path):
    for arguments in (
        ["step", tmp_path],
        ["why", tmp_path, "i-1"],
        ["step", tmp_path, "--answers", tmp_path / "x"],
    ):
        code, _, complaint = segsmith(*arguments)
        assert code == 2
        assert "not a run folder" in complaint
    assert not list(tmp_path.iterdir())


def test_version_short_help_and_the_order_of_commands(segsmith):
    from segsmith import __version__
    from segsmith.commands.console import PANELS

    assert segsmith("--version")[:2] == (0, f"segsmith {__version__}\n")
    code, said, _ = segsmith("-h")
    assert code == 0
    listed = [line.split()[1] for line in said.splitlines() if line.startswith("│ ") and line[2] not in "- "]
    assert listed == [name for names in PANELS.values() for name in names if name in listed]
    assert len(listed) >= 20
    assert segsmith("build", "-h")[0] == 0


def test_every_command_has_its_panel():
    import typer

    from segsmith import cli
    from segsmith.commands.console import PANELS

    names = set(typer.main.get_command(cli.app).commands)
    assert names <= {name for panel in PANELS.values() for name in panel}


def test_a_class_unlike_any_noun_gets_no_suggestion(segsmith, tmp_path):
    code, _, said = segsmith("build", "--classes", "quokka", "--preset", "sim", "--out", tmp_path / "run")
    assert code == 2
    assert "no sprite for class 'quokka'" in said
    assert "Did you mean" not in said
    assert "segsmith nouns" in said


def test_nouns_are_one_per_line_when_piped(segsmith):
    _, said, _ = segsmith("nouns")
    assert "cat" in said.splitlines()


@pytest.mark.parametrize(
    ("command", "key"),
    [(("plan", "--classes", "cat,dog"), "images"), (("models",), "role"), (("doctor", "--offline"), "what")],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_answers_as_json(segsmith, command, key):
    _, said, _ = segsmith(*command, "--preset", "sim", "--json")
    answer = json.loads(said)
    assert key in (answer[0] if isinstance(answer, list) else answer)
