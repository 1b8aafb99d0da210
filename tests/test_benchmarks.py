"""Benchmarks run: every one prints its help, and the one that waits for a GPU runs on small models on the CPU."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from segsmith.types import MaskCandidates

ROOT = Path(__file__).parents[1]
NAMES = [
    *sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py") if "__main__" in p.read_text("utf-8")),
    *sorted(f"{p.parent.name}.__main__" for p in (ROOT / "benchmarks").glob("*/__main__.py")),
]


def benchmark(name, *arguments):
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_prints_its_help(name, monkeypatch, capsys):
    """In this process: starting one for each would import torch a dozen times."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        import_module(f"benchmarks.{name}").main()
    assert end.value.code == 0
    assert f"python -m benchmarks.{name.removesuffix('.__main__')}" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.slow
def test_the_gpu_benchmark_runs_to_its_end_on_small_models():
    said = benchmark("gpu_throughput", "--tiny", "--steps", "2", "--repeats", "1", "--batch", "2")
    for row in ("diffusion, 64 px", "half of them filtered", "  fuse_qkv", "CLIP mini", "SAM, 8 prompts"):
        assert row in said
    assert said.count("ratio") == 7
    assert "random weights load: CLIP RN50 (1024 dimensions), SAM ViT-B" in said


@pytest.mark.slow
def test_the_scale_benchmark_gives_its_figures_and_a_chart(tmp_path):
    figures, svg = tmp_path / "scale.json", tmp_path / "scale.svg"
    said = benchmark("scale", "--sizes", "20", "40", "--out", str(figures), "--svg", str(svg))
    assert "own work per image, 40 against 20 images" in said
    small, large = json.loads(figures.read_text())
    assert (small["accepted"], large["accepted"]) == (20, 40)
    assert {"prompts", "draw", "judge", "exporting"} <= small["ms per image by stage"].keys()
    assert svg.read_text().count("<circle") == 2


def test_the_page_of_results_has_a_place_for_every_part(tmp_path):
    page = tmp_path / "results.md"
    benchmark("results", "--page", "--out", str(page))
    text = page.read_text("utf-8")
    assert text.startswith("# Results")
    assert "$" not in text
    assert "`python -m benchmarks.kill_anywhere --kills 10 --scenario all --out" in text


def test_the_table_of_kills_states_what_was_measured(tmp_path):
    figures = {"kills": 10, "identical": 9, "half-written or unknown files": 2}
    build = {**figures, "lost images": 3, "again": {"ask": 0, "draw": 4, "epoch": 5}}
    (tmp_path / "kills.json").write_text(json.dumps({"build": build, "train": figures}))
    said = benchmark("kill_anywhere", "--out", str(tmp_path / "kills.json"), "--table")
    assert "| `build` | 10 | 9 | 2 | 3 | 4 | 5 |" in said
    assert "| `train` | 10 | 9 | 2 |  |  |  |" in said


def test_the_peers_tables_state_what_was_measured(tmp_path):
    figures = {"precision": 0.5, "recall": 0.25, "passing": 0.5}
    measured = {"tester": {"images": 4, "good": 2, "programs": {"the judge": figures}}}
    (tmp_path / "peers.json").write_text(json.dumps(measured))
    said = benchmark("peers", "--table", "--results", str(tmp_path / "peers.json"))
    assert "2 of 4 images are good" in said
    assert "| the judge | 0.500 | 0.250 | 0.500 |" in said


def test_results_notes_each_part_that_ran_to_its_end_and_starts_none_when_the_time_is_over(
    tmp_path, monkeypatch, capsys
):
    results = import_module("benchmarks.results")
    monkeypatch.setattr(results, "RUNS", tmp_path)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.chdir(ROOT)
    parts = [results.Part("good", ("scale", "--help")), results.Part("bad", ("scale", "--no-such-option"))]
    monkeypatch.setattr(results, "PARTS", parts)
    monkeypatch.setattr(results, "page", lambda images: "")
    out = ["results", "--out", str(tmp_path / "results.md")]
    monkeypatch.setattr(sys, "argv", [*out, "--hours", "-1"])
    results.main()
    assert not results.notes()
    monkeypatch.setattr(sys, "argv", out)
    results.main()
    assert list(results.notes()) == ["good"]
    said = capsys.readouterr().out
    assert said.count("not started") == 2
    assert "bad: failed with exit code 2" in said
    results.main()
    assert "good:" not in capsys.readouterr().out, "what was measured is not measured again"


