"""Running out of memory on a device: recognising it, and continuing with smaller batches. Imports no torch."""

from __future__ import annotations

import gc
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from segsmith.errors import SegsmithError
from segsmith.terminal_text import first_line

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

GIB = 1 << 30
OUT_OF_MEMORY = re.compile(
    r"out of memory"
    r"|can't allocate memory"
    r"|failed to allocate"
    r"|\b(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|CUFFT)_\w*ALLOC\w*_FAILED"
    r"|CUBLAS_STATUS_NOT_INITIALIZED.*cublasCreate"
    r"|unable to find an engine to execute this computation",
    re.IGNORECASE | re.DOTALL,
)
"""What libraries say when an allocation fails. cuBLAS and cuDNN allocate their handles and workspaces themselves,
so their failures do not come as torch's OutOfMemoryError. A cuBLAS handle that cannot be created has
found no memory, and cuDNN finds no engine when no workspace fits."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a CUDA, MPS or main-memory allocation failed, in torch or in a library below it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def free_device_memory() -> None:
    """Return what torch has cached on the device, so that other processes can use it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


class DeviceUse:
    """Keeps models in this process from allocating while a server that measures the device's memory restarts.

    Any number of threads may hold `shared` at a time; `alone` waits for them and keeps new ones waiting.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users = 0
        self._claimed = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """While a model of this process computes. Not to be nested."""
        with self._changed:
            self._changed.wait_for(lambda: not self._claimed)
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While nothing else may allocate or free; memory that torch keeps for later is returned first."""
        with self._changed:
            self._claimed += 1
            self._changed.wait_for(lambda: not self._users)
        try:
            free_device_memory()
            yield
        finally:
            with self._changed:
                self._claimed -= 1
                self._changed.notify_all()


@dataclass
class Batches:
    """A batch size that is halved, and stays so, when the device runs out of memory."""

    size: int
    what: str
    """What runs in batches, for the log and the error: "CLIP ViT-L-14"."""
    remedy: str
    """What to change if not even the smallest batch fits."""
    smallest: int = 1

    def run(self, count: int, work: Callable[[int, int], Result]) -> Iterator[Result]:
        """Yield ``work(start, stop)`` for consecutive batches of ``range(count)``.

        A batch that does not fit is repeated in halves.

        Raises `SegsmithError` if the smallest batch does not fit.
        """
        start = 0
        while start < count:
            stop = min(start + self.size, count)
            problem = ""
            try:
                result = work(start, stop)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = first_line(error)
            if problem:  # outside `except`, because the traceback keeps the tensors alive
                self.halve(stop - start, problem)
                continue
            yield result
            start = stop

    def whole(self, count: int, work: Callable[[int], Result]) -> Result:
        """``work(size)`` for one batch of `count`, to be split into parts of about `size`; if a part does not fit, it
        is called again with half the size. For work whose parts depend on one another, such as a training step.

        Raises `SegsmithError` if the smallest parts do not fit.
        """
        while True:
            size = min(self.size, count)
            problem = ""
            try:
                return work(size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = first_line(error)
            self.halve(size, problem)

    def halve(self, tried: int, problem: str) -> None:
        """After a batch of `tried` failed with `problem`: free memory, and continue with half the size."""
        free_device_memory()
        if tried <= self.smallest:
            raise SegsmithError(
                f"The device has too little memory for {self.what} ({problem:.160}).", self.remedy
            )
        self.size = max(self.smallest, tried // 2)
        logger.warning("out of memory: %s continues with batches of %d", self.what, self.size)
