"""Image prompts from one local LLM (SmolLM2-135M under llama.cpp), asked in three ways."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sim_quality import write_prompts
from segsmith.config import Config, load_config
from segsmith.graph.context import RunContext
from segsmith.memory.run_folder import RunFolder
from segsmith.protocols import ImageTextEncoder
from segsmith.tools.llm.endpoint import Endpoint
from segsmith.tools.llm.llamacpp import llama_server
from segsmith.tools.vision.clip import OpenClipEncoder

PER_CLASS = 30
QUESTION = "Write one sentence that describes a photograph of a {name}. Say where it is and in which light."
NEAR = 0.97
"""Cosine of CLIP's text vectors from which two prompts of a class are near-duplicates (ours)."""


def measured(distilabel: Path | None, script: Path, classes: Sequence[str], folder: Path) -> dict[str, Any]:
    """Figures of the prompt agent, of a plain LangChain loop and, if there is its interpreter, of distilabel."""
    config = load_config(flags={"preset": "sim", "classes": classes, "per_class": PER_CLASS})
    encoder = OpenClipEncoder.load("mini")
    figures = {"segsmith": _judged(*_segsmith(config), encoder)}
    with llama_server(config.llm, folder / "llm.log") as server:
        where = server.endpoint()
        asked = [(name, QUESTION.format(name=name)) for name in classes for _ in range(PER_CLASS)]
        figures["LangChain loop"] = _judged(_langchain(config, where, asked), len(asked), encoder)
        if distilabel:
            question = json.dumps(
                {"base_url": where.base_url, "api_key": where.api_key, "model": config.llm.model, "asked": asked,
                 "temperature": config.llm.temperature, "max_tokens": config.llm.max_tokens}
            )  # fmt: skip
            done = subprocess.run(
                [distilabel, script], input=question, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"distilabel failed:\n{done.stderr[-2000:]}")
            replies = json.loads(done.stdout.splitlines()[-1])
            figures["distilabel"] = _judged(replies, len(asked), encoder)
    return {"per_class": PER_CLASS, "near": NEAR, "programs": figures}


def _segsmith(config: Config) -> tuple[list[tuple[str, str]], int]:
    with tempfile.TemporaryDirectory() as name:
        run = RunFolder(Path(name) / "run")
        run.create()
        with RunContext(config, run) as context:
            write_prompts(context, PER_CLASS)
            prompts = [(p.class_name, p.text) for p in context.ledger.prompts("admitted")]
            return prompts, int(context.chat.usage.snapshot()["calls"])


def _langchain(config: Config, where: Endpoint, asked: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(
        base_url=where.base_url, api_key=where.api_key, model=config.llm.model, temperature=config.llm.temperature,
        max_tokens=config.llm.max_tokens,
    )  # fmt: skip
    return [(name, str(chat.invoke(question).content).strip()) for name, question in asked]


def _judged(prompts: Sequence[Sequence[str]], calls: int, encoder: ImageTextEncoder) -> dict[str, float]:
    """Distinct prompts that name their class, per call; share with a near-duplicate; mean cosine to the nearest."""
    named = [(name, text) for name, text in prompts if name in text.lower()]
    distinct = {(name, " ".join(text.lower().split())) for name, text in named}
    vectors = encoder.embed_texts([text for _, text in named])
    nearest = []
    for index, (name, _) in enumerate(named):
        same = [i for i, (other, _) in enumerate(named) if other == name and i != index]
        nearest.append(float(np.max(vectors[same] @ vectors[index])) if same else 0.0)
    return {
        "calls": calls,
        "prompts": len(prompts),
        "naming_their_class": len(named),
        "distinct_per_call": len(distinct) / calls,
        "near_duplicates": float(np.mean([value > NEAR for value in nearest])),
        "nearest_cosine": float(np.mean(nearest)),
    }
