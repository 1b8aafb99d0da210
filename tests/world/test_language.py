"""Prompts are parsed as a reader would understand them, and captions are read back as the same spec."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segsmith.world import NOUNS, ObjectSpec, SceneSpec, caption, parse
from segsmith.world.language import COLOURS, LIGHTS, MAX_COUNT, PLACES, STATES, WEATHERS


def seen(prompt):
    return {item.noun: item.count for item in parse(prompt).objects}


@pytest.mark.parametrize(
    ("prompt", "nouns"),
    [
        ("a dog", {"dog": 1}),
        ("a dog and two cats on the beach at sunset", {"dog": 1, "cat": 2}),
        ("A photo of three red sports cars", {"racing car": 3}),
        ("people walking in a park", {"person": 2}),
        ("a man riding a horse", {"person": 1, "horse": 1}),
        ("a flock of sheep and a lone wolf", {"sheep": 4, "wolf": 1}),
        ("no dogs, only a cat", {"cat": 1}),
        ("a street without any cars, with a bus", {"bus": 1}),
        ("a dog. The dog is near another dog.", {"dog": 2}),
        ("an orange and a pear", {"tangerine": 1, "pear": 1}),
        ("an orange car", {"car": 1}),
        ("a hot dog on a dining table", {"hot dog": 1, "diningtable": 1}),
        ("a bird's eye view of a bus at a train station", {"bus": 1}),
        ("snow on the beach", {}),
        ("a TV-monitor beside a couch", {"tvmonitor": 1, "sofa": 1}),
        ("a dozen things, none of them known: qwerty", {}),
        ("twelve cats", {"cat": MAX_COUNT}),
        ("umpteen cats", {"cat": 2}),  # an unknown number; the plural still counts
        ("nine cats", {"cat": MAX_COUNT}),
        ("Generate an image: **cat**, 4k, highly detailed", {"cat": 1}),
    ],
)
def test_objects_and_counts(prompt, nouns):
    assert seen(prompt) == nouns


def test_place_light_and_weather_are_read():
    spec = parse("two black cows in a foggy meadow at dawn")
    assert spec == SceneSpec((ObjectSpec("cow", 2, "black"),), "field", "golden hour", "fog")
    assert parse("a cat in a sunny garden").light == "day"
    assert parse("a car on a city street on a rainy night") == SceneSpec(
        (ObjectSpec("car"),), "street", "night", "rain"
    )


def test_colour_and_state_belong_to_their_noun():
    spec = parse("a small white dog and a cat sleeping on a red sofa")
    assert spec.objects == (
        ObjectSpec("dog", 1, "white", "small"),
        ObjectSpec("cat", 1, None, "sleeping"),
        ObjectSpec("sofa", 1, "red"),
    )


def test_missing_attributes_are_chosen_alike_each_time():
    assert parse("a boat") == parse("a boat")
    assert {parse(f"a boat number {k}x").place for k in range(40)} == {"lake", "harbour", "beach"}


@given(st.text(max_size=200))
@settings(max_examples=150, deadline=None)
def test_any_text_gives_a_spec(text):
    spec = parse(text)
    assert spec.place in PLACES
    assert spec.light in LIGHTS
    assert spec.weather in WEATHERS
    assert all(item.noun in NOUNS and 1 <= item.count <= MAX_COUNT for item in spec.objects)


_WORDS = st.sampled_from(  # one or more for each branch of the parser
    [
        "a",
        "an",
        "two",
        "no",
        "without",
        "another",
        "red",
        "orange",
        "dog",
        "dogs",
        "cats",
        "bus",
        "of",
        "the",
        "in",
        "on",
        "and",
        "park",
        "snow",
        "night",
        "running",
        "glass",
        "milk",
        "flock",
        "table",
        "hot",
        "dining",
        "orange",
        "with",
        ",",
        ".",
        "group",
    ]
)


@given(st.lists(_WORDS, max_size=25))
@settings(max_examples=150, deadline=None)
def test_any_sequence_of_known_words_gives_a_spec(words):
    spec = parse(" ".join(words))
    assert len({item.noun for item in spec.objects}) == len(spec.objects)


_OBJECTS = st.lists(
    st.builds(
        ObjectSpec,
        st.sampled_from(sorted(NOUNS)),
        st.integers(1, MAX_COUNT),
        st.none() | st.sampled_from(sorted(COLOURS)),
        st.none() | st.sampled_from(sorted(STATES)),
    ),
    max_size=4,
    unique_by=lambda item: item.noun,
)
_SPECS = st.builds(
    SceneSpec,
    _OBJECTS.map(tuple),
    st.sampled_from(sorted(PLACES)),
    st.sampled_from(sorted(LIGHTS)),
    st.sampled_from(sorted(WEATHERS)),
)


@given(_SPECS, st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_a_caption_reads_back_as_its_spec(spec, seed):
    assert parse(caption(spec, np.random.default_rng(seed))) == spec


def test_every_noun_reads_back_in_every_count():
    rng = np.random.default_rng(0)
    for name in NOUNS:
        for count in (1, 2):
            spec = SceneSpec((ObjectSpec(name, count),), "park", "day", "clear")
            assert parse(caption(spec, rng)) == spec


def test_captions_vary():
    spec = SceneSpec((ObjectSpec("dog"),), "beach", "sunset", "clear")
    rng = np.random.default_rng(0)
    assert len({caption(spec, rng) for _ in range(30)}) > 15
