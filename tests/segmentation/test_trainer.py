import json
import shutil
from functools import partial
from multiprocessing.process import BaseProcess

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from squares_dataset import TINY, write_item, write_squares

from segsmith.config import TrainerConfig
from segsmith.errors import SegsmithError
from segsmith.segmentation.trainer import (
    WORKERS,
    evaluate,
    load_segmenter,
    predict,
    train,
)
from segsmith.tools.vision.clip import OpenClipEncoder
from segsmith.tools.vision.clip_to_timm import class_directions


def config(**changes):
    return TrainerConfig(**{**TINY, **changes})


@pytest.fixture(scope="module")
def trained(squares, tmp_path_factory):
    torch.set_num_threads(1)
    seen = []
    result = train(squares, tmp_path_factory.mktemp("out"), config(), seed=3, on_epoch=seen.append)
    return result, seen


class Interrupted(Exception):
    pass


def stop_after(epoch):
    def on_epoch(report):
        if report.epoch == epoch:
            raise Interrupted

    return on_epoch


def test_training_learns_coloured_squares(trained, squares):
    result, seen = trained
    assert result.validation.miou > 0.5  # predicting only background gives 0.26
    assert evaluate(result.checkpoint, squares, "test").miou > 0.5
    assert [r.epoch for r in seen] == [1, 2, 3, 4]
    assert seen == list(result.reports)
    assert seen[-1].loss < seen[0].loss
    assert seen[-1].miou == pytest.approx(result.validation.miou)


def test_the_checkpoint_has_a_description(trained):
    result, _ = trained
    meta = json.loads(result.checkpoint.with_suffix(".json").read_text())
    assert meta["classes"] == ["red", "blue"]
    assert meta["size"] == [64, 64]
    assert meta["trainer"]["encoder"] == "tu-test_resnet"
    assert len(meta["mean"]) == 3


def test_predictions_have_the_size_of_the_images(trained):
    model, meta = load_segmenter(trained[0].checkpoint)
    assert meta.classes == ("red", "blue")
    images = np.random.default_rng(0).integers(0, 255, (3, 50, 71, 3), dtype=np.uint8)
    labels = predict(model, images)
    assert labels.shape == (3, 50, 71)
    assert labels.dtype == np.uint8
    assert labels.max() <= 2
    assert len(predict(model, [])) == 0


def test_a_loaded_segmenter_normalises_as_described(trained, tmp_path):
    folder = shutil.copytree(trained[0].checkpoint.parent, tmp_path / "copy")
    meta = json.loads((folder / "segmenter.json").read_text())
    images = np.random.default_rng(0).integers(100, 140, (2, 64, 64, 3), dtype=np.uint8)
    scaled = {**meta, "mean": [m / 2 for m in meta["mean"]], "std": [s / 2 for s in meta["std"]]}
    (folder / "segmenter.json").write_text(json.dumps(scaled))
    as_trained, rescaled = load_segmenter(trained[0].checkpoint)[0], load_segmenter(folder)[0]
    assert np.array_equal(predict(rescaled, images // 2), predict(as_trained, images // 2 * 2))


def test_a_checkpoint_may_be_given_by_its_folder(trained):
    _, meta = load_segmenter(trained[0].checkpoint.parent)
    assert meta.classes == ("red", "blue")


def test_an_interrupted_training_ends_with_the_same_weights(trained, squares, tmp_path):
    with pytest.raises(Interrupted):
        train(squares, tmp_path, config(), seed=3, on_epoch=stop_after(2))
    assert not (tmp_path / "segmenter.safetensors").exists()
    seen = []
    result = train(squares, tmp_path, config(), seed=3, on_epoch=seen.append)
    assert [r.epoch for r in seen] == [3, 4]
    assert [r.epoch for r in result.reports] == [1, 2, 3, 4]
    whole, resumed = load_file(trained[0].checkpoint), load_file(result.checkpoint)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-4, atol=1e-5)


def test_a_finished_training_is_not_repeated(trained, squares, tmp_path):
    folder = shutil.copytree(trained[0].checkpoint.parent, tmp_path / "again")
    seen = []
    result = train(squares, folder, config(), seed=3, on_epoch=seen.append)
    assert seen == []
    assert result.validation.miou == pytest.approx(trained[0].validation.miou)


def test_a_state_made_with_other_settings_is_not_used(trained, squares, tmp_path):
    folder = shutil.copytree(trained[0].checkpoint.parent, tmp_path / "again")
    seen = []
    train(squares, folder, config(epochs=1), seed=4, on_epoch=seen.append)
    assert [r.epoch for r in seen] == [1]


def test_a_crash_during_a_save_leaves_the_previous_state(squares, tmp_path, monkeypatch):
    import segsmith.segmentation.checkpoint as checkpoint

    with pytest.raises(Interrupted):
        train(squares, tmp_path, config(), seed=3, on_epoch=stop_after(1))
    write = checkpoint.write_atomic

    def full_disk(path, data):
        if path.name == "state.json":
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_atomic", full_disk)
    with pytest.raises(OSError, match="No space"):
        train(squares, tmp_path, config(), seed=3)
    assert json.loads((tmp_path / "training" / "state.json").read_text())["epoch"] == 1
    monkeypatch.undo()
    assert [r.epoch for r in train(squares, tmp_path, config(), seed=3).reports] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["state.json", "model-a.safetensors", "optimizer-a.pt"])
