"""Nouns and sprites: every noun has one meaning, many names, and a sprite in every style."""

import itertools

import numpy as np
import pytest

from segsmith.world import NOUNS, VOC_CLASSES, find_noun, sprite, suggest
from segsmith.world.nouns import normalise
from segsmith.world.sprites import ALL_STYLES, STYLES, TEST_STYLE, VALIDATION_STYLE, master, variants


def test_the_table_is_large_and_no_name_means_two_things():
    assert 400 <= len(NOUNS) <= 700
    meaning = {}
    for noun in NOUNS.values():
        for phrase in (noun.name, *noun.synonyms):
            key = normalise(phrase).replace(" ", "")
            assert meaning.setdefault(key, noun.name) == noun.name, phrase
    assert len({noun.codepoint for noun in NOUNS.values()}) == len(NOUNS)


@pytest.mark.parametrize("style", ALL_STYLES)
@pytest.mark.parametrize("name", VOC_CLASSES)
def test_every_voc_class_has_a_sprite(name, style):
    image = sprite(NOUNS[name], style, 48)
    assert image.shape[0] == 48
    assert image.shape[2] == 4
    assert image.dtype == np.uint8
    solid = image[..., 3] > 127
    assert solid.mean() > 0.1
    assert (image[..., 3] > 0).any(axis=1)[[0, -1]].all()  # cropped tightly


def test_the_styles_differ():
    for name in ("dog", "car", "diningtable"):
        drawn = [sprite(NOUNS[name], style, 40) for style in ALL_STYLES]
        for a, b in itertools.combinations(drawn, 2):
            assert a.shape != b.shape or (a != b).any()


def test_the_test_style_has_no_outlines_and_bends_every_sprite_in_several_ways():
    def dark(image):
        rgba = np.asarray(image, np.float32) / 255
        solid = rgba[..., 3] > 0.9
        return float((rgba[..., :3] @ np.array([0.3, 0.59, 0.11]) < 0.1)[solid].mean())

    codepoint = NOUNS["dog"].codepoint
    drawn = [master(codepoint, TEST_STYLE, k) for k in range(variants(TEST_STYLE))]
    assert dark(master(codepoint, VALIDATION_STYLE)) > 0.1
    assert max(map(dark, drawn)) < 0.02
    assert len({image.size for image in drawn}) > 2
    assert {variants(style) for style in STYLES} == {1}


@pytest.mark.parametrize("style", ALL_STYLES)
def test_a_sample_of_all_nouns_has_sprites(style):
    for name in list(NOUNS)[::13]:
        assert (sprite(NOUNS[name], style, 24)[..., 3] > 127).any(), name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Dining Tables", "diningtable"), ("dining-table", "diningtable"), ("TVs", "tvmonitor"),
        ("tv_monitor", "tvmonitor"), ("airplanes", "aeroplane"), ("couches", "sofa"),
        ("motorcycle", "motorbike"), ("bikes", "bicycle"), ("people", "person"),
        ("women", "person"), ("buses", "bus"), ("SHEEP", "sheep"), ("potted plants", "pottedplant"),
        ("geese", "goose"), ("mice", "mouse"), ("glasses of milk", "glass of milk"),
        ("  hot   dog ", "hot dog"), ("T-shirts", "t shirt"), ("orange", "tangerine"),
    ],
)  # fmt: skip
def test_nouns_are_found_in_any_spelling(text, name):
    noun = find_noun(text)
    assert noun is not None
    assert noun.name == name


@pytest.mark.parametrize("text", ["", "  ", "the", "quux", "dogdog", "\u0000", "犬"])
def test_unknown_words_are_not_found(text):
    assert find_noun(text) is None


def test_suggestions_have_a_similar_spelling():
    assert "elephant" in suggest("elefant")
    assert len(suggest("carr", n=2)) <= 2
    assert suggest("zzzzzzzz") == []
