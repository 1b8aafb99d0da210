"""FiftyOne's image segmentation folders, one for each split, and ``mask_targets.json``.

FiftyOne takes a palette PNG for colours, so masks are grey PNGs. It takes the names of their values from
``mask_targets``, which its folders do not hold; the loader in docs/exports.md sets them.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from segsmith.datasets.dataset_files import DatasetFiles
from segsmith.datasets.palette import VOID
from segsmith.datasets.records import (
    IMAGE_SUFFIXES,
    DataError,
    LabelledDataset,
    Problem,
    Record,
    Sample,
    lossless,
)
from segsmith.datasets.run_dataset import RunDataset
from segsmith.datasets.splits import SPLITS
from segsmith.datasets.staging import Sink
from segsmith.datasets.writing import Writer, Written

TARGETS = "mask_targets.json"
BACKGROUND, UNKNOWN = "background", "unknown"
FILES = """- `train/`, `val/`, `test/`: `data/` has the images, `labels/` masks whose grey values are class indices.
- `mask_targets.json`: value -> class. `metadata.jsonl`: the origin of each image.

```python
import json, pathlib, fiftyone as fo
root, dataset = pathlib.Path("<this folder>"), fo.Dataset()
for split in root.glob("*/data"):
    dataset.add_dir(str(split.parent), fo.types.ImageSegmentationDirectory, tags=split.parent.name)
dataset.default_mask_targets = {int(k): v for k, v in json.loads((root / "mask_targets.json").read_text()).items()}
```"""


def _write_one(sink: Sink, data: RunDataset, record: Record) -> None:
    files = data.read(record)
    files.store_image(sink, f"{record.split}/data/{record.id}{files.suffix}")
    sink.put(f"{record.split}/labels/{record.id}.png", files.grey_mask)


def _finish(sink: Sink, data: RunDataset, written: Written) -> list[str]:
    """Unknown pixels are a value of their own, 255."""
    for _ in written:
        pass
    targets = {**dict(enumerate((BACKGROUND, *data.classes))), VOID: UNKNOWN}
    sink.put(TARGETS, json.dumps(targets, indent=1, ensure_ascii=False).encode())
    sink.put("metadata.jsonl", data.metadata_lines())
    sink.put("README.md", data.readme(FILES))
    return []


WRITER = Writer(_write_one, _finish)


def recognises(root: Path) -> bool:
    """Mask targets beside the folders of the splits."""
    return (root / TARGETS).exists()


def read(root: Path) -> LabelledDataset:
    """Read the folders of all splits; a mask belongs to the image of the same name."""
    files = DatasetFiles(root)
    classes = _classes(files)
    labels = files.metadata()
    problems: list[Problem] = []
    records = []
    for split in SPLITS:
        known = set()
        for path in files.files(f"{split}/data", *IMAGE_SUFFIXES):
            known.add(path.stem)
            load = partial(_load, files, path, f"{split}/labels/{path.stem}.png")
            records.append(Record(path.stem, split, files.where(path), load, labels.get(path.stem), path))
        problems += files.stray_masks(f"{split}/labels", known)
    return LabelledDataset("fiftyone", root, classes, records, problems, exact_images=lossless(records))


def _classes(files: DatasetFiles) -> tuple[str, ...]:
    targets = files.json(TARGETS)
    if not isinstance(targets, dict) or not all(isinstance(name, str) for name in targets.values()):
        raise DataError("bad_file", TARGETS, "is not an object of names by value")
    named = {key: name for key, name in targets.items() if key not in ("0", str(VOID))}
    if set(named) != {str(index) for index in range(1, len(named) + 1)} or len(named) >= VOID:
        raise DataError("no_classes", TARGETS, f"does not name the values 1 to N, N below {VOID}")
    if not named:
        raise DataError("no_classes", TARGETS, "names no class")
    return tuple(named[str(index)] for index in range(1, len(named) + 1))


def _load(files: DatasetFiles, image: Path, mask: str) -> Sample:
    found = files.index_map(mask)
    if found.has_palette:
        raise DataError("colour_mask", mask, "is a palette image, which FiftyOne takes for colours")
    return files.sample(image, lambda: found.indices)