def test_a_damaged_state_is_reported(squares, tmp_path, name):
    with pytest.raises(Interrupted):
        train(squares, tmp_path, config(), seed=3, on_epoch=stop_after(1))
    path = tmp_path / "training" / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(SegsmithError, match="damaged"):
        train(squares, tmp_path, config(), seed=3)


def test_training_without_validation_on_one_image_of_an_odd_size(tmp_path):
    root = write_squares(tmp_path / "d", size=50, splits={"train": 1})
    result = train(root, tmp_path / "out", config(epochs=1), seed=0)
    assert result.validation is None
    assert result.reports[0].miou is None
    assert evaluate(result.checkpoint, root, "train").confusion.sum() > 0


def test_images_of_several_sizes_train_and_score_together(squares, tmp_path):
    root = shutil.copytree(squares, tmp_path / "d")
    for name in ("train3", "val3"):
        write_item(root, name, np.full((40, 90, 3), 128, np.uint8), np.zeros((40, 90), np.uint8))
    result = train(root, tmp_path / "out", config(epochs=1), seed=0)
    known = sum((np.asarray(label) != 255).sum() for _, label in map(_val(root).raw, range(6)))
    assert result.validation.confusion.sum() == known


def _val(root):
    from segsmith.datasets.voc_folder import VocFolder

    return VocFolder(root, "val")


def test_an_image_of_unknown_pixels_adds_no_loss(squares, tmp_path):
    root = write_squares(tmp_path / "d", splits={"train": 2})
    for i in range(2):
        grey, unknown = np.full((64, 64, 3), 128, np.uint8), np.full((64, 64), 255, np.uint8)
        write_item(root, f"train{i}", grey, unknown)
    result = train(root, tmp_path / "out", config(epochs=1), seed=0)
    assert result.reports[0].loss == 0


def test_an_empty_training_split_is_rejected(tmp_path):
    root = write_squares(tmp_path / "d", splits={"train": 0})
    with pytest.raises(SegsmithError, match=r"train .* is empty"):
        train(root, tmp_path / "out", config(), seed=0)


def test_the_error_for_a_diverging_training_names_the_setting_to_lower(squares, tmp_path):
    with pytest.raises(SegsmithError, match=r"diverged.*learning_rate"):
        train(squares, tmp_path, config(learning_rate=1e30), seed=0)


def test_evaluation_with_other_classes_names_both_lists(trained, tmp_path):
    root = write_squares(tmp_path / "d", classes=("red", "green"), splits={"test": 1})
    with pytest.raises(SegsmithError, match=r"red, blue.*red, green"):
        evaluate(trained[0].checkpoint, root, "test")


