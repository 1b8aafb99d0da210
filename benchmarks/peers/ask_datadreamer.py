"""Runs in datadreamer's environment: which images its CLIP tester lets pass.

Reads {"logits": images x classes, "targets": class index of each image, "batch": number} from standard input
and prints a list of booleans. The rule is datadreamer's; the logits come from segsmith's CLIP, so that both use one
model.
"""

import json
import sys
from types import SimpleNamespace

import torch
from datadreamer.image_generation.clip_image_tester import ClipImageTester


class Inputs(dict):
    def to(self, device):
        return self


def main():
    question = json.load(sys.stdin)
    logits, targets, batch = torch.tensor(question["logits"]), question["targets"], question["batch"]
    tester = ClipImageTester.__new__(ClipImageTester)  # without the download of its CLIP
    tester.device = "cpu"
    tester.clip_processor = lambda text, images, **options: Inputs(rows=images, columns=text)
    tester.clip = lambda rows, columns: SimpleNamespace(logits_per_image=logits[rows][:, columns])
    passed = []
    for start in range(0, len(targets), batch):
        rows = list(range(start, min(start + batch, len(targets))))
        passed += tester.test_images_batch(rows, [[targets[row]] for row in rows])[0]
    print(json.dumps(passed))


if __name__ == "__main__":
    main()
