"""What an export costs compared with a plain copy of the same bytes.

`python -m benchmarks.exports --images 2000` makes a run, writes and reads it in every format, and prints a
table. As in a build, the dataset of the run itself comes first: it finds the objects of the masks and keeps them for
the exports that follow, and has a line of its own. What formats import is imported before. The copy is of the
export's own files, in the same minute, with `shutil.copytree` and the sync that an export ends with, too: the median
of three, since a sync waits for whatever else the machine is writing. For WebDataset the "copy" writes tars of the
same files with `tarfile`. Processor time is given beside the seconds, because it depends less on what else the
machine does.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from segsmith.datasets.detect import EXPORTS
from segsmith.datasets.export import export_dataset
from segsmith.datasets.run_dataset import collect
from segsmith.datasets.validate import validate
from segsmith.testing import made_up_run

COPIES = 3

Value = TypeVar("Value")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--formats", nargs="+", choices=EXPORTS, default=EXPORTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="segsmith-exports-") as name:
        folder = Path(name)
        throughput(folder, given.images, given.size, given.formats)


def throughput(folder: Path, images: int, size: int, formats: Sequence[str]) -> None:
    small = made_up_run(folder / "warm-up", 4, size)
    for form in EXPORTS:
        export_dataset(*small, form)
    small[1].close()
    run, ledger, config = made_up_run(folder / "run", images, size)
    data = collect(run, ledger, config)
    own, _ = timed(partial(export_dataset, run, ledger, config, "voc", folder / "first"))
    print(f"the run's own dataset, with the search for objects: {1000 * own.work / images:.2f} ms an image")
    print(
        f"{images} images of {size} px; work: ms of processor time an image\n\n"
        "format      files    MB  export s   copy s  ratio  export work  copy work  ratio  validate s"
    )
    for form in formats:
        exported, _ = timed(partial(export_dataset, run, ledger, config, form))
        out = run.dataset / form
        copy = packed if form == "webdataset" else copied
        copies = [timed(partial(copy, out, folder / f"copy-{form}-{n}"))[0] for n in range(COPIES)]
        plain = Took(*(statistics.median(values) for values in zip(*copies, strict=True)))
        files = [p for p in out.rglob("*") if p.is_file()]
        megabytes = sum(p.stat().st_size for p in files) / 1e6
        checked, found = timed(partial(validate, out, data))
        alarms = len(found.problems)
        print(
            f"{form:10} {len(files):6} {megabytes:5.0f} {exported.seconds:9.1f} {plain.seconds:8.2f} "
            f"{exported.seconds / plain.seconds:6.1f} {1000 * exported.work / images:12.2f} "
            f"{1000 * plain.work / images:10.2f} {exported.work / plain.work:6.1f} {checked.seconds:11.1f}"
            + (f"  {alarms} false alarms" if alarms else "")
        )
    ledger.close()


def copied(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    os.sync()


def packed(source: Path, target: Path) -> None:
    """Tars of the same members, written from memory one member at a time, as an export must write them."""
    target.mkdir()
    for path in sorted(source.glob("*.tar")):
        with tarfile.open(path) as read, tarfile.open(target / path.name, "w") as written:
            for member in read:
                written.addfile(member, read.extractfile(member))
    os.sync()


class Took(NamedTuple):
    seconds: float
    """On the clock."""
    work: float
    """Processor time in seconds."""


def timed(work: Callable[[], Value]) -> tuple[Took, Value]:
    # An export has a process of its own: it does not search what earlier measurements left for garbage.
    gc.collect()
    gc.freeze()
    start, since = time.perf_counter(), time.process_time()
    made = work()
    return Took(time.perf_counter() - start, time.process_time() - since), made


if __name__ == "__main__":
    main()
