"""The image agent: draws admitted prompts in batches. Seeds are derived from prompt ids."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

from segsmith.config import ImagesConfig
from segsmith.errors import Cancelled, OutOfMemory, SegsmithError
from segsmith.files import image_bytes, read_image, sha256_of
from segsmith.ids import make_id, seed_of
from segsmith.memory.ledger import ImageRow, Ledger, PromptRow, UndrawnRow, UsageRow
from segsmith.memory.run_folder import RunFolder
from segsmith.protocols import ImageBackend, ImageMixtureBackend
from segsmith.types import SEEDS_PER_PROMPT, Drawn, Gate, Image, ImageRequest, NoImage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preview:
    """An image that is still being drawn, and the prompt it is drawn for."""

    prompt: PromptRow
    image: Image


@dataclass(frozen=True)
class PreviewScore:
    """The judge's score of a preview."""

    probability: float
    """Of the prompt's class."""
    threshold: float
    """What the finished image will have to reach."""


Look = Callable[[Sequence[Preview]], Sequence[PreviewScore]]
"""Scores previews, for the online filter."""

OnImages = Callable[[Sequence[ImageRow], Mapping[str, Image]], None]
"""Is called with rows added to the ledger, in its order, and with those of their images that are in memory, by id."""

WRITERS = min(4, os.cpu_count() or 1)
"""Threads that encode and write images while the next batch is drawn."""


@dataclass(frozen=True)
class Task:
    """One image to draw."""

    id: str
    prompt: PromptRow
    request: ImageRequest


@dataclass(frozen=True)
class _File:
    """An image's file, and the image as it is stored; None if it is not in memory."""

    sha256: str
    image: Image | None


def encoded(image: Image, config: ImagesConfig) -> tuple[bytes, str, Image]:
    """The content of an image's file, its SHA-256, and the image as it is stored (of a JPEG, as it is read)."""
    data = image_bytes(image, config.format, config.quality)
    return data, hashlib.sha256(data).hexdigest(), image if config.format != "jpeg" else read_image(data)


def smaller_batch(tried: int, model: str, size: int) -> int:
    """Images to draw at once after the memory was too small for `tried` of `size` pixels.

    Raises `SegsmithError` where it is too small for one.
    """
    if tried == 1:
        raise SegsmithError(
            f"The device has too little memory for one {size} px image of {model}.",
            "Set images.offload = 'sequential', a smaller images.size, or a smaller model.",
        )
    return tried // 2


@dataclass(frozen=True)
class _Batch:
    """Images of one batch, while their files are written and until their rows are."""

    tasks: Sequence[Task]
    """In the order of the requests."""
    files: dict[str, Future[_File]]
    """Image id -> its file, once it is written."""


