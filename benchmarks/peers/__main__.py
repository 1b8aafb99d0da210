"""segsmith beside other tools, with the same models from disk, on the same machine, in one run.

    python -m benchmarks.peers --setup                # environments of the peers under runs/peers; about 8 GB
    python -m benchmarks.peers                        # all parts, results to runs/peers/peers.json
    python -m benchmarks.peers --only draw --images 48 --repeats 3
    python -m benchmarks.peers --table                # print the tables again from results already there

- `draw`: class names to images on disk: images per second, CPU seconds and peak memory of segsmith, of datadreamer
  0.2.3's own command, and of a bare diffusers loop. The image model has SDXL's architecture, small, with random
  weights; the programs alternate.
- `kill`: each is killed when half of the images are on disk, and its command is given again: images drawn in all.
- `tester`: datadreamer's CLIP tester against segsmith's judge, on the simulator's images of a finished run
  (``--run``), both with the mini CLIP: precision and recall of what passes.
- `prompts`: distilabel 1.5.3, a plain LangChain loop and the prompt agent ask the same local LLM: distinct prompts
  for each reply, and near-duplicates.

A peer that is not installed is skipped, and the reason is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.model import save_in_cache

ROOT = Path("runs/peers")
HERE = Path(__file__).parent
CLASSES = ("cat", "dog", "bus", "bicycle")
REQUIREMENTS = {
    "datadreamer": ("torch", "torchvision", "datadreamer==0.2.3"),
    "distilabel": ("distilabel[openai]==1.5.3", "requests"),  # which it imports, and does not ask for
}
IMAGES = {".png", ".jpg"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setup", action="store_true", help="create the peers' environments, then stop")
    parser.add_argument("--table", action="store_true", help="print the tables from results already there")
    parser.add_argument("--results", type=Path, default=ROOT / "peers.json", help="file of the figures")
    parser.add_argument("--only", nargs="+", choices=("draw", "kill", "tester", "prompts"))
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="finished run of the simulator")
    given = parser.parse_args()
    if given.setup:
        return set_up()
    parts: dict[str, Callable[[], Any]] = {
        "draw": lambda: drawing(given.images, given.batch, given.repeats),
        "kill": lambda: killing(given.images, given.batch),
        "tester": lambda: testing(given.run),
        "prompts": prompts,
    }
    path = given.results
    ROOT.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in () if given.table else given.only or parts:
        results[name] = parts[name]()
        path.write_text(json.dumps(results, indent=1))
    print(tables(results))


def set_up() -> None:
    """Create each peer's environment; one that cannot be installed is reported and left out."""
    for name, packages in REQUIREMENTS.items():
        folder = ROOT / f"venv-{name}"
        if not (folder / "bin/python").exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        done = subprocess.run(
            [folder / "bin/python", "-m", "pip", "install", "--quiet", *packages], check=False
        )
        print(f"{name}: {'ready' if done.returncode == 0 else 'could not be installed'}", flush=True)


