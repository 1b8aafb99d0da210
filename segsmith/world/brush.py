"""A brush with coordinates in fractions of the image, and the scenery that places share.

It draws at twice the image's size; the caller halves the result, which smooths the edges.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from segsmith.world.sprites import TEST_STYLE, Style

Colour = tuple[int, int, int]

# Colours of the sky at the top and at the horizon, by light.
_SKY: dict[str, tuple[Colour, Colour]] = {
    "day": ((72, 144, 224), (188, 222, 245)),
    "golden hour": ((120, 160, 208), (255, 214, 150)),
    "sunset": ((88, 70, 140), (255, 132, 70)),
    "night": ((22, 28, 70), (58, 66, 120)),
    "overcast": ((150, 158, 168), (200, 205, 209)),
    "lamplight": ((36, 34, 62), (90, 76, 92)),
}


class Brush:
    """An ImageDraw with fractional coordinates, whose palette differs a little between the styles.

    Colours are nominal: `tone` shifts them at random. `j` is the largest random shift per channel, of 255.
    """

    def __init__(self, size: int, light: str, weather: str, style: Style, rng: np.random.Generator):
        self.size, self.light, self.weather, self.style, self.rng = size, light, weather, style, rng
        self.px = 2 * size
        self.image = Image.new("RGB", (self.px, self.px))
        self.draw = ImageDraw.Draw(self.image)
        self.windows: list[tuple[float, float, float, float]] = []
        self._shift = rng.normal(0, 7, 3).tolist()  # one colour cast for the whole place
        self._random = iter(rng.random(1024).tolist())  # single draws from a Generator are slow

    def u(self, low: float = 0.0, high: float = 1.0) -> float:
        """A uniform random number in [low, high)."""
        value: float | None = next(self._random, None)
        if value is None:
            self._random = iter(self.rng.random(1024).tolist())
            value = next(self._random)
        return low + (high - low) * value

    def pick(self, *options: Colour) -> Colour:
        return options[int(self.u(0, len(options) - 1e-6))]

    def tone(self, colour: Colour, jitter: float = 10.0) -> Colour:
        """The colour in this style's palette, randomly lightened or darkened by up to `jitter`."""
        step = self.u(-jitter, jitter)
        shift = self._shift
        r, g, b = (
            colour[0] + step + shift[0],
            colour[1] + step + shift[1],
            colour[2] + step + shift[2],
        )
        if self.style == "openmoji":  # duller and warmer, like film next to a rendering
            grey = 0.3 * r + 0.59 * g + 0.11 * b
            r, g, b = 0.78 * r + 0.22 * grey + 6, 0.78 * g + 0.22 * grey, 0.78 * b + 0.22 * grey - 8
        elif self.style == TEST_STYLE:  # few pigments: green and blue are mixed, and everything is paler
            grey = 0.3 * r + 0.59 * g + 0.11 * b
            r, g, b = (
                0.7 * r + 0.3 * grey,
                0.55 * g + 0.3 * b + 0.15 * grey + 10,
                0.6 * b + 0.3 * g + 0.1 * grey,
            )
        return (
            min(255, max(0, int(r))),
            min(255, max(0, int(g))),
            min(255, max(0, int(b))),
        )

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, j: float = 10) -> None:
        p = self.px
        if x1 > x0 and y1 > y0:
            self.draw.rectangle((x0 * p, y0 * p, x1 * p, y1 * p), fill=self.tone(colour, j))

    def oval(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, j: float = 10) -> None:
        p = self.px
        if x1 > x0 and y1 > y0:
            self.draw.ellipse((x0 * p, y0 * p, x1 * p, y1 * p), fill=self.tone(colour, j))

    def poly(self, points: list[tuple[float, float]], colour: Colour, j: float = 10) -> None:
        self.draw.polygon([(x * self.px, y * self.px) for x, y in points], fill=self.tone(colour, j))

    def line(self, points: list[tuple[float, float]], width: float, colour: Colour) -> None:
        self.draw.line(
            [(x * self.px, y * self.px) for x, y in points],
            fill=self.tone(colour),
            width=max(1, round(width * self.px)),
        )

    def gradient(self, y0: float, y1: float, top: Colour, bottom: Colour, j: float = 10) -> None:
        """A full-width band from colour `top` at y0 to `bottom` at y1."""
        rows = round(y1 * self.px) - round(y0 * self.px)
        if rows <= 0:
            return
        ends = np.array([self.tone(top, j), self.tone(bottom, j)], np.float32)
        t = np.linspace(0, 1, rows, dtype=np.float32)[:, None]
        column = (ends[0] * (1 - t) + ends[1] * t).astype(np.uint8)[:, None, :]
        band = Image.fromarray(column).resize((self.px, rows), Image.Resampling.NEAREST)
        self.image.paste(band, (0, round(y0 * self.px)))

    # Shared scenery

    def sky(self, horizon: float) -> None:
        top, bottom = _SKY[self.light]
        if self.weather in ("rain", "snow", "fog") and self.light not in ("night", "lamplight"):
            top, bottom = blend(top, (140, 146, 156), 0.75), blend(bottom, (190, 194, 200), 0.7)
        self.gradient(0, horizon + 0.02, top, bottom, j=6)
        clear = self.weather == "clear"
        if self.light in ("night", "lamplight"):
            if clear:
                for _ in range(int(self.u(15, 40))):
                    x, y, r = self.u(), self.u(0, horizon), self.u(0.002, 0.005)
                    self.oval(x - r, y - r, x + r, y + r, (235, 235, 215))
                x, y = self.u(0.08, 0.92), self.u(0.07, 0.2)
                self.oval(x - 0.045, y - 0.045, x + 0.045, y + 0.045, (240, 236, 205))
                if self.u() < 0.6:
                    self.oval(x - 0.02, y - 0.055, x + 0.06, y + 0.03, blend(top, (0, 0, 0), 0.05))
            return
        if clear and self.light in ("golden hour", "sunset"):
            x, low = self.u(0.1, 0.9), self.light == "sunset"
            y = horizon - (self.u(-0.01, 0.03) if low else self.u(0.08, 0.16))
            glow = (255, 170, 90) if low else (255, 228, 170)
            for r, k in ((0.15, 0.3), (0.11, 0.55), (0.06, 1.0)):
                core = (255, 236, 170) if r < 0.1 else glow
                self.oval(x - r, y - r, x + r, y + r, blend(bottom, core, k), 2)
        elif clear and self.light == "day" and self.u() < 0.4:
            x, y = self.u(0.08, 0.92), self.u(0.06, 0.14)
            self.oval(x - 0.06, y - 0.06, x + 0.06, y + 0.06, (255, 246, 190))
        puffs = int(self.u(0, 4)) if clear else 4
        if self.light == "overcast":
            puffs = 7
        white = {"sunset": (236, 140, 120), "golden hour": (255, 236, 208)}.get(self.light, (248, 250, 252))
        if puffs > 3:
            white = blend(white, (165, 170, 178), 0.6)
        for _ in range(puffs):
            x, y, w = self.u(-0.05, 0.95), self.u(0.02, max(0.05, horizon - 0.1)), self.u(0.08, 0.2)
            for _ in range(4):
                dx, dy, r = self.u(0, w), self.u(-0.015, 0.015), self.u(0.02, 0.05)
                self.oval(x + dx - 1.5 * r, y + dy - r * 0.7, x + dx + 1.5 * r, y + dy + r * 0.7,
                          white, 6)  # fmt: skip

    def hills(self, base: float, height: float, colour: Colour, rough: float = 0.5) -> None:
        """A skyline of smooth bumps that ends at `base`."""
        x = np.linspace(0, 1, 33)
        y = np.zeros(33)
        for k in (1, 2, 3, 5, 8):
            y += (rough ** (k - 1) if k > 1 else 1) * np.sin(
                2 * np.pi * (k * x * self.u(0.6, 1.2) + self.u())
            )
        y = base - height * (0.55 + 0.45 * y / 2.2)
        ridge = list(zip(x.tolist(), y.tolist(), strict=True))
        self.poly([*ridge, (1.0, base + 0.03), (0.0, base + 0.03)], colour)

    def tree(self, x: float, base: float, height: float, kind: str) -> None:
        trunk = self.pick((94, 70, 52), (110, 84, 60), (80, 62, 50))
        self.box(x - 0.06 * height, base - 0.4 * height, x + 0.06 * height, base, trunk)
        snowy = self.weather == "snow"
        if kind == "conifer":
            green = (225, 232, 238) if snowy else self.pick((34, 84, 56), (44, 96, 60), (28, 72, 54))
            for k in range(3):
                top, wide = base - height * (1 - 0.24 * k), height * (0.16 + 0.08 * k)
                self.poly(
                    [(x, top), (x - wide, top + 0.42 * height), (x + wide, top + 0.42 * height)],
                    green,
                )
        else:
            green = (222, 228, 232) if snowy else self.pick((74, 128, 56), (92, 142, 66), (58, 112, 60))
            for _ in range(5):
                dx, dy, r = self.u(-0.2, 0.2), self.u(0.45, 0.85), self.u(0.14, 0.24)
                self.oval(x + (dx - r) * height, base - (dy + r) * height, x + (dx + r) * height,
                          base - (dy - r) * height, green)  # fmt: skip

    def treeline(self, base: float, height: float, kind: str, step: float = 0.07) -> None:
        x = self.u(-0.05, 0.02)
        while x < 1.05:
            self.tree(x, base + self.u(0, 0.015), height * self.u(0.7, 1.2), kind)
            x += step * self.u(0.6, 1.5)

    def specks(self, n: int, y0: float, y1: float, colours: tuple[Colour, ...], r: float) -> None:
        """Draw `n` small ovals between heights y0 and y1; nearer ones are larger."""
        for _ in range(n):
            x, t = self.u(), self.u()
            y, s = y0 + (y1 - y0) * t, r * (0.4 + t)
            self.oval(x - s, y - 0.5 * s, x + s, y + 0.5 * s, self.pick(*colours))

    def window(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """A window in a wall: the view outside, then the panes."""
        self.box(x0 - 0.015, y0 - 0.015, x1 + 0.015, y1 + 0.015, (236, 232, 224))
        top, bottom = _SKY["night" if self.light == "lamplight" else self.light]
        if self.weather != "clear" and self.light not in ("night", "lamplight"):
            top, bottom = blend(top, (160, 166, 175), 0.8), blend(bottom, (195, 198, 204), 0.8)
        for k in range(4):
            step = (y1 - y0) / 4
            self.box(x0, y0 + k * step, x1, y0 + (k + 1) * step, blend(top, bottom, k / 3), 3)
        if self.u() < 0.7:
            self.oval(x0, y1 - 0.05, x0 + 0.7 * (x1 - x0), y1 + 0.0, (92, 132, 86))
        self.box(x0, y1 - 0.015, x1, y1, (96, 128, 84))
        mid = (x0 + x1) / 2
        self.box(mid - 0.006, y0, mid + 0.006, y1, (236, 232, 224))
        self.box(x0, (y0 + y1) / 2 - 0.006, x1, (y0 + y1) / 2 + 0.006, (236, 232, 224))
        self.windows.append((x0, y0, x1, y1))


def blend(a: Colour, b: Colour, t: float) -> Colour:
    """The colour `t` (0..1) of the way from `a` to `b`."""
    return (
        round(a[0] + (b[0] - a[0]) * t),
        round(a[1] + (b[1] - a[1]) * t),
        round(a[2] + (b[2] - a[2]) * t),
    )
