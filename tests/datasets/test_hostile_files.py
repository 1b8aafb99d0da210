"""Files made by an attacker: every reader ends with a list of problems or one `SegsmithError`, and nothing else."""

import io
import json
import os
import shutil
import struct
import tarfile
import time
import zlib
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

import segsmith
from segsmith.datasets.detect import EXPORTS
from segsmith.datasets.export import export_dataset
from segsmith.datasets.imports import ImportedSplit
from segsmith.datasets.survey import keep, survey
from segsmith.datasets.validate import validate
from segsmith.datasets.voc_folder import VocFolder
from segsmith.datasets.weak_source import open_weak
from segsmith.errors import SegsmithError
from segsmith.testing import ScriptedChat, made_up_run
from tests.watch import Watch, memory_below

CORPUS = 520
CHECKPOINTS = 60
ALL = os.environ.get("SEGSMITH_TEST_HOSTILE") == "all"
"""Everything goes through whole commands, which takes about half an hour. Without it, one kind of hostile file in
eight does, and the corpus goes through the functions of the commands that read files."""
EVERY = 1 if ALL else 8
SECONDS = 10
"""Of processor time beyond the clean case, because other processes may slow this one down; one that waits forever meets
pytest's limit."""
MEMORY = 1 << 30
"""Bytes that hostile input may take at its peak beyond what this process had before."""

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n"