def python_of(peer: str) -> Path | None:
    """The interpreter of a peer's environment; None, with a line saying so, if the peer is not installed."""
    python = (ROOT / f"venv-{peer}/bin/python").absolute()
    if python.exists():
        found = subprocess.run([python, "-c", f"import {peer}"], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return python
        print(f"{peer}: skipped, it cannot be imported: {found.stderr.splitlines()[-1]}", flush=True)
    else:
        print(f"{peer}: skipped, it is not installed; run `python -m benchmarks.peers --setup`", flush=True)
    return None


def tables(results: Mapping[str, Any]) -> str:
    """Markdown of the parts that were measured."""
    lines = []
    if found := results.get("draw"):
        lines += [
            f"{found['images']} images in batches of {found['batch']}, median of {found['repeats']}. The ratios are "
            "segsmith's rate over the program's.", "",
            "| program | images/s, start to end | ratio | images/s while drawing | ratio | CPU s | peak memory, MB |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        for name, row in found["programs"].items():
            lines.append(
                f"| {name} | {row['images_per_s']:.2f} | {row['segsmith_over_it_images_per_s']:.2f} "
                f"| {row['steady_images_per_s']:.2f} | {row['segsmith_over_it_steady_images_per_s']:.2f} "
                f"| {row['cpu_s']:.0f} | {row['peak_mb']:.0f} |"
            )
    if found := results.get("kill"):
        lines += [
            "",
            "| program | images on disk at SIGKILL | images drawn in all | wanted |",
            "| --- | --- | --- | --- |",
        ]
        for name, row in found.items():
            lines.append(
                f"| {name} | {row['on_disk_at_the_kill']} | {row['files_written_in_all']} | {row['wanted']} |"
            )
    if found := results.get("tester"):
        lines += ["", f"{found['good']} of {found['images']} images are good.", ""]
        lines += ["| what decides | precision | recall | passing |", "| --- | --- | --- | --- |"]
        for name, row in found["programs"].items():
            lines.append(f"| {name} | {row['precision']:.3f} | {row['recall']:.3f} | {row['passing']:.3f} |")
    if found := results.get("prompts"):
        lines += [
            "", "| program | questions to the LLM | prompts that name their class | distinct ones per question "
            f"| with a near-duplicate (cosine > {found['near']}) | cosine to the nearest |",
            "| --- | --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        for name, row in found["programs"].items():
            lines.append(
                f"| {name} | {row['calls']} | {row['naming_their_class']} | {row['distinct_per_call']:.2f} "
                f"| {row['near_duplicates']:.2f} | {row['nearest_cosine']:.3f} |"
            )
    return "\n".join(lines)


# -- drawing ---------------------------------------------------------------------------------------


def commands(images: int, batch: int) -> dict[str, list[str]]:
    """Program -> its command; ``{out}`` stands for the output folder."""
    pipeline = str(save_in_cache((ROOT / "hub").absolute()))
    more = ["{out}", str(images), str(batch), *CLASSES]
    made = {
        "segsmith": [sys.executable, "-m", "benchmarks.peers.draw_segsmith", pipeline, *more],
        "bare loop": [sys.executable, "-m", "benchmarks.peers.draw_bare", pipeline, *more],
    }
    if python := python_of("datadreamer"):
        made["datadreamer"] = [str(python), str(HERE / "draw_datadreamer.py"), *more]
        if batch != 1:
            made["datadreamer, its default batch of 1"] = [*made["datadreamer"]]
            made["datadreamer, its default batch of 1"][4] = "1"
    return made


def started(command: list[str], out: Path) -> subprocess.Popen[str]:
    """A program with one torch thread per core, the hub's cache of this benchmark, and no network."""
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str((ROOT / "hub").absolute()),
        "HF_HUB_OFFLINE": "1",
    }
    log = out.with_suffix(".log").open("w")
    return subprocess.Popen(
        [part.replace("{out}", str(out)) for part in command],
        stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
    )  # fmt: skip


def drawing(images: int, batch: int, repeats: int) -> dict[str, Any]:
    """Medians over `repeats`; the programs alternate, so that a busy moment hits all of them."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in commands(images, batch)}
    versions: dict[str, Any] = {}
    for repeat in range(repeats):
        for name, command in commands(images, batch).items():
            out = ROOT / "draw" / f"{name.replace(' ', '_')}_{repeat}"
            shutil.rmtree(out, ignore_errors=True)
            out.parent.mkdir(exist_ok=True)
            before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            with started(command, out) as process:
                printed = process.stdout.read() if process.stdout else ""
            if process.returncode:
                raise SystemExit(f"{name} failed:\n{out.with_suffix('.log').read_text()[-2000:]}")
            after, said = resource.getrusage(resource.RUSAGE_CHILDREN), json.loads(printed.splitlines()[-1])
            times = sorted(path.stat().st_mtime for path in drawn_in(out))
            assert len(times) == images, f"{name} drew {len(times)} images instead of {images}"
            versions[name] = said["versions"]
            rows[name].append(
                {
                    "images_per_s": images / (time.monotonic() - begun),
                    # From the end of the first batch on, without imports and loading.
                    "steady_images_per_s": (images - batch) / (times[-1] - times[min(batch, images) - 1]),
                    "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
                    "peak_mb": said["peak_mb"],
                }
            )
    medians = {
        name: {key: statistics.median(row[key] for row in some) for key in some[0]}
        for name, some in rows.items()
    }
    for name, row in medians.items():
        for key in ("images_per_s", "steady_images_per_s"):
            pairs = zip(rows["segsmith"], rows[name], strict=True)
            row[f"segsmith_over_it_{key}"] = statistics.median(ours[key] / its[key] for ours, its in pairs)
    return {"images": images, "batch": batch, "repeats": repeats, "programs": medians, "versions": versions}


def drawn_in(out: Path) -> list[Path]:
    """Image files of a program's output, wherever it puts them."""
    folder = out / "images" if (out / "images").is_dir() else out
    return [path for path in folder.rglob("*") if path.suffix in IMAGES]


def killing(images: int, batch: int) -> dict[str, Any]:
    """SIGKILL when half of the images are there, then the same command again: what was drawn in all."""
    figures = {}
    for name, command in commands(images, batch).items():
        if name == "bare loop" or "default" in name:
            continue  # the bare loop has no way to continue; a batch of 1 makes no difference here
        out = ROOT / "draw" / f"{name}_killed"
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(exist_ok=True)
        seen: set[str] = set()
        begun = time.monotonic()
        with started(command, out) as process:
            while process.poll() is None and len(seen) < images // 2:
                seen |= written(out)
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        seen |= written(out)
        first, kept = time.monotonic() - begun, len(seen)
        with started(command, out) as process:
            while process.poll() is None:
                seen |= written(out)
                time.sleep(0.02)
        assert process.returncode == 0, f"{name} did not end after the kill"
        seen |= written(out)
        figures[name] = {
            "on_disk_at_the_kill": kept, "files_written_in_all": len(seen), "wanted": images,
            "seconds_until_the_kill": first, "seconds_after_it": time.monotonic() - begun - first,
        }  # fmt: skip
    return figures


def written(out: Path) -> set[str]:
    """Names and times of the image files, so that a file drawn again counts again."""
    found = set()
    for path in drawn_in(out) if out.exists() else []:
        try:
            found.add(f"{path.name} {path.stat().st_mtime_ns}")
        except FileNotFoundError:
            continue  # a program that starts over removes its files
    return found


# -- the CLIP tester -------------------------------------------------------------------------------


def testing(run: Path) -> dict[str, Any]:
    """Passing images against the simulator's truth, for the tester (alone and in batches of 8) and the judge."""
    from benchmarks.peers.tester import judged_images, shares

    images = judged_images(run)
    figures = {"segsmith's judge": shares(images.good, images.passed)}
    if python := python_of("datadreamer"):
        for batch in (1, 8):
            question = json.dumps({"logits": images.logits, "targets": images.targets, "batch": batch})
            done = subprocess.run(
                [python, HERE / "ask_datadreamer.py"],
                input=question,
                capture_output=True,
                text=True,
                check=True,
            )
            passed = json.loads(done.stdout.splitlines()[-1])
            figures[f"datadreamer's tester, batch of {batch}"] = shares(images.good, passed)
    return {"images": len(images.good), "good": sum(images.good), "programs": figures}


# -- prompts ---------------------------------------------------------------------------------------


def prompts() -> dict[str, Any]:
    """Prompts from one local LLM, asked by three programs."""
    from benchmarks.peers.prompts import measured

    return measured(python_of("distilabel"), HERE / "ask_distilabel.py", CLASSES, ROOT)


if __name__ == "__main__":
    main()
