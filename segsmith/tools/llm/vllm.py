"""A local vLLM server, which can share a GPU with a diffusion model."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from segsmith.config import LLMConfig
from segsmith.errors import SegsmithError
from segsmith.terminal_text import first_line
from segsmith.tools.llm.local_server import LocalServer, ServerPlan
from segsmith.tools.weights.tensor_files import check_tensors, missing_shards

VERSION_TIMEOUT_S = 60.0
"""For `vllm --version`, which imports torch first."""
DEFAULT_SHARE = 0.35
"""Share of the GPU for a model about which nothing is known (ours)."""
SLACK = 0.02
"""Share of the GPU that stays free of what vLLM sees as free, when its first share was too large (ours)."""
FREE_MEMORY = re.compile(r"Free memory on device\D*(?:\d+ )?\(([\d.]+)/([\d.]+) GiB\)")
TRANSIENT = (
    "No available memory for the cache blocks",
    "Error in memory profiling",
    "out of memory",
    "Address already in use",
)
"""Failures to start that may pass: another process used the GPU's memory while vLLM measured it."""
INSTALL = "Type: pip install vllm (Linux with a GPU), or set llm.vllm_command to the path of vllm."


def vllm_command(config: LLMConfig) -> str:
    """Path of the ``vllm`` program. Raises `SegsmithError` if there is none."""
    path = shutil.which(str(Path(config.vllm_command).expanduser()))
    if path is None:
        raise SegsmithError(f"vLLM is not installed ({config.vllm_command!r} is not a program).", INSTALL)
    return path


def vllm_version(config: LLMConfig) -> str:
    """What ``vllm --version`` prints, wherever vLLM is installed.

    Raises `SegsmithError` if there is no such program, or it fails or takes longer than `VERSION_TIMEOUT_S`.
    """
    program = vllm_command(config)
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=True
        )
    except subprocess.TimeoutExpired:
        problem = f"did not answer within {VERSION_TIMEOUT_S:g} s"
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["it printed nothing"]
        problem = f"fails: {first_line(lines[-1], 160)}"
    except OSError as error:
        problem = f"cannot be run: {error.strerror}"
    else:
        return first_line((done.stdout.strip().splitlines() or ["unknown version"])[-1], 60)
    raise SegsmithError(f"`{program} --version` {problem}.", INSTALL)


def check_vllm(config: LLMConfig) -> None:
    """Raise `SegsmithError` if a vLLM server would lack its program or a complete model in the folder.

    Starts nothing; of weights, only headers are read.
    """
    vllm_command(config)
    folder = Path(config.model).expanduser()
    if folder.is_dir() and not ((folder / "config.json").is_file() and list(folder.glob("*.safetensors"))):
        raise SegsmithError(
            f"The folder {config.model} contains no language model (config.json and safetensors weights).",
            "Set llm.model to a hub id, or to a folder that transformers saved.",
        )
    if folder.is_dir():
        if missing := missing_shards(folder, [path.name for path in folder.glob("*.json")]):
            raise SegsmithError(
                f"The language model {config.model} lacks the weights {missing[0]}, which an index of shards names.",
                "Download the whole model again.",
            )
        for weights in sorted(folder.glob("*.safetensors")):
            check_tensors(weights)


def vllm_server(
    config: LLMConfig,
    log: Path | None = None,
    restarting: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> LocalServer:
    """``vllm serve MODEL``, not started yet. It takes `gpu_memory_share` of the GPU; the rest is for images.

    A start that fails because the GPU's memory was in use is repeated, with a smaller share where vLLM reports less
    free memory than its share. `restarting` is entered while a server that died starts again, and keeps other models
    from using the GPU then.

    The context is limited, because vLLM reserves memory for the model's own maximum, often a hundred times the
    length of a prompt. Remote code is never trusted, and no usage statistics are sent.
    """
    plan = _plan(config, vllm_command(config), config.gpu_memory_share or DEFAULT_SHARE)
    return LocalServer(plan, log, restarting)


def smaller_share(share: float, reason: str) -> float | None:
    """The share for another start after one with `share` failed for `reason`; None if another start does not help."""
    if found := FREE_MEMORY.search(reason):
        free, total = map(float, found.groups())
        return round(min(share, free / total) - SLACK, 3) if free / total > 2 * SLACK else None
    return share if any(words in reason for words in TRANSIENT) else None


def _plan(config: LLMConfig, program: str, share: float) -> ServerPlan:
    def again(reason: str) -> ServerPlan | None:
        other = smaller_share(share, reason)
        return None if other is None else _plan(config, program, other)

    return (
        ServerPlan(
            title="vLLM",
            serves=config.model,
            command=lambda port: [
                program, "serve", config.model,
                "--served-model-name", config.model,
                "--host", "127.0.0.1",
                "--port", str(port),
                "--gpu-memory-utilization", str(share),
                "--max-model-len", str(config.context_tokens),
                "--max-num-seqs", str(config.concurrency),
                *config.vllm_flags,
            ],
            key_variable="VLLM_API_KEY",
            environment={"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
            remedy="Check llm.model and llm.gpu_memory_share (it must hold the model and its cache).",
            again=again,
            start_timeout_s=config.start_timeout_s,
        )
    )  # fmt: skip