class ImageAgent:
    """Draws images that are not drawn yet; the same run always draws the same images."""

    def __init__(
        self,
        backend: ImageBackend,
        ledger: Ledger,
        run: RunFolder,
        config: ImagesConfig,
        seed: int,
        *,
        max_usd: float | None = None,
        look: Look | None = None,
        stopped: Callable[[], bool] = lambda: False,
        drawing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`look` enables the online filter; `stopped` returns True once the user has asked the run to stop.

        `drawing` is entered for each batch.
        """
        self._drawing = drawing
        self._backend = backend
        # Asked once: it looks at every attribute of the protocol.
        self._mixture = backend if isinstance(backend, ImageMixtureBackend) else None
        self._ledger = ledger
        self._run = run
        self._config = config
        self._seed = seed
        self._max_usd = max_usd
        self._look = look
        self._stopped = stopped
        fitted = ledger.batch_sizes.get(backend.name, config.batch_size)
        self._batch_size = min(config.batch_size, fitted)
        self.left_out: set[str] = set()
        """Prompts whose images could not be drawn in this session, for a reason of the machine."""

    @property
    def batch_size(self) -> int:
        """Images drawn at once; smaller than the setting where memory ran out."""
        return self._batch_size

    def fit_batch(self, size: int) -> None:
        """Draw at most `size` images at once from now on, in later sessions, too."""
        if size < self._batch_size:
            self._batch_size = size
            self._ledger.batch_sizes = {**self._ledger.batch_sizes, self._backend.name: size}
            log.warning("out of memory: continuing with batches of %d images", size)

    def waiting(self) -> dict[str, list[str]]:
        """Class -> admitted prompts with images left to draw, oldest first, without those a reviewer rejected."""
        rejected = self._rejected_prompts() | self.left_out
        waiting = self._ledger.waiting(self._config.per_prompt)
        left = {name: [i for i in ids if i not in rejected] for name, ids in waiting.items()}
        return {name: ids for name, ids in left.items() if ids}

    def affordable(self) -> float:
        """Number of images that the rest of the budget pays for; infinite without a price or a cap."""
        price = self._backend.usd_per_image
        if self._max_usd is None or not price:
            return math.inf
        spent = sum(row.usd for row in self._ledger.usage().values())
        return max(0, math.floor((self._max_usd - spent) / price + 1e-9))

    def draw(
        self,
        prompts: Iterable[PromptRow],
        round_: int,
        *,
        limit: int | None = None,
        lacking: Mapping[str, int] | None = None,
        on_batch: Callable[[int, int], None] = lambda done, total: None,
        on_images: OnImages = lambda rows, images: None,
    ) -> list[str]:
        """Draw every prompt's images that the ledger lacks, at most `limit`; returns the ids drawn, in order.

        Threads encode and write a batch while the next one is drawn; its rows follow in the order of the requests,
        and then `on_images`. At most two batches are in memory. A file whose row was lost in a crash is used if its
        hash is the one recorded before it was written, so no image is drawn or paid for twice. If memory runs out,
        the batch size is halved and remembered. Drawing ends early, without an error, when the next image would
        exceed the budget. With the online filter, a class in `lacking` (class -> images it still needs) stops when
        enough previews look good. `on_batch` is called with (images done, images in all). Whatever ends drawing, the
        images drawn by then are stored. Raises `Cancelled`, or `SegsmithError` when memory is too small for one
        image.
        """
        there, tasks = self.tasks_of(prompts, limit)
        todo = [task for task in tasks if task.id not in there]
        total, position = len(todo), 0
        good: dict[str, set[str]] = {}
        drawn: list[str] = []
        stored: set[str] = set()
        unfinished: deque[_Batch] = deque()

        def finish(keep: int) -> None:
            while len(unfinished) > keep:
                drawn.extend(self._finish(unfinished.popleft(), round_, on_images))

        with ThreadPoolExecutor(WRITERS, "segsmith-write") as pool:
            try:
                while position < total:
                    batch = self._next_batch(todo, position)
                    begun = [
                        task
                        for task in batch
                        if task.id not in stored and not self._enough(task.prompt.class_name, good, lacking)
                    ]
                    recovered = self._recovered(begun)
                    payable = self._affordable_part(begun, recovered)
                    unfinished.append(_Batch(payable, recovered))
                    try:
                        with self._drawing():
                            self._draw_batch(
                                unfinished[-1],
                                pool,
                                round_,
                                partial(self._gate, good=good, lacking=lacking),
                                partial(self._step, on_batch, position, len(batch), total),
                            )
                    except OutOfMemory:
                        self.fit_batch(smaller_batch(len(batch), self._backend.name, self._config.size))
                        continue
                    finally:
                        stored.update(unfinished[-1].files)
                    finish(keep=1)
                    if len(payable) < len(begun):
                        undone = total - position - len(payable)
                        self._ledger.log("budget_spent", usd=self._max_usd, undone=undone)
                        break
                    position += len(batch)
                    on_batch(position, total)
            finally:
                finish(keep=0)
        return drawn

    def tasks_of(self, prompts: Iterable[PromptRow], limit: int | None = None) -> tuple[set[str], list[Task]]:
        """The ids of the prompts' images that the ledger has, drawn or not finished; and all tasks of the prompts.

        At most `limit` tasks are left to do. A resumed round gets the same tasks in the same order.
        """
        rejected = self._rejected_prompts()
        wanted = [prompt for prompt in prompts if prompt.id not in rejected]
        there = self._ledger.requested([prompt.id for prompt in wanted])
        tasks, left = list[Task](), math.inf if limit is None else limit
        for task in (task for prompt in wanted for task in self._tasks(prompt)):
            if task.id in there or left > 0:
                tasks.append(task)
                left -= task.id not in there
        # Each model of a mixture is loaded once a round.
        tasks.sort(key=lambda task: self._model_of(task.request))
        return there, tasks

    def _model_of(self, request: ImageRequest) -> str:
        """The name recorded with the image: the backend's, or that of one model of a mixture."""
        return self._backend.name if self._mixture is None else self._mixture.model_of(request)

    def _next_batch(self, todo: Sequence[Task], position: int) -> list[Task]:
        """The next tasks that one model draws."""
        tasks = todo[position : position + self._batch_size]
        first = self._model_of(tasks[0].request)
        return [task for task in tasks if self._model_of(task.request) == first]

    def _rejected_prompts(self) -> set[str]:
        """Prompts that a reviewer rejected or edited."""
        return {i for i, row in self._ledger.decisions("prompt").items() if row.action != "accept"}

    def _tasks(self, prompt: PromptRow) -> list[Task]:
        first = SEEDS_PER_PROMPT * (seed_of(self._seed, prompt.id) % 2_000_000)
        requests = [ImageRequest(prompt.text, seed) for seed in range(first, first + self._config.per_prompt)]
        return [
            Task(make_id("i", prompt.id, r.seed, self._model_of(r), self._config.size), prompt, r)
            for r in requests
        ]

    def _recovered(self, tasks: Sequence[Task]) -> dict[str, Future[_File]]:
        """Image id -> the files that an earlier session wrote and whose rows it did not commit.

        Other files under these names are set aside, and their images are drawn again.
        """
        pending = self._ledger.pending_images()
        found: dict[str, Future[_File]] = {}
        for task in tasks:
            # Only what was written before may be in a store, so only that is asked for there.
            path = self._run.image(task.id, fetch=task.id in pending)
            if not path.exists():
                continue
            digest = sha256_of(path)
            if pending.get(task.id) == digest:
                found[task.id] = Future()
                found[task.id].set_result(_File(digest, None))
            else:
                moved = self._run.set_aside(path)
                self._ledger.log("set_aside", file=path.name)
                log.warning("%s is not a file that this run drew; moved to %s", path, moved)
        return found

    def _affordable_part(self, batch: Sequence[Task], recovered: Mapping[str, object]) -> list[Task]:
        """The first tasks that the budget pays for; images that are recovered cost nothing."""
        left, part = self.affordable(), []
        for task in batch:
            left -= task.id not in recovered
            if left < 0:
                break
            part.append(task)
        return part

    def _draw_batch(
        self,
        batch: _Batch,
        pool: ThreadPoolExecutor,
        round_: int,
        gate: Callable[[Sequence[Task]], Gate | None],
        on_step: Callable[[float], None],
    ) -> None:
        """Draw what has no file yet; threads of `pool` write the images. Adds to `batch` what it draws."""
        new = [task for task in batch.tasks if task.id not in batch.files]
        rejected: dict[str, Drawn] = {}
        try:
            if new:
                for result in self._backend.draw([task.request for task in new], gate(new), on_step):
                    task = new[result.index]
                    self._count(result)
                    if result.image is None:
                        rejected[task.id] = result
                    else:
                        batch.files[task.id] = pool.submit(self._write, task, result.image)
        finally:
            self._record_undrawn(batch.tasks, rejected, round_)

    def _finish(self, batch: _Batch, round_: int, on_images: OnImages) -> list[str]:
        """Wait for the files of a batch and add the rows of those that could be written; returns their ids."""
        wait(batch.files.values())
        files = {name: file.result() for name, file in batch.files.items() if file.exception() is None}
        rows = [self.row_of(task, round_, files[task.id].sha256) for task in batch.tasks if task.id in files]
        self._ledger.add_images(rows)
        for file in batch.files.values():
            file.result()  # raises what kept a file from being written
        on_images(rows, {name: file.image for name, file in files.items() if file.image is not None})
        return [row.id for row in rows]

    def _write(self, task: Task, image: Image) -> _File:
        """Write an image's file; its hash is committed first, so that the file can be trusted after a crash."""
        data, digest, stored = encoded(image, self._config)
        self._ledger.add_pending_image(task.id, digest)
        self._run.write(self._run.new_image(task.id, self._config.format), data)
        return _File(digest, stored)

    def row_of(self, task: Task, round_: int, sha256: str) -> ImageRow:
        """The row of an image whose file is written."""
        model = self._model_of(task.request)
        return ImageRow(task.id, task.prompt.id, task.request.seed, model, round_, sha256)

    def _record_undrawn(self, batch: Sequence[Task], rejected: Mapping[str, Drawn], round_: int) -> None:
        """Filtered and refused images are not tried again; those that a full class did not need may be."""
        rows = []
        for task in batch:
            result = rejected.get(task.id)
            if result is not None and result.reason is not None and result.reason != "quota":
                rows.append(UndrawnRow(task.id, task.prompt.id, round_, result.reason, result.detail))
        self._ledger.add_undrawn(rows)
        stopped = Counter(
            task.prompt.class_name
            for task in batch
            if task.id in rejected and rejected[task.id].reason == "quota"
        )
        for name, count in stopped.items():
            self._ledger.log("stopped", **{"class": name, "images": count, "reason": "quota"})

    def _count(self, result: Drawn) -> None:
        if self._backend.usd_per_image or result.usd:
            images = int(result.image is not None)
            self._ledger.add_usage(
                UsageRow("images", self._backend.name, calls=1, images=images, usd=result.usd)
            )

    # -- the online filter ------------------------------------------------------------------------

    def _gate(
        self, batch: Sequence[Task], good: dict[str, set[str]], lacking: Mapping[str, int] | None
    ) -> Gate | None:
        """The online filter for this batch; `good` collects class -> images whose previews reach the threshold."""
        look = self._look
        if look is None:
            return None

        def gate(indices: Sequence[int], previews: Sequence[Image]) -> list[NoImage | None]:
            tasks = [batch[index] for index in indices]
            scores = look([Preview(task.prompt, image) for task, image in zip(tasks, previews, strict=True)])
            reasons: list[NoImage | None] = []
            for task, score in zip(tasks, scores, strict=True):
                name = task.prompt.class_name
                if score.probability < self._config.filter.floor * score.threshold:
                    reasons.append("filtered")
                elif self._enough(name, good, lacking):
                    reasons.append("quota")
                else:
                    reasons.append(None)
                    if score.probability >= score.threshold:
                        good.setdefault(name, set()).add(task.id)
            return reasons

        return gate

    def _enough(self, name: str, good: Mapping[str, set[str]], lacking: Mapping[str, int] | None) -> bool:
        if not lacking or name not in lacking:
            return False
        return len(good.get(name, ())) >= self._config.filter.spare * lacking[name]

    # -- the device -------------------------------------------------------------------------------

    def _step(
        self, on_batch: Callable[[int, int], None], before: int, size: int, total: int, share: float
    ) -> None:
        """Report progress within a batch. Raises `Cancelled` if the user has asked the run to stop."""
        if self._stopped():
            raise Cancelled
        on_batch(before + int(share * size), total)
