"""Reading a run, judging it again, raising its caps, building it again, and the provenance of its images."""

import json
import os
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from small_run import KEY, SMALL

from segsmith.config import merged_config
from segsmith.errors import SegsmithError
from segsmith.events import ReviewNeeded, Status
from segsmith.files import sha256_of
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_config import read_record, write_record
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import ScriptedChat, fingerprint, small_config
from segsmith.workflows.build import build_run
from segsmith.workflows.settings import REACHING_OUTSIDE, check_reach, nested
from segsmith.workflows.verify import damaged_files


def test_the_funnel_narrows_and_adds_up(finished, segsmith):
    code, text, _ = segsmith("ledger", finished, "--json", "--prompts")
    assert code == 0
    book = json.loads(text)
    for name, counts in book["classes"].items():
        steps = [counts[step] for step in ("drawn", "accepted", "labelled", "masked")]
        assert steps == sorted(steps, reverse=True), name
        assert counts["admitted"] <= counts["written"]
    assert book["all"]["drawn"] - book["all"]["accepted"] == sum(book["image_rejects"].values())
    assert sum(p["drawn"] for p in book["prompts"]) == book["all"]["drawn"]
    code, text, _ = segsmith("ledger", finished, "--class", "cat")
    assert code == 0
    assert "dog" not in text
    assert segsmith("ledger", finished, "--class", "yak")[0] == 2


def test_the_same_settings_give_the_same_verdicts_without_any_model(finished, segsmith, monkeypatch):
    from segsmith.tools.vision.clip import OpenClipEncoder

    monkeypatch.setattr(OpenClipEncoder, "load", lambda *_: 1 / 0)
    code, text, _ = segsmith("rejudge", finished, "--calibrated", "--dry-run")
    assert code == 0
    assert "No verdict changes" in text


def test_rejudging_shows_first_then_writes_and_the_build_goes_on_from_there(run, segsmith, build):
    config = read_record(run / "run.toml").asked
    before = fingerprint(run)
    code, text, _ = segsmith("rejudge", run, "--threshold", "cat=1.0", "--dry-run")
    assert code == 0
    assert "Nothing was written" in text
    assert fingerprint(run) == before
    code, text, _ = segsmith("rejudge", run, "--threshold", "cat=1.0")
    assert "to update labels" in text
    assert read_record(run / "run.toml").config.judge.thresholds == {"cat": 1.0}
    capped = merged_config(config, {"budget": {"max_images": 1}}, "test")  # judge again, but draw no more
    again = build(capped, run)
    assert again.ended.status is Status.FINISHED
    assert again.tallies["cat"].accepted == 0
    assert again.ended.missing == {"cat": 3}
    exported = (run / "dataset" / "provenance.jsonl").read_text().splitlines()
    assert {json.loads(line)["class"] for line in exported} == {"dog"}
    segsmith("rejudge", run, "--calibrated")
    assert build(config, run).tallies["cat"].accepted == 3


def test_a_cap_holds_on_resume_is_said_and_may_be_raised(tmp_path, build):
    config = small_config(**SMALL)
    capped = merged_config(config, {"budget": {"max_images": 5}}, "test")
    run = build(capped, tmp_path / "run")
    assert drawn(run) == 5
    assert run.ended.cap == "max_images = 5"
    assert run.ended.missing == run.missing
    again = build(capped, tmp_path / "run")
    assert (again.ended.status, drawn(again)) == (Status.ALREADY_FINISHED, 5)
    run = build(config, tmp_path / "run")
    assert run.ended.reason == "quota_met"
    assert read_record(tmp_path / "run" / "run.toml").asked.budget.max_images is None


def test_hours_and_dollars_stop_a_run_too(tmp_path, build):
    config = small_config(**SMALL)
    (tmp_path / "run").mkdir()
    run = build(merged_config(config, {"budget": {"max_hours": 1e-7}}, "test"), tmp_path / "run")
    assert run.ended.cap.startswith("max_hours")
    assert run.ended.missing


def test_run_toml_builds_the_same_dataset_again(finished, tmp_path, segsmith, monkeypatch):

    code, _, said = segsmith(
        "build", "--from", finished / "run.toml", "--out", tmp_path / "again", parts={"chat": ScriptedChat()}
    )
    assert (code, said) == (0, "")
    assert fingerprint(tmp_path / "again") == fingerprint(finished)


