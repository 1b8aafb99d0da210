"""How busy the image model is kept: the whole pipeline's rate over the image model's own rate.

    python -m benchmarks.pipeline_overlap                # 140 images of 1024 px in three rounds, five minutes
    python -m benchmarks.pipeline_overlap --seconds-per-image 0.5 --format png

The image model, CLIP and the language model are stand-ins that sleep as long as real ones compute, as a GPU would;
everything else is what a build does: encoding, writing, the ledger, the judge's own measurements, the graph. A second
build with the same stand-ins works in lock-step: each batch is written before the next one is drawn, and the round is
measured from its files afterwards. The time counts from the first request to the image model to the last verdict,
without the first prompts, for which every run waits. There are more classes than requests to the language model at a
time, so that writers queue. The bound that is printed is what the processor time per image, spread over all cores,
would allow if the cores were free; other jobs on the machine lower the result further.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from segsmith.agents.image import ImageAgent
from segsmith.config import Config
from segsmith.events import RoundJudged
from segsmith.graph.context import RunContext
from segsmith.graph.graph import build_graph
from segsmith.memory.run_folder import RunFolder
from segsmith.protocols import unwatched
from segsmith.testing import InstantEncoder, ScriptedChat, small_config
from segsmith.types import Drawn, Gate, Image, ImageRequest, Vectors

REACH = 0.95
CLASSES = ("cat", "dog", "bus", "bicycle", "bird", "boat", "car", "chair", "cow", "horse")
CONCURRENCY = 8
"""Replies that the language model writes at a time."""
CLIP_SECONDS = 0.012
"""Per image: CLIP ViT-L/14 in half precision."""
REPLY_SECONDS = 2.0
"""Per reply of the language model."""


class SleepingImages:
    """An `ImageBackend` that sleeps and returns images with the detail of a photograph, so that encoding is real."""

    name = "sleeping"
    usd_per_image = 0.0

    def __init__(self, size: int, seconds: float) -> None:
        self.seconds, self.busy, self.drawn = seconds, 0.0, 0
        self.started: float | None = None
        rng = np.random.default_rng(0)
        coarse = np.kron(rng.integers(40, 216, (16, 16, 3)), np.ones((size // 16, size // 16, 1)))
        self._images = [
            (coarse + rng.normal(0, 6, (size, size, 3))).clip(0, 255).astype(np.uint8) for _ in range(8)
        ]

    def draw(
        self,
        requests: Sequence[ImageRequest],
        gate: Gate | None = None,
        on_step: Callable[[float], None] = unwatched,
    ) -> Iterator[Drawn]:
        started = time.monotonic()
        self.started = self.started or started
        time.sleep(self.seconds * len(requests))
        self.busy += time.monotonic() - started
        for index, _ in enumerate(requests):
            yield Drawn(index, np.roll(self._images[self.drawn % 8], 17 * self.drawn, axis=1))
            self.drawn += 1

    def close(self) -> None:
        """Nothing is held."""


class SleepingClip(InstantEncoder):
    """Sleeps for each image. Texts are closest to the classes they name, so that the critic passes what it should."""

    def embed_images(self, images: Sequence[Image]) -> Vectors:
        time.sleep(CLIP_SECONDS * len(images))
        return super().embed_images(images)


class LockStep(ImageAgent):
    """Draws, then writes in one thread, then draws on; nothing is measured before the round has ended."""

    def draw(self, *args: Any, on_images: object = None, **options: Any) -> list[str]:
        return super().draw(*args, **options)

    def _draw_batch(self, batch: Any, pool: ThreadPoolExecutor, *rest: Any) -> None:
        with ThreadPoolExecutor(1) as one:
            super()._draw_batch(batch, one, *rest)
        wait(batch.files.values())


class Nothing:
    """A labeler and finalizer without work."""

    def relabel(self, elsewhere: object = None) -> int:
        return 0

    def segment(self, on_batch: object) -> None:
        return None

    def export(self) -> None:
        return None

    def train(self, on_epoch: object) -> None:
        return None

    def evaluate(self) -> Mapping[str, Any]:
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=140)
    parser.add_argument("--size", type=int, default=1024, help="pixels, a multiple of 16")
    parser.add_argument("--seconds-per-image", type=float, default=1.0)
    parser.add_argument(
        "--format", choices=("jpeg", "png", "webp"), default="jpeg", help="jpeg as in preset gpu"
    )
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    for name, lock_step in (("lock-step", True), ("overlapped", False)):
        before = time.process_time()
        share = busy_share(options.images, options.size, options.seconds_per_image, options.format, lock_step)
        cpu = (time.process_time() - before) / options.images
        target = "" if lock_step else f" (reach {REACH})"
        bound = min(1.0, options.seconds_per_image * cores / cpu)
        print(
            f"{name:10} {share:.3f} of the image model's own rate{target}; {cpu:.3f} s of CPU an image; "
            f"bound on {cores} free cores: {bound:.2f}; load {os.getloadavg()[0]:.0f}",
            flush=True,
        )


def busy_share(images: int, size: int, seconds: float, form: str, lock_step: bool) -> float:
    """Share of the time in which the image model is drawing."""
    config = small_config(
        classes=CLASSES,
        per_class=images,
        judge={"enabled": False},
        prompts={"remember": False, "batch": 1},
        images={"size": size, "batch_size": 8, "per_prompt": 2, "format": form},
        budget={"max_images": images},
        llm={"concurrency": CONCURRENCY},
    )
    backend = SleepingImages(size, seconds)
    with tempfile.TemporaryDirectory() as folder:
        judged = run(config, Path(folder), backend, lock_step)
    assert backend.drawn == images, f"{backend.drawn} images were drawn instead of {images}"
    assert backend.started is not None
    return backend.busy / (judged - backend.started)


def run(config: Config, folder: Path, backend: SleepingImages, lock_step: bool) -> float:
    """Draw and judge; returns the time of the last verdict."""
    run_folder = RunFolder(folder)
    run_folder.create()
    free = threading.BoundedSemaphore(CONCURRENCY)

    def reply(user: str, seed: int) -> None:
        with free:
            time.sleep(REPLY_SECONDS)

    parts = {
        "chat": ScriptedChat(on_ask=reply),
        "encoder": SleepingClip(CLASSES),
        "backend": backend,
        "labeler_agent": Nothing(),
        "finalizer": Nothing(),
    }
    judged = 0.0
    with RunContext(config, run_folder, parts=parts) as context:
        if lock_step:
            context.use(image_agent=LockStep(backend, context.ledger, run_folder, config.images, config.seed))
        steps = build_graph().stream(
            {"round": 0},
            {"recursion_limit": 1000, "max_concurrency": CONCURRENCY},
            context=context,
            stream_mode="custom",
        )
        for event in steps:
            if isinstance(event, RoundJudged):
                judged = time.monotonic()
    return judged


if __name__ == "__main__":
    main()
