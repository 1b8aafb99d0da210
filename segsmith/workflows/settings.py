"""How the settings of a workflow come about: preset, file, environment, then what the caller passes."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from segsmith.config import (
    PRESETS,
    Config,
    TrainerConfig,
    deep_merge,
    load_config,
    merged_config,
    with_environment,
)
from segsmith.errors import SegsmithError
from segsmith.workflows.preset_selection import Choice, pick

Settings = Mapping[str, Any]
"""Sections (``{"judge": {"top_k": 3}}``) or dotted names (``{"judge.top_k": 3}``), also mixed."""
USED_BY: dict[str, tuple[str, ...]] = {
    "train": ("trainer", "judge.clip"),
    "refine": ("trainer", "labeler", "judge.clip", "compute.device", "compute.precision"),
    "rejudge": ("judge",),
    "build": ("",),
    "augment": ("",),
}
"""Command -> sections and settings that it uses, apart from those in `UNUSED_BY`; "" is all of them."""
ONLY_SAM = ("trainer.sam_weight", "trainer.step0", "trainer.refresh_every")
ONLY_MIXED = ("trainer.real_share", "trainer.real_passes")
UNUSED_BY: dict[str, tuple[str, ...]] = {
    "train": ONLY_SAM,
    "refine": (*ONLY_MIXED, "labeler.relabel", "labeler.label_threshold", "labeler.drop_threshold",
               "labeler.region_doubt", "labeler.attention_weight"),
    "rejudge": ("judge.clip",),
    "build": (*ONLY_SAM, *ONLY_MIXED, "augment", "judge.real_false_accept", "labeler.min_sam_agreement"),
    "augment": (*ONLY_SAM, "augment.dataset", "labeler.min_sam_agreement", "classes", "per_class"),
}  # fmt: skip
"""Command -> sections and settings that have no effect in it."""
BACKEND, SERVER = "images.backend", "llm.server"
USED_WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    "images.faults": (BACKEND, ("simulator",)),
    "images.hosted": (BACKEND, ("hosted",)),
    "images.model": (BACKEND, ("diffusion", "hosted")),
    **dict.fromkeys(
        (
            "images.revision", "images.variant", "images.unet", "images.steps", "images.guidance",
            "images.negative_prompt", "images.scheduler", "images.timestep_spacing", "images.device", "images.dtype",
            "images.offload", "images.compile", "images.channels_last", "images.fuse_qkv", "images.models",
            "images.filter",
        ),
        (BACKEND, ("diffusion",)),
    ),
    "llm.gguf": (SERVER, ("llamacpp",)),
    "llm.base_url": (SERVER, ("openai",)),
    **dict.fromkeys(("llm.vllm_command", "llm.vllm_flags", "llm.gpu_memory_share"), (SERVER, ("vllm",))),
    **dict.fromkeys(("llm.context_tokens", "llm.start_timeout_s"), (SERVER, ("llamacpp", "vllm"))),
}  # fmt: skip
"""Section or setting -> the setting that chooses whether it is used, and with which values it is."""
REACHING_OUTSIDE = {
    "llm.vllm_command": "a program to run",
    "llm.vllm_flags": "options of a program",
    "llm.base_url": "a server that gets your prompts and API key",
    "images.hosted.base_url": "a server that gets your prompts and API key",
    "witnesses.vlm_base_url": "a server that gets your images and API key",
    "memory": "a folder to write to",
    "trainer.tracker": "a service that gets the settings and scores of the training",
}
"""Settings that run programs, send data elsewhere or write outside of the run folder -> what they name."""


def nested(settings: Settings) -> dict[str, Any]:
    """The same settings with every dotted name turned into sections; later entries win.

    Raises `SegsmithError` where a name is both a section and a value.
    """
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, last = str(key).split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise SegsmithError(f"Setting {key!r} is inside of something that is not a section.", "")
        if isinstance(value, Mapping):
            value = nested(value)
            if isinstance(node.get(last), dict):
                value = deep_merge(node[last], value)
        node[last] = value
    return tree


def check_used(command: str, settings: Settings | None, unused: Mapping[str, str] | None = None) -> None:
    """Raise `SegsmithError` for a setting that the caller passes, and that has no effect in `command`.

    `unused` are further sections and settings without an effect -> why. Unknown names are left to `load_config`.
    """
    given = tuple(_leaves(nested(settings or {})))
    if {"trainer.steps", "trainer.epochs"} <= set(given):
        raise SegsmithError("trainer.steps has no effect beside trainer.epochs.", "Set one of the two.")
    for key in given:
        if not any(_within(key, used) for used in USED_BY[command]):
            raise SegsmithError(f"{key} has no effect in `segsmith {command}`.", f"Leave out --set {key}=...")
        whys = {**dict.fromkeys(UNUSED_BY[command], ""), **(unused or {})}
        for pattern, why in whys.items():
            if _within(key, pattern):
                reason = f" {why}" if why else ""
                raise SegsmithError(
                    f"{key} has no effect in `segsmith {command}`{reason}.", f"Leave out --set {key}=..."
                )


def check_used_with(config: Config, settings: Settings | None, replaced: Collection[str] = ()) -> None:
    """Raise `SegsmithError` for a setting that the caller passes and that another backend or server would use.

    `replaced` are names of `RunContext`'s properties that the caller brings, whose settings are the caller's matter.
    """
    brought = {BACKEND: "backend" in replaced, SERVER: "chat" in replaced}
    for key in _leaves(nested(settings or {})):
        for pattern, (chooser, values) in USED_WITH.items():
            chosen = attrgetter(chooser)(config)
            if _within(key, pattern) and chosen not in values and not brought[chooser]:
                others = " or ".join(values)
                raise SegsmithError(
                    f"{key} has no effect with {chooser} = {chosen!r}.",
                    f"Leave out --set {key}=..., or set {chooser} to {others}.",
                )


def own_network() -> dict[str, Any]:
    """What a command that is given labelled images puts in place of preset ``sim``'s segmenter.

    That one takes the classes from the mini CLIP, which knows sprites only; labelled images can teach a network.
    """
    names = ("encoder", "freeze_encoder", "learning_rate")
    return {"trainer": {name: TrainerConfig.model_fields[name].default for name in names}}


def segmenter_config(
    command: str, settings: Settings | None, defaults: Settings, preset: str | None = None
) -> Config:
    """The config of a command that trains on a dataset: preset, then `defaults`, environment and `settings`.

    With the preset ``sim`` (the default) the network is `own_network`'s, and starts from random weights.
    Raises `SegsmithError` for an unknown preset, a bad value, and a setting that has no effect in `command`.
    """
    known = load_config(flags=nested(settings or {}))  # names the keys that do not exist
    del known
    check_used(command, settings)
    name = "sim" if preset is None else pick(preset).preset
    own = nested(defaults)
    if name == "sim":
        own = deep_merge(deep_merge(own, own_network()), {"trainer": {"encoder_init": "none"}})
    return load_config(preset=name, flags=deep_merge(own, with_environment(nested(settings or {}))))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the settings in a tree of sections."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _within(key: str, pattern: str) -> bool:
    """Whether a dotted name is `pattern`, or in the section that `pattern` names; "" is all."""
    return not pattern or key == pattern or key.startswith(f"{pattern}.")


def overrides(
    settings: Settings | None,
    *,
    classes: str | Sequence[str] = (),
    per_class: int | None = None,
    seed: int | None = None,
    memory: str | Path | None = None,
    offline: bool = False,
    max_images: int | None = None,
    max_hours: float | None = None,
    max_usd: float | None = None,
) -> dict[str, Any]:
    """The settings that a call passes; a named argument wins over the same key in `settings`."""
    tree = nested(settings or {})
    named = {
        "classes": tuple(classes.split(",") if isinstance(classes, str) else classes) if classes else None,
        "per_class": per_class,
        "seed": seed,
        "memory": None if memory is None else str(memory),
        "offline": offline or None,
    }
    tree |= {key: value for key, value in named.items() if value is not None}
    caps = {"max_images": max_images, "max_hours": max_hours, "max_usd": max_usd}
    if given := {cap: value for cap, value in caps.items() if value is not None}:
        tree["budget"] = {**tree.get("budget", {}), **given}
    return tree


def resolve(
    *,
    preset: str | None = None,
    config: str | Path | Config | None = None,
    changes: Settings | None = None,
    run: Path | None = None,
    labelled: bool = False,
) -> tuple[Config, Choice]:
    """The resolved config and the preset it starts from; `changes` are what `overrides` returns.

    With `labelled`, the command is given labelled images, and preset ``sim`` alone has the network of `own_network`.

    `config` is a TOML file laid over the preset, or a finished `Config`, which needs no preset. Without a preset the
    one of the existing run folder `run` is taken, else the best one for this machine. Raises `SegsmithError` for an
    unknown preset, a bad file or a bad value.
    """
    changes = changes or {}
    if isinstance(config, Config):
        if preset not in (None, config.preset):
            raise SegsmithError(
                f"config is a Config of preset {config.preset!r}, so preset={preset!r} has no effect.",
                "Leave preset out.",
            )
        return merged_config(config, changes, "settings"), Choice(config.preset, "")
    file = None if config is None else Path(config)
    choice = pick(
        preset,
        offline=bool(changes.get("offline")),
        run=run,
        configs=lambda name: load_config(preset=name, file=file, flags=changes),
    )
    if labelled and choice.preset == "sim" and file is None:
        changes = deep_merge(own_network(), with_environment(changes))
    return load_config(preset=choice.preset, file=file, flags=changes), choice


def check_reach(config: Config, given: Settings, source: Path) -> None:
    """Raise `SegsmithError` if `config`, read from `source`, reaches outside of the run by a stranger's choice.

    Settings of `REACHING_OUTSIDE` must be the preset's or be given by the user too: in `given` (what `overrides`
    returns) or in the environment.
    """
    preset = config.preset if config.preset in PRESETS else PRESETS[0]
    own = load_config(preset=preset, flags={"classes": config.classes, **given})
    for key, meaning in REACHING_OUTSIDE.items():
        value = attrgetter(key)(config)
        if value != attrgetter(key)(own):
            raise SegsmithError(
                f"{source} sets {key} to {json.dumps(value)}, which is {meaning}.",
                f"Type --trust if you trust that file, or --set {key}=... to name your own.",
            )