def test_figures_of_one_machine_are_continued_on_another(tmp_path, monkeypatch):
    results = import_module("benchmarks.results")
    part = results.Part("some", ("scale", "--help"), figures="some/seed*.json")
    monkeypatch.setattr(results, "PARTS", [part, results.Part("said", ("scale",))])

    def on(machine, *names):
        monkeypatch.setattr(results, "RUNS", tmp_path / machine)
        monkeypatch.setattr(results, "ROOT", tmp_path / machine / "results")
        for name, value in names:
            path = tmp_path / machine / "some" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value))

    on("first", ("seed3", {"a": 1}), ("seed4", {"a": 2}))
    (tmp_path / "first" / "results").mkdir()
    (tmp_path / "first" / "results" / "said.log").write_text("a line\nanother")
    assert not results.figures()["files"], "figures of which nobody knows where they come from"
    monkeypatch.chdir(ROOT)
    for part in results.PARTS:
        results.note_measured(part, hours=0.5)
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results.figures()))
    assert sorted(json.loads(file.read_text())["files"]) == [
        "results/said.log",
        "some/seed3.json",
        "some/seed4.json",
    ]

    on("second", ("seed4", {"a": 20}))
    results.take_over(file)
    assert json.loads((tmp_path / "second/some/seed3.json").read_text()) == {"a": 1}
    assert json.loads((tmp_path / "second/some/seed4.json").read_text()) == {"a": 20}
    assert (tmp_path / "second/results/said.log").read_text() == "a line\nanother"
    assert results.notes()["some"]["hours"] == 0.5


def test_remembered_masks_ask_sam_once(tmp_path):
    remembered = import_module("benchmarks.remembered_masks").RememberedMasks
    asked = []

    def masks_of(image, points):
        return MaskCandidates(np.full((3, *image.shape[:2]), points[0, 0] > 3), points[:3, 1])

    class Sam:
        def segment(self, image, point_sets):
            asked.append(len(point_sets))
            return [masks_of(image, points) for points in point_sets]

    image = np.arange(7 * 9 * 3, dtype=np.uint8).reshape(7, 9, 3)
    low, high = np.float32([[1, 0.25]] * 3), np.float32([[5, 0.5]] * 3)
    sam = remembered(tmp_path / "masks.db", "one view", Sam)
    for sets in ([low], [low, high], [high, low]):
        for found, points in zip(sam.segment_many([image], [sets])[0], sets, strict=True):
            assert np.array_equal(found.masks, masks_of(image, points).masks)
            assert np.array_equal(found.scores, points[:, 1])
    assert asked == [1, 1]
    remembered(tmp_path / "masks.db", "one view", Sam).segment(image, [low])
    assert asked == [1, 1]
    remembered(tmp_path / "masks.db", "four views", Sam).segment(image, [low])
    sam.segment(image[::-1], [low])
    assert asked == [1, 1, 1, 1]


def test_the_mini_clip_knows_the_words_of_every_set_of_classes():
    from segsmith.tools.images.simulator import untaught

    sets = import_module("benchmarks.sim_quality").CLASS_SETS
    assert not any(untaught(classes) for classes in sets.values())


def test_the_tables_of_quality_show_what_was_measured_and_divide_seed_by_seed():
    tables = import_module("benchmarks.sim_quality_table").tables
    full = [
        {"seed": "seed3", "real_miou": 0.2, "precision": 0.5},
        {"seed": "seed4", "real_miou": 0.4, "precision": 0.5},
    ]
    exact = [{"seed": "seed4", "real_miou": 0.5}]
    said = tables({"full": full, "exact": exact, "witnesses": [], "diversity": []})
    assert "| judge: precision of accepted images | 0.500 | >= 0.97 |" in said
    assert "| segmenter: mIoU on the test set | 0.300 (0.200 to 0.400) |  |" in said
    assert "| the same over that with exact masks | 0.800 | >= 0.95 |" in said
    assert "witnesses |" not in said, "columns without figures are left out"
    assert "variant" not in said, "two variants are no ablation"
    assert "prompt agent" not in said
    off = [{"seed": "seed3", "mask_miou": 0.4, "mask_ignore": 0.1}]
    assert "| SAM off | 0.400 | 0.100 |" in "".join(
        line.replace("|  ", "")
        for line in tables({"full": full, "exact": exact, "sam_off": off}).splitlines()
    )
