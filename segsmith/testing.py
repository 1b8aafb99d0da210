"""Stand-ins for tests: a chat model and an image model that need no weights, and run folders made in seconds.

For tests of your own code against segsmith, as well as for segsmith's own. A build takes the stand-ins as parts::

    import segsmith
    from segsmith.testing import InstantImages, ScriptedChat, small_config

    def test_my_progress_display(tmp_path):
        config = small_config(judge={"enabled": False}, evaluation={"images": 0})
        parts = {"chat": ScriptedChat(), "backend": InstantImages(size=64)}
        segsmith.build(config=config, out=tmp_path / "run", parts=parts, on_event=my_display)

`small_run` is that build in one call. `made_up_run` writes a run folder without running anything; it is the fastest
way to a run with accepted images, labels and masks. `fingerprint` says whether two runs hold the same.
"""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segsmith.config import Config, LabelerConfig, config_toml, load_config
from segsmith.datasets.palette import voc_palette
from segsmith.errors import BadReply
from segsmith.files import PART, png_bytes
from segsmith.ids import make_id
from segsmith.memory.ledger import ImageRow, LabelRow, Ledger, MaskRow, ModelRow, PromptRow, VerdictRow
from segsmith.memory.run_folder import RunFolder
from segsmith.protocols import OnMaps, Reply, unwatched
from segsmith.segmentation.folds import plan_folds
from segsmith.types import (
    IGNORE,
    Drawn,
    Gate,
    Image,
    ImageRequest,
    LabelMap,
    MaskCandidates,
    PatchScores,
    Vectors,
)

if TYPE_CHECKING:
    from segsmith.workflows.run import Run

CLASSES = ("cat", "dog", "bus", "potted plant")
"""Classes of `made_up_run`."""


def small_config(**changes: Any) -> Config:
    """Settings of a build that takes seconds and passes every stage: two classes, 64 px, four images a class.

    Images come from the simulator. `changes` are top-level settings; a dict replaces its whole section::

        small_config(per_class=2, trainer={"epochs": 1, "batch_size": 4})
    """
    settings: dict[str, Any] = {
        "classes": ("cat", "dog"),
        "per_class": 4,
        "images": {"size": 64, "batch_size": 4},
        "labeler": {"epochs": 1, "folds": 2},
        "trainer": {"epochs": 3, "batch_size": 4},
        "evaluation": {"images": 6},
        "llm": {"concurrency": 1},
        **changes,
    }
    return load_config(flags=settings)


class ScriptedChat:
    """A `ChatModel` without a model.

    With `replies` it gives them in order, one per question: a dict is validated against the schema asked for, and
    None raises `BadReply` as a model does whose retries all failed. Without `replies` each answer follows from the
    schema and the seed alone, so a build gets the same prompts every time.
    """

    name = "scripted"
    concurrency = 1
    restarts = 0

    def __init__(
        self,
        *replies: Mapping[str, Any] | None,
        on_ask: Callable[[str, int], None] = lambda user, seed: None,
    ) -> None:
        """`on_ask` is called with the user message and the seed of each question."""
        from segsmith.tools.llm.usage import Usage

        self.usage = Usage()
        self.asked: list[tuple[str, str, type[Any]]] = []
        """The questions so far: system message, user message, schema."""
        self._replies = list(replies)
        self._scripted = bool(replies)
        self._on_ask = on_ask
        self._lock = threading.Lock()

    def ask(
        self, system: str, user: str, schema: type[Reply], *, seed: int, images: Sequence[Image] = ()
    ) -> Reply:
        self._on_ask(user, seed)
        with self._lock:
            self.asked.append((system, user, schema))
            if not self._scripted:
                return schema.model_validate(example_reply(schema.model_json_schema(), random.Random(seed)))
            reply = self._replies.pop(0)
        if reply is None:
            raise BadReply("a scripted bad reply")
        return schema.model_validate(reply)


