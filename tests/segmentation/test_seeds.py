import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segsmith.segmentation.seeds import seed_masks, top_k_pool, upsample_maps

few = settings(max_examples=40, deadline=None)
scores = arrays(np.float32, (3, 6, 7), elements=st.floats(0, 1, width=32))


@pytest.mark.parametrize("k", [12, 99])
def test_pooling_all_patches_is_the_mean(k):
    logits = torch.randn(2, 5, 3, 4)
    assert torch.allclose(top_k_pool(logits, k), logits.mean((2, 3)), atol=1e-6)


def test_pooling_one_patch_is_the_maximum_and_two_the_mean_of_the_best_two():
    logits = torch.tensor([[[[1.0, 7.0], [3.0, 5.0]]]])
    assert top_k_pool(logits, 1).item() == 7
    assert top_k_pool(logits, 2).item() == 6


def test_upsampling_agrees_with_torch():
    maps = np.random.default_rng(0).random((3, 8, 5)).astype(np.float32)
    for size in ((64, 40), (33, 7), (8, 5), (4, 2)):
        expected = F.interpolate(torch.tensor(maps)[None], size, mode="bilinear")[0].numpy()
        np.testing.assert_allclose(upsample_maps(maps, size), expected, atol=1e-5)


@few
@given(scores, st.floats(0.05, 1))
def test_every_present_class_has_confident_seeds_unless_its_map_is_flat_zero(maps, high):
    seeds = seed_masks(maps, [0, 2], high=high)
    assert set(seeds) == {0, 2}
    for index, seed in seeds.items():
        assert seed.any() == (maps[index].max() > 0)
        assert (maps[index][seed] >= np.float32(high * maps[index].max()) - 1e-6).all()


def test_seeds_go_to_the_best_present_class_without_small_pieces():
    maps = np.zeros((3, 8, 8), np.float32)
    maps[0, :4, :] = 0.8
    maps[1] = 0.9  # not present, so it takes no pixels
    maps[2, 2:6, :] = 1.0
    maps[0, 7, 7] = 0.8  # a piece of one pixel
    seeds = seed_masks(maps, [0, 2], high=0.5, min_area_px=4)
    assert seeds[0][:2].all()
    assert seeds[0].sum() == 16
    assert seeds[2].sum() == 32


def test_a_class_outscored_everywhere_keeps_its_peak():
    maps = np.full((2, 5, 5), 0.9, np.float32)
    maps[1] = 0.1
    maps[1, 2, 3] = 0.3
    assert np.argwhere(seed_masks(maps, [0, 1])[1]).tolist() == [[2, 3]]


def test_no_present_class_gives_no_seeds():
    assert seed_masks(np.ones((2, 4, 4), np.float32), []) == {}
