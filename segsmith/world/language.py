"""Parses an English prompt into a scene specification, and writes captions for one.

`parse` accepts any string, as text-to-image models do; `caption` describes a specification in varied English that
`parse` reads back as the same specification.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from segsmith.world.nouns import NOUNS, Noun, normalise, phrases, plurals

MAX_COUNT = 6
"""Maximum number of objects of one noun; more are hard to tell apart in a small image."""

PLACES: dict[str, tuple[str, ...]] = {
    "street": ("road", "city street", "avenue", "alley", "sidewalk", "pavement", "crosswalk",
               "city", "town", "downtown", "urban scene", "parking lot", "car park", "driveway",
               "highway", "intersection", "village", "square"),
    "park": ("garden", "lawn", "backyard", "yard", "playground", "dog park", "park bench",
             "city park"),
    "field": ("meadow", "pasture", "farm", "grassland", "countryside", "farmland", "grassy field",
              "wheat field", "green field", "open field", "barnyard", "ranch", "savanna",
              "savannah", "prairie", "grass"),
    "forest": ("woods", "woodland", "jungle", "rainforest", "pine forest", "forest clearing"),
    "beach": ("seaside", "shore", "seashore", "coast", "sandy beach", "ocean", "sea", "coastline",
              "sea shore"),
    "lake": ("river", "pond", "lakeside", "riverbank", "river bank", "lakeshore", "stream",
             "lake shore", "calm water"),
    "harbour": ("harbor", "port", "marina", "dock", "docks", "quay", "pier", "wharf"),
    "mountain": ("mountains", "alpine valley", "hills", "hillside", "snowy mountain",
                 "snowy mountains", "alps", "valley", "mountain side", "mountainside",
                 "mountain valley", "cliff"),
    "desert": ("dunes", "sand dunes", "sahara", "canyon", "dry desert"),
    "airport": ("runway", "airfield", "tarmac", "airport runway", "hangar"),
    "railway": ("train station", "railway station", "station platform", "railroad", "train tracks",
                "railway tracks", "rail yard", "platform", "station", "railway line", "tracks"),
    "kitchen": ("kitchen counter", "cooking area", "restaurant kitchen", "restaurant", "cafe"),
    "living room": ("lounge", "sitting room", "livingroom", "dining room", "apartment", "indoors",
                    "cosy room", "home interior", "family room", "room"),
    "bedroom": ("bed room", "hotel room", "nursery", "dormitory", "bed"),
    "office": ("workplace", "meeting room", "classroom", "conference room", "office room",
               "library", "workspace"),
    "studio": ("photo studio", "plain background", "white background", "plain backdrop",
               "studio background", "simple background", "neutral background", "studio backdrop"),
}  # fmt: skip
"""Place -> its synonyms."""

INDOOR = frozenset({"kitchen", "living room", "bedroom", "office", "studio"})

LIGHTS: dict[str, tuple[str, ...]] = {
    "day": ("daylight", "daytime", "midday", "noon", "bright daylight", "broad daylight",
            "sunlight", "bright sunlight", "natural light", "afternoon", "sunlit", "by day",
            "bright day"),
    "golden hour": ("morning", "early morning", "sunrise", "dawn", "morning light",
                    "golden light", "warm light", "golden morning light", "late afternoon",
                    "golden hour light"),
    "sunset": ("dusk", "twilight", "evening", "sundown", "at dusk", "evening light",
               "setting sun"),
    "night": ("nighttime", "night time", "midnight", "moonlight", "dark night", "moonlit",
              "after dark", "darkness", "nocturnal"),
    "overcast": ("cloudy", "overcast sky", "cloudy sky", "grey sky", "gray sky", "dull light",
                 "soft light", "diffuse light", "flat light", "cloudy day", "overcast day"),
    "lamplight": ("lamp light", "indoor light", "artificial light", "warm lamp", "candlelight",
                  "indoor lighting", "indoor lamp", "artificial lighting", "studio lighting",
                  "fluorescent light"),
}  # fmt: skip
"""Light -> its synonyms."""

WEATHERS: dict[str, tuple[str, ...]] = {
    "clear": ("clear sky", "clear skies", "clear weather", "sunny", "blue sky", "cloudless",
              "fine weather", "sunshine", "dry weather", "fair weather"),
    "rain": ("rainy", "raining", "rainfall", "drizzle", "downpour", "rainstorm", "stormy", "storm",
             "rainy weather", "heavy rain", "wet weather", "thunderstorm"),
    "snow": ("snowy", "snowing", "snowfall", "blizzard", "snowstorm", "wintry", "winter",
             "falling snow", "snow covered", "snowy weather"),
    "fog": ("foggy", "mist", "misty", "haze", "hazy", "thick fog", "morning mist",
            "foggy weather"),
}  # fmt: skip
"""Weather -> its synonyms."""

COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("crimson", "scarlet", "maroon"),
    "orange": ("amber",),
    "yellow": ("lemon yellow",),
    "green": ("emerald", "dark green", "light green"),
    "blue": ("navy", "navy blue", "dark blue", "light blue", "turquoise", "teal", "cyan"),
    "purple": ("violet", "lilac", "magenta"),
    "pink": ("light pink", "fuchsia"),
    "brown": ("beige", "tan", "dark brown", "light brown", "chestnut brown", "ginger brown"),
    "black": ("jet black",),
    "white": ("snow white", "cream coloured"),
    "grey": ("gray", "silver", "dark grey", "dark gray"),
}
"""Colour -> its synonyms; a colour is only read before a noun."""

STATES: dict[str, tuple[str, ...]] = {
    "flying": ("soaring", "hovering", "in flight", "airborne"),
    "sleeping": ("asleep", "lying", "lying down", "resting", "napping"),
    "running": ("galloping", "jumping", "leaping", "racing", "playing"),
    "standing": ("upright", "grazing", "waiting", "walking"),
    "sitting": ("seated", "perched", "sitting down"),
    "parked": ("stationary",),
    "moving": ("speeding", "driving", "passing", "travelling"),
    "large": ("big", "huge", "giant", "enormous"),
    "small": ("tiny", "little", "miniature"),
    "old": ("vintage", "rusty", "worn", "antique"),
}
"""State or pose -> its synonyms; read before a noun or directly after it."""

_COUNTS = {
    "a": 1, "an": 1, "one": 1, "single": 1, "1": 1, "another": 1,
    "two": 2, "2": 2, "pair of": 2, "a pair of": 2, "couple of": 2, "a couple of": 2, "both": 2,
    "three": 3, "3": 3, "several": 3, "a few": 3, "few": 3, "some": 2, "trio of": 3,
    "a trio of": 3, "four": 4, "4": 4, "group of": 4, "a group of": 4, "herd of": 4,
    "a herd of": 4, "flock of": 4, "a flock of": 4, "a number of": 3, "five": 5, "5": 5,
    "many": 5, "lots of": 5, "crowd of": 5, "a crowd of": 5, "a row of": 3, "row of": 3,
    "six": 6, "6": 6, "seven": 6, "eight": 6, "nine": 6, "ten": 6, "dozens of": 6,
    "eleven": 6, "twelve": 6, "a dozen": 6, "dozen": 6, "7": 6, "8": 6, "9": 6, "10": 6, "12": 6,
}  # fmt: skip
_NUMBER_WORDS = ("", "", "two", "three", "four", "five", "six")
_NEGATIONS = ("no", "without", "without a", "without an", "without any", "free of", "not a",
              "not any", "except", "instead of", "instead of a")  # fmt: skip

# Phrases with the name of a noun or place that do not mean it.
_IDIOMS = (
    "camera angle", "the camera", "on camera", "camera lens", "camera view", "camera shot",
    "eye level", "bird's eye", "birds eye", "birds eye view", "bird's eye view", "fish eye",
    "fisheye", "worm's eye", "bike lane", "bicycle lane", "bus lane", "train of thought",
    "stone wall", "brick wall background", "tree line", "snow white background", "street lamp",
    "street light", "street lights", "street lamps", "traffic jam", "in a row", "color palette",
    "colour palette", "rule of thirds", "depth of field", "field of view", "ground level",
    "night vision", "key light", "ring light", "ring of", "dog food", "cat food", "bird feeder",
    "bird cage", "horse riding", "car wash", "bus driver", "focal plane", "image plane",
    "film camera", "picture plane", "light room", "lightroom", "in the foreground", "room for",
    "room to", "a range of", "high key", "low key", "square format", "power plant", "still life",
    "day to day", "everyday", "wide open", "bed of", "on top of", "port side", "sea of",
    "in time for", "park ranger", "state of the art", "see through", "wheel of", "sheet of ice",
    "fire station", "bed sheet",
)  # fmt: skip

# Words between two noun phrases; colours and counts before them do not apply to nouns after them.
_BREAKS = frozenset({
    "and", "with", "in", "on", "at", "near", "by", "beside", "under", "over", "behind", "next",
    "to", "from", "the", "its", "his", "her", "their", "of", "into", "while", "that", "this",
    "as", "for", "against", "around", "along", "through", "is", "are", "or", "but", "plus",
    "across", "between",
})  # fmt: skip


@dataclass(frozen=True)
class ObjectSpec:
    """Number of objects of one noun; `colour` and `state` are keys of `COLOURS` and `STATES`, or None."""

    noun: str
    count: int = 1
    colour: str | None = None
    state: str | None = None


@dataclass(frozen=True)
class SceneSpec:
    """Content of a scene; `place`, `light` and `weather` are keys of `PLACES`, `LIGHTS` and `WEATHERS`."""

    objects: tuple[ObjectSpec, ...]
    place: str
    light: str
    weather: str


@dataclass(frozen=True)
class _Meaning:
    kind: str  # noun, place, light, weather, colour, state, count, negation, idiom
    value: str
    number: int = 0  # count words: the count; nouns: 1 or, for a plural, 2


_LISTS: tuple[tuple[str, Mapping[str, tuple[str, ...]]], ...] = (
    ("place", PLACES),
    ("light", LIGHTS),
    ("weather", WEATHERS),
    ("colour", COLOURS),
    ("state", STATES),
)


@cache
def _lexicon() -> tuple[dict[str, _Meaning], int]:
    """Every phrase that the parser knows, and the number of words of the longest."""
    lexicon = {
        phrase: _Meaning("noun", name, 2 if plural else 1) for phrase, (name, plural) in phrases().items()
    }
    # Later entries win: a place or colour ("beach", "orange") is not an object.
    for kind, words in _LISTS:
        for canonical, synonyms in words.items():
            for phrase in (canonical, *synonyms):
                lexicon[normalise(phrase)] = _Meaning(kind, canonical)
    for phrase, number in _COUNTS.items():
        lexicon[phrase] = _Meaning("count", phrase, number)
    for phrase in _NEGATIONS:
        lexicon[phrase] = _Meaning("negation", phrase)
    for phrase in _IDIOMS:
        lexicon[phrase] = _Meaning("idiom", phrase)
    return lexicon, max(len(phrase.split()) for phrase in lexicon)


def _match(words: list[str], start: int) -> tuple[_Meaning | None, int]:
    """The longest known phrase at `start` and its number of words; (None, 1) if there is none."""
    lexicon, longest = _lexicon()
    for length in range(min(longest, len(words) - start), 0, -1):
        meaning = lexicon.get(" ".join(words[start : start + length]))
        if meaning is not None:
            return meaning, length
    return None, 1


class _Reader:
    """One pass over the words; keeps the modifiers read since the last noun."""

    def __init__(self) -> None:
        self.objects: dict[str, ObjectSpec] = {}
        self.found: dict[str, str] = {}
        self.words_seen = set[str]()
        self.forget()
        self.last: str | None = None  # the last noun, if a state may follow it

    def forget(self) -> None:
        self.count: int | None = None
        self.colour: str | None = None
        self.state: str | None = None
        self.negated = False
        self.extra = False
        self.strangers = 0

    def noun(self, name: str, number: int) -> None:
        if not self.negated:
            count = min(MAX_COUNT, self.count or number)
            if number > 1 and count == 1:  # "a dogs" is a mistake; the plural is more reliable
                count = number
            old = self.objects.get(name)
            new = ObjectSpec(name, count, self.colour, self.state)
            if old is not None:
                # "a dog ... the dog" is the same dog, unless the prompt says "another".
                total = old.count + count if self.extra else max(old.count, count)
                new = ObjectSpec(
                    name,
                    min(MAX_COUNT, total),
                    old.colour or self.colour,
                    old.state or self.state,
                )
            self.objects[name] = new
            self.last = name
        self.forget()

    def take(self, meaning: _Meaning, phrase: str) -> None:
        waiting = self.count is not None or self.colour is not None or self.negated
        if meaning.kind == "noun":
            self.noun(meaning.value, meaning.number)
            return
        if meaning.kind == "count":
            # "without a dog", "a single dog", "two other dogs": keep the negation and count before.
            negated, count = self.negated, self.count
            self.forget()
            self.negated = negated
            self.count = meaning.number if meaning.number > 1 else count or 1
            self.extra = phrase == "another"
        elif meaning.kind == "negation":
            self.forget()
            self.negated = True
        elif meaning.kind == "colour":
            self.colour = meaning.value
        elif meaning.kind == "state":
            if self.last is not None and not waiting:
                spec = self.objects[self.last]
                if spec.state is None:
                    self.objects[self.last] = replace(spec, state=meaning.value)
            else:
                self.state = meaning.value
                return
        elif meaning.kind in ("place", "light", "weather"):
            if not self.negated:
                self.found.setdefault(meaning.kind, meaning.value)
                self.words_seen.add(phrase)
            self.forget()
        else:
            self.forget()
        self.last = None

    def stranger(self, word: str) -> None:
        if word in _BREAKS:
            self.forget()
            if word not in ("is", "are", "that"):
                self.last = None
            return
        self.last = None
        self.strangers += 1
        if self.strangers > 2:
            self.forget()
        elif self.strangers > 1:
            self.colour = None


def _orange_is_the_fruit(words: list[str], at: int) -> bool:
    """Whether "orange" at `at` is a noun, as in "an orange and a pear", not in "orange car"."""
    if at + 1 < len(words) and words[at + 1] not in _BREAKS:
        return False
    meaning = _lexicon()[0].get(words[at - 1]) if at else None
    return meaning is None or meaning.kind == "count" or at == 0


def parse(prompt: str) -> SceneSpec:
    """The nouns with counts, colours and states, and the place, light and weather that `prompt` asks for.

    Any string gives a spec; one without known nouns has no objects. Place, light and weather that the prompt does not
    state are chosen plausibly, and always in the same way for the same prompt.
    """
    words = normalise(prompt.replace("#", " ")).split()
    reader = _Reader()
    at = 0
    while at < len(words):
        meaning, length = _match(words, at)
        phrase = " ".join(words[at : at + length])
        if meaning is None:
            reader.stranger(phrase)
        elif phrase == "orange" and _orange_is_the_fruit(words, at):
            reader.noun("tangerine", 1)
        else:
            reader.take(meaning, phrase)
        at += length
    objects = tuple(reader.objects.values())
    found = reader.found
    if reader.words_seen & {"sunny", "sunshine"}:
        found.setdefault("light", "day")
    seed = int.from_bytes(hashlib.blake2b(prompt.encode("utf-8", "replace")).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    place = found.get("place") or _usual_place(objects, rng)
    return SceneSpec(
        objects,
        place,
        found.get("light") or usual_light(place, rng),
        found.get("weather") or usual_weather(place, rng),
    )


def _usual_place(objects: tuple[ObjectSpec, ...], rng: np.random.Generator) -> str:
    # People can be anywhere, so the other objects determine the place.
    telling = [item.noun for item in objects if item.noun != "person"] or [o.noun for o in objects]
    places = usual_places(NOUNS[telling[0]]) if telling else tuple(PLACES)
    return places[int(rng.integers(len(places)))]


_OUTDOOR = tuple(place for place in PLACES if place not in INDOOR)
_HOME = ("kitchen", "living room", "bedroom", "office", "studio")
_BY_NOUN: dict[str, tuple[str, ...]] = {
    "aeroplane": ("airport", "airport", "field", "mountain", "beach"),
    "boat": ("lake", "harbour", "beach"),
    "train": ("railway", "railway", "field", "mountain"),
    "bus": ("street", "street", "airport", "mountain"),
    "car": ("street", "street", "mountain", "desert", "field"),
    "motorbike": ("street", "street", "desert", "mountain", "park"),
    "bicycle": ("street", "park", "street", "field", "beach"),
    "cow": ("field", "field", "mountain", "lake"),
    "sheep": ("field", "field", "mountain"),
    "horse": ("field", "field", "beach", "park", "desert"),
    "dog": ("park", "street", "beach", "living room", "field", "forest"),
    "cat": ("living room", "bedroom", "street", "park", "kitchen"),
    "bird": ("park", "forest", "lake", "beach", "street"),
    "person": _OUTDOOR + _HOME,
    "pottedplant": (*_HOME, "street", "park"),
    "diningtable": ("kitchen", "living room", "kitchen", "office", "park"),
}  # fmt: skip
_BY_GROUP: dict[str, tuple[str, ...]] = {
    "animal": ("park", "field", "forest", "lake", "mountain", "desert", "beach"),
    "vehicle": ("street", "street", "field", "harbour", "airport", "desert"),
    "food": ("kitchen", "kitchen", "living room", "studio", "office", "park"),
    "plant": ("park", "field", "forest", "living room", "studio"),
    "building": ("street", "park", "field", "lake", "mountain", "desert"),
    "sport": ("park", "street", "studio", "living room", "beach", "field"),
    "clothes": ("bedroom", "living room", "studio", "street", "office"),
}
_OUTDOOR_WEATHERS = ("clear",) * 7 + ("rain", "snow", "fog")
WATERCRAFT = frozenset({"boat", "canoe", "ferry", "motorboat", "cruise ship", "cargo ship", "speedboat"})


def usual_places(noun: Noun) -> tuple[str, ...]:
    """Places that suit the noun; likely ones are repeated."""
    if noun.name in WATERCRAFT:
        return _BY_NOUN["boat"]
    return _BY_NOUN.get(noun.name) or _BY_GROUP.get(noun.group) or _HOME


def usual_light(place: str, rng: np.random.Generator) -> str:
    """A random light that suits the place; most often daylight."""
    if place in INDOOR:
        return ("day", "day", "day", "lamplight", "lamplight", "night", "golden hour")[int(rng.integers(7))]
    return ("day", "day", "day", "day", "golden hour", "golden hour", "sunset", "night",
            "overcast", "overcast")[int(rng.integers(10))]  # fmt: skip


def usual_weather(place: str, rng: np.random.Generator) -> str:
    """A random weather that suits the place; most often clear, and always clear indoors."""
    if place in INDOOR:
        return "clear"
    return _OUTDOOR_WEATHERS[int(rng.integers(len(_OUTDOOR_WEATHERS)))]


_SPOKEN = {
    "diningtable": "dining table",
    "pottedplant": "potted plant",
    "tvmonitor": "tv monitor",
}


def spoken(noun: Noun) -> str:
    """The noun's name in ordinary spelling ("dining table" for "diningtable")."""
    return _SPOKEN.get(noun.name, noun.name)


