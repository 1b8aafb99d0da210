"""A Hugging Face image folder: a folder a split with ``metadata.jsonl``, and a dataset card.

``load_dataset(DIR)`` gives the columns image, mask (grey indices), classes and the provenance.
"""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from segsmith.datasets.labelled_dataset import (
    DataError,
    Item,
    LabelledDataset,
    Pixels,
    Problem,
    indices,
    lossless,
    open_picture,
    rgb,
)
from segsmith.datasets.records import Collection
from segsmith.datasets.staging import Sink
from segsmith.errors import SegsmithError

FOLDERS = {"train": "train", "val": "validation", "test": "test"}
METADATA = "metadata.jsonl"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
FILES = """`datasets.load_dataset(<this folder>)` gives the columns `image`, `mask` (grey values are class indices),
`classes`, and the origin of each picture: `prompt`, `prompt_family`, `seed`, `backend`, `scores` (JSON)."""


def write(sink: Sink, data: Collection) -> None:
    """Write the dataset; the card's metadata names the classes and the files of each split."""
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in FOLDERS}
    for record in data.records:
        sample = data.read(record)
        folder = FOLDERS[record.split]
        sink.put(f"{folder}/images/{record.id}.png", sample.png)
        sink.put(f"{folder}/masks/{record.id}.png", sample.index_png)
        # Scores are text: pyarrow would want the same keys in every row of every split.
        origin = {**record.provenance(), "scores": json.dumps(record.provenance()["scores"])}
        names = {"file_name": f"images/{record.id}.png", "mask_file_name": f"masks/{record.id}.png"}
        rows[record.split].append({**names, **origin})
    for split, lines in rows.items():
        if lines:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            sink.put(f"{FOLDERS[split]}/{METADATA}", text.encode())
    sink.put("README.md", _card(data, [FOLDERS[s] for s, lines in rows.items() if lines]))


def _card(data: Collection, folders: list[str]) -> bytes:
    from huggingface_hub import DatasetCard, DatasetCardData

    text = ("id", "split", "prompt", "prompt_id", "prompt_family", "backend", "scores")
    features: list[dict[str, Any]] = [
        {"name": "image", "dtype": "image"},
        {"name": "mask", "dtype": "image"},
        {"name": "classes", "list": "string"},
        *({"name": name, "dtype": "string"} for name in text),
        {"name": "seed", "dtype": "int64"},
    ]
    size = next((name for limit, name in SIZES if len(data.records) < limit), "n>1M")
    about = DatasetCardData(
        pretty_name="A synthetic segmentation dataset made by segsmith",
        license="other",
        license_name="licences-of-the-models-named-below",
        annotations_creators=["machine-generated"],
        task_categories=["image-segmentation"],
        size_categories=[size],
        tags=["synthetic", "semantic-segmentation", "segsmith"],
        configs=[
            {
                "config_name": "default",
                "drop_labels": True,
                "features": features,
                "data_files": [{"split": name, "path": f"{name}/**"} for name in folders],
            }
        ],
        class_names=list(data.classes),
    )
    about_yaml = about.to_yaml()
    card = DatasetCard(f"---\n{about_yaml}\n---\n\n{data.readme(FILES).decode()}")
    return str(card).encode()


# -- reading --------------------------------------------------------------------------------------------


def recognises(root: Path) -> bool:
    """Folders with metadata files."""
    return any(root.glob(f"*/{METADATA}"))


def read(root: Path) -> LabelledDataset:
    """Read with `datasets`; where the metadata does not fit the files, with Pillow, to say what is wrong."""
    problems: list[Problem] = []
    classes = _classes(root)
    rows = {path.parent.name: _rows(path, problems) for path in sorted(root.glob(f"*/{METADATA}"))}
    _check(root, rows, problems)
    reader = _Reader(root) if not problems else None
    split_of = {folder: split for split, folder in FOLDERS.items()}
    items = []
    for folder, lines in rows.items():
        for position, row in enumerate(lines):
            image, mask = root / folder / row["file_name"], root / folder / row["mask_file_name"]
            name = str(row.get("id", image.stem))
            labels = tuple(row["classes"]) if isinstance(row.get("classes"), list) else None
            where = f"{folder}/{row['file_name']}"
            load = partial(_load, reader, folder, position, name, image, mask)
            items.append(Item(name, split_of.get(folder, folder), where, load, labels, image))
    return LabelledDataset("hf", root, classes, items, problems, exact_images=lossless(items))


def _classes(root: Path) -> tuple[str, ...]:
    from huggingface_hub import DatasetCard
    from yaml import YAMLError

    try:
        names = DatasetCard.load(root / "README.md").data.to_dict().get("class_names")
    except (OSError, ValueError, YAMLError) as error:
        raise DataError("bad_file", "README.md", f"is no dataset card ({error})") from None
    if not isinstance(names, list) or not names:
        raise DataError("no_classes", "README.md", "the card's metadata has no class_names")
    return tuple(str(name) for name in names)


def _rows(path: Path, problems: list[Problem]) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and {"file_name", "mask_file_name"} <= row.keys():
            rows.append(row)
        else:
            text = f"line {number} is no JSON object with file_name and mask_file_name"
            problems.append(Problem("bad_file", f"{path.parent.name}/{METADATA}", text))
    return rows


def _check(root: Path, rows: Mapping[str, list[dict[str, Any]]], problems: list[Problem]) -> None:
    for folder, lines in rows.items():
        named = {str(row[key]) for row in lines for key in ("file_name", "mask_file_name")}
        there = {str(p.relative_to(root / folder)) for p in (root / folder).rglob("*.png")}
        problems += [
            Problem("missing_file", f"{folder}/{name}", f"is in {METADATA} but not in the folder")
            for name in sorted(named - there)
            if not (root / folder / name).exists()
        ]
        problems += [
            Problem("stray_file", f"{folder}/{name}", f"is not in {METADATA}")
            for name in sorted(there - named)
        ]


class _Reader:
    """`datasets`, with a cache that goes with it; nothing is asked of a hub."""

    def __init__(self, root: Path) -> None:
        self._cache = tempfile.TemporaryDirectory(prefix="segsmith-hf-")
        weakref.finalize(self, self._cache.cleanup)
        self._root = root
        self._splits: Any = None

    def row(self, split: str, position: int) -> Mapping[str, Any]:
        if self._splits is None:
            self._splits = self._open()
        return dict(self._splits[split][position])

    def _open(self) -> Any:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
        try:
            import datasets
        except ImportError:
            raise SegsmithError(
                "Reading a Hugging Face dataset back needs the package `datasets`.",
                "Type: pip install 'segsmith[hf]'",
            ) from None
        datasets.disable_progress_bars()
        try:
            return datasets.load_dataset(str(self._root), cache_dir=self._cache.name)
        except Exception as error:  # noqa: BLE001  every part of `datasets` has errors of its own
            raise DataError("bad_file", "README.md", f"`datasets` cannot load the folder ({error})") from None


def _load(reader: _Reader | None, folder: str, position: int, name: str, image: Path, mask: Path) -> Pixels:
    if reader is not None:
        try:
            row = reader.row(folder, position)
        except (OSError, SyntaxError, ValueError):
            pass  # say below which of the two files it is
        else:
            if row.get("id", name) != name:
                raise DataError("bad_file", METADATA, f"`datasets` gives {row['id']} in the place of {name}")
            return rgb(row["image"]), indices(row["mask"], mask.name)
    return rgb(open_picture(image)), indices(open_picture(mask, "corrupt_mask"), mask.name)
