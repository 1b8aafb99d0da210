"""What an export costs compared with a plain copy of the same bytes.

`python -m benchmarks.exports --images 2000` makes a run, writes and reads it in every format, and prints a
table. The copy is of the export's own files, in the same minute, with `shutil.copytree` and the sync that an
export ends with, too: the median of three, since a sync waits for whatever else the machine is writing. For
WebDataset the "copy" writes tars of the same files with `tarfile`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

from segsmith.datasets.detect import EXPORTS
from segsmith.datasets.export import export_dataset
from segsmith.datasets.run_dataset import collect
from segsmith.datasets.validate import validate
from segsmith.testing import made_up_run

COPIES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=128)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="segsmith-exports-") as name:
        folder = Path(name)
        throughput(folder, given.images, given.size)


def throughput(folder: Path, images: int, size: int) -> None:
    run, ledger, config = made_up_run(folder / "run", images, size)
    data = collect(run, ledger, config)
    print(
        f"{images} images of {size} px\n\nformat      files    MB  export s   copy s  ratio  img/s  validate s"
    )
    for form in EXPORTS:
        export_seconds = timed(lambda form=form: export_dataset(run, ledger, config, form))
        out = run.dataset / form
        copy = packed if form == "webdataset" else copied
        copy_seconds = statistics.median(
            timed(partial(copy, out, folder / f"copy-{form}-{n}")) for n in range(COPIES)
        )
        files = [p for p in out.rglob("*") if p.is_file()]
        megabytes = sum(p.stat().st_size for p in files) / 1e6
        found = []
        check_seconds = timed(lambda out=out, found=found: found.append(validate(out, data)))
        alarms = len(found[0].problems)
        print(
            f"{form:10} {len(files):6} {megabytes:5.0f} {export_seconds:9.1f} {copy_seconds:8.2f} "
            f"{export_seconds / copy_seconds:6.1f} {images / export_seconds:6.0f} {check_seconds:9.1f}"
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


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