_SYNONYM_SHARE = 0.25
_IN_PLACE: dict[str, tuple[str, ...]] = {
    "street": ("on a street", "on the street", "on a city street", "on a road"),
    "park": ("in a park", "in the park", "in a garden"),
    "field": ("in a field", "in a meadow", "on a farm", "in the countryside"),
    "forest": ("in a forest", "in the woods"),
    "beach": ("on a beach", "on the beach", "by the sea", "at the seaside"),
    "lake": ("at a lake", "by a lake", "by a river", "beside a pond"),
    "harbour": ("in a harbour", "at the harbour", "at a marina"),
    "mountain": ("in the mountains", "in a mountain valley", "on a mountain"),
    "desert": ("in the desert", "in a desert"),
    "airport": ("at an airport", "on a runway", "at the airport"),
    "railway": ("at a railway station", "on railway tracks", "at a train station"),
    "kitchen": ("in a kitchen", "in the kitchen"),
    "living room": ("in a living room", "in the living room"),
    "bedroom": ("in a bedroom", "in the bedroom"),
    "office": ("in an office", "in the office"),
    "studio": ("in a studio", "in a photo studio", "on a plain background"),
}  # fmt: skip
_IN_LIGHT: dict[str, tuple[str, ...]] = {
    "day": ("in daylight", "during the day", "at noon", "in bright sunlight"),
    "golden hour": ("at golden hour", "in the morning", "at sunrise", "in warm light"),
    "sunset": ("at sunset", "at dusk", "in the evening"),
    "night": ("at night", "at midnight", "in the moonlight"),
    "overcast": ("under an overcast sky", "on a cloudy day", "in soft light"),
    "lamplight": ("in lamplight", "in artificial light", "under indoor lighting"),
}
_IN_WEATHER: dict[str, tuple[str, ...]] = {
    "clear": ("in clear weather", "with clear skies", "in fine weather"),
    "rain": ("in the rain", "in heavy rain", "on a rainy day", "while it is raining"),
    "snow": ("in the snow", "while it is snowing", "in falling snow"),
    "fog": ("in fog", "in the mist", "in foggy weather"),
}
_TEMPLATES = (
    "a photo of {objects} {place} {light}, {weather}",
    "{objects} {place} {light}, {weather}",
    "{objects} {place}, {light}, {weather}",
    "{place} {light}, {objects}, {weather}",
    "a picture of {objects} {place}, {weather}, {light}",
    "{objects} {place} {weather} {light}",
    "{weather}, {objects} {place}, {light}",
    "a realistic photograph showing {objects} {place} {light} {weather}",
    "{objects}, {place}, {light}",  # states no weather: only used if `parse` reads the same
    "a photo of {objects} {place}",
)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _say_object(spec: ObjectSpec, rng: np.random.Generator, plain: bool) -> str:
    noun = NOUNS[spec.noun]
    name = spoken(noun)
    if not plain and noun.synonyms and rng.random() < _SYNONYM_SHARE:
        singular = tuple(s for s in noun.synonyms if phrases()[normalise(s)][1] is False)
        name = _pick(singular or (name,), rng)
    before, after = [], ""
    if spec.state is not None:
        said = spec.state if plain else _pick((spec.state, *STATES[spec.state]), rng)
        if plain or (" " not in said and rng.random() < 0.6):
            before.append(said)
        else:
            after = " " + said
    if spec.colour is not None:
        said = spec.colour if plain else _pick((spec.colour, spec.colour, *COLOURS[spec.colour]), rng)
        before.append(said)
    if spec.count == 1:
        phrase = " ".join((*before, name))
        return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}{after}"
    several = plurals(normalise(name))[0]
    return " ".join((_NUMBER_WORDS[min(MAX_COUNT, spec.count)], *before, several)) + after


