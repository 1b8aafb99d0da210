"""What a run will take, before it starts: from figures measured on this machine, else from published ones.

Every finished run leaves its figures in ``figures.json`` of the cache folder, one entry for each set of models,
because run folders may be anywhere and cannot be found again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from segsmith.agents.director import PRIOR_ACCEPTED, PRIOR_JUDGED, rounds_needed
from segsmith.config import Config, cache_dir
from segsmith.device_memory import GIB
from segsmith.errors import SegsmithError
from segsmith.events import Notice
from segsmith.files import write_atomic
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_folder import RunFolder
from segsmith.tools.gpu_plan import GpuPlan, plan_gpu
from segsmith.tools.weights.model_requirements import requirements_of
from segsmith.tools.weights.store import find
from segsmith.workflows.preflight import check_classes
from segsmith.workflows.progress import Screen, open_display
from segsmith.workflows.run import open_run
from segsmith.workflows.settings import Settings, overrides, resolve

CARDS = (8.0, 12.0, 16.0, 24.0, 80.0)
"""GiB of the cards that a plan shows."""
MIN_IMAGES = 20
"""A run that drew fewer images is too short to measure anything."""
TOKENS_IN, TOKENS_OUT = 500.0, 90.0
"""LLM tokens per admitted prompt where nothing was measured: three short requests (ours, from sim runs)."""
BYTES_PER_PIXEL = 2.0
"""Of an image, its mask and their copies in the dataset, on disk; noisy images take more (ours)."""
OTHER_SECONDS = 1.0
"""Seconds per accepted image for judge, labels, masks and training where nothing was measured (ours)."""


@dataclass(frozen=True)
class Figures:
    """What runs with one set of models took, per prompt or image."""

    accepted_share: float
    seconds_per_image: float
    other_seconds_per_accepted: float
    tokens_in_per_prompt: float
    tokens_out_per_prompt: float
    bytes_per_image: float
    usd_per_image: float = 0.0
    source: str = "measured on this machine"


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes, time in hours, money in US dollars."""

    wanted: int
    """Accepted images."""
    images: int
    """Images to draw for them."""
    images_per_prompt: int
    prompts: int
    tokens_in: int
    tokens_out: int
    hours: float
    training: str
    """Length of the segmenter's training, in steps or in epochs."""
    disk: int
    to_fetch: int
    gpu: int
    """Peak of the largest stage on the largest card of `gpu_plans`."""
    usd: float
    gpu_plans: dict[float, GpuPlan]
    """GiB of a card -> how its memory is used; empty for a config without large models."""
    sources: dict[str, str]
    """Where the ``yield`` and the ``time`` come from."""
    warnings: tuple[str, ...] = ()
    """One line for each cap or setting with which the quotas cannot be reached, and for classes in doubt."""


def plan_build(
    classes: str | Sequence[str] = (),
    *,
    per_class: int | None = None,
    preset: str | None = None,
    config: str | Path | Config | None = None,
    settings: Settings | None = None,
    offline: bool = False,
    like: str | Path | None = None,
    gpu_memory: float | None = None,
    screen: Screen | None = None,
) -> Estimate:
    """Estimate what a build with these arguments takes (see `build`). Nothing is drawn, asked or fetched.

    `like` is a finished run whose figures are used. `gpu_memory` is the size of one card in GiB; None plans for cards
    of several sizes. Raises `SegsmithError` for bad settings and classes, as a build does, or where `like` drew too
    little to measure anything.
    """
    changes = overrides(settings, classes=classes, per_class=per_class, offline=offline)
    settled, choice = resolve(preset=preset, config=config, changes=changes)
    doubts = tuple(check_classes(settled))
    with open_display(None, True, screen) as display:
        if choice.why:
            display.show(Notice(f"preset {choice.preset}: {choice.why}"))
    figures = recall(settled)
    if like is not None:
        figures = open_run(like).figures()
        if figures is None:
            raise SegsmithError(f"{like} drew too few images to measure anything.", "Name a finished run.")
    found = estimate(settled, figures, CARDS if gpu_memory is None else (gpu_memory,))
    with open_display(None, True, screen) as display:
        for warning in doubts + found.warnings:
            display.show(Notice(warning, warning=True))
    return replace(found, warnings=doubts + found.warnings)


def estimate(config: Config, figures: Figures | None, cards: Sequence[float] = CARDS) -> Estimate:
    """The images to draw at the expected yield, and what follows from them."""
    used = figures or stated(config)
    accepted = sum(config.wanted.values())
    images = math.ceil(accepted / used.accepted_share)
    prompts = math.ceil(images / config.images.per_prompt)
    tokens_in = round(prompts * used.tokens_in_per_prompt)
    tokens_out = round(prompts * used.tokens_out_per_prompt)
    seconds = images * used.seconds_per_image + accepted * used.other_seconds_per_accepted
    missing = [n for n in requirements_of(config) if find(n) is None]
    on_gpu = config.llm.server == "vllm" or config.images.backend != "simulator"
    plans = {card: plan_gpu(config, int(card * GIB)) for card in cards} if on_gpu else {}
    usd = images * used.usd_per_image + _llm_usd(config, tokens_in, tokens_out)
    return Estimate(
        wanted=accepted,
        images=images,
        images_per_prompt=config.images.per_prompt,
        prompts=prompts,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        hours=seconds / 3600,
        training=config.trainer.length,
        disk=round(images * used.bytes_per_image),
        to_fetch=sum(n.facts.size for n in missing if n.facts),
        gpu=max((stage.size for plan in plans.values() for stage in plan.stages), default=0),
        gpu_plans=plans,
        usd=usd,
        sources={"yield": used.source, "time": _time_source(config, figures)},
        warnings=_unreachable(config, images, seconds / 3600, usd, used.accepted_share),
    )


