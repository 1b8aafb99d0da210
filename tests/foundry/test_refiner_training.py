"""Training of the network that corrects the mini SAM's masks."""

import shutil

import torch
from safetensors.torch import load_file

from foundry import mask_refiner
from segsmith.tools.vision.sam import MINI, REFINER, SamSegmenter


def test_a_short_training_changes_the_network_and_keeps_the_sam(tmp_path):
    shutil.copytree(MINI, tmp_path / "sam")
    pool = mask_refiner.samples(seed=3, scenes=6)
    assert len(pool) >= 6
    for sample in pool:
        assert sample.image.shape[:2] == sample.truth.shape == sample.logits.shape[1:]
        assert sample.truth.any()
        assert sample.points.any()
    network = mask_refiner.train(pool, tmp_path / "sam", minutes=0.05, seed=0, rate=2e-3, init=None)
    assert network.exit.weight.abs().sum() > 0, "untrained, it is 0"
    before, after = (load_file(folder / "model.safetensors") for folder in (MINI, tmp_path / "sam"))
    kept = [name for name in before if not name.startswith(REFINER)]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    loaded = SamSegmenter.load(str(tmp_path / "sam"), "cpu").refiner
    for name, tensor in network.state_dict().items():
        assert torch.allclose(loaded.state_dict()[name], tensor, atol=2e-3)
