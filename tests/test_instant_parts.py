"""The stand-ins of `segsmith.testing` for large runs."""

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
