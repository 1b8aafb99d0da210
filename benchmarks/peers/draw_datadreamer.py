"""Runs in datadreamer's environment: its own command, from class names to images; nothing is annotated.

HF_HUB_CACHE=CACHE HF_HUB_OFFLINE=1 python draw_datadreamer.py OUT IMAGES BATCH CLASS...
"""

import json
import resource
import sys
from importlib.metadata import version

import numpy as np
from datadreamer.pipelines import generate_dataset_from_scratch as command


class NoAnnotator:
    """In place of OWLv2: no boxes. The other programs do not label here either."""

    def __init__(self, **options):
        pass

    def annotate_batch(self, images, *more, **options):
        return tuple([np.zeros(shape) for _ in images] for shape in ((0, 4), 0, 0))


def main():
    out, images, batch, *classes = sys.argv[1:]
    command.det_annotators["owlv2"] = NoAnnotator
    sys.argv = [
        "datadreamer", "--save_dir", out, "--class_names", *classes, "--prompts_number", images, "--device", "cpu",
        "--prompt_generator", "simple", "--num_objects_range", "1", "1", "--image_generator", "sdxl-turbo",
        "--batch_size_image", batch, "--disable_lm_filter", "--disable_profanity_filter",
        "--split_ratios", "0.8", "0.1", "0.1",
    ]  # fmt: skip
    command.main()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {"peak_mb": peak, "versions": {n: version(n) for n in ("datadreamer", "diffusers", "torch")}}
        )
    )


if __name__ == "__main__":
    main()
