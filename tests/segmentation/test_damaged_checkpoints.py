"""Checkpoints and training states from strangers, or damaged: one line, and nothing is fetched or allocated."""

import json
import re
import shutil
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from squares_dataset import TINY, write_squares

from segsmith.config import TrainerConfig
from segsmith.errors import SegsmithError
from segsmith.segmentation.checkpoint import load_segmenter
from segsmith.segmentation.network import bare_segmenter
from segsmith.segmentation.sources import load_maps, read_map, save_maps
from segsmith.segmentation.trainer import train

CONFIG = TrainerConfig(**{**TINY, "epochs": 2})


class Interrupted(Exception):
    pass


def interrupt(report):
    raise Interrupted


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("damaged") / "data", splits={"train": 8, "val": 2})


@pytest.fixture(scope="module")
def finished(squares, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("finished")
    train(squares, out, CONFIG, seed=3)
    return out


@pytest.fixture
def checkpoint(finished, tmp_path):
    for name in ("segmenter.json", "segmenter.safetensors"):
        shutil.copy(finished / name, tmp_path)
    return tmp_path


@pytest.fixture
def interrupted(squares, tmp_path):
    with pytest.raises(Interrupted):
        train(squares, tmp_path, CONFIG, seed=3, on_epoch=interrupt)
    return tmp_path


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    import huggingface_hub
    import timm.models._builder as builder
    import timm.models._factory as factory

    def fetched(*args, **kwargs):
        raise AssertionError(f"the hub was asked for {args}")

    monkeypatch.setattr(factory, "load_model_config_from_hf", fetched)
    monkeypatch.setattr(factory, "load_model_config_from_path", fetched)
    monkeypatch.setattr(builder, "load_state_dict_from_hf", fetched)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)


def describe(folder, **changes):
    path = folder / "segmenter.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def one_line(function, *args, **kwargs):
    """The path of the test's folder, which may be long, does not count."""
    with pytest.raises(SegsmithError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    assert len(re.sub(r"\S*/", "", str(caught.value))) < 700
    assert caught.value.remedy
    return str(caught.value)


# -- the description of a segmenter -----------------------------------------------------------------


@pytest.mark.parametrize(
    "encoder",
    [
        "tu-hf_hub:evil/repo",
        "tu-hf-hub:evil/repo",
        "tu-local-dir:/tmp/evil",
        "tu-local-dir:.",
        "hf-hub:evil/repo",
        "tu-../resnet18",
        "tu-resnet18.local-dir:/tmp/evil",
        "tu-resnet18.hf-hub:evil/repo",
        "tu-timm/resnet18",
        "tu-",
        "",
        "tu-resnet18\nevil",
        "x" * 100_000,
    ],
)
def test_an_encoder_is_a_name_that_the_libraries_know(checkpoint, encoder):
    describe(checkpoint, encoder=encoder)
    one_line(load_segmenter, checkpoint)
    one_line(bare_segmenter, "Unet", encoder, 2, {})


@pytest.mark.parametrize(
    "decoder",
    [
        {"encoder_weights": "imagenet"},
        {"pretrained": True},
        {"aux_params": {"classes": 10**9}},
        {"classes": 10**9},
        {"activation": "softmax"},
        {"decoder_channels": 10**9},
        {"decoder_channels": [10**9] * 5},
        {"decoder_channels": [16] * 1000},
        {"decoder_channels": -1},
        {"decoder_channels": "many"},
        {"decoder_atrous_rates": [10**9, 1, 1]},
        {"encoder_depth": 10**6},
        {"encoder_output_stride": 0},
        {"decoder_aspp_dropout": 2},
        {"decoder_pyramid_channels": 10**9},
        {"upsampling": 10**6},
        {"decoder_" + "x" * 100_000: 1},
        [],
    ],
    ids=lambda d: str(d)[:40],
)
def test_decoder_settings_have_known_keys_and_bounded_numbers(checkpoint, decoder):
    describe(checkpoint, decoder=decoder)
    assert "segmenter.json" in one_line(load_segmenter, checkpoint)


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "nn.Module"},
        {"architecture": "x" * 100_000},
        {"classes": []},
        {"classes": [f"c{i}" for i in range(300)]},
        {"classes": ["red", "blue\u001b[2J"]},
        {"classes": ["red", "red"]},
        {"classes": ["red", "x" * 100_000]},
        {"size": [10**9, 10**9]},
        {"size": [0, 64]},
        {"std": [0, 1, 1]},
        {"mean": [1e400, 0, 0]},
        {"mean": ["NaN", 0, 0]},
        {"trainer": {"epochs": -1}},
        {"seed": "x"},
        {"architecture": "Unet", "decoder": {"encoder_output_stride": 16}},
    ],
    ids=lambda c: str(c)[:40],
)
def test_values_of_a_description_are_checked(checkpoint, changes):
    describe(checkpoint, **changes)
    one_line(load_segmenter, checkpoint)


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "null", "[]", '{"classes": ' * 5000, "\x00", "9" * 5000]
)
def test_a_description_that_is_no_json_object_gives_one_line(checkpoint, text):
    (checkpoint / "segmenter.json").write_text(text)
    one_line(load_segmenter, checkpoint)


