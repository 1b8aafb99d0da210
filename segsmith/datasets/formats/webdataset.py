"""WebDataset: tar shards of ``<id>.png``, ``<id>.mask.png`` (grey indices) and ``<id>.json``.

Writing holds one image in memory, whatever the size of the dataset. Samples are ordered by a hash of their
ids, so that every shard is a fair mixture of the classes. ``dataset.json`` lists the classes and the shards.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any

from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from segsmith.datasets.labelled_dataset import DataError, Item, LabelledDataset, Pixels, Problem, indices, rgb
from segsmith.datasets.records import Collection
from segsmith.datasets.staging import Sink
from segsmith.ids import seed_of

INDEX = "dataset.json"
SHARD_IMAGES = 10_000
SHARD_BYTES = 1 << 30
FILES = """- `<split>-<number>.tar`: shards of at most 10,000 samples or about 1 GiB. A sample is `<id>.png`,
  `<id>.mask.png` (grey values are class indices) and `<id>.json` (classes, prompt, seed, scores ...).
- `dataset.json`: class names (the first is index 1) and the number of samples in each shard.

`webdataset.WebDataset(shards).decode("pil")` turns the mask into RGB of three equal channels; take one of them."""


def write(sink: Sink, data: Collection) -> None:
    """Write the shards, a stream for each split."""
    with ExitStack() as stack:
        writers = {split: stack.enter_context(_Shards(sink, split)) for split, n in data.counts.items() if n}
        for record in sorted(data.records, key=lambda r: (seed_of(r.id), r.id)):
            sample = data.read(record)
            writers[record.split].write(
                {
                    "__key__": record.id,
                    "png": sample.png,
                    "mask.png": sample.index_png,
                    "json": json.dumps(record.provenance(), ensure_ascii=False).encode(),
                }
            )
    shards = {name: count for writer in writers.values() for name, count in writer.counts.items()}
    index = {"classes": list(data.classes), "shards": shards}
    sink.put(INDEX, json.dumps(index, indent=1).encode())
    sink.put("README.md", data.readme(FILES))


class _Shards:
    """webdataset's ShardWriter on files of the sink, reproducible and with a count of each shard."""

    def __init__(self, sink: Sink, split: str) -> None:
        from webdataset import ShardWriter

        self.counts: dict[str, int] = {}
        self._sink = sink
        self._file: IO[bytes] | None = None
        self._name = ""
        self._writer = ShardWriter(
            f"{split}-%06d.tar",
            maxcount=SHARD_IMAGES,
            maxsize=SHARD_BYTES,
            opener=self._open,
            post=self._finished,
            verbose=0,
            mtime=0,
            user="segsmith",
            group="segsmith",
        )

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, sample: Mapping[str, Any]) -> None:
        self._writer.write(dict(sample))
        self.counts[self._name] += 1

    def _open(self, name: str) -> IO[bytes]:
        self._file = self._sink.path(name).open("wb")
        self._name = name
        self.counts[name] = 0
        return self._file

    def _finished(self, name: str) -> None:
        assert self._file is not None
        self._file.close()
        self._sink.adopt(name)


# -- reading --------------------------------------------------------------------------------------------


def recognises(root: Path) -> bool:
    """Tar files beside an index, or alone."""
    return any(root.glob("*.tar"))


def read(root: Path) -> LabelledDataset:
    """Read with webdataset, shard after shard; samples are not kept."""
    try:
        index = json.loads((root / INDEX).read_text("utf-8"))
        classes, shards = tuple(index["classes"]), dict(index["shards"])
    except FileNotFoundError:
        raise DataError("no_classes", INDEX, "is missing, so nobody knows what the indices mean") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("bad_file", INDEX, f"is no index of shards ({error})") from None
    problems = []
    for name in sorted({p.name for p in root.glob("*.tar")} ^ set(shards)):
        missing = name in shards
        text = "is in the index but not in the folder" if missing else "is not in the index"
        problems.append(Problem("missing_file" if missing else "stray_file", name, text))
    return LabelledDataset("webdataset", root, classes, _Samples(root, shards), problems)


class _Samples:
    """The items of all shards, read anew at each walk."""

    def __init__(self, root: Path, shards: Mapping[str, int]) -> None:
        self._root = root
        self._shards = shards

    def __iter__(self) -> Iterator[Item]:
        for name, expected in self._shards.items():
            if (self._root / name).exists():
                yield from self._walk(name, expected)

    def _walk(self, name: str, expected: int) -> Iterator[Item]:
        from webdataset import WebDataset

        split = name.rpartition("-")[0]
        count = 0
        try:
            for sample in WebDataset([str(self._root / name)], shardshuffle=False, empty_check=False):
                count += 1
                where = f"{name}: {sample['__key__']}"
                yield Item(sample["__key__"], split, where, partial(_load, sample, where), _labels(sample))
        except Exception as error:  # noqa: BLE001  webdataset re-raises whatever tarfile and itself meet
            yield _broken(
                split, name, DataError("corrupt_shard", name, f"cannot be read to its end ({error})")
            )
            return
        if count != expected:
            text = f"holds {count} samples, the index says {expected}"
            yield _broken(split, name, DataError("corrupt_shard", name, text))


def _broken(split: str, name: str, error: DataError) -> Item:
    return Item(f"({name})", split, name, _raiser(error))


def _raiser(error: DataError) -> Callable[[], Pixels]:
    def load() -> Pixels:
        raise error

    return load


def _labels(sample: Mapping[str, bytes]) -> tuple[str, ...] | None:
    try:
        return tuple(json.loads(sample["json"])["classes"])
    except (KeyError, ValueError, TypeError):
        return None


def _load(sample: Mapping[str, bytes], where: str) -> Pixels:
    for part in ("png", "mask.png", "json"):
        if part not in sample:
            raise DataError("missing_file", where, f"has no .{part}")
    try:
        json.loads(sample["json"])
    except ValueError as error:
        raise DataError("bad_file", where, f"its .json is not JSON ({error})") from None
    mask = _picture(sample["mask.png"], "corrupt_mask", where)
    if mask.mode == "P":
        raise DataError("colour_mask", where, "is a palette picture; webdataset would decode its colours")
    return rgb(_picture(sample["png"], "corrupt_image", where)), indices(mask, where)


def _picture(data: bytes, kind: str, where: str) -> PILImage.Image:
    try:
        picture = PILImage.open(io.BytesIO(data))
        picture.load()
        return picture
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(kind, where, f"cannot be decoded ({error})") from None
