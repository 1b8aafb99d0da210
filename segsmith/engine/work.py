"""The work functions: what is done with a unit, by whichever process has it.

They read and write the run folder, and never the ledger. Their results hold ids, numbers and short text as JSON.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segsmith.agents.image import WRITERS, encoded, smaller_batch
from segsmith.agents.judge.measure import directions, measure_images
from segsmith.agents.labeler import mask_file, plan_of_image
from segsmith.agents.region_check import region_beliefs, region_cosines
from segsmith.agents.witnesses.agent import chunks
from segsmith.config import Config
from segsmith.device_memory import free_device_memory
from segsmith.engine.exports import export_store, write_unit
from segsmith.engine.models import (
    open_classifier,
    open_encoder,
    open_image_backend,
    open_segmenter,
    open_witness,
    synonyms_for,
)
from segsmith.engine.object_units import unit_store
from segsmith.engine.units import (
    DrawItem,
    DrawUnit,
    ExportUnit,
    HearUnit,
    Kind,
    LabelItem,
    MaskItem,
    MaskUnit,
    RelabelUnit,
    TeachUnit,
    Unit,
)
from segsmith.errors import OutOfMemory, SegsmithError
from segsmith.files import SUFFIXES, read_image, write_atomic
from segsmith.memory.ledger import WitnessKind, testimony_columns
from segsmith.memory.patch_scores import PatchScoreFile
from segsmith.memory.remote_run import scratch_folder
from segsmith.memory.run_folder import RunFolder, read_verified
from segsmith.protocols import (
    ImageBackend,
    ImageTextEncoder,
    PatchClassifier,
    PointSegmenter,
    Releasable,
    Witness,
)
from segsmith.segmentation.masks import MaskSettings, Outlined, merge_outlined, outline
from segsmith.types import Drawn, Image, ImageRequest, PatchScores, Vectors

MODELS: Mapping[Kind, str] = {
    "teach": "classifier",
    "relabel": "classifier",
    "regions": "segmenter",
    "masks": "segmenter",
    "detector": "detector",
    "vlm": "vlm",
    "attention": "attention",
}
"""Kind of unit -> the model that no other kind uses."""


@dataclass(frozen=True)
class Setup:
    """What a worker needs to know of a run."""

    config: Config
    root: Path
    """The run folder, which every machine sees under this path."""
    parts: Mapping[str, Any]
    """Models that replace those of the config, by the names of the properties of `RunContext`."""
    url: str = ""
    """Of a run in an object store; `root` is then a folder that only the driver sees."""


class Workshop:
    """The models and files of a run, in the process of a worker."""

    def __init__(self, setup: Setup) -> None:
        self.config = setup.config
        self._scratch: Any = None
        if setup.url:
            self._scratch = tempfile.TemporaryDirectory(prefix="segsmith-worker-")
            scratch_folder(setup.url, Path(self._scratch.name))
        self.run = RunFolder(Path(self._scratch.name) if self._scratch else setup.root)
        self.store = unit_store(self.run)
        self._given = setup.parts
        self._made: dict[str, Any] = dict(setup.parts)
        self._scores: tuple[str, PatchScoreFile] | None = None
        self._features: tuple[str, Any] | None = None
        self._scorer: tuple[str, Callable[[Sequence[Image]], PatchScores]] | None = None
        self._requests: dict[str, ImageRequest] = {}
        """What the images of the unit that a witness is asked about were drawn from."""
        self.batch_size = self.config.images.batch_size
        """Images drawn at once; smaller after memory ran out."""

    def prepare(self, kind: Kind) -> None:
        """Load what a kind of unit needs, and free what it does not. Raises what a model raises."""
        if kind != "draw" and "backend" in self._made:
            self._made["backend"].close()
        self._drop(*{*MODELS.values()} - {MODELS.get(kind)})
        match kind:
            case "draw":
                _ = self.backend, self.encoder, self.texts
            case "teach" | "relabel":
                _ = self.classifier
            case "regions" | "masks":
                if self.config.labeler.use_sam:
                    _ = self.segmenter
                if self.config.labeler.region_doubt:
                    _ = self.encoder, self.texts
            case "detector" | "vlm" | "attention":
                if isinstance(self._made.get("encoder"), Releasable):
                    self._made["encoder"].release()
                self.witness(kind)

    def do(self, unit: Unit, attempt: str) -> int:
        """Do a unit and commit it, unless another attempt was committed before; returns the images this one made."""
        store = export_store(unit.place) if isinstance(unit, ExportUnit) else self.store
        if store.is_committed(unit.id):
            return 0
        folder = store.begin(unit.id, attempt)
        try:
            result = self._result(unit, folder)
        except BaseException:
            store.drop(unit.id, attempt)
            raise
        finally:
            self._drop_fetched()
        won = store.commit(unit.id, attempt, result)
        return len(unit.items) if won and unit.kind != "teach" else 0

    def _result(self, unit: Unit, folder: Path) -> dict[str, Any]:
        match unit:
            case DrawUnit():
                return draw(self, unit, folder)
            case TeachUnit():
                return teach(self, unit, folder)
            case RelabelUnit():
                return relabel(self, unit, folder)
            case MaskUnit():
                return make_masks(self, unit, folder)
            case HearUnit():
                return hear(self, unit)
            case ExportUnit():
                return write_unit(self.run, self.config.classes, unit, folder)

    def _drop_fetched(self) -> None:
        """Remove images and masks that were read from an object store: a worker seldom needs one again."""
        if self._scratch is not None:
            for folder in (self.run.images, self.run.masks):
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def backend(self) -> ImageBackend:
        return self._part("backend", lambda: open_image_backend(self.config))

    @property
    def encoder(self) -> ImageTextEncoder:
        return self._part("encoder", lambda: open_encoder(self.config))

    @property
    def segmenter(self) -> PointSegmenter:
        return self._part("segmenter", lambda: open_segmenter(self.config))

    @property
    def classifier(self) -> PatchClassifier:
        return self._part("classifier", lambda: open_classifier(self.config, lambda: self.encoder))

    def witness(self, kind: WitnessKind) -> Witness:
        """A witness; the simulator's stand-ins know the images of the unit that is being done."""
        return self._part(kind, lambda: open_witness(kind, self.config, lambda i: self._requests[i]))

    def about_to_ask(self, unit: HearUnit) -> None:
        """Tell the simulator's stand-ins what the images of a unit were drawn from."""
        self._requests = {item.id: ImageRequest(item.prompt, item.seed) for item in unit.items}

    def features(self, unit: TeachUnit) -> Any:
        """What models are trained on; it is computed once for all folds that this process trains."""
        if self._features is None or self._features[0] != unit.features:
            self._features = None  # frees the memory first
            batches = ([_read(self, item) for item in part] for part in _parts(unit.items, unit.batches))
            self._features = (unit.features, self.classifier.features(batches, len(unit.items)))
        return self._features[1]

    def scorer(self, weights: str) -> Callable[[Sequence[Image]], PatchScores]:
        """The model with the weights of a `TeachUnit`."""
        if self._scorer is None or self._scorer[0] != weights:
            self._scorer = None
            data = self.run.weights(weights).read_bytes()
            self._scorer = (weights, self.classifier.scorer(data))
        return self._scorer[1]

    @property
    def texts(self) -> Vectors:
        """The vectors of classes and backgrounds, see `directions`."""
        return self._part(
            "texts", lambda: directions(self.encoder, self.config.classes, synonyms_for(self.config))
        )

    def patch_scores(self, sha256: str) -> PatchScoreFile:
        """The run's patch scores; the file is opened, and its hash checked, once."""
        if self._scores is None or self._scores[0] != sha256:
            if self._scores is not None:
                self._scores[1].close()
            if self.run.remote is not None:
                self.run.remote.fetch_shared(self.run.patch_scores, sha256)
            self._scores = (sha256, PatchScoreFile(self.run.patch_scores, sha256))
        return self._scores[1]

    def _drop(self, *names: str) -> None:
        """Free models that the next units do not need, and what was made with them."""
        loaded = [name for name in names if name in self._made and name not in self._given]
        for name in loaded:
            del self._made[name]
        if "classifier" in names:
            self._features = self._scorer = None
        if loaded:
            free_device_memory()

    def _part(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


# -- images -------------------------------------------------------------------------------------------


def draw(shop: Workshop, unit: DrawUnit, folder: Path) -> dict[str, Any]:
    """Draw, write into `folder` and measure the images of a unit.

    Images of an earlier session are read from the run folder instead. The result has an entry for each item, in
    order: its hash and what was measured, or why there is no image.
    """
    images: dict[str, Image] = {}
    hashes: dict[str, str] = {}
    undrawn: dict[str, Drawn] = {}
    for item in unit.items:
        if item.sha256:
            images[item.id] = _stored_image(shop, item.id, item.sha256)
            hashes[item.id] = item.sha256
    todo = [item for item in unit.items if not item.sha256]
    with ThreadPoolExecutor(WRITERS, "segsmith-write") as pool:
        writing = {
            item.id: pool.submit(_write_image, shop.config, folder, item.id, drawn.image)
            for item, drawn in _draw_all(shop, todo, min(unit.batch_size, shop.batch_size), undrawn)
            if drawn.image is not None
        }
        for image_id, file in writing.items():
            hashes[image_id], images[image_id] = file.result()
    there = [item for item in unit.items if item.id in images]
    measured = (
        measure_images(
            shop.encoder, shop.texts, len(shop.config.classes),
            [images[item.id] for item in there], [item.prompt for item in there],
        )
        if there
        else []
    )  # fmt: skip
    entries: dict[str, dict[str, Any]] = {
        item.id: {
            "sha256": hashes[item.id],
            "measured": {**asdict(found), "signature": found.signature.tobytes().hex()},
        }
        for item, found in zip(there, measured, strict=True)
    }
    entries |= {i: {"reason": d.reason, "detail": d.detail} for i, d in undrawn.items()}
    return {"images": entries, "batch_size": shop.batch_size}


def _draw_all(shop: Workshop, todo: Sequence[DrawItem], batch_size: int, undrawn: dict[str, Drawn]) -> Any:
    """Yield (item, result) of what is drawn, and collect the other results; halves batches that do not fit."""
    position = 0
    while position < len(todo):
        batch = todo[position : position + batch_size]
        try:
            for drawn in shop.backend.draw([ImageRequest(item.prompt, item.seed) for item in batch]):
                item = batch[drawn.index]
                if drawn.image is None:
                    undrawn[item.id] = drawn
                else:
                    yield item, drawn
        except OutOfMemory:
            size = shop.config.images.size
            batch_size = shop.batch_size = smaller_batch(len(batch), shop.backend.name, size)
            continue
        position += len(batch)


def _write_image(config: Config, folder: Path, image_id: str, image: Image) -> tuple[str, Image]:
    """The hash of the file, and the image as it is stored."""
    data, digest, stored = encoded(image, config.images)
    write_atomic(folder / f"{image_id}{SUFFIXES[config.images.format]}", data)
    return digest, stored


def _stored_image(shop: Workshop, image_id: str, sha256: str) -> Image:
    return read_image(read_verified(shop.run.image(image_id), sha256, f"image {image_id}"))


# -- labels -------------------------------------------------------------------------------------------


def teach(shop: Workshop, unit: TeachUnit, folder: Path) -> dict[str, Any]:
    """Train the model of a fold and write its weights into `folder`, as a file with the name of the unit."""
    weights = shop.classifier.teach(
        shop.features(unit), np.array(unit.targets, np.float32), np.array(unit.kept), unit.fold
    )
    write_atomic(folder / unit.id, weights)
    return {"weights": hashlib.sha256(weights).hexdigest()}


def relabel(shop: Workshop, unit: RelabelUnit, folder: Path) -> dict[str, Any]:
    """Score images with the model of their fold, and write their maps into `folder`, one ``.npy`` for each batch.

    The result has the probabilities of the classes of each image, in order.
    """
    score, probabilities = shop.scorer(unit.weights), list[list[float]]()
    for number, items in enumerate(_parts(unit.items, unit.batches)):
        found = score([_read(shop, item) for item in items])
        probabilities += found.probabilities.tolist()
        buffer = io.BytesIO()
        np.save(buffer, found.maps.astype(np.float16))
        write_atomic(folder / f"{number}.npy", buffer.getvalue())
    return {"probabilities": probabilities}


def _parts(items: Sequence[LabelItem], sizes: Sequence[int]) -> Iterator[Sequence[LabelItem]]:
    start = 0
    for size in sizes:
        yield items[start : start + size]
        start += size


def _read(shop: Workshop, item: LabelItem) -> Image:
    if not item.real:
        return _stored_image(shop, item.id, item.sha256)
    return read_image(read_verified(shop.run.real / item.real, item.sha256, f"real image {item.id}"))


# -- witnesses ----------------------------------------------------------------------------------------


def hear(shop: Workshop, unit: HearUnit) -> dict[str, Any]:
    """Ask a witness about the images of a unit, as many at a time as `WitnessAgent` does.

    The result has an entry for each image, in order: what is stored of its testimony, or None without an answer.
    """
    witness = shop.witness(unit.kind)
    if witness.name != unit.witness:
        raise SegsmithError(
            f"The {unit.kind} is {witness.name} on this machine, and {unit.witness} on the command's.",
            "Pull the same models on every machine: segsmith models pull.",
        )
    shop.about_to_ask(unit)
    said: dict[str, Any] = {}
    for items in chunks(unit.items):
        images = [_stored_image(shop, item.id, item.sha256) for item in items]
        testimonies = witness.testify(images, [item.id for item in items])
        for item, testimony in zip(items, testimonies, strict=True):
            said[item.id] = None if testimony is None else testimony_columns(testimony)
    return {"testimonies": said}


# -- masks --------------------------------------------------------------------------------------------


def make_masks(shop: Workshop, unit: MaskUnit, folder: Path) -> dict[str, Any]:
    """Outline the objects of a unit's images; write their masks into `folder`, or measure the regions with CLIP.

    The result has an entry for each item, in order: the row of the mask, or the cosines of its regions.
    """
    config, settings = shop.config, MaskSettings.of(shop.config.labeler)
    images = [_stored_image(shop, item.id, item.sha256) for item in unit.items]
    found = _outlined(shop, unit, images, settings)
    if unit.kind == "regions":
        return {
            "regions": {
                item.id: region_cosines(shop.encoder, shop.texts, image, regions).tolist()
                for item, image, regions in zip(unit.items, images, found, strict=True)
            }
        }
    rows = {}
    for item, image, regions in zip(unit.items, images, found, strict=True):
        beliefs = None
        if unit.centre:
            beliefs = region_beliefs(shop.encoder, shop.texts, image, regions, unit.centre)
        doubted = [config.classes.index(name) for name in item.doubted]
        label_map, sources = merge_outlined(regions, settings, beliefs, config.labeler.region_doubt, doubted)
        png, row = mask_file(item.id, label_map, sources, item.labels, config.classes, item.doubted)
        write_atomic(folder / f"{item.id}.png", png)
        rows[item.id] = asdict(row)
    return {"masks": rows}


def _outlined(
    shop: Workshop, unit: MaskUnit, images: Sequence[Image], settings: MaskSettings
) -> list[Outlined]:
    config, maps = shop.config, shop.patch_scores(unit.patch_scores)
    if not maps.holds([item.id for item in unit.items]):
        raise SegsmithError(
            f"{shop.run.patch_scores} is not the file that the run wrote.",
            "Every machine must see the run folder under the same path.",
        )

    def plan(item: MaskItem, image: Image) -> Any:
        wanted = {*item.labels, *item.doubted}
        present = [index for index, name in enumerate(config.classes) if name in wanted]
        return plan_of_image(config.seed, item.id, image, maps[item.id], present, settings)

    plans = [plan(item, image) for item, image in zip(unit.items, images, strict=True)]
    segmenter = shop.segmenter if config.labeler.use_sam else None
    return outline(images, plans, segmenter, settings)
