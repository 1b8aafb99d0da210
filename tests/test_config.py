"""The config: precedence, round trip, old names, and one clear line for every mistake."""

import tomllib

import pytest

from segsmith.config import (
    Config,
    check_class_names,
    config_toml,
    equals_stored,
    load_config,
    merged_config,
    parse_config,
)
from segsmith.errors import SegsmithError
from segsmith.memory.run_config import read_record
from segsmith.workflows.settings import check_used


def test_flag_wins_over_environment_over_file_over_preset(tmp_path, monkeypatch):
    file = tmp_path / "my.toml"
    file.write_text("per_class = 11\n[judge]\ntop_k = 7\nmin_sharpness = 0.4\n")
    monkeypatch.setenv("SEGSMITH_JUDGE__TOP_K", "8")
    config = load_config(file=file, flags={"classes": ("cat",), "seed": 5})
    assert (config.per_class, config.judge.top_k, config.judge.min_sharpness, config.seed) == (11, 8, 0.4, 5)
    assert config.images.backend == "simulator"
    assert load_config(file=file, flags={"judge": {"top_k": 9}}).judge.top_k == 9


def test_round_trip():
    config = Config(classes=("cat", "potted plant"), per_class=3, budget={"max_images": 9})
    assert parse_config(tomllib.loads(config_toml(config)), "test") == config


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().per_class = 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("per_clas = 3", "Unknown setting 'per_clas'"),
        ("[judge]\ntopk = 3", "top_k"),
        ("per_class = 0", "per_class"),
        ("per_class = 'many'", "per_class"),
        ("[judge]\nmin_probability = 2", "judge.min_probability"),
        ("splits = [0.7, 0.2, 0.3]", "sum to 1"),
        ("per_class = ", "not valid TOML"),
        ("seed = -1", "seed"),
        (f"seed = {10**30}", "seed"),
        ("seed = 0.5", "seed"),
        ('classes = ["cat\\ndog"]', "line break or control character"),
        ('classes = ["cat\\u001b[2J"]', "line break or control character"),
        (f"classes = [{', '.join(repr(f'c{i}') for i in range(255))}]", "at most 254"),
        ("[trainer]\nbatch_size = 0", "trainer.batch_size"),
        ("[trainer]\nlearning_rate = inf", "trainer.learning_rate"),
        ("[budget]\nmax_usd = nan", "budget.max_usd"),
        ("[images]\nsize = 1_000_000_000", "images.size"),
        (f"seed = {'[' * 5000}{']' * 5000}", "nested too deeply"),
        (f"{'k' * 5000} = 1", "Unknown setting"),
        ("[llm]\nable = true\nwrites_sentences = false", "old name of llm.writes_sentences"),
        ("llm = 3", "llm"),
    ],
)
def test_mistakes_in_a_file(tmp_path, text, words):
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(SegsmithError) as error:
        load_config(file=file)
    assert words in str(error.value)
    if "old name" not in words:
        assert "bad.toml" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000 + len(str(tmp_path))


def test_missing_file_and_unknown_preset(tmp_path):
    with pytest.raises(SegsmithError, match="does not exist"):
        load_config(file=tmp_path / "none.toml")
    with pytest.raises(SegsmithError, match="sim"):
        load_config(preset="gpux")


@pytest.mark.parametrize(
    "names",
    [
        ("",),
        ("cat", ""),
        ("cat", "Cat"),
        ("x" * 300,),
        ("../x",),
        ("a'b",),
        ("<b>",),
        ("cat\ndog",),
        ("cat\tdog",),
        ("cat\x00",),
        ("café",),
    ],
)
def test_unusable_class_names_are_rejected(names):
    with pytest.raises(ValueError, match=r"class name|named twice"):
        check_class_names(names)


def test_class_names_are_trimmed():
    assert check_class_names((" potted  plant ", "tv-monitor")) == ("potted plant", "tv-monitor")


def test_the_old_name_of_a_setting_is_still_read(tmp_path, monkeypatch):
    file = tmp_path / "old.toml"
    file.write_text("[llm]\nable = true\n")
    assert load_config(file=file).llm.writes_sentences
    assert load_config(flags={"llm": {"able": True}}).llm.writes_sentences
    assert parse_config({"llm": {"able": True}}, "run.toml").llm.writes_sentences
    assert merged_config(Config(), {"llm": {"able": True}}, "test").llm.writes_sentences
    assert not load_config(preset="cpu", flags={"llm": {"able": False}}).llm.writes_sentences
    monkeypatch.setenv("SEGSMITH_LLM__ABLE", "true")
    assert load_config().llm.writes_sentences
    assert "able" not in tomllib.loads(config_toml(load_config()))["llm"]


def test_steps_replace_the_epochs_of_a_lower_layer_and_an_old_run_keeps_its_epochs(tmp_path, monkeypatch):
    file = tmp_path / "old.toml"
    file.write_text("[trainer]\nepochs = 30\n")
    assert load_config().trainer.epochs is None
    assert load_config(file=file).trainer.length == "30 epochs"
    assert load_config(file=file, flags={"trainer": {"steps": 50}}).trainer.length == "50 steps"
    assert load_config(preset="gpu", flags={"trainer": {"epochs": 4}}).trainer.length == "4 epochs"
    assert merged_config(load_config(file=file), {"trainer": {"steps": 50}}, "x").trainer.length == "50 steps"
    monkeypatch.setenv("SEGSMITH_TRAINER__STEPS", "60")
    assert load_config(file=file).trainer.length == "60 steps"
    assert parse_config(tomllib.loads(config_toml(load_config(file=file))), "x").trainer.length == "60 steps"
    with pytest.raises(SegsmithError, match="Set one of the two"):
        check_used("train", {"trainer.steps": 5, "trainer": {"epochs": 3}})


def test_an_environment_variable_that_cannot_be_read_gives_one_line(monkeypatch):
    monkeypatch.setenv("SEGSMITH_JUDGE", "{")
    with pytest.raises(SegsmithError, match=r"judge.*SEGSMITH_JUDGE__TOP_K") as error:
        load_config()
    assert "\n" not in str(error.value)


def test_a_config_stored_with_old_names_is_recognised():
    config = load_config(preset="gpu", flags={"classes": ("cat",)})
    text = config.model_dump_json()
    assert equals_stored(config, text)
    assert equals_stored(config, text.replace('"writes_sentences"', '"able"'))
    assert not equals_stored(config, text.replace('"per_class":40', '"per_class":41'))
    for damaged in ("", "{", "3", "[" * 100_000, '{"seed": "x"}'):
        assert not equals_stored(config, damaged)


@pytest.mark.parametrize(
    "text",
    [
        "config = 3",
        "versions = 3\n[config]\nseed = 1",
        "rejudged = 3\n[config]\nseed = 1",
        "[config]\nllm = 3",
        f"seed = {'[' * 5000}{']' * 5000}",
        "[config]\nclasses = ['cat\\n']",
        "[config.judge]\ntop_k = -1",
        "[rejudged]\ntop_k = -1",
    ],
)
def test_a_damaged_run_toml_gives_one_line(tmp_path, text):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(SegsmithError) as error:
        _ = read_record(tmp_path / "run.toml").config
    assert "run.toml" in str(error.value)
    assert "\n" not in str(error.value)


def test_splits_of_seventy_twenty_ten():
    assert Config(splits=(0.7, 0.2, 0.1)).splits == (0.7, 0.2, 0.1)
