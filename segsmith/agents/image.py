"""The image agent: draws admitted prompts in batches, with seeds made of ids."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from segsmith.config import ImagesConfig
from segsmith.memory.ledger import ImageRow, Ledger, PromptRow
from segsmith.memory.store import RunFolder, make_id, png_bytes, seed_of, write_atomic
from segsmith.tools.protocols import SEEDS_PER_PROMPT, Image, ImageBackend, ImageRequest, OutOfMemory

log = logging.getLogger(__name__)


class ImageAgent:
    """Draws what is not drawn yet; the same run always draws the same pictures."""

    def __init__(
        self, backend: ImageBackend, ledger: Ledger, run: RunFolder, config: ImagesConfig, seed: int
    ) -> None:
        self._backend = backend
        self._ledger = ledger
        self._run = run
        self._config = config
        self._seed = seed
        self._batch_size = config.batch_size

    def waiting(self) -> dict[str, list[str]]:
        """Class -> admitted prompts with images still to draw, oldest first."""
        drawn = Counter(row.prompt_id for row in self._ledger.images())
        waiting: dict[str, list[str]] = {}
        for prompt in self._ledger.prompts("admitted"):
            if drawn[prompt.id] < self._config.per_prompt:
                waiting.setdefault(prompt.class_name, []).append(prompt.id)
        return waiting

    def draw(
        self,
        prompts: Iterable[PromptRow],
        round_: int,
        *,
        limit: int | None = None,
        on_batch: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[str]:
        """Draw every prompt's images that the ledger lacks, at most `limit`; returns their ids in order.

        Each batch is saved before the next one starts, so a crash costs one batch. On out-of-memory the
        batch is halved and the smaller size kept. `on_batch` hears (drawn so far, in all).
        """
        there = {row.id for row in self._ledger.images()}
        todo = [row for prompt in prompts for row in self._rows(prompt, round_) if row[0] not in there]
        todo = todo[:limit]
        position = 0
        while position < len(todo):
            batch = todo[position : position + self._batch_size]
            try:
                images = self._backend.draw([request for _, _, request in batch])
            except OutOfMemory:
                if self._batch_size == 1:
                    raise
                self._batch_size = max(1, self._batch_size // 2)
                log.warning("out of memory: going on with batches of %d images", self._batch_size)
                continue
            self._save(batch, images, round_)
            position += len(batch)
            on_batch(position, len(todo))
        return [image_id for image_id, _, _ in todo]

    def _rows(self, prompt: PromptRow, round_: int) -> list[tuple[str, str, ImageRequest]]:
        first = SEEDS_PER_PROMPT * (seed_of(self._seed, prompt.id) % 2_000_000)
        rows = []
        for seed in range(first, first + self._config.per_prompt):
            image_id = make_id("i", prompt.id, seed, self._backend.name, self._config.size)
            rows.append((image_id, prompt.id, ImageRequest(prompt.text, seed)))
        return rows

    def _save(
        self, batch: Sequence[tuple[str, str, ImageRequest]], images: Sequence[Image], round_: int
    ) -> None:
        rows = []
        for (image_id, prompt_id, request), image in zip(batch, images, strict=True):
            data = png_bytes(image)
            write_atomic(self._run.image(image_id), data)
            digest = hashlib.sha256(data).hexdigest()
            rows.append(ImageRow(image_id, prompt_id, request.seed, self._backend.name, round_, digest))
        self._ledger.add_images(rows)
