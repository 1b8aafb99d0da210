"""The models that a config needs. Nothing is loaded, opened or downloaded here."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

from segsmith.config import Config, ImagesConfig, LLMConfig
from segsmith.errors import SegsmithError
from segsmith.tools.weights.catalogue import (
    CATALOGUE,
    OPEN_CLIP_TAGS,
    OPENAI_URL,
    SAM_FILES,
    SAM_URL,
    SMOLLM2,
    TIMM_REPOSITORIES,
    ModelRequirement,
    Role,
)
from segsmith.tools.weights.pipeline_files import AUTO, PLAIN

OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""In the order in which open_clip looks for weights in a repository."""
OPEN_CLIP_CONFIG = "open_clip_config.json"
TRANSFORMERS_WEIGHTS = ("model.safetensors",)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TIMM_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
PIPELINE_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
DETECTOR_FILES = ("*.json", "*.txt", "*.safetensors")
LANGUAGE_MODEL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")


def requirements_of(config: Config) -> list[ModelRequirement]:
    """The models of a config in the order of the pipeline, without roles that are switched off."""
    required = [
        language_model(config.llm),
        *(image_model(part) for part in config.images.parts),
        _judge(config.judge.clip),
        detector(config.witnesses.detector),
        _vlm(config),
        _labeler(config.labeler.vit),
        _sam(config.labeler.sam) if config.labeler.use_sam else None,
    ]
    if config.trainer.encoder_init == "pretrained":
        required.append(_timm("segmenter", config.trainer.encoder.removeprefix("tu-")))
    return [requirement for requirement in required if requirement is not None]


def language_model(llm: LLMConfig) -> ModelRequirement:
    """The requirement of an LLM section."""
    if llm.server == "openai":
        return _service("llm", llm.model, llm.base_url)
    if llm.server == "vllm":
        return _hub_or_folder("llm", llm.model, "", LANGUAGE_MODEL_FILES)
    if llm.gguf == SMOLLM2.package:
        facts = CATALOGUE[SMOLLM2.package]
        return ModelRequirement("llm", llm.gguf, "wheel", SMOLLM2.requirement, facts=facts)
    if (hub := split_hub_file(llm.gguf)) is not None:
        repository, file = hub
        return _hub("llm", llm.gguf, repository, (file,), pick="first")
    return ModelRequirement("llm", llm.gguf, "file", llm.gguf)


def split_hub_file(spec: str) -> tuple[str, str] | None:
    """``hf:org/repo/file`` as repository and file; None for anything else."""
    if not spec.startswith("hf:"):
        return None
    parts = spec.removeprefix("hf:").split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise SegsmithError(f"{spec!r} names no file on the hub.", "Type hf:org/repo/file.gguf")
    return f"{parts[0]}/{parts[1]}", parts[2]


def image_model(images: ImagesConfig) -> ModelRequirement:
    """The requirement of an images section. Raises `SegsmithError` if no model is named."""
    if images.backend == "simulator":
        return _packaged("images", "simulator", "world", "simulator")
    if not images.model:
        raise SegsmithError(
            f"images.backend is {images.backend!r}, but no model is named.",
            "Type e.g. --set images.model=stabilityai/sd-turbo",
        )
    if images.backend == "hosted":
        return _service("images", images.model, images.hosted.base_url)
    pipeline = _hub_or_folder("images", images.model, images.revision or "", PIPELINE_FILES)
    variant = AUTO if images.variant is None else images.variant
    return replace(pipeline, variant="" if variant == PLAIN else variant)


def _judge(spec: str) -> ModelRequirement:
    if spec == "mini":
        return _packaged("judge", spec, "checkpoints/mini_clip", "mini_clip")
    if Path(spec).is_dir():
        return ModelRequirement("judge", spec, "file", spec)
    if spec.startswith("local-dir:"):
        return ModelRequirement("judge", spec, "file", spec.removeprefix("local-dir:"))
    if spec.startswith("hf-hub:"):
        repository = spec.removeprefix("hf-hub:")
        return _hub("judge", spec, repository, OPEN_CLIP_WEIGHTS, pick="first", config=OPEN_CLIP_CONFIG)
    name, _, weights = spec.partition(":")
    repository = _open_clip_repository(name, weights)
    if repository:
        return _hub("judge", spec, repository, OPEN_CLIP_WEIGHTS, pick="first")
    return ModelRequirement("judge", spec, "file", weights or name)


