"""The benchmark that waits for a GPU works on the day there is one: here on small models, on the CPU."""

import pytest
import torch


@pytest.mark.slow
def test_the_gpu_benchmark_runs_to_its_end_on_small_models(capsys):
    from benchmarks import gpu_throughput

    gpu_throughput.main(["--tiny", "--steps", "2", "--repeats", "1", "--batch", "2"])
    said = capsys.readouterr().out
    for row in ("diffusion, 64 px", "half of them filtered", "CLIP mini", "SAM, 8 prompts"):
        assert row in said
    assert said.count("ratio") == 4


@pytest.mark.slow
def test_its_random_clip_and_sam_are_files_that_our_adapters_load(tmp_path):
    from benchmarks import gpu_throughput
    from segsmith.tools.vision.clip import OpenClipEncoder
    from segsmith.tools.vision.sam import SamSegmenter

    torch.manual_seed(0)
    assert OpenClipEncoder.load(gpu_throughput.save_clip("RN50", tmp_path), "cpu").dim == 1024
    SamSegmenter.load(gpu_throughput.save_sam("vit_b", tmp_path), "cpu")