def test_missing_and_damaged_checkpoints_are_reported(trained, tmp_path):
    with pytest.raises(SegsmithError, match=r"no checkpoint file.*segmenter.json"):
        load_segmenter(tmp_path)
    folder = shutil.copytree(trained[0].checkpoint.parent, tmp_path / "copy")
    weights, meta = folder / "segmenter.safetensors", folder / "segmenter.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SegsmithError, match="damaged"):
        load_segmenter(folder)
    weights.write_bytes(whole)
    changed = json.loads(meta.read_text())
    meta.write_text(json.dumps({**changed, "classes": ["red"]}))
    with pytest.raises(SegsmithError, match="another network"):
        load_segmenter(folder)
    meta.write_text("{}")
    with pytest.raises(SegsmithError, match=r"segmenter.json.*classes"):
        load_segmenter(folder)


def test_a_teacher_changes_the_training_and_keeps_it_repeatable(squares, tmp_path):
    with_teacher = config(teacher_weight=1.0, teacher_threshold=0.3, teacher_from=0.25)
    runs = [train(squares, tmp_path / name, with_teacher, seed=3) for name in ("a", "b")]
    alone = train(squares, tmp_path / "c", config(), seed=3)
    assert [r.loss for r in runs[0].reports] == [r.loss for r in runs[1].reports]
    assert runs[0].reports[0].loss == alone.reports[0].loss  # its labels are not used yet
    assert runs[0].reports[-1].loss != alone.reports[-1].loss


# -- three sources of labels -----------------------------------------------------------------------


class HalfSam:
    """`SamLabels` that label the left half of every image, and record their calls."""

    name = "half"
    background = True

    def __init__(self):
        self.calls = []

    def label_maps(self, data, predictions, round_):
        seen = None if predictions is None else list(predictions)
        self.calls.append((round_, seen))
        for index in range(len(data)):
            label_map = data.raw(index)[1].copy()
            label_map[:, 32:] = 255
            if seen is not None:  # the predictions must change the labels, and so the loss
                label_map[:, :8] = seen[index].labels[:, :8]
            yield label_map


LOOP = {"teacher_weight": 1.0, "teacher_threshold": 0.3, "teacher_from": 0.25, "refresh_every": 2}


@pytest.fixture(scope="module")
def drawn_on(squares, tmp_path_factory):
    """The squares, with labels in a tenth of the rows of each training mask."""
    root = shutil.copytree(squares, tmp_path_factory.mktemp("weak") / "data")
    for path in (root / "SegmentationClass").glob("train*.png"):
        label_map = np.array(Image.open(path))
        label_map[np.arange(64) % 10 > 0] = 255
        Image.fromarray(label_map).save(path)
    return root


def test_sam_runs_first_and_every_k_epochs_with_the_teachers_predictions(drawn_on, tmp_path):
    sam = HalfSam()
    train(drawn_on, tmp_path, config(**LOOP, epochs=5), seed=3, sam=sam)
    assert [round_ for round_, _ in sam.calls] == [0, 2, 4]
    assert sam.calls[0][1] is None
    labels, confidence = sam.calls[1][1][0]
    assert labels.shape == confidence.shape == (64, 64)
    assert labels.dtype == np.uint8
    assert 0 < confidence.min() <= confidence.max() <= 1


def test_a_killed_loop_resumes_to_the_same_loss_curve_and_weights(drawn_on, tmp_path):
    whole = train(drawn_on, tmp_path / "whole", config(**LOOP), seed=3, sam=HalfSam())
    with pytest.raises(Interrupted):  # after SAM's second round, whose labels the rest must use
        train(drawn_on, tmp_path / "killed", config(**LOOP), seed=3, sam=HalfSam(), on_epoch=stop_after(3))
    sam = HalfSam()
    resumed = train(drawn_on, tmp_path / "killed", config(**LOOP), seed=3, sam=sam)
    assert sam.calls == []
    assert [r.loss for r in resumed.reports] == pytest.approx([r.loss for r in whole.reports], rel=1e-4)
    first, second = load_file(whole.checkpoint), load_file(resumed.checkpoint)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-4)