def _open_clip_repository(name: str, tag: str) -> str:
    """The repository from which open_clip would download this tag; "" if it does not know the name and tag."""
    known = OPEN_CLIP_TAGS.get((name, tag))
    if known or not tag:
        return known or ""
    import open_clip

    return str(open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "")).rstrip("/")


def detector(spec: str) -> ModelRequirement | None:
    """The requirement of `witnesses.detector`; None if no model has to be loaded."""
    return None if spec in ("off", "simulated") else _hub_or_folder("detector", spec, "", DETECTOR_FILES)


def _vlm(config: Config) -> ModelRequirement | None:
    """None unless the VLM is a service of its own."""
    witnesses = config.witnesses
    if witnesses.vlm in ("off", "simulated", "llm"):
        return None
    return _service("vlm", witnesses.vlm, witnesses.vlm_base_url)


def _labeler(vit: str) -> ModelRequirement | None:
    """None if the ViT is the judge's image tower, which has no separate files."""
    if vit == "judge":
        return None
    name, _, file = vit.partition(":")
    return ModelRequirement("labeler", vit, "file", file) if file else _timm("labeler", name)


def _timm(role: Role, name: str) -> ModelRequirement:
    repository = TIMM_REPOSITORIES.get(name)
    if repository is None:
        import timm

        if not timm.is_model(name):
            raise SegsmithError(f"timm has no model {name!r}.", "List them with timm.list_models().")
        settings = timm.get_pretrained_cfg(name)
        repository = str(getattr(settings, "hf_hub_id", None) or "")
        if not repository:
            raise SegsmithError(
                f"timm has no weights of {name!r} on the hub.", f"Type {name}: followed by a local file."
            )
    repository = repository if repository != "timm/" else f"timm/{name}"
    return _hub(role, name, repository, TIMM_WEIGHTS, pick="first")


def _sam(spec: str) -> ModelRequirement:
    if spec == "mini":
        return _packaged("masks", spec, "checkpoints/mini_sam", "mini_sam")
    if spec in SAM_FILES:
        return ModelRequirement("masks", spec, "url", SAM_URL + SAM_FILES[spec], facts=CATALOGUE[spec])
    if is_hub_sam(spec):
        return _hub("masks", spec, spec, TRANSFORMERS_WEIGHTS, pick="first", config="config.json")
    return ModelRequirement("masks", spec, "file", spec)


def is_hub_sam(spec: str) -> bool:
    """Whether `labeler.sam` names a repository on the hub: ``org/name``, which is no file or folder here."""
    return bool(HUB_ID.fullmatch(spec)) and not spec.endswith(".pth") and not Path(spec).exists()


def _packaged(role: Role, name: str, folder: str, entry: str) -> ModelRequirement:
    return ModelRequirement(role, name, "package", folder, facts=CATALOGUE[entry])


def _hub_or_folder(role: Role, name: str, revision: str, patterns: tuple[str, ...]) -> ModelRequirement:
    if Path(name).expanduser().exists() or name.startswith(("/", ".", "~")):
        return ModelRequirement(role, name, "file", name)
    return _hub(role, name, name, patterns, revision=revision)


def _hub(
    role: Role,
    name: str,
    repository: str,
    patterns: tuple[str, ...],
    *,
    pick: Literal["first", "all"] = "all",
    revision: str = "",
    config: str = "",
) -> ModelRequirement:
    facts = CATALOGUE.get(repository)
    return ModelRequirement(
        role, name, "hub", repository, revision, patterns, pick=pick, facts=facts, config=config
    )


def _service(role: Role, name: str, base_url: str | None) -> ModelRequirement:
    return ModelRequirement(role, name, "service", base_url or OPENAI_URL, facts=CATALOGUE.get(name))
