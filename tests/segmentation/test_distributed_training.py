"""Two processes train together, as `accelerate launch` starts them on several GPUs; here on the CPU."""

import json
import os
import socket
import subprocess
import sys

import pytest

WORDS = [
    "--set", "trainer.encoder=tu-test_resnet", "--set", "trainer.epochs=3", "--set", "trainer.batch_size=6",
    "--set", "trainer.learning_rate=5e-3", "--set", "trainer.ema=0.9",
]  # fmt: skip


def curve(squares, out, *launcher):
    words = [sys.executable, *launcher, "-m", "segsmith.cli", "train", "--dataset", squares, "--out", out]
    done = subprocess.run(
        [*map(str, words), *WORDS],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    scores = [line for line in done.stdout.splitlines() if line.startswith("mIoU on split val")]
    assert len(scores) == 1  # only one process prints
    reports = json.loads((out / "training" / "state.json").read_text())["reports"]
    return [report["loss"] for report in reports]


@pytest.mark.slow
def test_two_processes_on_gloo_have_the_loss_curve_of_one(squares, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = curve(squares, tmp_path / "one")
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", port]
    together = curve(squares, tmp_path / "two", *launcher)
    # Augmentation, batch statistics and the loss are those of the whole batch, so only rounding differs.
    assert together == pytest.approx(alone, rel=0.01)
    assert together[-1] < 0.75 * together[0]
