import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage.morphology import skeletonize

from segsmith.errors import SegsmithError
from segsmith.protocols import PointSegmenter
from segsmith.tools.vision import point_batches
from segsmith.tools.vision import sam as sam_module
from segsmith.tools.vision.sam import MINI, SamSegmenter, SamSizes, build_sam, config_json

TINY = SamSizes(
    image_size=64,
    patch_size=8,
    encoder_width=32,
    encoder_depth=2,
    encoder_heads=2,
    window_size=4,
    global_blocks=(1,),
    decoder_width=32,
    decoder_heads=2,
    decoder_mlp=32,
    candidates=2,
)


def write_folder(folder, sizes=TINY):
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config_json(sizes))
    save_file(build_sam(sizes).state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return SamSegmenter.load(str(write_folder(tmp_path_factory.mktemp("sam") / "tiny")), device="cpu")


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def points(*pairs):
    return np.array(pairs, np.float32)


def same(a, b):
    # logits may differ in the last bit between batch sizes, so single pixels at the threshold may flip
    return (a.masks != b.masks).mean() < 1e-3 and np.allclose(a.scores, b.scores, atol=1e-4)


def test_is_a_point_segmenter_named_after_its_folder(tiny):
    assert isinstance(tiny, PointSegmenter)
    assert tiny.name == "tiny"


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 128), (50, 97), (201, 90)])
def test_candidates_have_the_size_of_the_image(tiny, height, width):
    (found,) = tiny.segment(random_image(height, width), [points((3, 4), (20, 30))])
    assert found.masks.shape == (2, height, width)
    assert found.masks.dtype == np.bool_
    assert found.scores.shape == (2,)
    assert found.scores.dtype == np.float32
    assert ((found.scores >= 0) & (found.scores <= 1)).all()


def test_no_points_no_candidates(tiny):
    assert tiny.segment(random_image(64, 64), []) == []


def test_a_set_does_not_depend_on_its_neighbours(tiny):
    image = random_image(70, 64)
    sets = [points((5, 5)), points((9, 40), (30, 12), (60, 60)), points((33, 8)), points((1, 2), (3, 4))]
    together = tiny.segment(image, sets)
    alone = [tiny.segment(image, [one])[0] for one in sets]
    assert all(same(a, b) for a, b in zip(together, alone, strict=True))
    assert not same(together[0], together[1])


def test_chunks_change_nothing(tiny, monkeypatch):
    sets = [points((i, 2 * i)) for i in range(5)]
    whole = tiny.segment(random_image(64, 64), sets)
    monkeypatch.setattr(point_batches, "MAX_POINT_SETS", 2)
    assert all(same(a, b) for a, b in zip(tiny.segment(random_image(64, 64), sets), whole, strict=True))


def test_many_images_equal_one_by_one(tiny):
    images = [random_image(64, 64, 1), random_image(90, 40, 2), random_image(64, 64, 3)]
    sets = [[points((4, 4)), points((9, 9), (20, 3))], [], [points((50, 50))]]
    many = tiny.segment_many(images, sets, images_per_batch=2)
    assert [len(found) for found in many] == [2, 0, 1]
    for image, wanted, found in zip(images, sets, many, strict=True):
        assert all(same(a, b) for a, b in zip(tiny.segment(image, wanted), found, strict=True))


def test_points_are_pixels_of_the_image(tiny):
    # the same image and points at twice the size must give the same scores
    small = np.kron(random_image(8, 8), np.ones((8, 8, 1), np.uint8))
    large = np.kron(small, np.ones((2, 2, 1), np.uint8))
    (a,) = tiny.segment(small, [points((10, 50), (30, 20))])
    (b,) = tiny.segment(large, [points((20, 100), (60, 40))])
    assert np.allclose(a.scores, b.scores, atol=1e-2)
    assert (a.masks != b.masks[:, ::2, ::2]).mean() < 0.1


def test_official_file_finds_its_builder_by_shape(tmp_path, monkeypatch):
    monkeypatch.setitem(sam_module.OFFICIAL, TINY.encoder_width, lambda: build_sam(TINY))
    torch.manual_seed(1)
    model = build_sam(TINY)
    torch.save(model.state_dict(), tmp_path / "sam_vit_b_01ec64.pth")
    loaded = SamSegmenter.load(str(tmp_path / "sam_vit_b_01ec64.pth"), device="cpu")
    direct = SamSegmenter(model, "direct")
    assert loaded.name == "sam_vit_b_01ec64"
    image, sets = random_image(64, 64), [points((7, 8))]
    assert same(loaded.segment(image, sets)[0], direct.segment(image, sets)[0])


def test_official_variants_are_identified_by_their_width():
    assert sorted(sam_module.OFFICIAL) == [768, 1024, 1280]


def broken_json(folder):
    (folder / "config.json").write_text("{")


def unknown_size(folder):
    (folder / "config.json").write_text(json.dumps({"depth_of_everything": 3}))


def cut_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def other_sizes(folder):
    (folder / "config.json").write_text(config_json(SamSizes()))


def no_weights(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("damage", [broken_json, unknown_size, cut_weights, other_sizes, no_weights])
def test_a_damaged_folder_is_a_users_error(tmp_path, damage):
    folder = write_folder(tmp_path / "sam")
    damage(folder)
    with pytest.raises(SegsmithError) as caught:
        SamSegmenter.load(str(folder))
    assert caught.value.remedy
    assert len(str(caught.value)) < 600


def test_a_missing_or_damaged_file_is_a_users_error(tmp_path):
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "noise.pth").write_bytes(b"not a checkpoint" * 9)
    torch.save({"something": torch.zeros(1)}, tmp_path / "else.pth")
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 4, 4, 5)}, tmp_path / "odd.pth")
    for name in ("absent.pth", "empty.pth", "noise.pth", "else.pth", "odd.pth"):
        with pytest.raises(SegsmithError) as caught:
            SamSegmenter.load(str(tmp_path / name))
        assert name in caught.value.message
        assert "mini" in caught.value.remedy


def test_unknown_device_is_a_users_error():
    with pytest.raises(SegsmithError):
        SamSegmenter.load("mini", device="abacus")


def test_packaged_checkpoint_outlines_sprites_it_never_saw():
    from segsmith.world.nouns import VOC_CLASSES  # the recipe holds these out
    from segsmith.world.scene import compose, random_spec

    segmenter = SamSegmenter.load("mini", device="cpu")
    rng = np.random.default_rng(5)
    found, disks = [], []
    yy, xx = np.mgrid[:128, :128]
    for seed in range(8):
        style = ("twemoji", "openmoji")[seed % 2]
        scene = compose(random_spec(VOC_CLASSES, rng, max_objects=1), seed, style=style, size=128)
        for placed in scene.objects:
            truth = scene.instances == placed.instance_id
            skeleton = np.argwhere(skeletonize(truth))[:, ::-1]
            chosen = skeleton[rng.choice(len(skeleton), 5)].astype(np.float32)
            (candidates,) = segmenter.segment(scene.image, [chosen])
            mask = candidates.masks[candidates.scores.argmax()]
            found.append((mask & truth).sum() / (mask | truth).sum())
            x, y = chosen.mean(0)
            # a disk of the true area around the points: what knowing where and how large is worth
            disk = (xx - x) ** 2 + (yy - y) ** 2 <= truth.sum() / np.pi
            disks.append((disk & truth).sum() / (disk | truth).sum())
    assert np.mean(found) > 0.8
    assert np.mean(found) > np.mean(disks) + 0.15


def test_packaged_checkpoint_is_small():
    assert sum(file.stat().st_size for file in MINI.iterdir()) < 6_000_000
