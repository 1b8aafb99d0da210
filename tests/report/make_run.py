"""A made-up run with everything a report shows: rejected images, decisions, costs, an evaluation.

`python tests/report/make_run.py FOLDER` writes such a run, drawn by the simulator, and prints the path of its report.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

from segsmith.config import Config, config_toml, load_config
from segsmith.datasets.palette import voc_palette
from segsmith.files import png_bytes
from segsmith.ids import make_id
from segsmith.memory.ledger import (
    DecisionRow,
    GuidanceRow,
    ImageRow,
    LabelRow,
    Ledger,
    MaskRow,
    ModelRow,
    PromptRow,
    RunSummary,
    UsageRow,
    VerdictRow,
)
from segsmith.memory.prompt_memory import PromptMemory, Remembered
from segsmith.memory.run_folder import RunFolder
from segsmith.types import Evaluation

CLASSES = ("cat", "dog", "bus", "bicycle", "potted plant", "sheep")
PLACES = ("street", "beach", "forest", "kitchen", "field", "harbour")
LIGHTS = ("noon", "dusk", "night", "overcast")
STATES = ("running", "sitting", "parked", "seen from behind")
REJECTS = ("not_there", "blurred", "duplicate", "beyond_top_k", "blank")
STAGES = ("empty", "written", "drawn", "labelled", "masked", "all")


class WordEncoder:
    """An `ImageTextEncoder` for texts alone: texts that share words have similar vectors."""

    name = "words"

    def embed_texts(self, texts):
        vectors = np.zeros((len(texts), 64), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in text.lower().split():
                row += np.random.default_rng(list(hashlib.sha256(word.encode()).digest())).normal(size=64)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def remember(run: RunFolder, ledger: Ledger) -> None:
    """Fill the run's prompt memory with the admitted prompts."""
    memory = PromptMemory(run.memory, WordEncoder())
    prompts = ledger.prompts("admitted")
    for start in range(0, len(prompts), 4000):
        memory.add(
            [Remembered(p.id, p.text, p.class_name, p.attributes) for p in prompts[start : start + 4000]]
        )


def add_decisions_and_costs(ledger: Ledger) -> None:
    """What reviewers and hosted models leave in the ledger."""
    ledger.add_usage(UsageRow("llm", "smollm2", calls=399, tokens_in=65452, tokens_out=11750))
    ledger.add_usage(UsageRow("images", "hosted-1", calls=7, images=7, usd=0.28))
    ledger.add_models(
        [
            ModelRow("llm", "SmolLM2-135M", "", "Apache-2.0", "package", "a" * 64),
            ModelRow("judge", "mini CLIP", "", "Apache-2.0", "package", "b" * 64),
        ]
    )
    rejected = next((i for i, v in ledger.verdicts().items() if not v.accepted), None)
    if rejected is not None:
        ledger.add_decision(DecisionRow("verdict", rejected, "accept", note="the tail is a tail"))
    ledger.add_guidance(GuidanceRow("", "more of them at night, and no cartoons", {"light": "night"}))


