"""Ids and seeds derived from content, so that they are the same on any machine."""

from __future__ import annotations

import hashlib


def make_id(kind: str, *parts: object) -> str:
    """A short id derived from `parts`: the same parts give the same id on any machine.

    `kind` is a letter such as "p" (prompt) or "i" (image); the result looks like ``p-1f9c0a2b7d3e``.
    """
    text = "\x1f".join(str(part) for part in parts)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def seed_of(*parts: object) -> int:
    """A seed in [0, 2**31) that depends only on `parts`."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
