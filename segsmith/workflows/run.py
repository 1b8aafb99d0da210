"""A run folder, finished or not, as users of the Python API see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segsmith.config import Config
from segsmith.engine.options import EngineOptions, engine_options
from segsmith.events import SessionEnded
from segsmith.files import local_folder
from segsmith.memory.ledger import Ledger, RunSummary
from segsmith.memory.object_store import store_url
from segsmith.memory.remote_run import working_folder
from segsmith.memory.run_config import check_fixed_settings, record_of
from segsmith.memory.run_folder import RunFolder
from segsmith.types import ClassTally, Evaluation, Image, LabelMap

if TYPE_CHECKING:
    from segsmith.datasets.export import ExportSummary
    from segsmith.datasets.records import Origin, Record
    from segsmith.datasets.run_dataset import RunDataset
    from segsmith.datasets.staging import Sink
    from segsmith.memory.funnel import Funnel
    from segsmith.workflows.estimate import Figures

TEST_SETS = ("real_val", "test_set", "synthetic_val", "real_val_guessed")
"""What a segmenter is tested on, the test that says most first."""


class DatasetImage:
    """One image of a run's dataset. Its pixels are read when they are asked for."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def __repr__(self) -> str:
        return f"DatasetImage({self.id!r}, split={self.split!r}, labels={self.labels!r})"

    @property
    def id(self) -> str:
        """Id in the ledger, the dataset and the report."""
        return self._record.id

    @property
    def split(self) -> str:
        """``train``, ``val`` or ``test``."""
        return self._record.split

    @property
    def labels(self) -> tuple[str, ...]:
        """Classes that the image shows."""
        return self._record.labels or ()

    @property
    def image(self) -> Image:
        """(H, W, 3) uint8 RGB. Raises `SegsmithError` for a file that is missing or has changed."""
        return self._record.load().image

    @property
    def mask(self) -> LabelMap:
        """(H, W) uint8: 0 background, 1.. the classes in the order of `Run.classes`, 255 unknown.

        Raises `SegsmithError` for a file that is missing or has changed.
        """
        label_map = self._record.load().label_map
        assert label_map is not None
        return label_map

    @property
    def lineage(self) -> Origin:
        """Prompt, seed, model and scores."""
        assert self._record.origin is not None
        return self._record.origin


