"""Measuring images while others are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from segsmith.agents.judge.agent import JudgeAgent
from segsmith.memory.ledger import ImageRow, Ledger
from segsmith.memory.run_folder import RunFolder
from segsmith.types import MEASURED_TOGETHER, Image


class MeasuringAhead:
    """Measures images in a thread of its own, in the chunks that `JudgeAgent.measure` would form afterwards.

    Chunks follow from the ledger alone: the last bits of CLIP's vectors depend on them, and a resumed run must store
    the same evidence. At most two chunks of images are in memory. Leaving the context measures the rest, unless an
    error ended drawing; then the judge does.
    """

    def __init__(
        self,
        judge: JudgeAgent,
        ledger: Ledger,
        run: RunFolder,
        computing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`computing` is entered for each chunk."""
        self._judge = judge
        self._computing = computing
        self._run = run
        self._rows = ledger.unmeasured()
        self._images: dict[str, Image] = {}
        self._pool = ThreadPoolExecutor(1, "segsmith-measure")
        self._running: Future[None] | None = None

    def add(self, rows: Sequence[ImageRow], images: Mapping[str, Image]) -> None:
        """Take new rows of the ledger, with the images that are in memory. Raises what measuring raised."""
        self._rows += rows
        self._images |= images
        while len(self._rows) >= MEASURED_TOGETHER:
            self._start()

    def __enter__(self) -> MeasuringAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._pool:
            if error is None:
                while self._rows:
                    self._start()
                self._wait()

    def _start(self) -> None:
        self._wait()
        chunk, self._rows = self._rows[:MEASURED_TOGETHER], self._rows[MEASURED_TOGETHER:]
        images = [self._images.pop(row.id, None) for row in chunk]
        self._running = self._pool.submit(self._measure, chunk, images)

    def _measure(self, rows: Sequence[ImageRow], images: Sequence[Image | None]) -> None:
        """Measure a chunk; images of an earlier session are read from their files."""
        found = [self._run.read_image(r) if i is None else i for r, i in zip(rows, images, strict=True)]
        with self._computing():
            self._judge.measure(rows, found)

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()
