"""Composes an image together with its ground truth: the object that each pixel belongs to."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from segsmith.errors import SegsmithError
from segsmith.world import backdrop
from segsmith.world.backdrop import Backdrop, Floats
from segsmith.world.language import (
    COLOURS,
    INDOOR,
    LIGHTS,
    MAX_COUNT,
    PLACES,
    WATERCRAFT,
    WEATHERS,
    ObjectSpec,
    SceneSpec,
    usual_light,
    usual_places,
    usual_weather,
)
from segsmith.world.nouns import NOUNS, find_noun, suggest
from segsmith.world.sprites import ALL_STYLES, TEST_STYLE, Style, master, variants

MIN_VISIBLE = 0.55
"""Minimum share of an object's pixels that other objects leave visible."""

_MAX_OBJECTS = 200  # instance ids are uint8

# Probability of being in the air, outdoors.
_FLYERS = {
    "aeroplane": 0.65, "bird": 0.4, "kite": 0.9, "helicopter": 0.8, "balloon": 0.8, "rocket": 0.5,
    "flying saucer": 0.9, "light aircraft": 0.7, "parachute": 0.9, "butterfly": 0.6, "bee": 0.6,
    "eagle": 0.6, "dove": 0.5, "bat": 0.7, "dragon": 0.3, "satellite": 0.9, "mosquito": 0.6,
    "parrot": 0.4, "housefly": 0.5, "cable car": 0.9, "phoenix": 0.6, "ghost": 0.4, "crow": 0.4,
}  # fmt: skip

_RGB: dict[str, tuple[float, float, float]] = {
    "red": (212, 40, 44), "orange": (240, 134, 34), "yellow": (246, 210, 60),
    "green": (66, 160, 72), "blue": (52, 108, 206), "purple": (132, 74, 176),
    "pink": (242, 132, 176), "brown": (132, 86, 54), "black": (44, 44, 48),
    "white": (240, 240, 242), "grey": (140, 144, 150),
}  # fmt: skip


@dataclass(frozen=True)
class PlacedObject:
    """One drawn object.

    `visible_px` is the number of pixels with its id in `Scene.instances`; `bbox_xyxy` is their bounding box
    (x0, y0, x1, y1) in pixels, x1 and y1 exclusive.
    """

    noun: str
    instance_id: int
    visible_px: int
    bbox_xyxy: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """An image and its ground truth.

    `image` is (H, W, 3) uint8 RGB; `instances` is (H, W) uint8: the instance id of the front object, 0 for none.
    """

    image: npt.NDArray[np.uint8]
    instances: npt.NDArray[np.uint8]
    objects: tuple[PlacedObject, ...]

    def class_mask(self, classes: Sequence[str]) -> npt.NDArray[np.uint8]:
        """(H, W) uint8 label map: i + 1 where `classes[i]` is visible, 0 elsewhere.

        Names are resolved by `find_noun`. Objects of other nouns are background; unknown names have no pixels. At
        most 254 classes.
        """
        index: dict[str, int] = {}
        for position, name in enumerate(classes):
            noun = find_noun(name)
            if noun is not None:
                index.setdefault(noun.name, position + 1)
        lut = np.zeros(256, np.uint8)
        for placed in self.objects:
            lut[placed.instance_id] = index.get(placed.noun, 0)
        return lut[self.instances]

    def present(self, classes: Sequence[str]) -> tuple[str, ...]:
        """The names in `classes` with at least one visible pixel."""
        seen = {placed.noun for placed in self.objects if placed.visible_px > 0}
        nouns = ((name, find_noun(name)) for name in classes)
        return tuple(name for name, noun in nouns if noun is not None and noun.name in seen)


@dataclass
class _Sprite:
    """An object to place; `x`, `y` is its top left corner and `foot` its lowest row, in pixels."""

    noun: str
    rgba: Image.Image
    x: int = 0
    y: int = 0
    foot: int = 0
    standing: bool = True  # on the ground, so it casts a shadow

    @property
    def w(self) -> int:
        return self.rgba.width

    @property
    def h(self) -> int:
        return self.rgba.height


