"""What the report costs: size, build time, memory and time to first paint, at 1,000 and at 10,000 images.

`python -m benchmarks.report` fills run folders with images of the simulator (a few hundred scenes, repeated), builds
each page in a process of its own, and opens it in chromium, five times. Needs chromium and chromedriver, or
`--no-browser`. `--no-map` leaves out the prompt memory, which takes long to fill.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from segsmith.memory.ledger import ImageRow, LabelRow, Ledger, MaskRow, PromptRow, VerdictRow
from segsmith.memory.run_config import record_of
from segsmith.memory.run_folder import RunFolder
from segsmith.report.report import build_report
from segsmith.report.run_data import read_run

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "report"))

from make_run import make_run, remember

OPENINGS = 5
COLUMNS = {
    "images": "images", "MB": "size, MB", "build_s": "build, s of processor time",
    "read_s": "of it reading the ledger, s", "peak_MB": "peak memory, MB", "imports_MB": "of it before, MB",
    "first_paint": "first paint, ms", "loaded": "whole page, ms", "last_page": "last page, ms",
}  # fmt: skip


def fill(root: Path, wanted: int, with_map: bool) -> None:
    """A run of `wanted` images: one of some hundred scenes, its prompts and images repeated under new ids."""
    run, ledger, _ = make_run(root, simulated=True, prompts_per_class=25)
    prompts = ledger.prompts("admitted")
    images, verdicts, masks = ledger.images(), ledger.verdicts(), ledger.masks()
    labels = {source: ledger.labels(source) for source in ("prompt", "clip", "relabel")}
    extra: dict[str, list[Any]] = {name: [] for name in ("prompts", "images", "verdicts", "masks", "labels")}
    for copy in range(1, -(-wanted // len(images))):
        room = wanted - copy * len(images)
        extra["prompts"] += [
            PromptRow(f"{p.id}-{copy}", p.class_name, f"{p.text}, take {copy}", p.classes, p.attributes,
                      p.parent_id, p.round, p.status, p.critique)
            for p in prompts
        ]  # fmt: skip
        for image in images[:room]:
            new = f"{image.id}-{copy}"
            os.link(run.image(image.id), run.new_image(new, "png"))
            extra["images"].append(
                ImageRow(
                    new, f"{image.prompt_id}-{copy}", image.seed, image.backend, image.round, image.sha256
                )
            )
            old = verdicts[image.id]
            extra["verdicts"].append(VerdictRow(new, old.accepted, old.reason, old.scores))
            if image.id in masks:
                os.link(run.mask(image.id), run.new_mask(new))
                mask = masks[image.id]
                extra["masks"].append(MaskRow(new, mask.pixels, mask.ignore_share, mask.sources))
            extra["labels"] += [
                LabelRow(new, row.source, row.classes, row.scores)
                for rows in labels.values()
                if (row := rows.get(image.id))
            ]
    for name, rows in extra.items():
        getattr(ledger, f"add_{name}")(rows)
    if with_map:
        remember(run, ledger)
    ledger.close()


def peak_mb() -> float:
    """Largest resident size of this process; not ru_maxrss, which on Linux begins with that of the parent."""
    about = re.search(r"^VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert about is not None
    return int(about[1]) / 1e3


def build(root: Path) -> dict[str, float]:
    """Build a page in a new process, so that the peak of memory is its own."""
    run = RunFolder(root)
    config = record_of(run).config
    ledger = Ledger(run.ledger)
    before = peak_mb()
    start = time.process_time()
    read_run(run, ledger)
    middle = time.process_time()
    page = build_report(run, ledger, config)
    built = time.process_time() - middle
    ledger.close()
    return {
        "MB": page.stat().st_size / 1e6,
        "build_s": built,
        "read_s": middle - start,
        "peak_MB": peak_mb(),
        "imports_MB": before,
    }


def open_page(page: Path) -> dict[str, float]:
    """Milliseconds from the start of navigation, and from asking for the last page to its first image."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.set_window_size(1280, 900)
        driver.get(page.as_uri())
        deadline = time.monotonic() + 30
        while not driver.execute_script("return document.querySelectorAll('#grid canvas.photo').length"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{page} painted no image")
            time.sleep(0.02)
        return driver.execute_async_script("""
            const done = arguments[0];
            const paint = performance.getEntriesByName('first-contentful-paint')[0];
            const [nav] = performance.getEntriesByType('navigation');
            const start = performance.now();
            document.querySelector('[data-turn=last]').click();
            const wait = () => document.querySelector('#grid canvas.photo')
                ? done({first_paint: paint.startTime, loaded: nav.domContentLoadedEventEnd,
                        last_page: performance.now() - start})
                : requestAnimationFrame(wait);
            wait();
        """)
    finally:
        driver.quit()


def measure(wanted: int, root: Path, with_map: bool, browser: bool) -> dict[str, float]:
    fill(root, wanted, with_map)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        built = process.submit(build, root).result()
    opened = [open_page(RunFolder(root).report) for _ in range(OPENINGS if browser else 0)]
    painted = {key: statistics.median(one[key] for one in opened) for key in (opened[0] if opened else ())}
    return {"images": wanted, **built, **painted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--no-browser", action="store_true")
    parser.add_argument("--no-map", action="store_true")
    arguments = parser.parse_args()
    print(f"| {' | '.join(COLUMNS.values())} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    for wanted in arguments.images:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(wanted, Path(folder) / "run", not arguments.no_map, not arguments.no_browser)
            # By name: WebDriver sorts the keys of what a script returns.
            cells = (
                "-" if key not in row else f"{row[key]:,}" if key == "images" else f"{row[key]:.1f}"
                for key in COLUMNS
            )
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
