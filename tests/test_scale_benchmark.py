"""The stand-ins for large runs, and the benchmark that uses them, end to end at a small size."""

import json

from benchmarks.scale import CLASSES, build, chart, growth
from segsmith.testing import InstantEncoder, instant_config, instant_parts
from segsmith.workflows.build import build_run
from segsmith.workflows.run import open_run


def test_a_build_with_stand_ins_fills_its_quota(tmp_path):
    config = instant_config(("cat", "dog"), 6)
    for _ in build_run(config, tmp_path / "run", parts=instant_parts(config, tmp_path / "run")):
        pass
    run = open_run(tmp_path / "run")
    assert run.missing == {}
    assert run.is_finished
    assert len(run.images) == 12


def test_the_instant_encoder_tells_classes_apart():
    encoder = InstantEncoder(("cat", "dog"))
    cat, other = encoder.embed_texts(["a photo of a cat", "a cat in calm light."])
    (dog,) = encoder.embed_texts(["a photo of a dog"])
    assert cat @ other > dog @ other


def test_the_benchmark_gives_its_figures_and_a_chart(tmp_path):
    found = build(tmp_path / "run", len(CLASSES), 64)
    assert found["accepted"] == len(CLASSES)
    assert found["own ms per image"] > 0
    assert {"prompts", "draw", "judge", "exporting"} <= found["ms per image by stage"].keys()
    assert json.loads(json.dumps(found)) == found
    larger = {**found, "images": 200, "own ms per image": 2 * found["own ms per image"]}
    assert "200 against 20 images: 2.00" in growth([larger, found])
    svg = chart([found, larger], [found])
    assert svg.count("<circle") == 3
    assert "prefers-color-scheme:dark" in svg