@pytest.fixture
def watch():
    return Watch(connections=True)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Format -> an export of four small images, without its manifest, which would reveal any change."""
    run, ledger, config = made_up_run(tmp_path_factory.mktemp("run") / "run", 4, size=64)
    folders = {form: export_dataset(run, ledger, config, form).folder for form in EXPORTS}
    ledger.close()
    for folder in folders.values():
        (folder / "manifest.json").unlink()
    folders["folders"] = tmp_path_factory.mktemp("folders")
    for name in ("cat", "dog"):
        (folders["folders"] / name).mkdir()
        for k in range(2):
            pixels = np.full((16, 16, 3), 40 * k, np.uint8)
            PILImage.fromarray(pixels).save(folders["folders"] / name / f"{k}.png")
    return folders


def read_everything(root, out):
    """What validate, train, evaluate, refine and augment do with a dataset before they learn from it."""

    def train():
        data = VocFolder(root, "train")
        data.class_pixels()
        assert len(data.conversions) >= 0

    def evaluate():
        data = ImportedSplit(root, "train", ("cat", "dog", "bus", "potted plant"))
        for index in range(len(data)):
            data.raw(index)

    def refine():
        source = open_weak(root, None, zero_is_drawn=False)
        for split in source.splits:
            for _ in source.pairs(split):
                pass

    def augment():
        out.mkdir()
        keep(survey(root, out, (0.8, 0.1, 0.1), 0))

    problems = []
    for use in (lambda: problems.extend(validate(root).problems), train, evaluate, refine, augment):
        start = time.process_time()
        with suppress(SegsmithError):
            use()
        assert time.process_time() - start < SECONDS
    return problems


# -- what an attacker writes ----------------------------------------------------------------------------------


def png_header(width, height, mode=2, depth=8):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, mode, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def oriented():
    exif = PILImage.Exif()
    exif[0x0112] = 6
    return exif


GREY, COLOUR = PILImage.new("L", (16, 16)), PILImage.new("RGB", (16, 16), "red")
IMAGES = [
    b"",
    b"\xff\xd8 nothing",
    POSTSCRIPT,
    encoded(COLOUR, "GIF"),
    encoded(COLOUR, "PPM"),
    encoded(COLOUR, "PDF"),
    encoded(COLOUR.convert("CMYK"), "JPEG"),
    encoded(COLOUR, "JPEG", exif=oriented()),
    encoded(COLOUR, "TIFF"),
    encoded(COLOUR, "WEBP"),
    encoded(GREY.convert("1")),
    encoded(GREY.convert("F"), "TIFF"),
    encoded(PILImage.fromarray(np.ones((16, 16), np.uint16))),
    encoded(COLOUR, "PNG", save_all=True, append_images=[COLOUR.rotate(90)] * 3),
    encoded(PILImage.new("RGBA", (16, 16))),
    encoded(PILImage.new("L", (16, 16), 200)),
    png_header(1_000_000, 1_000_000),
    png_header(13_000, 13_000, 0),
    png_header(7_000, 7_000),
    png_header(0, 5),
    encoded(PILImage.new("1", (13_000, 13_000))),
]
NAMES = [
    "../../secret", "/etc/passwd", "a\nb", "a\x1b[2J", "a\0b", " a", "x" * 300, "..", ".", "", "a/../../b",
    "pipe:touch /tmp/segsmith-was-here", "http://127.0.0.1:1/x.tar", "\u202egnp", "file:///etc/passwd",
]  # fmt: skip
DEEP = 100_000
VALUES = [None, True, -1, 10**30, 1e308, float("nan"), float("inf"), "x", [], {}, [[]], *NAMES]
JSON = [
    "[" * DEEP,
    '{"a":' * DEEP,
    "[" * DEEP + "]" * DEEP,
    "{}",
    "[]",
    "null",
    "NaN",
    '"\\ud800"',
    "1" * 10_000,
]
YAML = [
    "[" * DEEP,
    "{a: " * DEEP,
    "- " * 50_000 + "x",
    "a: &a [x]\nb: &b [*a, *a]\nnames: [*b, *b]",
    "!!python/object/apply:os.system [touch x]",
    "!!int ''",
    "names: {0: background, 1: [cat]}\ntrain: images/train\nmasks_dir: masks",
    "names: [background, cat]\ntrain: ../../..\nval: /\ntest: .\nmasks_dir: ../../masks",
    "names: [background, cat]\ntrain: [images]\nmasks_dir: masks",
    "names: [background, cat]\ntrain: images/train\nval: images/val\nmasks_dir: ..",
]
SEGMENTATIONS = [
    [[float("nan")] * 6],
    [[float("inf"), 1, 2, 3, 4, 5]],
    [[-1e9, 1, 2, 3, 4, 5]],
    [[1e300, 1, 2, 3, 4, 5]],
    [[0, 0, 16, 16] * 5_000],
    [["a"] * 6],
    [[1, 2, 3]],
    [[]],
    [],
    {"size": [60_000, 60_000], "counts": [0, 3_600_000_000]},
    {"size": [60_000, 60_000], "counts": "P" * 30},
    {"size": [16, 16], "counts": [-5, 261]},
    {"size": [16, 16], "counts": [10**12]},
    {"size": [16, 16], "counts": "~~~~"},
    {"size": [16, 16], "counts": "o" * 100},
    {"size": [16, 16], "counts": "\u20ac"},
    {"size": None, "counts": None},
]


def member(name, content, kind=b"0", size=None):
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size is not None:
        header[124:136] = size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content + b"\0" * (-len(content) % 512)


TARS = [
    member("a.png", b"x", size=b"\xff" * 12),
    member("d/", b"", b"5", size=b"\xff" * 12),
    member("a.png", b"x", size=b"\x80" + b"\xff" * 11),
    member("h", b"1" * 200_000, b"x") + member("a.png", b"x"),
    member("h", b"15 size=-10000\n", b"x") + member("a.png", b"x"),
    member("h", b"22 GNU.sparse.major=1\n", b"x") + member("a.png", b"x"),
    member("h", b"n" * 5_000, b"L") * 300 + member("a.png", b"x"),
    member("a.png", b"x", b"S"),
    member("a.png", b"", b"2") + member("../../b.png", POSTSCRIPT) + member("../../b.mask.png", POSTSCRIPT),
    b"x" * 512,
]


def replace_value(content, rng, values):
    """Put a value into a random place of a JSON document."""
    place = content
    while isinstance(place, (dict, list)) and place:
        key = rng.choice(sorted(place)) if isinstance(place, dict) else int(rng.integers(len(place)))
        inside = place[key]
        if not isinstance(inside, (dict, list)) or not inside or rng.random() < 0.2:
            place[key] = values[rng.integers(len(values))]
            return
        place = inside


def spoil(root, rng):
    """Replace or damage one file of a dataset, in a way that fits what it is."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name != "README.md") + (
        [root / "README.md"] * 2 if (root / "README.md").exists() else []
    )
    listed = [p for p in files if p.suffix in (".json", ".jsonl", ".yaml", ".txt", ".csv", ".tar", ".md")]
    among = listed if listed and rng.random() < 0.6 else files
    path = among[rng.integers(len(among))]
    data = path.read_bytes()
    choice = rng.random()
    if choice < 0.1:
        path.unlink()
        target = [
            lambda: os.mkfifo(path),
            lambda: path.symlink_to("/etc/passwd"),
            lambda: path.symlink_to(path),
            path.mkdir,
        ]
        target[rng.integers(4)]()
    elif choice < 0.2:
        path.write_bytes(data[: int(len(data) * rng.random())])
    elif choice < 0.3 or not data:
        damaged = bytearray(data or b"x")
        for _ in range(int(rng.integers(1, 20))):
            damaged[rng.integers(len(damaged))] = int(rng.integers(256))
        path.write_bytes(bytes(damaged))
    elif path.suffix in (".png", ".jpg"):
        path.write_bytes(IMAGES[rng.integers(len(IMAGES))])
    elif path.suffix == ".tar":
        path.write_bytes(TARS[rng.integers(len(TARS))] + data)
    elif path.suffix in (".json", ".jsonl") and rng.random() < 0.8:
        rows = [json.loads(line) for line in (data.splitlines() if path.suffix == ".jsonl" else [data])]
        annotations = rows[0].get("annotations") if isinstance(rows[0], dict) else None
        if annotations and rng.random() < 0.5:
            annotations[0]["segmentation"] = SEGMENTATIONS[rng.integers(len(SEGMENTATIONS))]
        else:
            replace_value(rows[0], rng, VALUES)
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif path.suffix in (".json", ".jsonl"):
        path.write_text(JSON[rng.integers(len(JSON))])
    elif path.suffix == ".yaml":
        path.write_text(YAML[rng.integers(len(YAML))])
    elif path.suffix == ".md":
        path.write_text(f"---\n{YAML[rng.integers(len(YAML))]}\n---\n")
    else:
        lines = data.decode().splitlines() or [""]
        lines[rng.integers(len(lines))] = NAMES[rng.integers(len(NAMES))]
        path.write_text("\n".join(lines))


