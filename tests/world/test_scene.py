"""A scene shows what its spec asks for, and its ground truth is exact."""

import subprocess
import sys
import zlib

import numpy as np
import pytest

from segsmith.errors import SegsmithError
from segsmith.world import VOC_CLASSES, ObjectSpec, SceneSpec, compose, parse, random_spec
from segsmith.world import scene as scene_module
from segsmith.world.language import LIGHTS, PLACES, WEATHERS
from segsmith.world.scene import MIN_VISIBLE
from segsmith.world.sprites import ALL_STYLES

_SPEC = parse("a dog and two cats on the beach at sunset")


@pytest.mark.parametrize("style", ALL_STYLES)
def test_every_requested_object_is_visible(style):
    rng = np.random.default_rng(0)
    for seed in range(60):
        spec = random_spec(VOC_CLASSES, rng)
        scene = compose(spec, seed, style=style)
        requested = {item.noun: item.count for item in spec.objects}
        drawn = [placed.noun for placed in scene.objects]
        assert {noun: drawn.count(noun) for noun in drawn} == requested
        ids = [placed.instance_id for placed in scene.objects]
        assert sorted(ids) == list(range(1, len(ids) + 1))
        for placed in scene.objects:
            mask = scene.instances == placed.instance_id
            assert mask.sum() == placed.visible_px > 20
            x0, y0, x1, y1 = placed.bbox_xyxy
            assert mask[y0:y1, x0:x1].sum() == placed.visible_px
            assert mask[y0].any()
            assert mask[y1 - 1].any()
            assert mask[:, x0].any()
            assert mask[:, x1 - 1].any()


def test_overlap_is_limited(monkeypatch):
    shares = []

    def spy(sprites, size):
        instances, seen = truth(sprites, size)
        shares[:] = seen
        return instances, seen

    truth = scene_module._truth
    monkeypatch.setattr(scene_module, "_truth", spy)
    rng = np.random.default_rng(4)
    for seed in range(40):
        compose(random_spec(VOC_CLASSES, rng, max_objects=4), seed)
        assert min(shares) >= MIN_VISIBLE >= 0.55


def test_single_objects_fill_much_of_the_image():
    for seed in range(20):
        for name in ("person", "bus", "dog"):
            placed = compose(SceneSpec((ObjectSpec(name),), "street", "day", "clear"), seed).objects[0]
            x0, y0, x1, y1 = placed.bbox_xyxy
            assert max(x1 - x0, y1 - y0) > 0.3 * 128


def test_crowds_are_complete():
    spec = SceneSpec(tuple(ObjectSpec(name, 6) for name in VOC_CLASSES[:8]), "park", "day", "rain")
    scene = compose(spec, 3)
    assert len(scene.objects) == 48
    assert min(placed.visible_px for placed in scene.objects) > 0


@pytest.mark.parametrize("size", [64, 96, 192])
def test_other_sizes(size):
    scene = compose(_SPEC, 0, size=size)
    assert scene.image.shape == (size, size, 3)
    assert scene.image.dtype == scene.instances.dtype == np.uint8
    assert scene.instances.shape == (size, size)


def test_the_class_mask_agrees_with_the_instances():
    scene = compose(_SPEC, 5)
    classes = ("bus", "kittens", "DOG", "no such thing")
    mask = scene.class_mask(classes)
    noun_of = {placed.instance_id: placed.noun for placed in scene.objects}
    expected = {"cat": 2, "dog": 3}
    for instance_id in np.unique(scene.instances):
        value = expected[noun_of[int(instance_id)]] if instance_id else 0
        assert (mask[scene.instances == instance_id] == value).all()
    assert scene.present(classes) == ("kittens", "DOG")
    assert not scene.class_mask(["bus"]).any()
    assert not scene.class_mask([]).any()


def test_every_place_light_and_weather_can_be_drawn():
    for k, place in enumerate(PLACES):
        for light in LIGHTS:
            for weather in WEATHERS:
                scene = compose(SceneSpec((), place, light, weather), k, style=ALL_STYLES[k % 3])
                assert scene.image.std() > 2, (place, light, weather)
                assert not scene.instances.any()


def test_night_is_dark_and_snow_is_white():
    def brightness(light, weather):
        spec = SceneSpec((ObjectSpec("car"),), "street", light, weather)
        return np.mean([compose(spec, seed).image.mean() for seed in range(6)])

    assert brightness("night", "clear") < 0.6 * brightness("day", "clear")
    assert brightness("day", "snow") > brightness("day", "rain")


def test_a_colour_word_tints_the_object():
    hues = {}
    for colour in ("red", "green", "blue"):
        spec = SceneSpec((ObjectSpec("car", 1, colour),), "studio", "day", "clear")
        scene = compose(spec, 0)
        hues[colour] = scene.image[scene.instances > 0].mean(0).argmax()
    assert hues == {"red": 0, "green": 1, "blue": 2}


def test_the_same_arguments_give_the_same_pixels():
    first, second = compose(_SPEC, 7), compose(_SPEC, 7)
    assert (first.image == second.image).all()
    assert first.objects == second.objects
    assert (compose(_SPEC, 8).image != first.image).any()
    assert (compose(_SPEC, 7, style="openmoji").image != first.image).any()
    typed = SceneSpec(
        tuple(ObjectSpec(np.str_(o.noun), int(np.int64(o.count))) for o in _SPEC.objects),
        *(np.str_(word) for word in (_SPEC.place, _SPEC.light, _SPEC.weather)),
    )
    assert (compose(typed, 7).image == first.image).all()


def test_the_same_pixels_in_another_process():
    program = (
        "import zlib; from segsmith.world import compose, parse; "
        "scene = compose(parse('a dog and two cats on the beach at sunset'), 7); "
        "print(zlib.crc32(scene.image.tobytes() + scene.instances.tobytes()))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    scene = compose(_SPEC, 7)
    assert int(out) == zlib.crc32(scene.image.tobytes() + scene.instances.tobytes())


def test_unknown_words_are_rejected_with_a_remedy():
    with pytest.raises(SegsmithError, match="elephant"):
        compose(SceneSpec((ObjectSpec("elefant"),), "park", "day", "clear"), 0)
    with pytest.raises(SegsmithError, match="beach"):
        compose(SceneSpec((), "moonbase", "day", "clear"), 0)


def test_random_specs_are_plausible():
    rng = np.random.default_rng(0)
    for _ in range(50):
        spec = random_spec(("dog", "couch", "tv"), rng, max_objects=2)
        nouns = [item.noun for item in spec.objects]
        assert 1 <= len(nouns) <= 2
        assert len(set(nouns)) == len(nouns)
        assert set(nouns) <= {"dog", "sofa", "tvmonitor"}