def _say_objects(spec: SceneSpec, rng: np.random.Generator, plain: bool) -> str:
    said = [_say_object(item, rng, plain) for item in spec.objects]
    if len(said) < 2:
        return said[0] if said else "an empty scene"
    joiner = " and " if plain else _pick((" and ", " and ", " next to ", " with ", " near "), rng)
    return ", ".join(said[:-1]) + joiner + said[-1]


def caption(spec: SceneSpec, rng: np.random.Generator) -> str:
    """A random English caption for which `parse(caption(spec, rng)) == spec`.

    This holds for specs with distinct nouns and counts from 1 to `MAX_COUNT`.
    """
    for _ in range(4):
        text = _pick(_TEMPLATES, rng).format(
            objects=_say_objects(spec, rng, plain=False),
            place=_pick(_IN_PLACE[spec.place], rng),
            light=_pick(_IN_LIGHT[spec.light], rng),
            weather=_pick(_IN_WEATHER[spec.weather], rng),
        )
        if parse(text) == spec:
            return text
    # English is ambiguous ("a sleeping tiny mouse"); the plainest order is always read back correctly.
    objects = _say_objects(spec, rng, plain=True)
    place, light, weather = (
        _IN_PLACE[spec.place][0],
        _IN_LIGHT[spec.light][0],
        _IN_WEATHER[spec.weather][0],
    )
    return f"{objects}, {place}, {light}, {weather}"