@pytest.fixture
def foreign(finished, tmp_path):
    """Writes the finished run's settings, with others on top, as a stranger's run.toml; returns its path."""

    def foreign(**changes):
        record = read_record(finished / "run.toml")
        path = tmp_path / "stranger" / "run.toml"
        path.parent.mkdir()
        write_record(path, replace(record, asked=merged_config(record.asked, changes, "test")))
        return path

    return foreign


REACHING = {
    "llm.vllm_command": ({"llm": {"vllm_command": "./evil"}}, "./evil"),
    "llm.vllm_flags": ({"llm": {"vllm_flags": ("--plugin",)}}, '["--plugin"]'),
    "llm.base_url": ({"llm": {"base_url": "http://evil.example/v1"}}, "http://evil.example/v1"),
    "images.hosted.base_url": (
        {"images": {"hosted": {"base_url": "http://evil.example/v1"}}},
        "http://evil.example/v1",
    ),
    "witnesses.vlm_base_url": (
        {"witnesses": {"vlm_base_url": "http://evil.example/v1"}},
        "http://evil.example/v1",
    ),
    "trainer.tracker": ({"trainer": {"tracker": "wandb"}}, "wandb"),
    "memory": ({"memory": "/home/user/documents"}, "/home/user/documents"),
}


@pytest.mark.parametrize("key", REACHING)
def test_settings_of_a_stranger_that_reach_outside_are_rejected(foreign, segsmith, tmp_path, key):
    changes, value = REACHING[key]
    path = foreign(**changes)
    code, _, said = segsmith("build", "--from", path, "--out", tmp_path / "new")
    assert code == 2
    assert key in said
    assert "--trust" in said
    assert not (tmp_path / "new").exists()
    record = read_record(path)
    check_reach(record.asked, nested({key: json.loads(value) if value[0] == "[" else value}), path)


def test_every_setting_that_reaches_outside_is_tested():
    assert set(REACHING) == set(REACHING_OUTSIDE)


def test_a_server_that_the_environment_names_too_is_accepted(foreign, monkeypatch):
    path = foreign(llm={"base_url": "http://mine.example/v1"})
    monkeypatch.setenv("SEGSMITH_LLM__BASE_URL", "http://mine.example/v1")
    check_reach(read_record(path).asked, {}, path)
    monkeypatch.setenv("SEGSMITH_LLM__BASE_URL", "http://other.example/v1")
    with pytest.raises(SegsmithError, match=r"llm\.base_url"):
        check_reach(read_record(path).asked, {}, path)


def test_trusted_settings_build_and_the_run_resumes_from_its_own_file(foreign, segsmith, tmp_path):
    path, out = foreign(memory=str(tmp_path / "shared")), tmp_path / "new"
    chat = {"chat": ScriptedChat()}
    assert segsmith("build", "--from", path, "--out", out, "--trust", parts=chat)[0] == 0
    assert segsmith("build", "--from", out / "run.toml", "--out", out, parts=chat)[0] == 0


def test_every_exported_image_has_its_provenance(finished):
    ids = (finished / "dataset/voc/labels.csv").read_text().splitlines()[1:]
    records = [json.loads(line) for line in (finished / "dataset/provenance.jsonl").read_text().splitlines()]
    assert {r["image_id"] for r in records} == {line.split(",")[0] for line in ids}
    for record in records:
        assert record["prompt"]["text"]
        assert record["seed"] >= 0
        assert record["image_model"]["id"]
        assert record["image_model"]["revision"]
        assert record["image_model"]["licence"]
        assert record["verdict"]["scores"]["probability"] >= 0
        assert record["versions"]["segsmith"]


def test_the_key_is_nowhere(finished):
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [str(path) for path in files if KEY.encode() in path.read_bytes()] == []


def test_a_ledger_can_be_read_when_no_build_is_running(finished):
    ledger = Ledger(finished / "ledger.db")
    assert len(ledger.evidence()) == len(ledger.images())
    ledger.close()


def test_a_conversation_is_taken_up_at_the_very_item_before_any_model_is_loaded(
    tmp_path, segsmith, monkeypatch
):
    from segsmith.tools.vision.clip import OpenClipEncoder

    run = tmp_path / "run"
    pauses = []
    stop = build_run(
        small_config(**SMALL),
        run,
        reviewer=lambda pause: pauses.append(pause),
        parts={"chat": ScriptedChat()},
    )
    total = len(next(event.subjects for event in stop if isinstance(event, ReviewNeeded)))
    stop.close()
    monkeypatch.setattr(OpenClipEncoder, "load", lambda *_: 1 / 0)
    for number in (1, 2):
        typed = iter(["reject I saw enough of these"])
        monkeypatch.setattr("builtins.input", lambda question, typed=typed: next(typed, None) or quit_())
        code, said, _ = segsmith("step", run)
        assert code == 0
        assert f"prompt {number} of {total}" in said
        assert f"prompt {number + 1} of {total}" in said
        assert f"stopped; continue with: segsmith step {run}" in said