def example_reply(
    schema: Mapping[str, Any], rng: random.Random, definitions: Mapping[str, Any] | None = None
) -> Any:
    """A value that fits a JSON schema as pydantic writes it; `rng` chooses where there is a choice."""
    definitions = schema.get("$defs", {}) if definitions is None else definitions
    if "$ref" in schema:
        return example_reply(definitions[schema["$ref"].rsplit("/", 1)[1]], rng, definitions)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        parts = schema.get("properties", {})
        return {name: example_reply(part, rng, definitions) for name, part in parts.items()}
    if kind == "array":
        return [example_reply(schema["items"], rng, definitions) for _ in range(schema.get("minItems", 1))]
    if kind == "integer":
        return rng.randint(schema.get("minimum", 0), schema.get("maximum", 9))
    if kind == "number":
        return rng.uniform(schema.get("minimum", 0.0), schema.get("maximum", 1.0))
    text = "quiet picture of it " * (1 + schema.get("minLength", 0) // 20)
    return text[: schema.get("maxLength", 40)].strip()


class InstantImages:
    """An `ImageBackend` that paints noise: each request its own image, the same one every time.

    The images show none of the classes, so a build needs ``judge={"enabled": False}`` to accept them.
    """

    usd_per_image = 0.0

    def __init__(self, size: int = 64) -> None:
        """`size` is the side of an image in pixels."""
        self.name = "instant"
        self.size = size
        self.requests: list[ImageRequest] = []
        """All that was asked for so far."""
        self.closed = False

    def draw(
        self,
        requests: Sequence[ImageRequest],
        gate: Gate | None = None,
        on_step: Callable[[float], None] = unwatched,
    ) -> Iterator[Drawn]:
        self.requests += requests
        for index, request in enumerate(requests):
            yield Drawn(index, self._paint(request))
            on_step((index + 1) / len(requests))

    def close(self) -> None:
        self.closed = True

    def _paint(self, request: ImageRequest) -> Image:
        text = int.from_bytes(hashlib.sha256(request.prompt.encode()).digest()[:8])
        return _backdrop(self.size, np.random.default_rng([request.seed, text])).clip(0, 255).astype(np.uint8)


class InstantChat:
    """A `ChatModel` for large runs: it writes sentences, each its own, and finds every prompt rational."""

    name = "instant"
    concurrency = 1
    restarts = 0

    def __init__(self) -> None:
        from segsmith.tools.llm.usage import Usage

        self.usage = Usage()

    def ask(
        self, system: str, user: str, schema: type[Reply], *, seed: int, images: Sequence[Image] = ()
    ) -> Reply:
        reply = example_reply(schema.model_json_schema(), random.Random(seed))
        if "sentence" in schema.model_fields:
            asked = dict(line.split(": ", 1) for line in user.splitlines()[:2])
            subject, companion = asked["Main object"], asked["Also in the picture"]
            beside = "" if companion == "nothing else" else f" and {companion}"
            reply["sentence"] = f"{subject}{beside} in calm light, view {seed} of a long and quiet series."
        if "score" in schema.model_fields:
            reply["score"] = 1.0
        return schema.model_validate(reply)


class InstantScenes:
    """An `ImageBackend` for large runs: noise whose first pixels say which class it is drawn for.

    `InstantEncoder` reads these pixels in place of the content. Every tenth image shows another class.
    """

    usd_per_image = 0.0

    def __init__(self, classes: Sequence[str], size: int = 64) -> None:
        self.name = "instant-scenes"
        self._classes = tuple(classes)
        self._noise = _backdrop(size, np.random.default_rng(0)).clip(0, 255).astype(np.uint8)

    def draw(
        self,
        requests: Sequence[ImageRequest],
        gate: Gate | None = None,
        on_step: Callable[[float], None] = unwatched,
    ) -> Iterator[Drawn]:
        for index, request in enumerate(requests):
            digest = hashlib.sha256(f"{request.seed} {request.prompt}".encode()).digest()
            image = np.roll(self._noise, (digest[0], digest[1]), (0, 1))
            depicted = _first_named(request.prompt, self._classes)
            image[0, 0, 0] = digest[2] % len(self._classes) if digest[3] < 26 else depicted
            image[0, 1:9, 0] = np.frombuffer(digest[:8], np.uint8)
            yield Drawn(index, image)
            on_step((index + 1) / len(requests))

    def close(self) -> None:
        pass


class InstantEncoder:
    """An `ImageTextEncoder` for large runs: a direction for each class, and noise that follows from the input."""

    name = "instant"
    logit_scale = 20.0

    def __init__(self, classes: Sequence[str], dimensions: int = 64) -> None:
        """`dimensions` is more than the number of classes."""
        self._classes = tuple(classes)
        self._dimensions = dimensions

    def embed_images(self, images: Sequence[Image]) -> Vectors:
        return self._vectors(
            [([int(i[0, 0, 0]) % len(self._classes)], i[0, 1:9, 0].tobytes()) for i in images]
        )

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        return self._vectors([(_named(text, self._classes), text.encode()) for text in texts])

    def fits(self, text: str) -> bool:
        return True

    def _vectors(self, items: Sequence[tuple[list[int], bytes]]) -> Vectors:
        vectors = np.zeros((len(items), self._dimensions), np.float32)
        for vector, (depicted, data) in zip(vectors, items, strict=True):
            seed = int.from_bytes(hashlib.sha256(data).digest()[:8])
            vector[:] = np.random.default_rng(seed).normal(0, 0.1, self._dimensions)
            vector[depicted] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class InstantClassifier:
    """A `PatchClassifier` for large runs: it believes the labels, and places every object in the middle.

    `out_of_fold` reads no image. The weights of `teach` are the labels of all images by their contents.
    """

    name = "instant"

    def __init__(self, settings: LabelerConfig | None = None, seed: int = 0) -> None:
        self._settings = settings or LabelerConfig.model_validate({})
        self._seed = seed

    def out_of_fold(
        self,
        images: Sequence[Image],
        labels: NDArray[np.float32],
        groups: Sequence[str],
        on_maps: OnMaps | None = None,
    ) -> PatchScores:
        if on_maps is None:
            return self._scores(labels)
        plan = plan_folds(labels, groups, self._settings.folds, self._settings.batch_size, self._seed)
        for where in (batch for fold in plan.held_out for batch in fold):
            on_maps(where, self._scores(labels[where]).maps)
        return PatchScores(self._scores(labels[:0]).maps, labels)

    def features(self, batches: Iterable[Sequence[Image]], count: int) -> list[str]:
        return [_sha(image.tobytes()) for batch in batches for image in batch]

    def teach(
        self, features: list[str], labels: NDArray[np.float32], kept: NDArray[np.int64], fold: int
    ) -> bytes:
        return json.dumps(dict(zip(features, labels.tolist(), strict=True))).encode()

    def scorer(self, weights: bytes) -> Callable[[Sequence[Image]], PatchScores]:
        known = json.loads(weights)
        return lambda images: self._scores(
            np.array([known[_sha(image.tobytes())] for image in images], np.float32)
        )

    @staticmethod
    def _scores(labels: NDArray[np.float32]) -> PatchScores:
        spot = np.zeros((4, 4), np.float32)
        spot[1:3, 1:3] = 0.9
        return PatchScores(labels[:, :, None, None] * spot, labels)

    def taught(
        self, images: Sequence[Image], labels: NDArray[np.float32]
    ) -> Callable[[Sequence[Image]], NDArray[np.float32]]:
        return lambda others: np.full((len(others), labels.shape[1]), 0.5, np.float32)


class InstantSegmenter:
    """A `PointSegmenter` for large runs: a square around the mean of the points."""

    name = "instant"

    def segment(self, image: Image, point_sets: Sequence[NDArray[np.float32]]) -> list[MaskCandidates]:
        height, width = image.shape[:2]
        found = []
        for points in point_sets:
            x, y = points.mean(axis=0).astype(int)
            mask = np.zeros((1, height, width), bool)
            mask[0, max(0, y - height // 4) : y + height // 4, max(0, x - width // 4) : x + width // 4] = True
            found.append(MaskCandidates(mask, np.ones(1, np.float32)))
        return found

    def segment_many(
        self, images: Sequence[Image], point_sets: Sequence[Sequence[NDArray[np.float32]]]
    ) -> list[list[MaskCandidates]]:
        return [self.segment(image, points) for image, points in zip(images, point_sets, strict=True)]


class InstantFinalizer:
    """The last stages of a large run: the dataset is exported, and a few bytes stand for the segmenter."""

    def __init__(self, out: Path, config: Config) -> None:
        self._run = RunFolder(out)
        self._config = config

    def export(self) -> None:
        from segsmith.datasets.export import export_dataset
        from segsmith.datasets.provenance import write_provenance

        with closing(Ledger(self._run.ledger)) as ledger:
            export_dataset(self._run, ledger, self._config)
            write_provenance(self._run, ledger, ledger.versions)

    def train(self, on_epoch: object) -> None:
        self._run.segmenter.write_bytes(b"segmenter")
        self._run.segmenter.with_suffix(".json").write_text("{}")
        with closing(Ledger(self._run.ledger)) as ledger:
            ledger.log("trained", sha256=_sha(b"segmenter"))

    def evaluate(self) -> dict[str, Any]:
        return {}


def instant_config(classes: Sequence[str], per_class: int, size: int = 64, **changes: Any) -> Config:
    """Settings of a large run with `instant_parts`; `changes` are top-level settings."""
    settings: dict[str, Any] = {
        "classes": tuple(classes),
        "per_class": per_class,
        "images": {"size": size},
        "evaluation": {"images": 0},
        "llm": {"concurrency": 1, "writes_sentences": True},
        **changes,
    }
    return load_config(flags=settings)


def instant_parts(config: Config, out: Path) -> dict[str, Any]:
    """Parts that take the place of every model: a build with them is segsmith's own work, and little else."""
    return {
        "chat": InstantChat(),
        "backend": InstantScenes(config.classes, config.images.size),
        "encoder": InstantEncoder(config.classes),
        "classifier": InstantClassifier(config.labeler, config.seed),
        "segmenter": InstantSegmenter(),
        "finalizer": InstantFinalizer(out, config),
    }


def _named(text: str, classes: Sequence[str]) -> list[int]:
    """Indices of the classes that a text names."""
    words = f" {text.lower().rstrip('.').replace(',', ' ')} "
    return [i for i, name in enumerate(classes) if f" {name} " in words]


def _first_named(text: str, classes: Sequence[str]) -> int:
    found = _named(text, classes)
    return min(found, key=lambda i: text.lower().find(f" {classes[i]}")) if found else 0


def small_run(out: Path, config: Config | None = None, parts: Mapping[str, Any] | None = None) -> Run:
    """Build a small run in `out` from end to end, without a language model and an image model.

    By default it draws with `InstantImages` and has no judge, which needs only what is in the package. A `config`
    of your own is built with its own image model; `parts` replaces further parts (see `RunContext`).
    """
    from segsmith.workflows.build import build_run
    from segsmith.workflows.run import open_run

    stand_ins: dict[str, Any] = {"chat": ScriptedChat()}
    if config is None:
        config = small_config(judge={"enabled": False}, evaluation={"images": 0})
        stand_ins["backend"] = InstantImages(config.images.size)
    for _ in build_run(config, out, "segsmith.testing.small_run", parts={**stand_ins, **(parts or {})}):
        pass
    return open_run(out)


def made_up_run(root: Path, images: int, size: int = 128, seed: int = 0) -> tuple[RunFolder, Ledger, Config]:
    """A run folder of `images` accepted images with labels and masks, two a prompt, written without running anything.

    The images are (size, size) pixels; `size` is a multiple of 8, at least 64. The caller closes the ledger.
    """
    rng = np.random.default_rng(seed)
    config = load_config(flags={"classes": CLASSES, "images": {"size": size}, "splits": (0.6, 0.2, 0.2)})
    run = RunFolder(root)
    run.create()
    run.config.write_bytes(config_toml(config).encode())
    ledger = Ledger(run.ledger)
    prompts, rows, verdicts, labels, masks = [], [], [], [], []
    for n in range(images):
        depicted = [n // 2 % len(CLASSES) + 1]
        if n % 3 == 0:
            depicted.append(int(rng.integers(1, len(CLASSES) + 1)))
        if n % 2 == 0:
            name = CLASSES[depicted[0] - 1]
            text = f'a {name} | number {n}, "quoted": #1'
            prompts.append(
                PromptRow(make_id("p", n), name, text, (name,), {}, None, 0, "admitted", {"problem": ""})
            )
        image, mask = _paint_scene(depicted, size, rng)
        id_, data = make_id("i", seed, n), png_bytes(image)
        run.new_image(id_, "png").write_bytes(data)
        mask_data = png_bytes(mask, voc_palette())
        run.new_mask(id_).write_bytes(mask_data)
        rows.append(ImageRow(id_, prompts[-1].id, n, "made-up", 0, hashlib.sha256(data).hexdigest()))
        verdicts.append(VerdictRow(id_, True, "ok", {"probability": 0.5 + n / (2 * images)}))
        present = [int(i) for i in np.unique(mask) if 0 < i < IGNORE]
        names = tuple(CLASSES[i - 1] for i in present)
        labels.append(LabelRow(id_, "relabel", names))
        pixels = {CLASSES[i - 1]: int((mask == i).sum()) for i in present}
        digest = hashlib.sha256(mask_data).hexdigest()
        masks.append(MaskRow(id_, pixels, float((mask == IGNORE).mean()), {}, digest))
    ledger.add_prompts(prompts)
    ledger.add_images(rows)
    ledger.add_verdicts(verdicts)
    ledger.add_labels(labels)
    ledger.add_masks(masks)
    ledger.add_models([ModelRow("images", "made-up", "1", "Apache-2.0")])
    return run, ledger, config


def _backdrop(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 3) float64: eight by eight random tiles under fine noise."""
    tiles = rng.integers(60, 200, (8, 8, 3))
    return np.kron(tiles, np.ones((size // 8, size // 8, 1))) + rng.normal(0, 4, (size, size, 1))


def _paint_scene(depicted: list[int], size: int, rng: np.random.Generator) -> tuple[Image, LabelMap]:
    """One ellipse per class index of `depicted` before a backdrop, and its mask with rims of 255."""
    image = _backdrop(size, rng)
    y, x = np.mgrid[:size, :size] / size
    mask = np.zeros((size, size), np.uint8)
    for k, index in enumerate(depicted):
        centre, radius = rng.uniform(0.2, 0.4, 2) + 0.4 * k, rng.uniform(0.1, 0.2, 2)
        distance = ((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2
        image[distance < 1] = voc_palette()[index] + rng.uniform(0, 60, 3)
        mask[distance < 1.15] = IGNORE
        mask[distance < 1] = index
    return image.clip(0, 255).astype(np.uint8), mask


# -- comparing runs --------------------------------------------------------------------------------

TABLES = {
    "prompts": "id",
    "images": "id",
    "evidence": "image_id",
    "verdicts": "image_id",
    "labels": "image_id",
    "masks": "image_id",
}
"""Table of the ledger -> the column that orders its rows."""
FILES = ("images", "masks", "dataset", "evaluation", "checkpoints/segmenter.safetensors")


def fingerprint(root: Path) -> dict[str, str]:
    """What a finished run holds: table -> hash of its rows, file -> hash of its bytes, and the loss curve.

    Equal for two runs of the same settings. Times, file names of the machine and the report are left out.
    """
    found: dict[str, str] = {}
    with closing(sqlite3.connect(root / "ledger.db")) as db:
        for table, key in TABLES.items():
            rows = db.execute(f"SELECT * FROM {table} ORDER BY {key}").fetchall()
            found[f"table {table}"] = _sha(repr(rows).encode())
        told = db.execute("SELECT detail FROM events WHERE kind='epoch' ORDER BY id").fetchall()
    epochs = [json.loads(detail) for (detail,) in told]
    found["loss curve"] = repr(sorted({e["epoch"]: e["loss"] for e in epochs}.items()))
    for name in FILES:
        paths = [root / name] if (root / name).is_file() else sorted((root / name).rglob("*"))
        found |= {str(p.relative_to(root)): _sha(p.read_bytes()) for p in paths if p.is_file()}
    return found


def leftovers(root: Path) -> list[str]:
    """Half-written files of a run, and files of images or masks without a row in the ledger."""
    run = RunFolder(root)
    with closing(sqlite3.connect(run.ledger)) as db:
        known = {run.image(i) for (i,) in db.execute("SELECT id FROM images")}
        known |= {run.mask(i) for (i,) in db.execute("SELECT image_id FROM masks")}
    strange = [p for p in root.rglob("*") if PART in p.name or p.name.endswith(".old")]
    strange += [p for p in (*run.image_files(), *run.mask_files()) if p not in known]
    return sorted({str(p.relative_to(root)) for p in strange})


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