def test_a_large_encoder_is_not_allocated_for_a_small_file(checkpoint):
    describe(checkpoint, encoder="tu-convnext_xxlarge", architecture="Unet", decoder={})  # 3.4 GB of weights
    made = []
    original = torch.nn.Module.register_parameter

    def watch(self, name, parameter):
        if parameter is not None and not parameter.is_meta:
            made.append(parameter.numel())
        original(self, name, parameter)

    torch.nn.Module.register_parameter = watch
    try:
        assert "another network" in one_line(load_segmenter, checkpoint)
    finally:
        torch.nn.Module.register_parameter = original
    assert sum(made) < 10**6


# -- weights ----------------------------------------------------------------------------------------


def header(entries, data=b""):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 99_000_000) + b"{",
        header({}),
        header({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        header({"a": {"dtype": "X99", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        b"PK\x03\x04" + bytes(100),
        b"\x80\x04cos\nsystem\n(S'touch /tmp/evil'\ntR.",
    ],
    ids=range(10),
)
def test_hostile_weights_give_one_line(checkpoint, content):
    (checkpoint / "segmenter.safetensors").write_bytes(content)
    one_line(load_segmenter, checkpoint)


def test_a_sparse_file_of_a_terabyte_is_not_read(checkpoint):
    weights = checkpoint / "segmenter.safetensors"
    with weights.open("r+b") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    one_line(load_segmenter, checkpoint)
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()
    with (checkpoint / "segmenter.json").open("r+b") as file:
        file.truncate(1 << 40)
    one_line(load_segmenter, checkpoint)


def test_what_is_no_regular_file_is_not_opened(checkpoint):
    import os

    for name in ("segmenter.safetensors", "segmenter.json"):
        (checkpoint / name).unlink()
        os.mkfifo(checkpoint / name)
        one_line(load_segmenter, checkpoint)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["segmenter.json", "segmenter.safetensors"]), st.integers(0, 2000), st.binary(max_size=40)
)
@example("segmenter.json", 244, b"  \\")  # a key with a line break
def test_any_damage_gives_one_line_or_a_network(finished, tmp_path, name, at, what):
    for file in ("segmenter.json", "segmenter.safetensors"):
        shutil.copy(finished / file, tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[at : at + len(what)] = what
    (tmp_path / name).write_bytes(content)
    lines = 1
    try:
        load_segmenter(tmp_path)
    except SegsmithError as error:
        lines = len(str(error).splitlines())
    assert lines == 1


# -- the state of a training ------------------------------------------------------------------------


def edit(interrupted, **changes):
    path = interrupted / "training" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"slot": "../../x"},
        {"slot": ["a"]},
        {"slot": "b"},
        {"epoch": "one"},
        {"epoch": -1},
        {"epoch": 10**30},
        {"epoch": 2},
        {"epoch": None},
        {"ema_updates": "x"},
        {"ema_updates": -5},
        {"reports": []},
        {"reports": "none"},
        {"reports": [{"epoch": 1}]},
        {"reports": [17]},
        {"sam_round": "first"},
        {"sam_round": 7},
        {"fingerprint": 3},
    ],
    ids=str,
)
def test_a_hand_edited_state_gives_one_line_with_what_to_type(squares, interrupted, changes):
    edit(interrupted, **changes)
    message = one_line(train, squares, interrupted, CONFIG, seed=3)
    assert f"rm -r {interrupted / 'training'}" in message


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null", "3", "[]", "{}", '"a"'])
def test_a_state_that_is_no_json_object_gives_one_line(squares, interrupted, text):
    (interrupted / "training" / "state.json").write_text(text)
    assert "rm -r" in one_line(train, squares, interrupted, CONFIG, seed=3)


