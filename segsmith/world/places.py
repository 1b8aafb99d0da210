"""A painter for each place: sky, ground, water and scenery.

Nothing that is painted here is an object of the world. Positions are fractions of the image, (0, 0) is top left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from segsmith.world.brush import Brush, Colour, blend


@dataclass(frozen=True)
class Ground:
    """What a painter returns: where objects may stand, and the texture of the ground; see `backdrop.Backdrop`."""

    horizon: float
    top: float
    water: tuple[float, float] | None = None
    grain: float = 10.0
    banded: bool = False  # long horizontal grain, as on water, sand and boards


def _grass(b: Brush, y: float, tint: Colour | None = None) -> None:
    green = tint or b.pick((112, 164, 78), (96, 150, 74), (126, 170, 84))
    b.gradient(y, 1, blend(green, (200, 216, 150), 0.3), blend(green, (30, 70, 30), 0.25))


def _street(b: Brush) -> Ground:
    h = b.u(0.4, 0.5)
    b.sky(h)
    x = b.u(-0.1, 0.0)
    night = b.light in ("night", "lamplight")
    while x < 1:
        w, top = b.u(0.14, 0.3), h - b.u(0.16, 0.4)
        wall = b.pick((176, 108, 88), (196, 178, 150), (150, 156, 166), (206, 196, 186),
                      (140, 122, 116), (172, 148, 120), (120, 134, 146))  # fmt: skip
        b.box(x, top, x + w, h + 0.02, wall)
        pane = b.pick((70, 88, 108), (90, 104, 116), (60, 72, 92))
        n = max(2, int(w / 0.06))
        y = top + 0.03
        while y < h - 0.06:
            for k in range(n):
                lit = night and b.u() < 0.5
                x0 = x + w * (k + 0.25) / n
                b.box(x0, y, x0 + 0.5 * w / n, y + 0.04, (255, 226, 140) if lit else pane, 8)
            y += 0.075
        if b.u() < 0.6:
            awning = b.pick((190, 70, 64), (70, 120, 100), (220, 190, 90))
            b.box(x + 0.01, h - 0.06, x + w - 0.01, h - 0.035, awning)
        x += w
    b.gradient(h, h + 0.1, (186, 182, 174), (168, 164, 158))
    b.line([(0, h + 0.1), (1, h + 0.1)], 0.012, (214, 210, 202))
    b.gradient(h + 0.106, 1, (108, 110, 116), (80, 82, 88))
    y, slope = b.u(0.72, 0.82), b.u(-0.05, 0.05)
    x = b.u(-0.2, 0)
    while x < 1:
        b.poly([(x, y + slope * x), (x + 0.13, y + slope * (x + 0.13)),
                (x + 0.12, y + 0.02 + slope * (x + 0.12)), (x - 0.01, y + 0.02 + slope * x)],
               (232, 228, 212))  # fmt: skip
        x += 0.24
    if b.u() < 0.3:  # a crossing
        for k in range(6):
            x = 0.1 + b.u(0, 0.02) + 0.14 * k
            b.poly([(x, h + 0.13), (x + 0.06, h + 0.13), (x + 0.07, 1), (x - 0.01, 1)],
                   (218, 216, 208))  # fmt: skip
    for _ in range(int(b.u(0, 3.5))):
        x = b.u()
        if b.u() < 0.5:
            b.box(x - 0.006, h - 0.22, x + 0.006, h + 0.09, (64, 68, 74))
            b.oval(
                x - 0.025,
                h - 0.25,
                x + 0.025,
                h - 0.21,
                (255, 240, 180) if night else (210, 214, 214),
            )
        else:
            b.tree(x, h + 0.08, b.u(0.2, 0.32), "round")
    return Ground(h, h + 0.1, None, 9)


def _park(b: Brush) -> Ground:
    h = b.u(0.36, 0.5)
    b.sky(h)
    b.treeline(h + 0.01, 0.2, "round", 0.08)
    _grass(b, h)
    if b.u() < 0.75:
        x0, x1, bend = b.u(0.2, 0.8), b.u(0.1, 0.9), b.u(-0.2, 0.2)
        left, right = [], []
        for k in range(9):
            t = k / 8
            x = x0 + (x1 - x0) * t + bend * np.sin(np.pi * t)
            left.append((x - 0.01 - 0.14 * t, h + (1 - h) * t))
            right.append((x + 0.01 + 0.14 * t, h + (1 - h) * t))
        b.poly(left + right[::-1], b.pick((214, 198, 164), (190, 182, 172), (204, 184, 150)))
    for _ in range(int(b.u(1, 3.6))):
        b.tree(b.u(), h + b.u(0.02, 0.1), b.u(0.28, 0.46), "round")
    if b.u() < 0.5:
        b.box(0, h + 0.01, 1, h + 0.05, (62, 108, 58))
    b.specks(int(b.u(6, 22)), h + 0.08, 1, ((232, 90, 100), (250, 220, 90), (240, 240, 250),
                                             (70, 120, 56)), 0.008)  # fmt: skip
    return Ground(h, h + 0.1, None, 15)


def _field(b: Brush) -> Ground:
    h = b.u(0.38, 0.52)
    b.sky(h)
    b.hills(h, b.u(0.05, 0.14), (124, 156, 110))
    if b.u() < 0.6:
        b.treeline(h + 0.005, 0.06, "round", 0.035)
    crop = b.u() < 0.45
    tint = b.pick((214, 186, 96), (196, 180, 92)) if crop else b.pick((132, 178, 80), (150, 184, 88))
    _grass(b, h, tint)
    vanish = b.u(0.2, 0.8)
    dark = blend(tint, (70, 90, 30), 0.35)
    for k in range(-9, 10):
        x = vanish + 0.28 * k + b.u(-0.03, 0.03)
        b.poly([(vanish + 0.05 * k, h), (x, 1), (x + 0.05, 1)], dark, 6)
    if b.u() < 0.65:
        y, wood = h + b.u(0.03, 0.07), (150, 120, 90)
        b.line([(0, y), (1, y)], 0.008, wood)
        b.line([(0, y + 0.03), (1, y + 0.03)], 0.008, wood)
        x = b.u(0, 0.1)
        while x < 1:
            b.box(x, y - 0.02, x + 0.012, y + 0.055, wood)
            x += 0.11
    return Ground(h, h + 0.1, None, 16)


def _forest(b: Brush) -> Ground:
    h = b.u(0.5, 0.6)
    b.sky(h)
    kind = "conifer" if b.u() < 0.6 else "round"
    b.gradient(0.12, h, (96, 134, 104), (44, 78, 56))
    b.treeline(h, 0.42, kind, 0.06)
    soil = b.pick((104, 96, 58), (92, 110, 62), (116, 92, 62))
    b.gradient(h, 1, blend(soil, (50, 70, 40), 0.4), soil)
    for _ in range(int(b.u(4, 8))):
        x, w, base = b.u(), b.u(0.02, 0.05), h + b.u(0.0, 0.09)
        bark = b.pick((84, 64, 50), (104, 82, 64), (70, 56, 46), (128, 112, 94))
        b.poly([(x - w * 0.6, -0.01), (x + w * 0.6, -0.01), (x + w, base), (x - w, base)], bark)
    b.box(0, -0.01, 1, b.u(0.04, 0.1), (40, 84, 48))
    for _ in range(10):
        x, r = b.u(), b.u(0.06, 0.13)
        b.oval(x - r, -r, x + r, r * 1.2, b.pick((44, 96, 52), (60, 112, 58), (36, 80, 48)))
    b.specks(int(b.u(25, 45)), h + 0.03, 1, ((150, 104, 54), (90, 120, 60), (70, 84, 48),
                                              (176, 128, 64)), 0.014)  # fmt: skip
    return Ground(h, h + 0.08, None, 18)


def _sea(b: Brush, top: float, bottom: float) -> None:
    deep = {
        "sunset": (110, 92, 130),
        "golden hour": (96, 150, 176),
        "overcast": (110, 134, 146),
    }.get(b.light, (48, 128, 176))
    b.gradient(top, bottom, blend(deep, (230, 240, 250), 0.25), deep)
    for _ in range(14):
        t = b.u()
        x, y, w = b.u(-0.1, 1), top + (bottom - top) * t, 0.03 + 0.1 * t * b.u()
        b.box(x, y, x + w, y + 0.006, blend(deep, (255, 255, 255), 0.4))


def _beach(b: Brush) -> Ground:
    h = b.u(0.3, 0.4)
    shore = h + b.u(0.16, 0.24)
    b.sky(h)
    if b.u() < 0.4:
        b.hills(h, 0.06, (110, 136, 140))
    _sea(b, h, shore + 0.02)
    sand = b.pick((236, 212, 156), (228, 204, 160), (240, 220, 176))
    x = np.linspace(0, 1, 17)
    wave = (shore + 0.018 * np.sin(2 * np.pi * (x * b.u(1, 2.5) + b.u()))).tolist()
    edge = list(zip(x.tolist(), wave, strict=True))
    b.poly([*edge, (1.0, 1.0), (0.0, 1.0)], (250, 250, 246), 3)
    b.poly(
        [*((a, c + 0.022) for a, c in edge), (1.0, 1.0), (0.0, 1.0)],
        blend(sand, (150, 120, 80), 0.3),
    )
    b.poly([*((a, c + 0.07) for a, c in edge), (1.0, 1.0), (0.0, 1.0)], sand)
    b.specks(int(b.u(8, 25)), shore + 0.1, 1, ((206, 180, 130), (250, 240, 220), (180, 160, 130)), 0.009)
    return Ground(h, shore + 0.1, (h + 0.05, shore), 11, True)


def _lake(b: Brush) -> Ground:
    h = b.u(0.3, 0.4)
    shore = h + b.u(0.26, 0.34)
    b.sky(h)
    b.hills(h, 0.16, (128, 152, 150))
    b.treeline(h + 0.005, 0.1, (b.u() < 0.5 and "conifer") or "round", 0.04)
    _sea(b, h, shore + 0.05)
    b.box(0, h, 1, h + 0.03, (70, 110, 96))
    x = np.linspace(0, 1, 17)
    wave = shore + 0.03 * np.sin(2 * np.pi * (x * b.u(0.5, 1.4) + b.u()))
    edge = list(zip(x.tolist(), wave.tolist(), strict=True))
    b.poly([*edge, (1.0, 1.0), (0.0, 1.0)], (150, 132, 96))
    b.poly([*((a, c + 0.025) for a, c in edge), (1.0, 1.0), (0.0, 1.0)],
           b.pick((110, 154, 76), (124, 160, 84)))  # fmt: skip
    for _ in range(int(b.u(4, 14))):
        x0, y0 = b.u(), shore + b.u(0.0, 0.06)
        b.line([(x0, y0), (x0 + b.u(-0.02, 0.02), y0 - b.u(0.06, 0.14))], 0.006, (84, 120, 60))
    return Ground(h, shore + 0.09, (h + 0.1, shore - 0.01), 12, True)


def _harbour(b: Brush) -> Ground:
    h = b.u(0.3, 0.4)
    quay = b.u(0.72, 0.8)
    b.sky(h)
    x = b.u(-0.1, 0.1)
    while x < 1:
        w = b.u(0.1, 0.22)
        b.box(
            x,
            h - b.u(0.05, 0.13),
            x + w,
            h,
            b.pick((168, 90, 74), (122, 134, 148), (188, 176, 150)),
        )
        x += w + b.u(0, 0.12)
    for _ in range(int(b.u(0, 2.8))):
        x, c = b.u(0.05, 0.95), b.pick((210, 120, 60), (90, 110, 140))
        b.line([(x, h), (x, h - 0.24)], 0.014, c)
        b.line([(x - 0.07, h - 0.2), (x + 0.16, h - 0.24)], 0.01, c)
        b.line([(x + 0.13, h - 0.235), (x + 0.13, h - 0.12)], 0.005, c)
    _sea(b, h, quay)
    b.box(0, quay, 1, quay + 0.035, (128, 120, 110))
    b.gradient(quay + 0.035, 1, (186, 180, 168), (160, 154, 144))
    for k in range(7):
        b.line([(0.16 * k, quay + 0.035), (0.16 * k + 0.08 * (k - 3), 1)], 0.006, (136, 130, 122))
    x = b.u(0.02, 0.2)
    while x < 1:
        b.box(x, quay - 0.035, x + 0.03, quay + 0.02, (70, 70, 74))
        x += b.u(0.2, 0.4)
    return Ground(h, quay + 0.08, (h + 0.12, quay - 0.02), 9, True)


def _mountain(b: Brush) -> Ground:
    h = b.u(0.5, 0.58)
    b.sky(h)
    for _ in range(3):
        x, top, w = b.u(0.02, 0.98), b.u(0.08, 0.24), b.u(0.26, 0.42)
        rock = b.pick((122, 124, 138), (108, 112, 126), (136, 130, 134))
        b.poly([(x, top), (x + w, h + 0.01), (x - w, h + 0.01)], rock)
        b.poly([(x, top), (x + w, h + 0.01), (x + 0.1 * w, h + 0.01)], blend(rock, (60, 62, 82), 0.35))
        s = 0.36
        yy = top + s * (h - top)
        b.poly(
            [
                (x, top),
                (x + s * w, yy),
                (x + 0.4 * s * w, yy - 0.03),
                (x + 0.1 * s * w, yy + 0.03),
                (x - 0.4 * s * w, yy - 0.02),
                (x - s * w, yy),
            ],
            (244, 248, 252),
            4,
        )
    b.hills(h + 0.01, 0.07, (92, 128, 88))
    b.treeline(h + 0.01, 0.09, "conifer", 0.05)
    _grass(b, h, b.pick((118, 148, 86), (132, 150, 96), (108, 140, 90)))
    b.specks(int(b.u(8, 20)), h + 0.05, 1, ((150, 150, 148), (126, 128, 126), (170, 168, 160)), 0.022)
    return Ground(h, h + 0.07, None, 16)


def _desert(b: Brush) -> Ground:
    h = b.u(0.4, 0.5)
    b.sky(h)
    if b.u() < 0.6:
        for _ in range(int(b.u(1, 3.5))):
            x, w, t = b.u(), b.u(0.06, 0.14), h - b.u(0.08, 0.2)
            b.poly([(x - w, h), (x - 0.7 * w, t), (x + 0.7 * w, t), (x + w, h)], (190, 112, 76))
    sand = b.pick((232, 176, 104), (226, 168, 110), (238, 190, 120))
    b.hills(h + 0.04, 0.1, blend(sand, (255, 220, 170), 0.3))
    b.gradient(h + 0.04, 1, sand, blend(sand, (150, 90, 50), 0.2))
    for k in range(3):
        y = h + 0.1 + 0.17 * k
        b.hills(y + 0.1, 0.07, blend(sand, (160, 96, 56), 0.15 + 0.12 * b.u()))
    b.specks(int(b.u(5, 14)), h + 0.1, 1, ((160, 116, 70), (140, 130, 80)), 0.012)
    return Ground(h, h + 0.1, None, 12, True)


def _airport(b: Brush) -> Ground:
    h = b.u(0.38, 0.46)
    b.sky(h)
    x0 = b.u(0, 0.5)
    b.box(x0, h - 0.08, x0 + b.u(0.3, 0.5), h, (196, 202, 208))
    b.box(x0, h - 0.055, x0 + 0.3, h - 0.03, (80, 112, 140))
    x = b.u(0.08, 0.92)
    b.box(x - 0.015, h - 0.2, x + 0.015, h, (206, 202, 194))
    b.poly([(x - 0.05, h - 0.25), (x + 0.05, h - 0.25), (x + 0.03, h - 0.19), (x - 0.03, h - 0.19)],
           (70, 100, 126))  # fmt: skip
    _grass(b, h, (140, 168, 98))
    v = b.u(0.3, 0.7)
    b.poly([(v - 0.06, h + 0.02), (v + 0.06, h + 0.02), (v + 1.0, 1), (v - 1.0, 1)], (104, 106, 110))
    for k in range(6):
        t0, t1 = (k + 0.1) / 6, (k + 0.6) / 6
        y0, y1 = h + 0.02 + (0.98 - h) * t0**1.6, h + 0.02 + (0.98 - h) * t1**1.6
        b.poly(
            [
                (v - 0.004 - 0.03 * t0, y0),
                (v + 0.004 + 0.03 * t0, y0),
                (v + 0.004 + 0.03 * t1, y1),
                (v - 0.004 - 0.03 * t1, y1),
            ],
            (240, 240, 236),
        )
    for s in (-1, 1):
        b.line([(v + s * 0.05, h + 0.02), (v + s * 0.9, 1)], 0.01, (240, 214, 90))
    return Ground(h, h + 0.12, None, 9)


def _railway(b: Brush) -> Ground:
    h = b.u(0.4, 0.48)
    b.sky(h)
    b.treeline(h + 0.01, 0.12, "round", 0.06)
    b.gradient(h, 1, (150, 142, 130), (126, 118, 108))
    y = b.u(0.76, 0.86)
    step = 0.055
    for k in range(20):
        x = step * k
        b.poly([(x, y - 0.09), (x + 0.022, y - 0.09), (x + 0.015, y + 0.05), (x - 0.01, y + 0.05)],
               (98, 76, 60))  # fmt: skip
    for dy in (-0.06, 0.02):
        b.box(0, y + dy, 1, y + dy + 0.016, (170, 174, 182))
    b.box(0, h + 0.03, 1, h + 0.1, (190, 186, 180))
    b.box(0, h + 0.1, 1, h + 0.125, (230, 200, 80))
    x = b.u(0, 0.3)
    while x < 1:
        b.box(x, h - 0.3, x + 0.014, h + 0.05, (84, 92, 98))
        b.box(x - 0.06, h - 0.28, x + 0.06, h - 0.268, (84, 92, 98))
        x += b.u(0.3, 0.5)
    b.line([(0, h - 0.27), (1, h - 0.27)], 0.004, (60, 62, 66))
    if b.u() < 0.5:
        b.box(0, h - 0.36, 1, h - 0.31, (120, 130, 138))
    return Ground(h, h + 0.2, None, 17)


def _kitchen(b: Brush) -> Ground:
    h = b.u(0.6, 0.66)
    tile = b.pick((226, 232, 230), (206, 224, 228), (236, 228, 210))
    b.gradient(0, h, tile, blend(tile, (120, 120, 120), 0.12))
    grout = blend(tile, (140, 150, 150), 0.35)
    for k in range(1, 12):
        b.line([(k / 12, 0.2), (k / 12, h)], 0.004, grout)
    for k in range(6):
        b.line([(0, 0.24 + 0.06 * k), (1, 0.24 + 0.06 * k)], 0.004, grout)
    wood = b.pick((178, 128, 84), (222, 216, 206), (104, 138, 142), (150, 60, 56), (94, 108, 96))
    gap = b.u(0.25, 0.6)
    for x0, x1 in ((-0.02, gap), (gap + 0.32, 1.02)):
        x = x0
        while x < x1 - 0.05:
            x2 = min(x + 0.17, x1)
            b.box(x, -0.01, x2 - 0.008, 0.2, wood, 6)
            b.box(x2 - 0.03, 0.13, x2 - 0.02, 0.175, (60, 60, 60))
            x = x2
    b.window(gap + 0.04, 0.06, gap + 0.28, 0.3)
    top = h - b.u(0.2, 0.24)
    b.box(0, top + 0.03, 1, h, wood, 6)
    b.box(0, top, 1, top + 0.03, b.pick((70, 70, 74), (222, 218, 210), (140, 110, 84)))
    x = b.u(0, 0.1)
    while x < 1:
        b.line([(x, top + 0.03), (x, h)], 0.006, blend(wood, (0, 0, 0), 0.4))
        b.box(x + 0.05, top + 0.05, x + 0.12, top + 0.06, (60, 60, 60))
        x += 0.17
    x = b.u(0.05, 0.7)
    b.box(x, top + 0.04, x + 0.2, h - 0.01, (206, 208, 210))  # oven
    b.box(x + 0.025, top + 0.08, x + 0.175, h - 0.035, (48, 50, 54))
    for k in range(4):
        b.oval(x + 0.02 + 0.045 * k, top + 0.045, x + 0.04 + 0.045 * k, top + 0.065, (50, 50, 50))
    light, dark = (
        b.pick((236, 228, 214), (222, 222, 222)),
        b.pick((150, 160, 166), (176, 130, 100), (90, 96, 100)),
    )
    b.gradient(h, 1, light, blend(light, (90, 80, 70), 0.15))
    v = b.u(0.35, 0.65)
    rows = (0.0, 0.2, 0.5, 1.0)
    for r in range(3):
        y0, y1 = h + (1 - h) * rows[r], h + (1 - h) * rows[r + 1]
        for k in range(-8, 8):
            if (k + r) % 2:
                f0, f1 = 0.09 * (1 + 1.6 * rows[r]), 0.09 * (1 + 1.6 * rows[r + 1])
                w0, w1 = v + k * f0, v + k * f1
                b.poly([(w0, y0), (w0 + f0, y0), (w1 + f1, y1), (w1, y1)], dark, 4)
    return Ground(h, h + 0.05, None, 5)


def _boards(b: Brush, h: float) -> None:
    wood = b.pick((184, 136, 90), (150, 106, 70), (206, 164, 116))
    b.gradient(h, 1, wood, blend(wood, (70, 40, 20), 0.2))
    v = b.u(0.3, 0.7)
    for k in range(-8, 9):
        b.line([(v + 0.09 * k, h), (v + 0.26 * k, 1)], 0.005, blend(wood, (60, 36, 20), 0.4))
    b.box(0, h - 0.02, 1, h, (240, 236, 228))


def _living_room(b: Brush) -> Ground:
    h = b.u(0.58, 0.64)
    wall = b.pick((214, 196, 166), (176, 192, 172), (204, 178, 168), (190, 200, 208), (224, 208, 160))
    b.gradient(0, h, wall, blend(wall, (90, 80, 70), 0.12))
    if b.u() < 0.5:
        for k in range(14):
            b.box(k / 14, 0, k / 14 + 0.035, h, blend(wall, (255, 255, 255), 0.22), 3)
    _boards(b, h)
    x = b.u(0.06, 0.62)
    b.window(x, 0.08, x + 0.28, 0.38)
    curtain = b.pick((176, 72, 70), (80, 110, 140), (220, 190, 110), (120, 140, 96))
    for x0 in (x - 0.08, x + 0.28):
        b.box(x0, 0.04, x0 + 0.08, 0.46, curtain)
        b.box(x0 + 0.03, 0.04, x0 + 0.045, 0.46, blend(curtain, (0, 0, 0), 0.25))
    b.box(x - 0.1, 0.03, x + 0.38, 0.045, (110, 84, 60))
    other = x - 0.34 if x > 0.36 else x + 0.42
    if b.u() < 0.5:  # fireplace
        b.box(other, h - 0.28, other + 0.26, h, (170, 110, 90))
        b.box(other - 0.015, h - 0.3, other + 0.275, h - 0.27, (224, 214, 198))
        b.box(other + 0.06, h - 0.18, other + 0.2, h, (44, 36, 34))
        b.oval(other + 0.09, h - 0.1, other + 0.17, h + 0.0, (240, 140, 50))
    else:  # bookshelf
        b.box(other, 0.1, other + 0.26, h, (112, 78, 54))
        for r in range(4):
            y = 0.13 + r * (h - 0.14) / 4
            xx = other + 0.02
            while xx < other + 0.22:
                w = b.u(0.012, 0.025)
                b.box(
                    xx,
                    y + b.u(0, 0.02),
                    xx + w,
                    y + (h - 0.14) / 4 - 0.025,
                    b.pick(
                        (170, 60, 56),
                        (60, 90, 130),
                        (210, 180, 100),
                        (70, 120, 90),
                        (220, 214, 200),
                    ),
                )
                xx += w + 0.004
    rug = b.pick((160, 62, 66), (74, 98, 132), (196, 170, 120), (96, 120, 100))
    x, y = b.u(0.35, 0.65), b.u(0.8, 0.86)
    b.oval(x - 0.42, y - 0.11, x + 0.42, y + 0.11, rug)
    b.oval(x - 0.36, y - 0.085, x + 0.36, y + 0.085, blend(rug, (240, 226, 200), 0.35))
    return Ground(h, h + 0.05, None, 6)


def _bedroom(b: Brush) -> Ground:
    h = b.u(0.58, 0.64)
    wall = b.pick((206, 200, 226), (232, 206, 214), (190, 214, 226), (236, 224, 200), (200, 222, 204))
    b.gradient(0, h, wall, blend(wall, (110, 100, 120), 0.12))
    carpet = b.pick((190, 172, 160), (160, 158, 178), (206, 190, 168))
    b.gradient(h, 1, carpet, blend(carpet, (70, 60, 60), 0.18))
    b.box(0, h - 0.02, 1, h, (244, 240, 236))
    left = b.u() < 0.5
    x = 0.08 if left else 0.66
    b.window(x, 0.08, x + 0.24, 0.36)
    for x0 in (x - 0.06, x + 0.24):
        b.box(x0, 0.05, x0 + 0.06, 0.44, blend(wall, (255, 255, 255), 0.5))
    # The bed along the wall is scenery, not an object.
    x0 = b.u(0.4, 0.48) if left else b.u(-0.02, 0.06)
    x1 = x0 + 0.56
    wood, cover = (
        b.pick((130, 92, 64), (206, 200, 192)),
        b.pick((96, 130, 170), (190, 110, 120), (226, 226, 232), (120, 150, 120)),
    )
    b.box(x0, h - 0.34, x0 + 0.04, h + 0.08, wood)
    b.box(x1 - 0.035, h - 0.18, x1, h + 0.08, wood)
    b.box(x0 + 0.04, h + 0.03, x1 - 0.035, h + 0.055, wood)
    b.box(x0 + 0.04, h - 0.16, x1 - 0.035, h - 0.1, (246, 244, 240))
    b.oval(x0 + 0.03, h - 0.24, x0 + 0.19, h - 0.12, (252, 252, 252))
    b.box(x0 + 0.17, h - 0.165, x1 - 0.035, h + 0.035, cover)
    for k in range(4):
        b.box(
            x0 + 0.2 + 0.08 * k,
            h - 0.165,
            x0 + 0.22 + 0.08 * k,
            h + 0.035,
            blend(cover, (255, 255, 255), 0.35),
        )
    if b.u() < 0.7:
        px = x0 + b.u(0.15, 0.25)
        b.box(px, 0.1, px + 0.16, 0.24, (120, 96, 76))
        b.box(
            px + 0.015,
            0.115,
            px + 0.145,
            0.225,
            b.pick((190, 210, 200), (230, 200, 170), (150, 170, 200)),
        )
    return Ground(h, h + 0.06, None, 9)


def _office(b: Brush) -> Ground:
    h = b.u(0.58, 0.64)
    wall = b.pick((214, 218, 222), (198, 208, 216), (222, 220, 212))
    b.gradient(0, h, wall, blend(wall, (90, 100, 110), 0.12))
    carpet = b.pick((104, 112, 124), (92, 104, 120), (124, 122, 120))
    b.gradient(h, 1, carpet, blend(carpet, (40, 44, 52), 0.2))
    v = b.u(0.3, 0.7)
    for k in range(-6, 7):
        b.line([(v + 0.13 * k, h), (v + 0.34 * k, 1)], 0.004, blend(carpet, (200, 200, 200), 0.25))
    for t in (0.25, 0.6):
        b.line(
            [(0, h + (1 - h) * t), (1, h + (1 - h) * t)],
            0.004,
            blend(carpet, (200, 200, 200), 0.25),
        )
    b.box(0, 0, 1, 0.05, (238, 240, 240))
    for x in (0.12, 0.58):
        b.box(x, 0.012, x + 0.28, 0.035, (255, 255, 246))
    left = b.u() < 0.5
    x = 0.04 if left else 0.5
    b.window(x, 0.12, x + 0.44, 0.42)
    for k in range(int(b.u(3, 9))):
        y = 0.125 + 0.025 * k
        b.box(x, y, x + 0.44, y + 0.008, (226, 228, 228))
    x = 0.56 if left else 0.06
    b.box(x, 0.13, x + 0.36, 0.37, (130, 136, 142))
    b.box(x + 0.012, 0.142, x + 0.348, 0.358, (248, 250, 250))
    for k in range(int(b.u(3, 8))):
        y, x2 = 0.17 + 0.022 * k, x + 0.03
        b.line(
            [(x2, y), (x2 + b.u(0.06, 0.26), y)],
            0.006,
            b.pick((60, 90, 170), (190, 60, 60), (60, 60, 60)),
        )
    b.box(-0.01, h - 0.14, 1.01, h - 0.01, b.pick((150, 160, 172), (120, 140, 150), (176, 168, 156)))
    x = b.u(0, 0.25)
    while x < 1:
        b.box(x, h - 0.14, x + 0.01, h, (90, 94, 100))
        x += 0.27
    return Ground(h, h + 0.05, None, 8)


def _studio(b: Brush) -> Ground:
    h = b.u(0.55, 0.68)
    c = b.pick(
        (206, 206, 208),
        (190, 206, 216),
        (222, 212, 198),
        (204, 216, 200),
        (216, 200, 208),
        (176, 180, 190),
    )
    b.gradient(0, h, blend(c, (80, 80, 80), 0.15), c)
    b.gradient(h, h + 0.05, c, blend(c, (255, 255, 255), 0.3))
    b.gradient(h + 0.05, 1, blend(c, (255, 255, 255), 0.3), blend(c, (90, 90, 90), 0.12))
    return Ground(h, h + 0.04, None, 4)


PAINTERS: dict[str, Callable[[Brush], Ground]] = {
    "street": _street, "park": _park, "field": _field, "forest": _forest, "beach": _beach,
    "lake": _lake, "harbour": _harbour, "mountain": _mountain, "desert": _desert,
    "airport": _airport, "railway": _railway, "kitchen": _kitchen, "living room": _living_room,
    "bedroom": _bedroom, "office": _office, "studio": _studio,
}  # fmt: skip
