"""The trainer's throughput against a bare loop of the same network, in turns in the same process.

    python -m benchmarks.trainer_throughput                      # the default network, 96 px windows
    python -m benchmarks.trainer_throughput --encoder tu-test_resnet --epochs 12

After each epoch of the trainer, the bare loop runs over as many images: tensors in memory, the same moves and
repainting, forward, loss, backward, clipping, AdamW; no averaged weights, no data loader, no accelerate. Both are
timed in seconds of CPU (of wall time on a GPU), which other work on the machine hardly changes; the ratio is of
the medians, the first epoch of each left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from segsmith.config import TrainerConfig
from segsmith.datasets.voc_folder import VocFolder
from segsmith.datasets.voc_layout import Pair, write_voc
from segsmith.segmentation.network import build_segmenter, normalise
from segsmith.segmentation.trainer import MAX_GRADIENT, WEIGHT_DECAY, EpochReport, train
from segsmith.segmentation.transforms import place, restyle
from segsmith.tools.images.simulator import unseen_scenes

CLASSES = ("cat", "bus")
SIZE_PX, WINDOW_PX = 128, 96
REACH = 0.95
clock = time.perf_counter if torch.cuda.is_available() else time.process_time


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default=TrainerConfig.model_fields["encoder"].default)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = TrainerConfig(
        encoder=arguments.encoder, encoder_init="none", epochs=arguments.epochs, save_every=1000
    )
    with tempfile.TemporaryDirectory() as folder:
        write_voc(Path(folder) / "data", CLASSES, {"train": scenes(arguments.images)})
        trainer, bare = in_turns(Path(folder), config)
    ratio = statistics.median(bare) / statistics.median(trainer)
    for name, seconds in (("trainer", trainer), ("bare loop", bare)):
        print(f"{name:10} {arguments.images / statistics.median(seconds):7.1f} images a second")
    print(f"trainer / bare loop {ratio:.3f} (reach {REACH})")


def scenes(count: int) -> Iterator[Pair]:
    for index, scene in enumerate(unseen_scenes(CLASSES, count, 0, SIZE_PX)):
        yield f"s{index:04d}", scene.image, scene.class_mask(CLASSES)


def in_turns(folder: Path, config: TrainerConfig) -> tuple[list[float], list[float]]:
    """Seconds of each epoch of the trainer and of the bare loop, the first ones left out."""
    loop = BareLoop(VocFolder(folder / "data", "train"), config)
    trainer, bare = [], []
    started = clock()

    def after_epoch(report: EpochReport) -> None:
        nonlocal started
        trainer.append(clock() - started)
        started = clock()
        loop.epoch()
        bare.append(clock() - started)
        started = clock()

    train(folder / "data", folder / "out", config, 0, on_epoch=after_epoch)
    # The trainer's last epoch is the one that writes its state.
    return trainer[1:-1], bare[1:-1]


class BareLoop:
    """What one would write without a trainer."""

    def __init__(self, data: VocFolder, config: TrainerConfig) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.images = torch.stack([data[i][0] for i in range(len(data))])
        self.labels = torch.stack([data[i][1] for i in range(len(data))])[:, None]
        model = build_segmenter(config, len(data.classes)).to(self.device)
        self.model = model.to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.AdamW(
            model.parameters(), config.learning_rate, weight_decay=WEIGHT_DECAY
        )
        self.batch, self.generator = config.batch_size, torch.Generator().manual_seed(0)

    def epoch(self) -> None:
        for rows in torch.randperm(len(self.images), generator=self.generator).split(self.batch):
            self.step(self.images[rows].to(self.device), self.labels[rows].to(self.device))

    def step(self, images: Tensor, labels: Tensor) -> None:
        images, labels = place(images, labels, (WINDOW_PX, WINDOW_PX), self.generator)
        fed = normalise(self.model, restyle(images, "photographs", self.generator)[0]).to(
            memory_format=torch.channels_last
        )
        loss = F.cross_entropy(self.model(fed), labels[:, 0], ignore_index=255)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT)
        self.optimizer.step()
        loss.item()


if __name__ == "__main__":
    main()
