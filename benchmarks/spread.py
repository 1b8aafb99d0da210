"""How the benchmarks write a figure of several seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(values: Sequence[float], digits: int = 3, sign: str = "") -> str:
    """Mean, and the lowest and highest in brackets unless they are the same; empty without values.

    `sign` is ``+`` for differences.
    """
    if not values:
        return ""
    mean, low, high = (f"{v:{sign}.{digits}f}" for v in (np.mean(values), min(values), max(values)))
    return f"{mean} ({low} to {high})" if low != high else mean