def test_unknown_keys_of_a_state_are_ignored_as_earlier_versions_wrote_more(squares, interrupted):
    path = interrupted / "training" / "state.json"
    index = json.loads(path.read_text())
    index["reports"] = [{**report, "seconds": 1.0, "images_per_second": 9.0} for report in index["reports"]]
    path.write_text(json.dumps({**index, "later": 1}))
    assert [r.epoch for r in train(squares, interrupted, CONFIG, seed=3).reports] == [1, 2]


@pytest.mark.parametrize("name", ["model-a.safetensors", "ema-a.safetensors", "optimizer-a.pt"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "other", "sparse"])
def test_damaged_files_of_a_state_give_one_line(squares, interrupted, name, damage):
    path = interrupted / "training" / name
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "missing":
        path.unlink()
    elif damage == "sparse":
        with path.open("r+b") as file:
            file.truncate(1 << 40)
    elif name.endswith(".pt"):
        torch.save({"state": {}, "param_groups": []}, path)
    else:
        path.write_bytes(header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)))
    assert "rm -r" in one_line(train, squares, interrupted, CONFIG, seed=3)


@pytest.mark.parametrize(
    "content",
    [
        {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}}},
        {"state": {0: "x"}, "param_groups": []},
        {"state": 3},
        [1, 2],
        torch.zeros(1).expand(10**12),
    ],
    ids=range(5),
)
def test_optimizer_states_of_other_shapes_give_one_line(squares, interrupted, content):
    torch.save(content, interrupted / "training" / "optimizer-a.pt")
    assert "rm -r" in one_line(train, squares, interrupted, CONFIG, seed=3)


