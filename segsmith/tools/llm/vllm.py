"""A local vLLM server, which can share a GPU with a diffusion model."""

from __future__ import annotations

import shutil
from pathlib import Path

from segsmith.config import LLMConfig
from segsmith.errors import SegsmithError
from segsmith.tools.llm.local_server import LocalServer, ServerPlan

INSTALL = (
    "Type: pip install 'segsmith[vllm]' (Linux with a GPU), or set llm.vllm_command to the path of vllm."
)


def vllm_command(config: LLMConfig) -> str:
    """Path of the ``vllm`` program. Raises `SegsmithError` if there is none."""
    path = shutil.which(str(Path(config.vllm_command).expanduser()))
    if path is None:
        raise SegsmithError(f"vLLM is not installed ({config.vllm_command!r} is not a program).", INSTALL)
    return path


def check_vllm(config: LLMConfig) -> None:
    """Raise `SegsmithError` if a vLLM server would lack its program or a model in the folder. Starts nothing."""
    vllm_command(config)
    folder = Path(config.model).expanduser()
    if folder.is_dir() and not ((folder / "config.json").is_file() and list(folder.glob("*.safetensors"))):
        raise SegsmithError(
            f"The folder {config.model} contains no language model (config.json and safetensors weights).",
            "Set llm.model to a hub id, or to a folder that transformers saved.",
        )


def vllm_server(config: LLMConfig, log: Path | None = None) -> LocalServer:
    """``vllm serve MODEL``, not started yet. It takes `gpu_memory_share` of the GPU; the rest is for images.

    The context is limited, because vLLM reserves memory for the model's own maximum, often a hundred times the
    length of a prompt. Remote code is never trusted, and no usage statistics are sent.
    """
    program = vllm_command(config)
    return LocalServer(
        ServerPlan(
            title="vLLM",
            serves=config.model,
            command=lambda port: [
                program, "serve", config.model,
                "--served-model-name", config.model,
                "--host", "127.0.0.1",
                "--port", str(port),
                "--gpu-memory-utilization", str(config.gpu_memory_share),
                "--max-model-len", str(config.context_tokens),
                "--max-num-seqs", str(config.concurrency),
                *config.vllm_flags,
            ],
            key_variable="VLLM_API_KEY",
            environment={"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
            remedy="Check llm.model and llm.gpu_memory_share (it must hold the model and its cache).",
            start_timeout_s=config.start_timeout_s,
        ),
        log,
    )  # fmt: skip
