"""This machine's CPU, memory, disk and GPUs, found within milliseconds and without importing torch."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from segsmith.config import visible_gpus

HUB_LOOK_S = 0.5


@dataclass(frozen=True)
class Gpu:
    """A GPU; sizes in bytes. On Apple silicon its memory is the machine's main memory."""

    name: str
    total: int
    free: int


@dataclass(frozen=True)
class Machine:
    """Sizes in bytes; `free_disk` is that of the disk where models are stored."""

    cores: int
    memory: int
    free_disk: int
    gpus: tuple[Gpu, ...]


def look(folder: Path) -> Machine:
    """This machine, with the free space of the disk that `folder` is on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    while not folder.exists():
        folder = folder.parent
    return Machine(os.cpu_count() or 1, memory, shutil.disk_usage(folder).free, find_gpus(memory))


def find_gpus(memory: int) -> tuple[Gpu, ...]:
    """The GPUs that torch can use, as NVIDIA's library lists them; none if torch was built for CPUs only."""
    if "+cpu" in importlib.metadata.version("torch"):
        return ()
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return (Gpu("Apple silicon", memory, memory),)
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        wanted = visible_gpus()
        chosen = handles if wanted is None else [handles[i] for i in wanted if i < len(handles)]
        return tuple(_gpu(pynvml, handle) for handle in chosen)
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def this_gpu() -> Gpu | None:
    """The GPU on which a run computes: the first NVIDIA one that torch can use."""
    return next((gpu for gpu in find_gpus(0) if gpu.total), None)


def _gpu(nvml: Any, handle: Any) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(str(nvml.nvmlDeviceGetName(handle)), int(memory.total), int(memory.free))


def hub_answers(timeout_s: float = HUB_LOOK_S) -> bool:
    """Whether the hub's host accepts a connection within `timeout_s`. Nothing is sent."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    answered = threading.Event()

    def knock() -> None:
        with contextlib.suppress(OSError), socket.create_connection((parts.hostname or "", port), timeout_s):
            answered.set()

    # In a thread, because the DNS lookup has no timeout.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answered.is_set()


def installed(package: str) -> bool:
    """Whether this package can be imported."""
    return importlib.util.find_spec(package) is not None