def test_a_compressed_optimizer_state_is_not_inflated(squares, interrupted):
    path = interrupted / "training" / "optimizer-a.pt"
    torch.save(torch.zeros(50_000_000), path.with_suffix(".big"))
    with (
        zipfile.ZipFile(path.with_suffix(".big")) as big,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in big.namelist():
            small.writestr(name, big.read(name))
    assert path.stat().st_size < 1 << 20
    assert "rm -r" in one_line(train, squares, interrupted, CONFIG, seed=3)


# -- saved labels of SAM ----------------------------------------------------------------------------


class Sam:
    name = "sam"
    background = True

    def label_maps(self, data, predictions, round_):
        for index in range(len(data)):
            yield data.raw(index)[1]


def spoil_png(path, ids):
    with zipfile.ZipFile(path, "w") as archive:
        for name in ids:
            archive.writestr(f"{name}.png", b"not a PNG")


def spoil_shape(path, ids):
    save_maps(path, ids, [np.zeros((3, 3), np.uint8)] * len(ids))


def spoil_index(path, ids):
    save_maps(path, ids, [np.full((64, 64), 7, np.uint8)] * len(ids))


def spoil_end(path, ids):
    path.write_bytes(path.read_bytes()[:200])


def spoil_crc(path, ids):
    content = bytearray(path.read_bytes())
    content[60:80] = bytes(20)
    path.write_bytes(content)


def spoil_compression(path, ids):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ids:
            archive.writestr(f"{name}.png", bytes(1 << 20))


@pytest.mark.parametrize(
    "spoil", [spoil_png, spoil_shape, spoil_index, spoil_end, spoil_crc, spoil_compression]
)
def test_damaged_labels_of_sam_give_one_line(squares, tmp_path, spoil):
    with pytest.raises(Interrupted):
        train(squares, tmp_path, CONFIG, seed=3, sam=Sam(), on_epoch=interrupt)
    path = tmp_path / "training" / "sam-0.zip"
    spoil(path, [f"train{i}" for i in range(8)])
    message = one_line(train, squares, tmp_path, CONFIG, seed=3, sam=Sam())
    assert "sam-0.zip" in message
    assert "rm -r" in message


def test_one_damaged_label_map_gives_one_line(tmp_path):
    save_maps(tmp_path / "m.zip", ["a"], [np.full((4, 4), 2, np.uint8)])
    assert (read_map(tmp_path / "m.zip", "a") == 2).all()
    spoil_png(tmp_path / "m.zip", ["a"])
    assert "m.zip" in one_line(read_map, tmp_path / "m.zip", "a")


def test_entries_that_share_their_bytes_are_not_read_many_times(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("a.png", bytes(100_000))
    content = (tmp_path / "m.zip").read_bytes()
    at = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    entry = content[at:end]
    many = b"".join(entry.replace(b"a.png", f"{i:04d}p".encode()) for i in range(2000))
    tail = bytearray(content[end:])
    tail[8:12] = struct.pack("<HH", 2000, 2000)
    tail[12:16] = struct.pack("<I", len(many))
    (tmp_path / "m.zip").write_bytes(content[:at] + many + tail)
    one_line(load_maps, tmp_path / "m.zip", [f"{i:04d}p"[:-4] for i in range(2000)])


# -- what is left behind ----------------------------------------------------------------------------


def test_leftovers_of_a_killed_training_are_removed_at_the_next_start(squares, tmp_path):
    (tmp_path / "training").mkdir()
    for folder in (tmp_path, tmp_path / "training"):
        (folder / ".part-abc").write_bytes(b"half")
        (folder / ".part-folder").mkdir()
        (folder / ".part-folder" / "x").write_bytes(b"half")
        (folder / "kept.txt").write_text("mine")
    train(squares, tmp_path, CONFIG, seed=3)
    assert not list(tmp_path.rglob(".part-*"))
    assert (tmp_path / "kept.txt").exists()
    assert (tmp_path / "training" / "kept.txt").exists()


def test_two_trainings_with_the_same_seed_leave_the_same_bytes(squares, tmp_path):
    for name in ("a", "b"):
        train(squares, tmp_path / name, CONFIG, seed=3, sam=Sam())
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) > 5
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


@pytest.mark.parametrize("name", ["blue\u001b[2J", "x" * 500])
def test_classes_that_no_checkpoint_may_have_are_found_before_training(tmp_path, name):
    root = write_squares(tmp_path / "data", classes=("red", name), splits={"train": 2})
    reports = []
    one_line(train, root, tmp_path / "out", CONFIG, seed=3, on_epoch=reports.append)
    assert reports == []


def test_an_error_in_a_reading_process_is_one_line(squares, tmp_path, monkeypatch):
    root = shutil.copytree(squares, tmp_path / "data")
    monkeypatch.setattr("segsmith.datasets.voc_folder.RAM_BYTES", 0)
    (root / "SegmentationClass/train3.png").write_bytes(b"not a PNG")
    assert "train3.png" in one_line(train, root, tmp_path / "out", CONFIG, seed=3)