@lru_cache(maxsize=512)
def _tinted(codepoint: str, style: Style, variant: int, colour: str) -> Image.Image:
    """The sprite recoloured: `colour` replaces its typical luminance, and the shading is kept."""
    rgba = np.asarray(master(codepoint, style, variant), np.float32)
    luminance = (rgba[..., :3] @ np.array([0.3, 0.59, 0.11], np.float32)) / 255
    solid = rgba[..., 3] > 127
    # The black outlines of openmoji are not part of the object's colour.
    body = solid & (luminance > 0.12)
    typical = float(np.median(luminance[body])) if body.any() else 0.5
    typical = min(max(typical, 0.25), 0.85)
    target = np.array(_RGB[colour], np.float32)
    below = np.clip(luminance / typical, 0, 1)[..., None]
    above = np.clip((luminance - typical) / (1 - typical), 0, 1)[..., None] * 0.7
    rgb = (target * below) * (1 - above) + 255 * above
    out = np.concatenate([rgb, rgba[..., 3:]], axis=2).clip(0, 255).astype(np.uint8)
    return Image.fromarray(out, "RGBA")


def _seed(spec: SceneSpec, seed: int, style: Style, size: int) -> list[int]:
    """Integers for a random generator: different for different arguments of `compose`, the same in every process."""
    # Not repr: equal specs may differ in it, with numpy strings and integers.
    said = [f"{o.noun}|{int(o.count)}|{o.colour or ''}|{o.state or ''}" for o in spec.objects]
    words = zlib.crc32("/".join([*said, spec.place, spec.light, spec.weather]).encode())
    return [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, words, ALL_STYLES.index(style), size]


@lru_cache(maxsize=2048)
def _level(codepoint: str, style: Style, variant: int, colour: str | None, halvings: int) -> Image.Image:
    """The sprite with premultiplied alpha, halved `halvings` times, as input for an affine transform."""
    image = _tinted(codepoint, style, variant, colour) if colour else master(codepoint, style, variant)
    # With a margin, so that rotated edges are blended instead of cut off.
    padded = Image.new("RGBA", (image.width + 8, image.height + 8))
    padded.paste(image, (4, 4))
    premultiplied = padded.convert("RGBa")
    return premultiplied.reduce(2**halvings) if halvings else premultiplied


def _draw_sprite(
    item: ObjectSpec, height_px: float, limit_px: int, style: Style, rng: np.random.Generator
) -> Image.Image:
    """The item's sprite, about `height_px` high (less if it is wide), flipped, rotated and coloured at random.

    The image has mode "RGBa" (premultiplied), is cropped to its visible pixels, and no side exceeds `limit_px`.
    """
    codepoint = NOUNS[item.noun].codepoint
    # No draw where there is no choice, so that the scenes of the other styles stay as they are.
    variant = int(rng.integers(variants(style))) if variants(style) > 1 else 0
    full = master(codepoint, style, variant)
    flip, tilt, stretch = rng.random(3).tolist()
    angle = np.deg2rad((tilt - 0.5) * 12)
    w, h = float(full.width), float(full.height)
    if item.state == "sleeping" and NOUNS[item.noun].group in ("animal", "person"):
        # Tall sprites are laid on their side; wide ones are turned upside down.
        angle += np.pi / 2 if h > w else np.pi
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    # Width and height of the rotated box at scale 1
    box_w, box_h = abs(w * cos) + abs(h * sin), abs(w * sin) + abs(h * cos)
    scale = height_px / max(box_h, 0.8 * box_w)
    scale = min(scale, (limit_px - 1) / max(1.06 * box_w, box_h))
    scale = max(scale, 3 / max(box_w, box_h))
    wide = scale * (0.94 + 0.12 * stretch)
    halvings = 0 if scale > 0.6 else 1 if scale > 0.3 else 2 if scale > 0.15 else 3
    image = _level(codepoint, style, variant, item.colour, halvings)
    # From output to input pixels: undo the scale and stretch, the rotation, then the flip.
    step = 0.5**halvings
    out_w, out_h = max(1, int(box_w * wide) + 1), max(1, int(box_h * scale) + 1)
    ax, ay = step / wide, step / scale
    mirror = -1.0 if flip < 0.5 else 1.0
    a, b = mirror * cos * ax, mirror * sin * ay
    d, e = -sin * ax, cos * ay
    c = image.width / 2 - a * out_w / 2 - b * out_h / 2
    f = image.height / 2 - d * out_w / 2 - e * out_h / 2
    out = image.transform(
        (out_w, out_h), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC
    )
    solid = out.getchannel(3).point(_SOLID).getbbox()
    return out.crop(solid) if solid is not None else out


