"""The stages of a run whose work is done by workers: plans the units, and folds their results into the ledger.

Whatever order the workers finish in, rows are added in the order of the units, so the ledger is the one that a run in
one process writes. A session that ended early leaves committed units behind. Those that are part of the next
session's plan are folded; of all others, `adopt` turns the images into images that await their row.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segsmith.agents.image import WRITERS, ImageAgent, Task
from segsmith.agents.judge.agent import JudgeAgent
from segsmith.agents.judge.measure import Measured
from segsmith.agents.labeler import CALIBRATION, LabelerAgent, mask_chunks
from segsmith.agents.region_check import centre_of
from segsmith.agents.witnesses.agent import OnAnswers
from segsmith.config import Config
from segsmith.datasets.run_dataset import RunDataset
from segsmith.datasets.staging import Sink
from segsmith.engine.dispatch import RESUME, Batch, Pool, run_units
from segsmith.engine.exports import write_records
from segsmith.engine.models import is_stand_in
from segsmith.engine.object_units import unit_store
from segsmith.engine.scheduler import Limits
from segsmith.engine.store import UnitStore
from segsmith.engine.units import (
    DrawItem,
    DrawUnit,
    ExportUnit,
    HearItem,
    HearUnit,
    LabelItem,
    MaskItem,
    MaskUnit,
    RelabelUnit,
    TeachUnit,
    Unit,
    unit_id,
)
from segsmith.errors import Cancelled, SegsmithError
from segsmith.events import WorkersBusy
from segsmith.files import FORMS, sha256_of
from segsmith.ids import make_id
from segsmith.memory.ledger import (
    ImageRow,
    Ledger,
    MaskRow,
    PromptRow,
    TestimonyRow,
    UndrawnRow,
    WitnessKind,
    read_testimony,
)
from segsmith.memory.real_images import RealImage
from segsmith.memory.run_folder import RunFolder
from segsmith.protocols import OnMaps
from segsmith.segmentation.folds import Folds, Indices, plan_folds
from segsmith.types import MEASURED_TOGETHER

log = logging.getLogger(__name__)

TEACH_S = 24 * 3600.0
"""Time that a worker may take to train the model of a fold, in seconds; on a CPU that takes hours (ours)."""


class DataPlane:
    """Does the stages of one run through a pool of workers."""

    def __init__(
        self,
        pool: Pool,
        run: RunFolder,
        ledger: Ledger,
        config: Config,
        *,
        limits: Limits | None = None,
        stopped: Callable[[], bool] = lambda: False,
        tell: Callable[[WorkersBusy], None] = lambda progress: None,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`stopped` returns True once the user has asked the run to stop. For `tell` and `warn` see `run_units`."""
        self._pool = pool
        self._run = run
        self._ledger = ledger
        self._config = config
        self._limits = limits
        self._stopped = stopped
        self._tell = tell
        self._warn = warn
        self.unfinished: set[str] = set()
        """Units of which the next session uses what is committed: it waits for others that are not done yet."""
        self._store = unit_store(run)

    # -- drawing ----------------------------------------------------------------------------------

    def draw_round(
        self,
        agent: ImageAgent,
        judge: JudgeAgent,
        prompts: Iterable[PromptRow],
        round_: int,
        *,
        limit: int | None = None,
        on_batch: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Draw and measure all that a round lacks, as `ImageAgent.draw` and `JudgeAgent.measure` would.

        `on_batch` is called with (images done, images in all). Prompts whose images could not be drawn are left out
        for the rest of the session. Raises what `run_units` raises.
        """
        there, todo = agent.tasks_of(prompts, limit)
        tasks = {task.id: task for task in todo}
        units = self._draw_units(todo, there, round_, agent.batch_size)
        adopt(self._run, self._ledger, keep={unit.id for unit in units}, images_only=True)
        total, done = sum(len(unit.items) for unit in units), 0

        def fold(unit: Unit) -> None:
            nonlocal done
            result = self._store.result(unit.id)
            self._fold_images(unit.id, result["images"], tasks, round_, agent, judge)
            agent.fit_batch(result["batch_size"])
            self._store.empty(unit.id)
            done += len(unit.items)
            on_batch(done, total)

        failed = self._run_units("images", units, fold)
        agent.left_out |= {tasks[image_id].prompt.id for image_id in failed}

    def _draw_units(
        self, tasks: Sequence[Task], there: set[str], round_: int, batch_size: int
    ) -> list[DrawUnit]:
        """The shards of a round with something left to do. Their ranges do not depend on what is done already."""
        config = self._config
        shape = [config.classes, config.images.format, config.images.quality, config.judge.clip]
        unmeasured = {row.id: row.sha256 for row in self._ledger.unmeasured()}
        pending = self._ledger.pending_images()
        units = []
        for start in range(0, len(tasks), MEASURED_TOGETHER):
            shard = tasks[start : start + MEASURED_TOGETHER]
            items = tuple(
                DrawItem(
                    task.id,
                    task.request.prompt,
                    task.request.seed,
                    unmeasured.get(task.id) or self._recovered(task.id, pending),
                )
                for task in shard
                if task.id not in there or task.id in unmeasured
            )
            if items:
                name = unit_id("draw", round_, shape, images=[task.id for task in shard])
                units.append(DrawUnit(name, items, batch_size))
        return units

    def _recovered(self, image_id: str, pending: Mapping[str, str]) -> str:
        """The hash of a file that an earlier session wrote, and whose row it did not commit; "" for none."""
        if image_id not in pending:
            return ""
        path = self._run.image(image_id)
        return pending[image_id] if path.exists() and sha256_of(path) == pending[image_id] else ""

    def _fold_images(
        self,
        unit: str,
        entries: Mapping[str, Mapping[str, Any]],
        tasks: Mapping[str, Task],
        round_: int,
        agent: ImageAgent,
        judge: JudgeAgent,
    ) -> None:
        """Move a unit's files into place and write its rows. Harmless where an earlier session did a part of it."""
        drawn = {i: entry for i, entry in entries.items() if "sha256" in entry}
        _place_images(self._run, self._ledger, self._store, unit, {i: e["sha256"] for i, e in drawn.items()})
        rows = [agent.row_of(tasks[i], round_, entry["sha256"]) for i, entry in drawn.items()]
        with self._ledger.transaction():
            self._ledger.add_undrawn(
                UndrawnRow(i, tasks[i].prompt.id, round_, entry["reason"], entry["detail"])
                for i, entry in entries.items()
                if "reason" in entry
            )
            self._ledger.add_images(rows)
            measured = self._ledger.measured([row.id for row in rows])
            new = [row for row in rows if row.id not in measured]
            if new:
                judge.add(new, [_measured(drawn[row.id]["measured"]) for row in new])

    # -- witnesses --------------------------------------------------------------------------------

    def hear(self, kind: WitnessKind, witness: str, rows: Sequence[ImageRow], on_answers: OnAnswers) -> None:
        """Ask a witness about images, for `WitnessAgent.hear` (`AskElsewhere`). Raises what `run_units` raises.

        Images whose units were set aside are asked about again the next time.
        """
        units = self._hear_units(kind, witness, rows)
        # What others said is kept: their units are planned when their turn comes.
        adopt(self._run, self._ledger, keep={unit.id for unit in units}, images_only=True)

        def fold(unit: Unit) -> None:
            said = self._store.result(unit.id)["testimonies"]
            answers = [
                TestimonyRow(image_id, kind, witness, read_testimony(*columns))
                for image_id, columns in said.items()
                if columns is not None
            ]
            on_answers(len(said), answers)
            self._store.empty(unit.id)

        self._run_units("testimonies", units, fold)

    def _hear_units(self, kind: WitnessKind, witness: str, rows: Sequence[ImageRow]) -> list[HearUnit]:
        """Shards of the accepted images, without those that are not in `rows`.

        A shard does not depend on what was answered in others, so what an ended session committed is used.
        """
        config = self._config
        shape = [config.classes, config.seed, config.images.size, config.witnesses.model_dump(mode="json")]
        # All accepted images, once for each witness: an image's shard is its place among them.
        shards = {image_id: n // MEASURED_TOGETHER for n, image_id in enumerate(self._ledger.accepted_ids())}
        knows = is_stand_in(kind, config)
        units = []
        for _, shard in groupby(rows, key=lambda row: shards[row.id]):
            items = tuple(
                HearItem(
                    row.id, row.sha256, self._ledger.prompt(row.prompt_id).text if knows else "", row.seed
                )
                for row in shard
            )
            name = unit_id(kind, shape, witness, images=[item.id for item in items])
            units.append(HearUnit(name, items, witness, kind))
        return units

    # -- labels -----------------------------------------------------------------------------------

    def out_of_fold(
        self,
        images: Sequence[ImageRow | RealImage],
        targets: NDArray[np.float32],
        groups: Sequence[str],
        on_maps: OnMaps,
    ) -> NDArray[np.float32]:
        """What `PatchClassifier.out_of_fold` returns and passes on, for `LabelerAgent.relabel`.

        The models of the folds are trained by one worker each, and applied by all. Results stay in the store until
        all are there, so that a later session does no unit again. Raises what `run_units` raises, and `SegsmithError`
        where a unit was set aside, because then there are no labels for some images.
        """
        if not images:
            return np.zeros_like(targets)
        config, folder = self._config.labeler, self._run.relabelling
        plan = plan_folds(targets, groups, config.folds, config.batch_size, self._config.seed)
        items = [_label_item(image) for image in images]
        teaching = self._teach_units(plan, items, targets)
        places = {
            unit.id: (unit, batches)
            for fold, taught in enumerate(teaching)
            for unit, batches in _relabel_units(plan.held_out[fold], items, taught)
        }
        units = [unit for unit, _ in places.values()]
        self.unfinished = {*(unit.id for unit in teaching), *places}
        adopt(self._run, self._ledger, keep=self.unfinished)
        folder.mkdir(exist_ok=True)

        def keep_weights(unit: Unit) -> None:
            self._store.take(unit.id, unit.id, folder / unit.id)

        probabilities = np.zeros_like(targets)

        def fold_scores(unit: Unit) -> None:
            _, batches = places[unit.id]
            found = self._store.result(unit.id)["probabilities"]
            probabilities[np.concatenate(batches)] = np.array(found, np.float32)
            for number, where in enumerate(batches):
                maps = np.load(io.BytesIO(self._store.read(unit.id, f"{number}.npy")), allow_pickle=False)
                on_maps(where, maps.astype(np.float32))

        patient = replace(self._limits or Limits(), timeout_s=None, first_timeout_s=TEACH_S)
        todo = [unit for unit in teaching if not self._run.weights(unit.id).exists()]
        self._run_units("models", todo, keep_weights, limits=patient, needed=True)
        self._run_units("labels", units, fold_scores, needed=True)
        self._run.drop_weights()
        self.unfinished = set()
        return probabilities

    def _teach_units(
        self, plan: Folds, items: Sequence[LabelItem], targets: NDArray[np.float32]
    ) -> list[TeachUnit]:
        config, order = self._config, plan.order
        taught = tuple(items[i] for i in order)
        batches = tuple(len(batch) for batch in plan.taught)
        model = [config.classes, config.seed, config.labeler.model_dump(mode="json"), config.judge.clip]
        labels = tuple(tuple(row) for row in targets[order].tolist())
        features = make_id("f", model, taught, batches)
        units = []
        for fold in range(len(plan.held_out)):
            kept = tuple(plan.kept(fold).tolist())
            name = unit_id("teach", features, labels, kept, fold, images=())
            units.append(TeachUnit(name, taught, batches, labels, kept, fold, features))
        return units

    # -- masks ------------------------------------------------------------------------------------

    def make_masks(
        self,
        labeler: LabelerAgent,
        *,
        on_batch: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Make the masks that `LabelerAgent.segment` would make. Raises what `run_units` raises.

        `on_batch` is called with (masks done, masks in all).
        """
        todo = labeler.prepare_masks()
        if not todo:
            return
        if self._run.remote is not None:
            self._run.remote.share(self._run.patch_scores, self._ledger.patch_scores_sha256)
        centre = self._region_centre(labeler)
        units = self._mask_units(labeler, todo, "masks", centre)
        adopt(self._run, self._ledger, keep={unit.id for unit in units})
        done = 0

        def fold(unit: Unit) -> None:
            nonlocal done
            rows = self._store.result(unit.id)["masks"]
            for image_id in rows:
                self._store.take(unit.id, f"{image_id}.png", self._run.new_mask(image_id))
            self._ledger.add_masks(MaskRow(**row) for row in rows.values())
            self._store.empty(unit.id)
            done += len(rows)
            on_batch(done, len(todo))

        self._run_units("masks", units, fold)

    def _mask_units(
        self,
        labeler: LabelerAgent,
        rows: Sequence[ImageRow],
        kind: Literal["masks", "regions"],
        centre: Sequence[float] = (),
    ) -> list[MaskUnit]:
        doubts = labeler.doubted([row.id for row in rows])
        labels, scores = self._ledger.label_sets("relabel"), self._ledger.patch_scores_sha256
        shape = [
            self._config.classes,
            self._config.seed,
            self._config.labeler.model_dump(mode="json"),
            scores,
        ]
        units = []
        for chunk in mask_chunks(rows):
            items = tuple(
                MaskItem(row.id, row.sha256, labels[row.id], doubts.get(row.id, ())) for row in chunk
            )
            name = unit_id(kind, shape, list(centre), items, images=[row.id for row in chunk])
            units.append(MaskUnit(name, items, scores, tuple(centre), kind))
        return units

    def _region_centre(self, labeler: LabelerAgent) -> Sequence[float]:
        """The centre of the region check, measured on the run's first images once a run; () for no check."""
        if not self._config.labeler.region_doubt:
            return ()
        if self._ledger.region_centre is None:
            units = self._mask_units(labeler, self._ledger.accepted(CALIBRATION), "regions")
            cosines: list[NDArray[np.float64]] = []

            def fold(unit: Unit) -> None:
                found = self._store.result(unit.id)["regions"]
                cosines.extend(np.asarray(rows, np.float64) for rows in found.values() if rows)

            self._run_units("regions", units, fold, needed=True)
            self._ledger.region_centre = centre_of(cosines)
        return self._ledger.region_centre or ()

    # -- exports ----------------------------------------------------------------------------------

    def write_records(self, sink: Sink, data: RunDataset, form: str) -> Iterator[Any]:
        """Write the files of a dataset's images, for `export_dataset` (`WriteElsewhere`); see `exports`."""

        def run_batch(units: list[ExportUnit], store: UnitStore, fold: Callable[[Unit], None]) -> Batch:
            return run_units(
                units,
                self._pool,
                store,
                fold,
                tell=self._tell,
                warn=self._warn,
                stopped=self._stopped,
                limits=self._limits,
            )

        return write_records(self._run, sink, data, form, run_batch)

    # -- all --------------------------------------------------------------------------------------

    def _run_units(
        self,
        what: str,
        units: Sequence[Unit],
        fold: Callable[[Unit], None],
        *,
        limits: Limits | None = None,
        needed: bool = False,
    ) -> list[str]:
        """Do units; returns the ids of the images whose units were set aside.

        With `needed`, such a unit is an error, and the others need not be done again.
        """
        self._store.check()
        try:
            batch = run_units(
                units,
                self._pool,
                self._store,
                fold,
                tell=self._tell,
                warn=self._warn,
                stopped=self._stopped,
                limits=limits or self._limits,
            )
        except (Cancelled, SegsmithError):  # this session ends, and the next one resumes with these units
            self.unfinished |= {unit.id for unit in units}
            raise
        reasons = {item.unit: item.reason for item in batch.set_aside}
        if needed and reasons:
            raise SegsmithError(
                f"{len(reasons)} of {len(units)} units of {what} could not be done: "
                f"{'; '.join(sorted(set(reasons.values()))).rstrip('.')}.",
                RESUME,
            )
        self._store.forget([unit.id for unit in units])
        failed = [item.id for unit in units if unit.id in reasons for item in unit.items]
        if failed:
            why = "; ".join(sorted(set(reasons.values())))
            self._ledger.log(
                "set_aside_units", what=what, images=len(failed), reasons=sorted(set(reasons.values()))
            )
            counts = self._ledger.set_aside
            self._ledger.set_aside = {**counts, what: counts.get(what, 0) + len(failed)}
            self._warn(
                f"{len(failed)} {what} could not be made and are tried again when the command is rerun: {why}"
            )
        if batch.left_out:
            self._ledger.log("left_out_workers", workers=list(batch.left_out))
        return failed


def adopt(run: RunFolder, ledger: Ledger, keep: Collection[str] = (), *, images_only: bool = False) -> None:
    """Use what earlier sessions left in the store, except for the units in `keep`, and remove it.

    Images of committed units are moved into place with their hashes, so that whoever draws them next, in this process
    or by a worker, finds them drawn. Labels and masks are made again, unless `images_only` leaves them for a later
    call.
    """
    if not keep and not images_only:
        run.drop_weights()
    store = unit_store(run)
    for unit in sorted(store.committed()):
        if unit in keep:
            continue
        result = store.result(unit)
        if images_only and "images" not in result:
            continue
        images = {i: e["sha256"] for i, e in result.get("images", {}).items() if "sha256" in e}
        there = ledger.drawn_among(list(images))
        _place_images(run, ledger, store, unit, {i: sha for i, sha in images.items() if i not in there})
        store.forget([unit])


def _place_images(
    run: RunFolder, ledger: Ledger, store: UnitStore, unit: str, hashes: Mapping[str, str]
) -> None:
    """Move images of a committed unit into the run; their hashes are committed first, as `ImageAgent` does."""
    ledger.add_pending_images(hashes)

    def place(file: str) -> None:
        name = Path(file)
        target = run.image(name.stem, fetch=False)
        if target.exists() and sha256_of(target) != hashes[name.stem]:
            moved = run.set_aside(target)
            log.warning("%s is not a file that this run drew; moved to %s", target, moved)
        store.take(unit, file, run.new_image(name.stem, FORMS[name.suffix]))

    with ThreadPoolExecutor(WRITERS, "segsmith-place") as pool:
        list(pool.map(place, [file for file in store.files(unit) if Path(file).stem in hashes]))


def _label_item(image: ImageRow | RealImage) -> LabelItem:
    return LabelItem(image.id, image.sha256, image.file if isinstance(image, RealImage) else "")


def _relabel_units(
    batches: Sequence[Indices], items: Sequence[LabelItem], taught: TeachUnit
) -> Iterator[tuple[RelabelUnit, list[Indices]]]:
    """Units of successive batches of one fold, each with its batches; `items` are those of all images."""
    for together in _up_to(MEASURED_TOGETHER, batches):
        chosen = tuple(items[i] for batch in together for i in batch)
        sizes = tuple(len(batch) for batch in together)
        name = unit_id("relabel", taught.id, sizes, images=[item.id for item in chosen])
        yield RelabelUnit(name, chosen, sizes, taught.id), together


def _up_to(most: int, batches: Sequence[Indices]) -> Iterator[list[Indices]]:
    """Successive batches, as many as have at most `most` images together, but at least one."""
    together, count = list[Indices](), 0
    for batch in batches:
        if together and count + len(batch) > most:
            yield together
            together, count = [], 0
        together.append(batch)
        count += len(batch)
    if together:
        yield together


def _measured(entry: Mapping[str, Any]) -> Measured:
    return Measured(
        tuple(entry["cosines"]),
        tuple(entry["text_shares"]),
        entry["sharpness"],
        entry["blank"],
        np.frombuffer(bytes.fromhex(entry["signature"]), "<f4"),
    )