# -- every kind of file through every command ------------------------------------------------------------------


def kinds():
    """(format, file pattern, content or a function from the old content to the new one)."""
    for number, content in enumerate(IMAGES):
        for form, pattern in (
            ("voc", "JPEGImages/*"),
            ("voc", "SegmentationClass/*"),
            ("coco", "**/*.png"),
            ("folders", "*/*.png"),
        ):
            yield f"image {number} in {form}/{pattern}", form, pattern, content
    for number, text in enumerate(JSON):
        for form, pattern in (("coco", "**/*.json"), ("hf", "**/*.jsonl"), ("webdataset", "**/*.json")):
            yield f"JSON {number} in {form}", form, pattern, text.encode()
    for number, text in enumerate(YAML):
        yield f"YAML {number}", "yolo", "*.yaml", text.encode()
        yield f"card {number}", "hf", "README.md", f"---\n{text}\n---\n".encode()
    for number, value in enumerate(SEGMENTATIONS):
        yield f"segmentation {number}", "coco", "**/*.json", partial(with_segmentation, value)
    for number, name in enumerate(NAMES):
        for pattern in ("ImageSets/Segmentation/train.txt", "classes.txt"):
            yield f"name {number} in {pattern}", "voc", pattern, name.encode(errors="surrogateescape")
    for number, content in enumerate(TARS):
        yield f"tar {number}", "webdataset", "**/*.tar", content


