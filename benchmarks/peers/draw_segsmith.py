"""segsmith from class names to judged images: the graph with ledger, judge and duplicates; nothing is labelled.

    python -m benchmarks.peers.draw_segsmith PIPELINE OUT IMAGES BATCH CLASS...

Prompts are scripted, because datadreamer's come from a template. CLIP is the mini CLIP. The weights of the image
model are random, so the judge measures every image and its verdict is ignored (`judge.enabled = false`).
"""

from __future__ import annotations

import json
import resource
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.peers.model import SIDE
from benchmarks.pipeline_overlap import Nothing
from segsmith.config import load_config
from segsmith.graph.context import RunContext
from segsmith.graph.graph import build_graph
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import ScriptedChat


def main() -> None:
    folder, out, images, batch, *classes = sys.argv[1:]
    config = load_config(
        flags={
            "classes": classes,
            "per_class": int(images),
            "judge": {"enabled": False},
            "prompts": {"remember": False},
            "images": {
                "backend": "diffusion", "model": folder, "size": SIDE, "steps": 4, "guidance": 0.0,
                "batch_size": int(batch), "device": "cpu",
            },
            "budget": {"max_images": int(images)},
        }
    )  # fmt: skip
    run = RunFolder(Path(out))
    run.create()
    parts = {"chat": ScriptedChat(), "labeler_agent": Nothing(), "finalizer": Nothing()}
    with RunContext(config, run, parts=parts) as context:
        build_graph().invoke({"round": 0}, {"recursion_limit": 1000}, context=context)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps({"peak_mb": peak, "versions": {n: version(n) for n in ("segsmith", "diffusers", "torch")}})
    )


if __name__ == "__main__":
    main()
