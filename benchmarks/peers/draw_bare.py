"""A bare loop over a diffusers pipeline: prompts in batches, each image written as PNG. No judge, no ledger.

python -m benchmarks.peers.draw_bare PIPELINE OUT IMAGES BATCH CLASS...
"""

from __future__ import annotations

import json
import resource
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import AutoPipelineForText2Image

from benchmarks.peers.model import SIDE


def main() -> None:
    folder, out, images, batch, *classes = sys.argv[1:]
    Path(out).mkdir(parents=True)
    pipeline = AutoPipelineForText2Image.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    for start in range(0, int(images), int(batch)):
        numbers = range(start, min(start + int(batch), int(images)))
        drawn = pipeline(
            prompt=[f"A photo of a {classes[n % len(classes)]}" for n in numbers], height=SIDE, width=SIDE,
            generator=[torch.Generator().manual_seed(n) for n in numbers], guidance_scale=0.0, num_inference_steps=4,
        ).images  # fmt: skip
        for number, image in zip(numbers, drawn, strict=True):
            image.save(Path(out) / f"{number:06d}.png")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak_mb": peak, "versions": {n: version(n) for n in ("diffusers", "torch")}}))


if __name__ == "__main__":
    main()