def with_segmentation(value, data):
    document = json.loads(data)
    for annotation in document.get("annotations", ()):
        annotation["segmentation"] = value
    return json.dumps(document).encode()


class Stop:
    """An image backend that ends a build when the first image would be drawn: the dataset was read by then."""

    name, usd_per_image = "stop", 0.0

    def draw(self, requests, *_):
        raise SegsmithError("The end of this test.", "")

    def close(self):
        pass


QUICK = {"trainer.epochs": 1, "trainer.batch_size": 2, "trainer.encoder_init": "none"}


class Endings(dict):
    """Command -> how it ended."""

    def __init__(self):
        self.seconds = {}
        """Command -> processor time."""


def use_in_every_command(root, out, checkpoint):
    """Give a dataset to validate, train, evaluate, refine and augment; returns how each of them ended."""
    commands = {
        "validate": lambda: validate(root),
        "train": lambda: segsmith.train(root, out / "train", settings=QUICK, progress=False),
        "evaluate": lambda: segsmith.evaluate(checkpoint, root, split="train", progress=False),
        "refine": lambda: segsmith.refine(
            root, out / "refine", train=False, zero_is_undrawn=True, progress=False
        ),
        "augment": lambda: segsmith.augment(
            root, out / "augment", add_per_class=1, preset="sim", progress=False,
            parts={"chat": ScriptedChat(), "backend": Stop()},
        ),
    }  # fmt: skip
    endings = Endings()
    for name, use in commands.items():
        start = time.process_time()
        try:
            use()
            endings[name] = "done"
        except SegsmithError as error:
            endings[name] = str(error)
        endings.seconds[name] = time.process_time() - start
    return endings


def too_slow(endings, clean):
    """Commands that took `SECONDS` longer than with a clean dataset."""
    return [name for name, seconds in endings.seconds.items() if seconds > clean.seconds[name] + SECONDS]


@pytest.fixture(scope="module")
def checkpoint(clean, tmp_path_factory):
    """A segmenter trained for one epoch on the clean dataset."""
    return segsmith.train(clean["voc"], tmp_path_factory.mktemp("checkpoint"), settings=QUICK).segmenter


@pytest.fixture(scope="module")
def clean_endings(clean, checkpoint, tmp_path_factory):
    """How the commands end with a clean dataset, the second time, when everything is imported."""
    folder = tmp_path_factory.mktemp("clean")
    for name in ("first", "second"):
        (folder / name).mkdir()
        endings = use_in_every_command(clean["voc"], folder / name, checkpoint)
    assert endings.pop("augment") == "The end of this test."
    assert set(endings.values()) <= {"done"}, endings
    return endings


@pytest.mark.timeout(3600 if ALL else 600)
def test_every_kind_of_hostile_file_goes_through_every_command(
    clean, checkpoint, clean_endings, tmp_path, watch, capfd
):
    watch.start(tmp_path)
    for number, (kind, form, pattern, content) in enumerate(list(kinds())[::EVERY]):
        root, out = shutil.copytree(clean[form], tmp_path / f"{number}"), tmp_path / f"out-{number}"
        paths = sorted(root.glob(pattern))
        assert paths, (form, pattern)
        paths[0].write_bytes(content(paths[0].read_bytes()) if callable(content) else content)
        with memory_below(MEMORY):
            endings = use_in_every_command(root, out, checkpoint)
        assert too_slow(endings, clean_endings) == [], kind
        shutil.rmtree(root)
        shutil.rmtree(out, ignore_errors=True)
        assert watch.seen == [], kind
    watch.stop()
    assert "Traceback" not in capfd.readouterr().err