def _unreachable(
    config: Config, images: int, hours: float, usd: float, accepted_share: float
) -> tuple[str, ...]:
    """What keeps a build from reaching its quotas, one line each."""
    needs = {
        "max_images": (images, f"{images:,} images"),
        "max_hours": (hours, f"{hours:,.1f} hours"),
        "max_usd": (usd, f"{usd:,.2f} US dollars"),
        "max_rounds": (rounds := rounds_needed(config, accepted_share), f"{rounds} rounds"),
    }
    lines = []
    for name, (need, words) in needs.items():
        cap = getattr(config.budget, name)
        if cap is not None and cap < need:
            lines.append(f"budget.{name} = {cap:g} ends the build early: the quotas need about {words}.")
    for name, threshold in config.judge.thresholds.items():
        if threshold >= 1 and config.wanted.get(name):
            lines.append(f"judge.thresholds.{name} = {threshold:g} accepts no image; set it below 1.")
    return tuple(lines)


def _llm_usd(config: Config, tokens_in: int, tokens_out: int) -> float:
    return (tokens_in * config.llm.usd_per_million_in + tokens_out * config.llm.usd_per_million_out) / 1e6


def stated(config: Config) -> Figures:
    """Figures for models that no run has used here: the catalogue's, and the director's prior for the yield."""
    seconds, _ = drawing_seconds(config)
    size = config.images.size
    return Figures(
        accepted_share=PRIOR_ACCEPTED / PRIOR_JUDGED,
        seconds_per_image=seconds,
        other_seconds_per_accepted=OTHER_SECONDS,
        tokens_in_per_prompt=TOKENS_IN,
        tokens_out_per_prompt=TOKENS_OUT,
        bytes_per_image=BYTES_PER_PIXEL * size * size,
        usd_per_image=config.images.hosted.usd_per_image or 0.0,
        source="3 of 5, the director's prior; no run with these models was measured on this machine",
    )


def drawing_seconds(config: Config) -> tuple[float, str]:
    """The catalogue's seconds per image and their source; of a mixture, the mean weighted by the models' shares.

    (0, "") if the speed of a model is unknown.
    """
    models = [need for need in requirements_of(config) if need.role == "images"]
    shares = [entry.share for entry in config.images.models] or [1.0]
    known = [need.facts for need in models if need.facts and need.facts.seconds_source]
    if len(known) < len(models):
        return 0.0, ""
    seconds = sum(s * facts.seconds_per_image for s, facts in zip(shares, known, strict=True))
    return seconds, "; ".join(dict.fromkeys(facts.seconds_source for facts in known))


def _time_source(config: Config, figures: Figures | None) -> str:
    if figures is not None:
        return figures.source
    drawing = drawing_seconds(config)[1] or "drawing not included, its speed is unknown"
    return f"{drawing}; everything else assumed to take {OTHER_SECONDS:g} s per accepted image"


# -- figures that were measured -------------------------------------------------------------------------


def figures_file() -> Path:
    """Where measured figures are kept."""
    return cache_dir() / "figures.json"


def key_of(config: Config) -> str:
    """Runs with equal keys are comparable: the same models, image size, denoising steps and training length."""
    names = "|".join(f"{need.role}={need.name}" for need in requirements_of(config))
    return f"{names}|{config.images.size}px|{config.images.steps} steps|{config.trainer.length}"


def measure(ledger: Ledger, run: RunFolder, config: Config) -> Figures | None:
    """The figures of one run; None when it drew too few images."""
    tallies = ledger.tallies().values()
    drawn, judged, accepted = (sum(getattr(t, k) for t in tallies) for k in ("drawn", "judged", "accepted"))
    prompts = sum(t.admitted for t in tallies)
    if drawn < MIN_IMAGES or not accepted or not prompts:
        return None
    drawing = sum(detail["seconds"] for _, _, detail in ledger.events("drawn"))
    wall = ledger.summary.wall_seconds or drawing
    tokens = _tokens(ledger)
    images_usage = ledger.usage().get("images")
    return Figures(
        accepted_share=accepted / judged,
        seconds_per_image=drawing / drawn,
        other_seconds_per_accepted=max(0.0, wall - drawing) / accepted,
        tokens_in_per_prompt=tokens[0] / prompts,
        tokens_out_per_prompt=tokens[1] / prompts,
        bytes_per_image=_bytes(run) / drawn,
        usd_per_image=images_usage.usd / drawn if images_usage else 0.0,
    )


def _tokens(ledger: Ledger) -> tuple[int, int]:
    usage = ledger.usage().get("llm")
    if usage is not None:
        return usage.tokens_in, usage.tokens_out
    events = [detail for _, _, detail in ledger.events("llm_usage")]
    return sum(e.get("prompt_tokens", 0) for e in events), sum(e.get("completion_tokens", 0) for e in events)


def _bytes(run: RunFolder) -> int:
    folders = (run.images, run.masks, run.dataset)
    return sum(f.stat().st_size for folder in folders for f in folder.rglob("*") if f.is_file())


def remember(config: Config, figures: Figures | None) -> None:
    """Keep the figures of a finished run for `recall`; a newer run with the same key replaces an older one."""
    if figures is None:
        return
    kept = _read()
    kept[key_of(config)] = asdict(figures)
    path = figures_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(kept, indent=1).encode())


def recall(config: Config) -> Figures | None:
    """Figures of the newest run with the same models; None if there is none."""
    values = _read().get(key_of(config))
    try:
        return None if values is None else Figures(**values)
    except TypeError:  # written by another version of segsmith
        return None


def _read() -> dict[str, Any]:
    try:
        kept = json.loads(figures_file().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