class DatasetImages:
    """The images of a run's dataset in the order they were drawn, real ones first; pixels are read one at a time."""

    def __init__(self, records: tuple[Record, ...]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[DatasetImage]:
        return map(DatasetImage, self._records)


@dataclass(frozen=True)
class Story:
    """Everything that is known of one image, as text."""

    id: str
    class_name: str
    """The class that its prompt was written for."""
    path: Path
    sections: Mapping[str, tuple[str, ...]]
    """Title -> lines: prompt and ancestors, seed, verdict, labels, mask, decisions."""
    models: tuple[str, ...]
    """One line for each model of the run."""

    def __str__(self) -> str:
        lines = [f"{self.id}  {self.class_name}  {self.path}"]
        for title, text in self.sections.items():
            lines += [title, *(f"  {line}" for line in text)]
        return "\n".join([*lines, *self.models])


class Run:
    """A run folder. Properties read the ledger when they are asked for, so they follow a run in progress.

    Args:
        path: folder of an existing run, or its URL in an object store.
        ended: how the session ended that this process ran.
    """

    def __init__(self, path: str | Path, ended: SessionEnded | None = None) -> None:
        self._folder = RunFolder(working_folder(path))
        self._record = record_of(self._folder)
        self.ended = ended
        """How the session ended; None for a run that was opened with `open_run`."""

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    # -- places ---------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The run folder; of a run in an object store, the working folder on this machine."""
        return self._folder.root

    @property
    def place(self) -> str:
        """What to name in a command: the run folder, or the run's URL."""
        remote = self._folder.remote
        return str(self.path) if remote is None else remote.store.url

    @property
    def dataset(self) -> Path:
        """The exported dataset in PASCAL VOC's layout; exists once it was written."""
        return self._folder.voc

    @property
    def segmenter(self) -> Path:
        """``segmenter.safetensors``; exists once the training has finished."""
        return self._folder.segmenter

    @property
    def report(self) -> Path:
        """``report.html``."""
        return self._folder.report

    # -- figures --------------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The settings in force: those that the run was built with, and what `rejudge` changed since."""
        return self._record.config

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the masks' indices from 1."""
        return self.config.classes

    @property
    def is_finished(self) -> bool:
        """Whether the segmenter was trained and evaluated."""
        with self._ledger() as ledger:
            return ledger.finished_at is not None

    @property
    def tallies(self) -> Mapping[str, ClassTally]:
        """Class -> numbers of admitted prompts and of drawn, judged and accepted images."""
        with self._ledger() as ledger:
            found = ledger.tallies()
        return {name: found.get(name, ClassTally()) for name in self.classes}

    @property
    def doubtful_classes(self) -> Mapping[str, float]:
        """Classes that the judge's CLIP hardly tells from the others, with the area under the ROC curve, in [0, 1].

        Their accepted images are hardly better than all that were drawn, and their masks are poor. Classes with few
        images are left out.
        """
        from segsmith.agents.judge.agent import doubtful

        with self._ledger() as ledger:
            return doubtful(ledger.judgement)

    @property
    def missing(self) -> Mapping[str, int]:
        """Class -> accepted images short of what was wanted."""
        wanted, tallies = self.config.wanted, self.tallies
        short = {name: wanted[name] - tally.accepted for name, tally in tallies.items()}
        return {name: n for name, n in short.items() if n > 0}

    @property
    def evaluations(self) -> Mapping[str, Evaluation]:
        """Scores of the segmenter, as far as they were measured.

        Keys: ``synthetic_val`` (held-out generated images), ``real_val`` (held-out real images with masks of
        their own), ``real_val_guessed`` (held-out real images, of which some masks are the labeler's: agreement, not
        quality) and ``test_set`` (the simulator test set, drawn in an unseen sprite style).
        """
        with self._ledger() as ledger:
            return ledger.evaluation

    @property
    def evaluation(self) -> Evaluation | None:
        """The most telling score: on held-out real images, else on the simulator test set, else on held-out generated
        images. None before the run is evaluated.
        """
        found = self.evaluations
        return next((found[name] for name in TEST_SETS if name in found), None)

    @property
    def uncertain_share(self) -> float:
        """Mean share of pixels that are 255 in the masks, in [0, 1]; 0 without masks."""
        with self._ledger() as ledger:
            return ledger.uncertain_share

    @property
    def summary(self) -> RunSummary:
        """Time and memory over all sessions."""
        with self._ledger() as ledger:
            return ledger.summary

    # -- images ---------------------------------------------------------------------------------------

    @property
    def images(self) -> DatasetImages:
        """The images of the dataset: those that are accepted and have a mask. Empty before the first mask."""
        from segsmith.datasets.run_dataset import collect

        with self._ledger() as ledger:
            rejected = ledger.rejected("mask")
            if all(image_id in rejected for image_id, _ in ledger.mask_hashes()):
                return DatasetImages(())
            return DatasetImages(collect(self._folder, ledger, self.config).records)

    def why(self, image_id: str) -> Story:
        """The whole story of one image, drawn or accepted, by its id or the beginning of it.

        Raises `SegsmithError` for an id that no image, or more than one, begins with.
        """
        from segsmith.review.decisions import find_subject
        from segsmith.review.facts import RunFacts

        config = self._record.asked
        with self._ledger() as ledger:
            facts = RunFacts(ledger, config.classes, config.wanted, config.images.size)
            found = find_subject(ledger, "verdict", image_id)
            return Story(
                found,
                facts.target(found),
                self._folder.image(found),
                {title: tuple(lines) for title, lines in facts.life(found).items()},
                tuple(facts.models()),
            )

    # -- files ----------------------------------------------------------------------------------------

    def export(
        self,
        format: str = "voc",
        out: str | Path | None = None,
        *,
        engine: str | EngineOptions = "local",
        address: str | None = None,
        workers: int | None = None,
        unit_timeout_s: float | None = None,
    ) -> Path | str:
        """Write the dataset in a format that other tools read, and return its folder, or its URL.

        Args:
            format: ``voc``, ``voc2012`` (torchvision's folders), ``coco``, ``coco-stuff`` (one annotation per class),
                ``yolo``, ``cvat``, ``webdataset``, ``hf`` (Hugging Face), ``fiftyone`` or ``label-studio``.
            out: folder to write, or a URL such as ``s3://bucket/pets``; None writes ``dataset/FORMAT`` in the run
                folder, or below the run's URL.
            engine: ``local`` writes in this process; with ``ray``, workers on this machine or a cluster write the
                same files, which all machines must see under the same path, or at a URL.
            address, workers, unit_timeout_s: as for `build`.

        An identical export is left alone. Raises `SegsmithError` where nothing can be exported yet, a file of the run
        is missing or has changed, or `out` holds files that no export wrote.
        """
        return self.export_summary(
            format, out, engine_options(engine, address, workers, unit_timeout_s)
        ).folder

    def export_summary(
        self, format: str = "voc", out: str | Path | None = None, engine: EngineOptions | None = None
    ) -> ExportSummary:
        """As `export`, with what was written, and with what happened to workers in the notes."""
        from segsmith.datasets.export import check_splits_work, export_dataset

        remote = self._folder.remote
        if out is None and remote is not None:
            out = f"{remote.store.url}/dataset/{format}"
        target = None if out is None else store_url(out) or local_folder(out)
        notes: list[str] = []
        with self._folder.held_for_reading(), self._ledger() as ledger:
            elsewhere = None
            if engine is not None and engine.name == "ray":
                check_splits_work(format)
                elsewhere = partial(self._write_with_workers, engine, ledger, notes.append)
            summary = export_dataset(self._folder, ledger, self.config, format, target, elsewhere)
        return replace(summary, notes=(*summary.notes, *notes))

    def _write_with_workers(
        self,
        engine: EngineOptions,
        ledger: Ledger,
        warn: Callable[[str], None],
        sink: Sink,
        data: RunDataset,
        form: str,
    ) -> Iterator[Any]:
        """Start workers for an export (`WriteElsewhere`), which end when all images are written."""
        from segsmith.engine.plane import DataPlane
        from segsmith.engine.ray import RayPool
        from segsmith.engine.scheduler import Limits
        from segsmith.engine.work import Setup

        remote = self._folder.remote
        url = "" if remote is None else remote.store.url
        limits = Limits(timeout_s=engine.unit_timeout_s)
        with closing(RayPool(engine, Setup(self.config, self._folder.root.resolve(), {}, url))) as pool:
            plane = DataPlane(pool, self._folder, ledger, self.config, limits=limits, warn=warn)
            return plane.write_records(sink, data, form)

    def push(self, to: str, *, private: bool = True) -> str:
        """Export the dataset for Hugging Face, upload it to the Hub, and return its address.

        Args:
            to: dataset repository, "org/name"; it is created if it is not there.
            private: whether a new repository is private. The card names the licences of the models.

        Call it again to resume an upload that was interrupted. Raises `SegsmithError` where nothing can be exported
        yet, without a token of the Hub, or where the Hub rejects the upload.
        """
        from segsmith.workflows.push import check_repository, push_folder

        check_repository(to)
        folder = self.export_summary("hf", self._folder.dataset / "hf").folder
        return push_folder(Path(folder), to, private=private)

    def write_report(self) -> Path:
        """Write ``report.html`` again, whatever state the run is in."""
        from segsmith.report.report import build_report

        with self._ledger() as ledger:
            path = build_report(self._folder, ledger, self.config)
        if self._folder.remote is not None:
            self._folder.remote.publish(path)
        return path

    def write_gallery(self) -> Path:
        """Write ``gallery.png``: the best images of each class above their masks."""
        from segsmith.report.gallery import write_gallery

        with self._ledger() as ledger:
            return write_gallery(self._folder, ledger, self.config)

    # -- for the commands -----------------------------------------------------------------------------

    def funnel(self, classes: tuple[str, ...] = (), *, prompts: bool = False) -> Funnel:
        """How many prompts and images reached each step, and why the others did not; `prompts` lists the admitted."""
        from segsmith.memory.funnel import read_funnel

        with self._ledger() as ledger:
            return read_funnel(ledger, classes or self.classes, prompts=prompts)

    def exported(self) -> RunDataset:
        """What the run exports, for comparison with a dataset."""
        from segsmith.datasets.run_dataset import collect

        with self._ledger() as ledger:
            return collect(self._folder, ledger, self.config)

    def figures(self) -> Figures | None:
        """What the run took per image; None when it drew too few to tell."""
        from segsmith.workflows.estimate import measure

        with self._ledger() as ledger:
            return measure(ledger, self._folder, self.config)

    def remember_figures(self) -> None:
        """Keep the figures for `estimate`, which uses them for runs with the same models."""
        from segsmith.workflows.estimate import remember

        remember(self.config, self.figures())

    @contextmanager
    def _ledger(self) -> Iterator[Ledger]:
        with closing(Ledger(self._folder.ledger, read_only=True)) as ledger:
            check_fixed_settings(ledger, self.config, self._folder.root)
            yield ledger


def open_run(path: str | Path) -> Run:
    """Open an existing run folder, finished or not.

    Raises `SegsmithError` for a folder that holds no run.
    """
    return Run(path)