def test_a_corpus_of_hostile_checkpoints_is_rejected_or_used_without_harm(clean, checkpoint, tmp_path, watch):
    rng = np.random.default_rng(5)
    folder, rejected = shutil.copytree(checkpoint.parent, tmp_path / "checkpoint"), 0
    description, weights = folder / "segmenter.json", folder / "segmenter.safetensors"
    originals = {path: path.read_bytes() for path in (description, weights)}
    header = int.from_bytes(originals[weights][:8], "little")
    watch.start(tmp_path)
    for number in range(CHECKPOINTS):
        for path, data in originals.items():
            path.write_bytes(data)
        if number % 3 == 0:
            document = json.loads(originals[description])
            replace_value(document, rng, [*VALUES, "tu-hf_hub:evil/repo", 10**6, {"module": "os"}])
            description.write_text(json.dumps(document))
        elif number % 3 == 1:
            damaged = bytearray(originals[weights])
            for _ in range(int(rng.integers(1, 20))):
                damaged[rng.integers(8 + header)] = int(rng.integers(256))
            weights.write_bytes(damaged)
        else:
            other = [
                *(text.encode() for text in JSON),
                POSTSCRIPT,
                b"",
                b"\xff" * 8 + b"{}",
                b"\x80\x02cos\nsystem\n.",
            ]
            path = (description, weights)[rng.integers(2)]
            path.write_bytes(other[rng.integers(len(other))])
        start = time.process_time()
        with memory_below(MEMORY):
            try:
                segsmith.evaluate(weights, clean["voc"], split="train", progress=False)
            except SegsmithError:
                rejected += 1
        assert time.process_time() - start < SECONDS, number
    watch.stop()
    assert watch.seen == []
    assert rejected > CHECKPOINTS / 2, "the corpus is hardly hostile"


@pytest.mark.timeout(7200 if ALL else 600)
def test_a_corpus_of_hostile_files_is_read_without_harm(clean, checkpoint, request, tmp_path, watch):
    clean_endings = request.getfixturevalue("clean_endings") if ALL else None

    def use(root, out):
        if not ALL:
            return bool(read_everything(root, out))
        endings = use_in_every_command(root, out, checkpoint)
        assert too_slow(endings, clean_endings) == [], root
        return endings != {"augment": "The end of this test."} | dict.fromkeys(
            endings.keys() - {"augment"}, "done"
        )

    rng = np.random.default_rng(12)
    forms = list(clean)
    use(shutil.copytree(clean["voc"], tmp_path / "clean"), tmp_path / "out")
    noticed = 0
    watch.start(tmp_path)
    for number in range(CORPUS):
        root = shutil.copytree(clean[forms[number % len(forms)]], tmp_path / f"{number}")
        spoil(root, rng)
        with memory_below(MEMORY):
            noticed += use(root, tmp_path / f"out-{number}")
        shutil.rmtree(root)
        shutil.rmtree(tmp_path / f"out-{number}", ignore_errors=True)
    watch.stop()
    assert watch.seen == []
    assert noticed > CORPUS / 3, "the corpus is hardly hostile"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(("coco", "yolo", "voc", "webdataset", "cvat", "hf")),
    st.binary(max_size=200),
    st.integers(0, 10**6),
)
def test_any_bytes_in_any_file(clean, tmp_path_factory, form, data, which):
    folder = tmp_path_factory.mktemp("any")
    root = shutil.copytree(clean[form], folder / "data")
    files = sorted(p for p in root.rglob("*") if p.is_file())
    files[which % len(files)].write_bytes(data)
    read_everything(root, folder / "out")
    shutil.rmtree(folder)


def test_a_name_longer_than_the_file_system_allows_is_a_problem(clean, tmp_path):
    root = shutil.copytree(clean["voc"], tmp_path / "data")
    (root / "ImageSets/Segmentation/train.txt").write_text("x" * 300)
    assert read_everything(root, tmp_path / "out")