def test_ctrl_c_says_how_to_go_on(run, segsmith, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("segsmith.workflows.build.build", stopped)
    code, _, said = segsmith("build", "--from", run / "run.toml", "--out", run)
    assert code == 130
    assert "stopped; continue with: segsmith" in said


def drawn(run):
    return sum(tally.drawn for tally in run.tallies.values())


def quit_():
    raise EOFError


def test_every_command_that_writes_leaves_a_run_that_another_process_holds(run, segsmith, tmp_path):
    answers = tmp_path / "decisions.jsonl"
    answers.write_text("")
    commands = (
        ("step", run),
        ("step", run, "--answers", answers),
        ("rejudge", run, "--calibrated"),
        ("build", "--from", run / "run.toml", "--out", run),
    )
    with RunFolder(run).held():
        for command in commands:
            code, _, said = segsmith(*command)
            assert (code, said.count("Traceback")) == (2, 0), command
            assert f"process {os.getpid()}" in " ".join(said.split()), command


def test_a_rejudged_run_is_continued_by_its_own_run_toml(run, segsmith):
    segsmith("rejudge", run, "--threshold", "cat=1.0")
    again = ("build", "--from", run / "run.toml", "--out", run, "--set", "budget.max_images=1")
    code, _, said = segsmith(*again, parts={"chat": ScriptedChat()})
    assert (code, said) == (0, "")
    assert read_record(run / "run.toml").config.judge.thresholds == {"cat": 1.0}
    assert read_record(run / "run.toml").asked.judge.thresholds == {}


@pytest.mark.parametrize("lost", ["dataset/voc", "checkpoints/segmenter.safetensors"])
def test_a_lost_result_of_a_finished_run_is_made_again(run, finished, build, lost):
    path = run / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert build(small_config(**SMALL), run).ended.status == Status.FINISHED
    now, before = fingerprint(run), fingerprint(finished)
    # Exported again, the dataset's card states the evaluation that the ledger has by now.
    card = {"dataset/voc/README.md", "dataset/voc/manifest.json"}
    assert {name for name in before if now[name] != before[name]} <= card


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"garbage")])
def test_a_damaged_mask_of_a_finished_run_is_made_again(run, finished, build, damage):
    """The dataset is intact, so nothing else would notice."""
    with closing(Ledger(run / "ledger.db", read_only=True)) as ledger:
        mask = RunFolder(run).mask(ledger.accepted()[0].id)
    damage(mask)
    assert build(small_config(**SMALL), run).ended.status == Status.FINISHED
    assert mask.read_bytes() == (finished / mask.relative_to(run)).read_bytes()


def test_a_finished_run_is_opened_without_reading_its_files_and_models(run, build, monkeypatch):
    """Unless they have changed: a copy of the folder is read once. Later, files are counted, not looked up one by one."""
    read, looked_up = [], []

    def counting(path):
        read.append(path)
        return sha256_of(path)

    for module in ("segsmith.memory.run_folder", "segsmith.workflows.verify"):
        monkeypatch.setattr(f"{module}.sha256_of", counting)
    monkeypatch.setattr("segsmith.workflows.build.check_models", lambda *_, **__: 1 / 0)
    hashes = Ledger.mask_hashes
    monkeypatch.setattr(Ledger, "mask_hashes", lambda self: looked_up.append("masks") or hashes(self))
    monkeypatch.setattr(
        "segsmith.workflows.resume.damaged_files",
        lambda *given: looked_up.append("dataset") or damaged_files(*given),
    )
    for expected in ("all", "segmenter", "damaged"):
        read.clear()
        looked_up.clear()
        if expected == "damaged":
            image = next((run / "dataset" / "voc" / "JPEGImages").iterdir())
            image.write_bytes(image.read_bytes()[:-1])
            with pytest.raises(ZeroDivisionError):  # there is work to do again
                build(small_config(**SMALL), run)
            assert image in read
            assert looked_up == ["dataset"]
        else:
            assert build(small_config(**SMALL), run).ended.status == Status.ALREADY_FINISHED
            names = {path.relative_to(run).parts[0] for path in read}
            assert names == ({"masks", "dataset", "checkpoints"} if expected == "all" else {"checkpoints"})
            assert looked_up == (["masks", "dataset"] if expected == "all" else [])
