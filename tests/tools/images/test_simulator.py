"""The simulator obeys the prompt, errs at its rates, and keeps the truth to itself."""

import numpy as np
import pytest

from segsmith.config import FaultRates
from segsmith.errors import SegsmithError
from segsmith.protocols import ImageBackend
from segsmith.tools.images.simulator import Simulator, check_drawable, synonyms, unseen_scenes, untaught
from segsmith.types import ImageRequest

POOL = ("cat", "dog", "bus", "boat")
NONE = dict.fromkeys(FaultRates.model_fields, 0.0)


def simulator(**rates):
    return Simulator(FaultRates(**{**NONE, **rates}), POOL)


def request(seed=1000, prompt="a photo of a cat in a park"):
    return ImageRequest(prompt, seed)


def test_it_is_an_image_backend_and_repeats_itself():
    assert isinstance(simulator(), ImageBackend)
    (a,), (b,), (other,) = (
        [drawn.image for drawn in simulator().draw([r])] for r in (request(), request(), request(1001))
    )
    assert a.shape == (128, 128, 3)
    assert a.dtype == np.uint8
    assert np.array_equal(a, b)
    assert not np.array_equal(a, other)


def test_without_faults_the_asked_things_are_there():
    drawing = simulator().truth(request(prompt="a photo of two dogs and a bus on a street at night"))
    assert drawing.faults == ()
    assert [o.noun for o in drawing.scene.objects].count("dog") == 2
    assert set(drawing.scene.present(POOL)) == {"dog", "bus"}


def test_each_fault_does_what_it_says():
    there = {
        kind: simulator(**{kind: 1.0}).truth(request())
        for kind in FaultRates.model_fields
        if kind != "duplicate"
    }
    assert "cat" not in there["wrong"].scene.present(POOL)
    assert there["wrong"].scene.present(POOL)
    assert there["missing"].scene.present(POOL) == ()
    extra = there["extra"].scene.present(POOL)
    assert "cat" in extra
    assert len(extra) == 2
    plain = simulator().truth(request())
    assert (
        np.abs(np.diff(there["blur"].image.astype(int), axis=1)).mean()
        < np.abs(np.diff(plain.image.astype(int), axis=1)).mean()
    )
    assert all(drawing.faults == (kind,) for kind, drawing in there.items())


def test_a_duplicate_repeats_the_seed_before():
    twins = simulator(duplicate=1.0)
    first, second = twins.truth(request(2000)), twins.truth(request(2001))
    assert first.faults == ()
    assert second.faults == ("duplicate",)
    assert np.array_equal(first.image, second.image)


def test_rates_are_kept():
    rates = {"wrong": 0.1, "extra": 0.15, "missing": 0.05, "blur": 0.05}
    drawings = [simulator(**rates).truth(request(1000 * i)) for i in range(400)]
    for kind, rate in rates.items():
        share = np.mean([kind in d.faults for d in drawings])
        assert abs(share - rate) < 4 * (rate * (1 - rate) / 400) ** 0.5, kind


def test_the_test_world_has_another_style_and_exact_masks():
    scenes = list(unseen_scenes(POOL, 4, seed=3, size=128))
    for scene in scenes:
        assert scene.present(POOL)
        assert set(np.unique(scene.class_mask(POOL))) - {0} == {
            POOL.index(c) + 1 for c in scene.present(POOL)
        }
    again = list(unseen_scenes(POOL, 4, seed=3, size=128))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(scenes, again, strict=True))


@pytest.mark.parametrize(
    ("classes", "words"),
    [(("cat", "flurbodin"), "flurbodin"), (("sofa", "couch"), "same sprite"), (("cta",), "cat")],
)
def test_classes_it_cannot_draw(classes, words):
    with pytest.raises(SegsmithError, match=words):
        check_drawable(classes)


def test_synonyms_begin_with_the_name():
    assert synonyms("sofa")[0] == "sofa"
    assert "couch" in synonyms("sofa")
    assert synonyms("flurbodin") == ("flurbodin",)


def test_classes_the_mini_clip_was_not_trained_on_are_listed():
    assert untaught(["cat", "axe", "bus"]) == ["axe"]