def paint_shapes(spec: list[int], size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image and its class mask: soft background, one ellipse for each class index of `spec`."""
    y, x = np.mgrid[:size, :size] / size
    base = rng.uniform(90, 210, (2, 3))
    image = base[0] + (base[1] - base[0]) * y[..., None] + rng.normal(0, 4, (size, size, 3))
    mask = np.zeros((size, size), np.uint8)
    for index in spec:
        cx, cy = rng.uniform(0.3, 0.7, 2)
        rx, ry = rng.uniform(0.12, 0.3, 2)
        distance = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2
        colour = voc_palette()[index] * 0.6 + rng.uniform(20, 90, 3)
        image[distance < 1] = colour * (1.1 - 0.3 * distance[distance < 1, None])
        mask[distance < 1.15] = 255
        mask[distance < 1] = index
    return image.clip(0, 255).astype(np.uint8), mask


def paint_scene(prompt: str, classes: tuple[str, ...], seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    from segsmith.world.language import parse
    from segsmith.world.scene import compose

    scene = compose(parse(prompt), seed, style="twemoji", size=size)
    mask = scene.class_mask(classes).astype(np.uint8)
    edge = np.zeros(mask.shape, bool)
    edge[1:] |= mask[1:] != mask[:-1]
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    return scene.image, np.where(edge, 255, mask).astype(np.uint8)


def make_run(
    root: Path,
    *,
    classes: tuple[str, ...] = CLASSES,
    prompts_per_class: int = 6,
    stage: str = "all",
    simulated: bool = False,
    size: int = 128,
    text: str = "a {cls} {state} at the {place}, {light} light",
    seed: int = 0,
) -> tuple[RunFolder, Ledger, Config]:
    """A run that stopped after `stage`; the caller closes the ledger."""
    rng = np.random.default_rng(seed)
    reached = STAGES.index(stage)
    # A config rejects hostile class names; the report must not rely on that.
    config = load_config(flags={"per_class": 2 * prompts_per_class, "images": {"size": size}, "seed": seed})
    config = config.model_copy(update={"classes": classes})
    run = RunFolder(root)
    run.create()
    run.config.write_bytes(config_toml(config).encode())
    ledger = Ledger(run.ledger)
    thresholds = {c: float(rng.uniform(0.5, 0.7)) for c in classes}
    if reached >= STAGES.index("written"):
        _write_prompts(ledger, classes, prompts_per_class, text, rng)
    if reached >= STAGES.index("drawn"):
        ledger.thresholds = thresholds
        _draw(run, ledger, config, thresholds, simulated, rng, stage)
    ledger.run_id = make_id("r", root.name, seed)
    if reached >= STAGES.index("all"):
        add_decisions_and_costs(ledger)
        _train(run, ledger, config, simulated, rng)
    return run, ledger, config


def _write_prompts(
    ledger: Ledger, classes: tuple[str, ...], n: int, text: str, rng: np.random.Generator
) -> None:
    rows = []
    for name in classes:
        parent = None
        for k in range(n + 3):
            place, light, state = (
                rng.choice(PLACES, p=[0.3, 0.2, 0.2, 0.1, 0.15, 0.05]),
                rng.choice(LIGHTS),
                rng.choice(STATES),
            )
            others = [c for c in classes if c != name]
            companion = str(rng.choice(others)) if others and rng.random() < 0.35 else ""
            status = "admitted" if k < n else ("refined" if k == n else "dropped")
            words = text.format(cls=name, state=state, place=place, light=light) + (
                f", beside a {companion}" if companion else ""
            )
            words = words if status == "admitted" else f"{words} ({status} {k})"
            problem = {
                "admitted": "",
                "refined": "familiar: too similar to an admitted prompt",
                "dropped": str(
                    rng.choice(
                        [
                            "rule: does not name the class",
                            "familiar: too similar to an admitted prompt",
                            "off_topic: another class ranks first",
                        ]
                    )
                ),
            }[status]
            attributes = {
                "place": str(place),
                "light": str(light),
                "weather": str(rng.choice(["clear", "rain", "fog"])),
                "state": str(state),
                "companion": companion,
                "viewpoint": "eye level",
            }
            critique = {
                "problem": problem,
                "nearest": float(rng.uniform(0.8, 0.99)),
                "relevance": float(rng.uniform(0.6, 1)),
                "refines": int(rng.integers(0, 3)),
            }
            row = PromptRow(
                make_id("p", name, words, k),
                name,
                words,
                (name, companion) if companion else (name,),
                attributes,
                parent if k == 1 else rows[-1].id if status != "admitted" else None,
                k // 4,
                status,
                critique,
            )
            parent = row.id if k == 0 else parent
            rows.append(row)
    ledger.add_prompts(rows)
    for kind in ("started", "round"):
        ledger.log(kind, round=0)


def _draw(
    run: RunFolder,
    ledger: Ledger,
    config: Config,
    thresholds: dict,
    simulated: bool,
    rng: np.random.Generator,
    stage: str,
) -> None:
    classes, size, at = config.classes, config.images.size, STAGES.index(stage)
    images, verdicts, labels, masks = [], [], [], []
    for prompt in ledger.prompts("admitted"):
        for k in range(2):
            image_id = make_id("i", prompt.id, k)
            shown = [classes.index(c) + 1 for c in prompt.classes if c in classes]
            bad = rng.random() < 0.3
            reason = str(rng.choice(REJECTS)) if bad else "ok"
            if reason == "not_there" and len(classes) > 1:
                shown = [int(rng.choice([i + 1 for i in range(len(classes)) if i + 1 not in shown] or shown))]
            if simulated:
                words = prompt.text if reason != "not_there" else f"a {classes[shown[0] - 1]} at the beach"
                image, mask = paint_scene(words, classes, int(rng.integers(1e9)), size)
            else:
                image, mask = paint_shapes(shown, size, rng)
            if reason == "blank":
                image = np.full_like(image, 127)
            if reason == "blurred":
                image = (
                    image.reshape(size // 8, 8, size // 8, 8, 3)
                    .mean((1, 3))
                    .repeat(8, 0)
                    .repeat(8, 1)
                    .astype(np.uint8)
                )
            data = png_bytes(np.ascontiguousarray(image))
            run.new_image(image_id, "png").write_bytes(data)
            images.append(
                ImageRow(
                    image_id,
                    prompt.id,
                    1000 + k,
                    "simulator-1",
                    prompt.round,
                    hashlib.sha256(data).hexdigest(),
                )
            )
            threshold = thresholds[prompt.class_name]
            low = reason in ("not_there", "blank")
            p = float(rng.uniform(0.02, threshold) if low else rng.beta(8, 1.2) * (1 - threshold) + threshold)
            scores = {
                "probability": p,
                "threshold": threshold,
                "sharpness": 0.21 if reason == "blurred" else float(rng.uniform(0.7, 1.6)),
                "duplicate_cosine": 0.998 if reason == "duplicate" else float(rng.uniform(0.6, 0.97)),
                "runner_up": float(rng.uniform(0, 1 - p)),
            }
            verdicts.append(VerdictRow(image_id, reason == "ok", reason, scores))
            present = tuple(classes[i - 1] for i in sorted(set(mask.ravel()) - {0, 255}))
            if reason != "ok" or at < STAGES.index("labelled"):
                continue
            clip = present[:1] if rng.random() < 0.3 else present
            for source, found in (("prompt", prompt.classes), ("clip", clip), ("relabel", present)):
                labels.append(
                    LabelRow(
                        image_id,
                        source,
                        tuple(found),
                        {
                            c: float(rng.uniform(0.5, 1) if c in found else rng.uniform(0, 0.3))
                            for c in classes
                        },
                    )
                )
            if at < STAGES.index("masked"):
                continue
            run.new_mask(image_id).write_bytes(png_bytes(np.ascontiguousarray(mask), voc_palette()))
            pixels = {classes[i - 1]: int((mask == i).sum()) for i in sorted(set(mask.ravel()) - {0, 255})}
            masks.append(MaskRow(image_id, pixels, float((mask == 255).mean()), {}))
    ledger.add_images(images)
    ledger.add_verdicts(verdicts)
    ledger.add_labels(labels)
    ledger.add_masks(masks)


def _examples(run: RunFolder, config: Config, simulated: bool, rng: np.random.Generator) -> list[str]:
    folder = run.evaluation / "real"
    for part in ("JPEGImages", "SegmentationClass", "Predictions"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for k in range(6):
        classes, index = config.classes, 1 + k % len(config.classes)
        image, mask = (
            paint_scene(f"a {classes[index - 1]} on the street", classes, k, config.images.size)
            if simulated
            else paint_shapes([index], config.images.size, rng)
        )
        predicted = np.roll(mask, 3, axis=1)
        for name, data in (
            ("JPEGImages", png_bytes(np.ascontiguousarray(image))),
            ("SegmentationClass", png_bytes(mask, voc_palette())),
            ("Predictions", png_bytes(predicted, voc_palette())),
        ):
            (folder / name / f"t{k}.png").write_bytes(data)
    return [f"t{k}" for k in range(6)]


def _train(run: RunFolder, ledger: Ledger, config: Config, simulated: bool, rng: np.random.Generator) -> None:
    classes = config.classes
    for epoch in range(1, 21):
        noise = float(rng.normal(0, 0.012))
        ledger.log(
            "epoch",
            epoch=epoch,
            loss=0.15 + 1.4 * float(np.exp(-epoch / 4)) + noise,
            val_miou=None if epoch == 1 else 0.78 * (1 - float(np.exp(-epoch / 5))) + noise,
        )
    names = ("background", *classes)
    val = {c: float(rng.uniform(0.6, 0.92)) for c in names}
    test = {c: v * float(rng.uniform(0.75, 0.97)) for c, v in val.items()}
    confusion = rng.integers(0, 400, (len(names), len(names)))
    confusion[np.arange(len(names)), np.arange(len(names))] += rng.integers(4000, 9000, len(names))
    confusion[0, 0] += 90_000
    counts = tuple(map(tuple, confusion.tolist()))
    ledger.evaluation = {
        "synthetic_val": Evaluation(float(np.mean(list(val.values()))), val, 0.9, names),
        "test_set": Evaluation(
            float(np.mean(list(test.values()))),
            test,
            0.8,
            names,
            tuple(_examples(run, config, simulated, rng)),
            counts,
        ),
    }
    ledger.log("missing", **{"class": classes[-1], "have": 4, "want": 6, "reason": "stalled"})
    ledger.summary = RunSummary(
        wall_seconds=512.4,
        images_per_second=21.3,
        peak_memory_mb=1630,
        command=f'segsmith build --classes "{",".join(classes)}" --per-class 6 --out runs/street',
    )
    ledger.versions = {
        "segsmith": "0.1.0", "torch": "2.9.0", "open_clip_torch": "3.2.0", "langgraph": "1.2.22"
    }  # fmt: skip


if __name__ == "__main__":
    from segsmith.report.report import build_report

    made, ledger, settings = make_run(
        Path(sys.argv[1]), simulated=sys.argv[2:] != ["shapes"], prompts_per_class=8
    )
    remember(made, ledger)
    print(build_report(made, ledger, settings))
