"""What the student sees of sprites and of photographs."""

import torch

from segsmith.segmentation.transforms import HOLE, restyle


def generator():
    return torch.Generator().manual_seed(0)


def green(count=64):
    return torch.tensor([0.3, 0.6, 0.3]).view(1, 3, 1, 1).repeat(count, 1, 32, 48)


def test_photographs_keep_their_hues_and_sprites_do_not():
    photographs, _ = restyle(green(), "photographs", generator())
    sprites, _ = restyle(green(), "sprites", generator())

    def still_green(images):
        red, mid, blue = images.mean(dim=(2, 3)).unbind(1)
        return ((mid > red - 0.02) & (mid > blue - 0.02)).float().mean()

    assert still_green(photographs) == 1
    assert still_green(sprites) < 0.9


def test_rectangles_are_cut_out_of_half_of_the_photographs_only():
    _, holes = restyle(green(), "photographs", generator())
    share = holes.float().mean(dim=(1, 2))
    assert 0.3 < (share > 0).float().mean() < 0.7
    assert share.max() <= (HOLE + 1 / 32) ** 2
    assert not restyle(green(), "sprites", generator())[1].any()


def test_views_are_repeatable_and_within_bounds():
    for kind in ("photographs", "sprites"):
        first, again = (restyle(green(4), kind, generator())[0] for _ in range(2))
        assert torch.equal(first, again)
        assert (first.min() >= 0, first.max() <= 1) == (True, True)