_SOLID = [0] * 24 + [255] * 232  # alpha values that count as visible when a sprite is cropped


def _heights(n: int, size: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Random target heights of n objects, in pixels."""
    low, high = {1: (0.42, 0.75), 2: (0.34, 0.55), 3: (0.29, 0.46)}.get(n, (0.0, 0.0))
    if not high:
        high = 0.9 / np.sqrt(n)
        low = 0.65 * high
    return size * rng.uniform(low, high, n)


def _lanes(
    item: ObjectSpec, scenery: Backdrop, place: str, rng: np.random.Generator
) -> tuple[float, float, bool]:
    """The range of an object's lowest row, as fractions of the image height, and whether it stands on the ground."""
    chance = _FLYERS.get(item.noun, 0.0)
    if item.state == "flying":
        chance = 1.0 if chance or NOUNS[item.noun].group in ("animal", "vehicle") else 0.5
    elif item.state in ("standing", "sitting", "parked", "running"):
        chance = 0.0
    if place not in INDOOR and rng.random() < chance:
        return 0.0, scenery.horizon + 0.03, False
    if scenery.water is not None and item.noun in WATERCRAFT:
        return scenery.water[0], scenery.water[1], False
    return scenery.ground_top, 0.97, True


def _place(
    spec: SceneSpec,
    items: list[ObjectSpec],
    scenery: Backdrop,
    size: int,
    style: Style,
    rng: np.random.Generator,
) -> list[_Sprite]:
    """Place the items from back to front with little overlap."""
    n = len(items)
    heights = _heights(n, size, rng)
    placed: list[_Sprite] = []
    for item, height in zip(items, heights.tolist(), strict=True):
        if item.state == "large":
            height = min(1.25 * height, 0.85 * size)
        elif item.state == "small":
            height *= 0.7
        low, high, standing = _lanes(item, scenery, spec.place, rng)
        best: _Sprite | None = None
        best_cost = np.inf
        tries = rng.random((14, 2)).tolist()
        image = _draw_sprite(item, height, size, style, rng)
        nearest = min(0.75, max(0.0, 1.6 * (image.height / size - 0.32)))
        for u, v in tries:
            if standing:  # large objects are near, so that a bus is not larger than the houses
                v = nearest + (1 - nearest) * v
            foot = (low + (high - low) * v) * size
            if not standing and low == 0.0:  # in the sky, at any height
                foot = max(image.height + 1.0, foot)
            y = min(max(0, round(foot) - image.height), size - image.height)
            x = round(u * max(0, size - image.width))
            cost = sum(_overlap(x, y, image, other) for other in placed)
            if cost < best_cost:
                best = _Sprite(item.noun, image, x, y, y + image.height, standing)
                best_cost = cost
            if cost < 0.12:
                break
        assert best is not None
        placed.append(best)
    placed.sort(key=lambda sprite: sprite.foot)
    return placed


def _overlap(x: int, y: int, image: Image.Image, other: _Sprite) -> float:
    """Intersection of two boxes divided by the area of the smaller one, in [0, 1]."""
    w = min(x + image.width, other.x + other.w) - max(x, other.x)
    h = min(y + image.height, other.y + other.h) - max(y, other.y)
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / min(image.width * image.height, other.w * other.h)


def _grid(items: list[ObjectSpec], size: int, style: Style, rng: np.random.Generator) -> list[_Sprite]:
    """Place each object in a separate cell; used if random placement leaves too much overlap."""
    n = len(items)
    columns = int(np.ceil(np.sqrt(n)))
    rows = int(np.ceil(n / columns))
    w, h = size // columns, size // rows
    out = []
    for k, item in enumerate(items):
        image = _draw_sprite(item, 0.75 * min(w, h), max(1, min(w, h)), style, rng)
        x = (k % columns) * w + max(0, (w - image.width) // 2)
        y = (k // columns) * h + max(0, h - image.height - 1)
        x, y = min(x, max(0, size - image.width)), min(y, max(0, size - image.height))
        out.append(_Sprite(item.noun, image, x, y, y + image.height))
    return out


def _truth(sprites: list[_Sprite], size: int) -> tuple[npt.NDArray[np.uint8], list[float]]:
    """The instance map (ids from 1, from back to front) and the visible share of each sprite's pixels."""
    instances = np.zeros((size, size), np.uint8)
    own = []
    for k, sprite in enumerate(sprites, start=1):
        alpha = np.asarray(sprite.rgba.getchannel(3))
        solid = alpha > 127
        if not solid.any():  # too thin and small, but it must still be visible
            solid = alpha == alpha.max()
        own.append(int(solid.sum()))
        instances[sprite.y : sprite.y + sprite.h, sprite.x : sprite.x + sprite.w][solid] = k
    seen = np.bincount(instances.ravel(), minlength=len(sprites) + 1)[1:]
    return instances, [s / o for s, o in zip(seen.tolist(), own, strict=True)]


@lru_cache(maxsize=1)
def _blob() -> Image.Image:
    """A soft round shadow, 64 x 64 pixels, in [0, 255]."""
    axis = np.linspace(-1, 1, 64, dtype=np.float32)
    r2 = axis[:, None] ** 2 + axis[None] ** 2
    return Image.fromarray((255 * np.clip(1 - r2, 0, 1)).astype(np.uint8))


def _cast_shadow(canvas: Floats, sprite: _Sprite, strength: float) -> None:
    """Darken the ground below the sprite."""
    size = canvas.shape[0]
    w, h = max(6, round(1.05 * sprite.w)), max(4, round(0.2 * sprite.w))
    x, y = sprite.x + (sprite.w - w) // 2, sprite.foot - round(0.62 * h)
    x0, y0, x1, y1 = max(0, x), max(0, y), min(size, x + w), min(size, y + h)
    if x1 <= x0 or y1 <= y0:
        return
    dark = np.asarray(_blob().resize((w, h)), np.float32)[y0 - y : y1 - y, x0 - x : x1 - x]
    canvas[y0:y1, x0:x1] *= 1 - dark[..., None] * (strength / 255)


# Gain and offset per channel in each light, applied after painting. The sky is painted in its light already.
_LIGHTING: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "day": ((1.03, 1.02, 1.0), (2, 2, 2)),
    "golden hour": ((1.08, 0.97, 0.76), (12, 6, 0)),
    "sunset": ((1.0, 0.76, 0.66), (14, 2, 10)),
    "night": ((0.43, 0.47, 0.64), (2, 5, 20)),
    "overcast": ((0.84, 0.86, 0.89), (4, 5, 7)),
    "lamplight": ((0.98, 0.80, 0.52), (4, 0, 0)),
}


@lru_cache(maxsize=32)
def _pool(size: int) -> Floats:
    """(size, size, 1) float32 gain of a lamp's light, which falls off from the centre of the image."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    r2 = (axis[:, None] + 0.1) ** 2 + axis[None] ** 2
    pool: Floats = (1.08 - 0.36 * r2)[..., None].astype(np.float32)
    return pool


@lru_cache(maxsize=32)
def _falling(kind: str, index: int, size: int) -> Floats:
    """(2 size, 2 size) float32 opacity in [0, 1] of rain streaks or snowflakes."""
    rng = np.random.default_rng([104729, index, size, kind == "rain"])
    side = 4 * size
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    unit = size / 128
    if kind == "rain":
        slant = float(rng.uniform(-0.35, 0.35))
        for x, y, t in rng.random((620, 3)).tolist():
            length = (14 + 20 * t) * unit
            x, y = x * side, y * side
            draw.line((x, y, x + slant * length, y + length), fill=int(110 + 110 * t),
                      width=max(1, round(1.6 * unit)))  # fmt: skip
    else:
        for x, y, t in rng.random((620, 3)).tolist():
            r = (1.0 + 2.4 * t * t) * unit
            x, y = x * side, y * side
            draw.ellipse((x - r, y - r, x + r, y + r), fill=int(150 + 100 * t))
    return np.asarray(image.reduce(2), np.float32) / np.float32(255)


def _atmosphere(canvas: Floats, spec: SceneSpec, scenery: Backdrop, rng: np.random.Generator) -> Floats:
    """Apply light and weather to the whole image, including the objects."""
    size = canvas.shape[0]
    gain, offset = (np.array(v, np.float32) for v in _LIGHTING[spec.light])
    sky = round(scenery.horizon * size)
    indoor = spec.place in INDOOR
    gain = gain * np.float32(rng.uniform(0.93, 1.07))
    if indoor and spec.light in ("night", "sunset", "golden hour"):
        gain = (
            np.float32(0.75) * gain + np.float32(0.2) * gain.mean()
        )  # rooms take on less of the colour outside
    canvas *= gain
    canvas += offset
    if spec.light == "lamplight":
        canvas *= _pool(size)
    if spec.weather == "clear":
        return canvas
    dark = spec.light in ("night", "lamplight")
    haze = np.array((74, 80, 104) if dark else (206, 210, 214), np.float32)
    if spec.light in ("sunset", "golden hour"):
        haze = np.array((214, 172, 156), np.float32)
    index, dx, dy, flip = (int(v) for v in rng.integers(0, (5, size, size, 2)))
    strength = {"fog": 0.58, "rain": 0.14, "snow": 0.1}[spec.weather]
    if indoor:  # indoors, weather is only visible through windows
        for x0, y0, x1, y1 in scenery.windows:
            box = np.s_[round(y0 * size) : round(y1 * size), round(x0 * size) : round(x1 * size)]
            if spec.weather != "fog":
                drops = _falling(spec.weather, index, size)[dy : dy + size, dx : dx + size][box]
                canvas[box] += 120 * drops[..., None]
        return canvas
    rows = np.arange(size, dtype=np.float32)
    # densest at the horizon, thin near the viewer
    depth = np.where(rows < sky, 1.0, 1.0 - 0.62 * (rows - sky) / max(1, size - sky))
    mix = (strength * rng.uniform(0.9, 1.1) * depth).astype(np.float32)[:, None, None]
    if spec.weather == "fog":
        mix = mix * (1 + 0.08 * backdrop.texture("cloudy", size, rng)[..., None])
    canvas += (haze - canvas) * mix
    if spec.weather in ("rain", "snow"):
        if spec.weather == "rain":
            canvas *= np.float32(0.86)
        fall = _falling(spec.weather, index, size)[dy : dy + size, dx : dx + size]
        fall = (fall[:, ::-1] if flip else fall)[..., None]
        bright = np.float32(150 if dark else 226) if spec.weather == "rain" else np.float32(248)
        canvas += (bright - canvas) * (fall * np.float32(0.6 if spec.weather == "rain" else 0.92))
    return canvas


def _finish(canvas: Floats, style: Style, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Add sensor noise and round to uint8; openmoji is grainier with softer contrast, gouache lies on woven paper."""
    size = canvas.shape[0]
    if style == TEST_STYLE:
        canvas = canvas * np.float32(0.9) + np.array((8, 12, 18), np.float32)
        canvas += (5.0 * backdrop.texture("banded", size, rng))[..., None]
    elif style == "openmoji":
        canvas = canvas * np.float32(0.93) + np.array((11, 9, 5), np.float32)
        canvas += (4.5 * backdrop.texture("fine", size, rng))[..., None]
    else:
        canvas = canvas + (2.0 * backdrop.texture("fine", size, rng))[..., None]
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)


def _check(spec: SceneSpec) -> None:
    """Raise `SegsmithError` if `spec` has a name that the world does not know."""
    for item in spec.objects:
        if item.noun not in NOUNS:
            noun = find_noun(item.noun)
            near = [noun.name] if noun is not None else suggest(item.noun)
            remedy = f"Use {' or '.join(near)}." if near else "See segsmith/world/nouns.tsv."
            raise SegsmithError(f"The simulator has no noun {item.noun!r}.", remedy)
        if item.colour is not None and item.colour not in COLOURS:
            raise SegsmithError(f"No colour {item.colour!r}.", f"Use one of {', '.join(COLOURS)}.")
    known = (("place", spec.place, PLACES), ("light", spec.light, LIGHTS))
    for what, value, words in (*known, ("weather", spec.weather, WEATHERS)):
        if value not in words:
            raise SegsmithError(f"No {what} {value!r}.", f"Use one of {', '.join(words)}.")


def compose(spec: SceneSpec, seed: int, *, style: Style = "twemoji", size: int = 128) -> Scene:
    """Draw `spec` as a (size, size) image with its ground truth; the same arguments give the same pixels.

    Every object is in the image, and at least `MIN_VISIBLE` of its pixels are visible; objects beyond the first 200
    are left out. `size` may be 64 to 512 pixels. Raises `SegsmithError` for nouns, colours, places, lights and
    weathers other than those that `parse` returns.
    """
    _check(spec)
    rng = np.random.default_rng(_seed(spec, seed, style, size))
    scenery = backdrop.paint(spec.place, spec.light, spec.weather, size, style, rng)
    items = [item for item in spec.objects for _ in range(max(1, item.count))]
    items = [items[k] for k in rng.permutation(len(items))][:_MAX_OBJECTS]
    sprites: list[_Sprite] = []
    instances = np.zeros((size, size), np.uint8)
    if items:
        for _ in range(5):
            sprites = _place(spec, items, scenery, size, style, rng)
            instances, shares = _truth(sprites, size)
            if min(shares) >= MIN_VISIBLE:
                break
        else:
            sprites = _grid(items, size, style, rng)
            instances, shares = _truth(sprites, size)
    canvas = scenery.image
    shadow = 0.5 if spec.light in ("day", "golden hour", "lamplight") else 0.35
    for sprite in sprites:
        if sprite.standing:
            _cast_shadow(canvas, sprite, shadow)
    # At night, objects are a little brighter than the place, so that they can be recognised.
    lights_on = spec.light == "night"
    for sprite in sprites:
        rgba = np.asarray(sprite.rgba, np.float32)
        alpha = rgba[..., 3:] * np.float32(1 / 255)
        window = canvas[sprite.y : sprite.y + sprite.h, sprite.x : sprite.x + sprite.w]
        gain = (1.35 if lights_on else 1.0) * rng.uniform(0.88, 1.1)
        window *= 1 - alpha
        window += rgba[..., :3] * np.float32(gain)
    image = _finish(_atmosphere(canvas, spec, scenery, rng), style, rng)
    return Scene(image, instances, _describe(sprites, instances))


def _describe(sprites: list[_Sprite], instances: npt.NDArray[np.uint8]) -> tuple[PlacedObject, ...]:
    placed = []
    for k, sprite in enumerate(sprites, start=1):
        mask = instances[sprite.y : sprite.y + sprite.h, sprite.x : sprite.x + sprite.w] == k
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x0, y0 = sprite.x + int(columns[0]), sprite.y + int(rows[0])
        x1, y1 = sprite.x + int(columns[-1]) + 1, sprite.y + int(rows[-1]) + 1
        placed.append(PlacedObject(sprite.noun, k, int(mask.sum()), (x0, y0, x1, y1)))
    return tuple(placed)


def random_spec(nouns: Sequence[str], rng: np.random.Generator, max_objects: int = 3) -> SceneSpec:
    """A random plausible spec with 1 to `max_objects` distinct nouns of `nouns` (resolved by `find_noun`).

    The place usually suits the first noun; most counts are 1.
    """
    known = [noun.name for noun in map(find_noun, nouns) if noun is not None]
    known = list(dict.fromkeys(known))
    if not known:
        return SceneSpec((), "studio", "day", "clear")
    weights = np.array([0.5, 0.3, 0.2] + [0.1] * max(0, max_objects - 3))[:max_objects]
    n = min(len(known), 1 + int(rng.choice(len(weights), p=weights / weights.sum())))
    chosen = [known[k] for k in rng.choice(len(known), n, replace=False)]
    colours = tuple(COLOURS)
    objects = []
    for name in chosen:
        count = int(rng.choice([1, 1, 1, 1, 2, 2, 3]))
        colour = colours[int(rng.integers(len(colours)))] if rng.random() < 0.12 else None
        state = None
        if rng.random() < 0.12:
            state = ("large", "small")[int(rng.integers(2))]
        objects.append(ObjectSpec(name, min(count, MAX_COUNT), colour, state))
    places = usual_places(NOUNS[chosen[0]])
    if rng.random() < 0.25:
        places = tuple(PLACES)
    place = places[int(rng.integers(len(places)))]
    return SceneSpec(tuple(objects), place, usual_light(place, rng), usual_weather(place, rng))
