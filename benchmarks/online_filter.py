"""The online filter on a small pipeline: are kept images the same bits, and what does it save?

A tiny Stable Diffusion (random weights, CPU) draws the same images with and without a filter that drops a
given share of them at a given part of the denoising. Printed per row: the share of kept images whose bits
are the same, the largest difference, denoising steps (one sample through the denoiser once) with the filter
over without, and the same ratio of seconds measured in one run.

In float32 a matrix product rounds by its shape, so a smaller batch alone moves some pixels by 1 of 255, filter or
not; ``--double`` computes in float64, where that is too small to be seen and only a mistake would show.

    python -m benchmarks.online_filter [--kind sdxl] [--scheduler dpm++] [--steps 20] [--double]
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from segsmith.config import ImagesConfig
from segsmith.tools.images.diffusion import DiffusionBackend
from segsmith.types import ImageRequest
from tests import tiny_pipelines

BATCH = 8


class Counted:
    """A backend whose sample-steps are counted."""

    def __init__(self, backend: DiffusionBackend, halves: int) -> None:
        self.backend, self.rows = backend, 0
        pipe = backend._open()
        denoiser = getattr(pipe, "unet", None) or pipe.transformer

        def count(module, args, kwargs):
            self.rows += len(args[0] if args else kwargs["hidden_states"]) // halves

        denoiser.register_forward_pre_hook(count, with_kwargs=True)

    def draw(self, requests, gate=None):
        """(images by index, sample-steps, seconds)"""
        self.rows, started = 0, time.perf_counter()
        drawn = {d.index: d.image for d in self.backend.draw(requests, gate)}
        return drawn, self.rows, time.perf_counter() - started


def measure(folder: Path, scheduler: str | None, steps: int, double: bool, at: float, rejected: float):
    config = ImagesConfig(
        backend="diffusion", model=str(folder), size=64, steps=steps, guidance=3.0, scheduler=scheduler,
        filter={"enabled": True, "at": at},
    )  # fmt: skip
    backend = DiffusionBackend(config)
    if double:
        backend._open().to(torch.float64)
    counted = Counted(backend, halves=2)
    requests = [ImageRequest(f"image number {i}", 100 + i) for i in range(BATCH)]
    rng = np.random.default_rng(0)
    hopeless = set(rng.permutation(BATCH)[: round(rejected * BATCH)].tolist())
    counted.draw(requests[:1])  # warm up
    whole, steps_whole, s_whole = counted.draw(requests)
    part, steps_part, s_part = counted.draw(
        requests, lambda indices, _: ["filtered" if i in hopeless else None for i in indices]
    )
    kept = [i for i in range(BATCH) if i not in hopeless]
    gaps = [int(np.abs(part[i].astype(int) - whole[i]).max()) for i in kept]
    same = sum(gap == 0 for gap in gaps)
    return same, len(kept), max(gaps, default=0), steps_part / steps_whole, s_part / s_whole


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--kind", default="sd", choices=("sd", "sdxl", "sd3"))
    options.add_argument("--scheduler", default=None)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--double", action="store_true", help="compute in float64")
    given = options.parse_args()
    warnings.filterwarnings("ignore")
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        pipeline = tiny_pipelines.save(given.kind, Path(folder) / given.kind)
        number = "float64" if given.double else "float32"
        sampler = given.scheduler or "its own"
        print(f"{given.kind}, sampler {sampler}, {given.steps} steps, batches of {BATCH}, {number}:\n")
        print("| looked at | rejected | kept with the same bits | largest gap | denoising steps | seconds |")
        print("| --- | --- | --- | --- | --- | --- |")
        for at in (0.3, 0.5):
            for rejected in (0.0, 0.25, 0.5, 0.75):
                same, kept, gap, steps, seconds = measure(
                    pipeline, given.scheduler, given.steps, given.double, at, rejected
                )
                print(
                    f"| {at:.0%} | {rejected:.0%} | {same} of {kept} | {gap}/255 | {steps:.0%} | {seconds:.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