def test_processes_that_read_a_large_dataset_live_until_sams_labels_change(drawn_on, tmp_path, monkeypatch):
    whole = train(drawn_on, tmp_path / "memory", config(**LOOP), seed=3, sam=HalfSam())
    monkeypatch.setattr("segsmith.datasets.voc_folder.RAM_BYTES", 0)
    started, start = [], BaseProcess.start
    monkeypatch.setattr(BaseProcess, "start", lambda process: started.append(process) or start(process))
    alive = []
    read = train(
        drawn_on,
        tmp_path / "read",
        config(**LOOP),
        seed=3,
        sam=HalfSam(),
        on_epoch=lambda report: alive.append(sum(process.is_alive() for process in started)),
    )
    assert alive == [WORKERS] * 4
    assert [r.loss for r in read.reports] == pytest.approx([r.loss for r in whole.reports], rel=1e-4)
    assert len(started) == 2 * WORKERS  # SAM runs before epochs 1 and 3 of 4
    assert not any(process.is_alive() for process in started)


@pytest.mark.parametrize(
    "off",
    [
        {"sam_weight": 0},
        {"given_weight": 0},
        {"teacher_weight": 0},
        {"refresh_every": 0},
        {"strong_view": "photographs"},
        {"balance": "sources"},
    ],
    ids=str,
)
def test_every_part_of_the_loop_can_be_turned_off_and_has_an_effect(drawn_on, tmp_path, off):
    both = [
        train(drawn_on, tmp_path / str(i), config(**{**LOOP, "epochs": 3, **changes}), seed=3, sam=HalfSam())
        for i, changes in enumerate(({}, off))
    ]
    assert both[0].reports[-1].loss != both[1].reports[-1].loss


def test_training_stops_when_the_score_on_split_val_stops_improving(squares, tmp_path):
    stalled = config(learning_rate=1e-12, epochs=9, patience=2)
    result = train(squares, tmp_path, stalled, seed=3)
    assert [r.epoch for r in result.reports] == [1, 2, 3]
    assert json.loads(result.checkpoint.with_suffix(".json").read_text())["epochs"] == 3
    again = train(squares, tmp_path, stalled, seed=3)
    assert again.reports == result.reports


def test_a_training_of_a_number_of_steps_resumes_and_ends_after_exactly_as_many(
    squares, tmp_path, monkeypatch
):
    by_steps = config(epochs=None, steps=14, save_every=5)
    whole = train(squares, tmp_path / "a", by_steps, seed=3)
    assert [report.step for report in whole.reports] == [14 * (part + 1) // 12 for part in range(12)]
    assert {(report.steps, report.epochs) for report in whole.reports} == {(14, 12)}
    with pytest.raises(Interrupted):
        train(squares, tmp_path / "b", by_steps, seed=3, on_epoch=stop_after(7))
    resumed = train(squares, tmp_path / "b", by_steps, seed=3)
    assert resumed.reports == whole.reports
    assert resumed.checkpoint.read_bytes() == whole.checkpoint.read_bytes()


def test_a_segmenter_with_the_judges_frozen_tower_is_trained_saved_and_opened(squares, tmp_path):
    judge = OpenClipEncoder.load("mini", "cpu")
    settings = config(encoder="judge", encoder_init="clip", freeze_encoder=True, epochs=None, steps=2)
    directions = partial(class_directions, judge)
    result = train(squares, tmp_path, settings, seed=3, clip_tower=judge.tower, directions=directions)
    model, meta = load_segmenter(tmp_path)
    assert meta.encoder == "vit_mini_r10t_s16_128"
    tower = judge.tower.trunk.state_dict()
    trained = {k.removeprefix("network.encoder.model."): v for k, v in model.state_dict().items()}
    assert len(tower.keys() & trained.keys()) > 100
    assert all(torch.equal(trained[name], tower[name]) for name in tower.keys() & trained.keys())
    assert evaluate(tmp_path, squares, "val").miou == pytest.approx(result.validation.miou)


def test_half_precision_without_a_gpu_is_rejected_and_bfloat16_trains(squares, tmp_path):
    with pytest.raises(SegsmithError, match="float16"):
        train(squares, tmp_path / "a", config(precision="float16"), seed=3)
    result = train(squares, tmp_path / "b", config(precision="bfloat16", epochs=1), seed=3)
    assert np.isfinite(result.reports[0].loss)


def test_a_training_step_that_does_not_fit_is_made_in_parts(squares, tmp_path, monkeypatch):
    from torch import nn

    sizes = []
    forward = nn.Conv2d.forward

    def at_most_three(self, x):
        if self.in_channels == 3 and torch.is_grad_enabled():
            sizes.append(len(x))
            if len(x) > 3:
                raise RuntimeError(
                    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
                )
        return forward(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", at_most_three)
    result = train(squares, tmp_path / "out", config(epochs=1), seed=3)
    assert sizes == [6] + [3, 3] * 4
    assert np.isfinite(result.reports[0].loss)


def test_size_and_crop_change_what_the_network_sees(squares, tmp_path, monkeypatch):
    import segsmith.segmentation.trainer as trainer

    seen = []
    place = trainer.place

    def watched(images, labels, size, generator):
        seen.append((tuple(images.shape[-2:]), size))
        return place(images, labels, size, generator)

    monkeypatch.setattr(trainer, "place", watched)
    result = train(squares, tmp_path, config(epochs=6, size=96, crop=0.5), seed=3)
    assert set(seen) == {((96, 96), (64, 64))}
    assert result.validation.miou > 0.4
    model, meta = load_segmenter(result.checkpoint)
    assert meta.size == (96, 96)
    assert evaluate(result.checkpoint, squares, "val").miou == pytest.approx(result.validation.miou)
    inputs = []
    model.register_forward_pre_hook(lambda _, given: inputs.append(tuple(given[0].shape[-2:])))
    assert predict(model, np.zeros((2, 40, 80, 3), np.uint8)).shape == (2, 40, 80)
    assert inputs == [(64, 96)]  # 48 x 96, padded to the stride


def test_an_earlier_state_stays_valid_where_new_settings_are_not_used(squares, tmp_path):
    from segsmith.datasets.voc_folder import VocFolder
    from segsmith.segmentation.trainer import _fingerprint

    data = VocFolder(squares, "train")
    default = _fingerprint(data, config(), 3, "")
    assert default == _fingerprint(data, config(size=0, crop=0.75, tracker="wandb", save_every=2), 3, "")
    assert (
        len({default, _fingerprint(data, config(size=96), 3, ""), _fingerprint(data, config(crop=1), 3, "")})
        == 3
    )


def test_a_missing_tracker_is_named_before_anything_is_written(squares, tmp_path, monkeypatch):
    monkeypatch.setattr("segsmith.segmentation.tracking.find_spec", lambda name: None)
    with pytest.raises(SegsmithError, match=r"tensorboard.* not installed.*pip install tensorboard"):
        train(squares, tmp_path / "out", config(tracker="tensorboard"), seed=3)
    assert not (tmp_path / "out").exists()


def test_tensorboard_gets_every_epoch_once(squares, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = config(epochs=2, tracker="tensorboard")
    with pytest.raises(Interrupted):
        train(squares, tmp_path, settings, seed=3, on_epoch=stop_after(1))
    result = train(squares, tmp_path, settings, seed=3)
    found = {}
    for path in sorted((tmp_path / "tracking").rglob("events.out.*")):
        events = reader.EventAccumulator(str(path)).Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, []).extend((e.step, e.value) for e in events.Scalars(name))
    assert found["loss"] == [(r.epoch, pytest.approx(r.loss)) for r in result.reports]
    assert found["val_miou"] == [(r.epoch, pytest.approx(r.miou)) for r in result.reports]
