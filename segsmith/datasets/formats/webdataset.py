"""WebDataset: tar shards of ``<id>.png``, ``<id>.mask.png`` (grey indices) and ``<id>.json``.

Writing holds one image in memory, whatever the size of the dataset. Samples are ordered by a hash of their
ids, so that every shard is a fair mixture of the classes. ``dataset.json`` lists the classes and the shards.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from segsmith.datasets.dataset_files import (
    DatasetFiles,
    index_map_of,
    labels_in,
    name_problem,
    parse_json,
    sample_of,
)
from segsmith.datasets.formats.tar_reader import TarError, members
from segsmith.datasets.palette import VOID
from segsmith.datasets.records import IMAGE_SUFFIXES, DataError, LabelledDataset, Problem, Record, Sample
from segsmith.datasets.run_dataset import RunDataset
from segsmith.datasets.staging import Sink
from segsmith.datasets.writing import Writer, Written
from segsmith.files import MAX_IMAGE_BYTES
from segsmith.ids import seed_of

INDEX = "dataset.json"
SHARD_IMAGES = 10_000
SHARD_BYTES = 1 << 30
IMAGE_PARTS = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
MAX_SAMPLE_BYTES = 2 * MAX_IMAGE_BYTES
"""Largest sample that is held in memory."""
FILES = """- `<split>-<number>.tar`: shards of at most 10,000 samples or about 1 GiB. A sample is `<id>.png`
  (or .jpg, .webp: as the run stored it),
  `<id>.mask.png` (grey values are class indices) and `<id>.json` (classes, prompt, seed, scores ...).
- `dataset.json`: class names (the first is index 1) and the number of samples in each shard.

`webdataset.WebDataset(shards).decode("pil")` turns the mask into RGB of three equal channels; take one of them."""


def _finish(sink: Sink, data: RunDataset, written: Written) -> list[str]:
    """Write the shards, one stream per split."""
    with ExitStack() as stack:
        writers = {split: stack.enter_context(_Shards(sink, split)) for split, n in data.counts.items() if n}
        for record, sample in written:
            writers[record.split].write(sample)
    shards = {name: count for writer in writers.values() for name, count in writer.counts.items()}
    index = {"classes": list(data.classes), "shards": shards}
    sink.put(INDEX, json.dumps(index, indent=1).encode())
    sink.put("README.md", data.readme(FILES))
    return []


def _sample(sink: Sink, data: RunDataset, record: Record) -> dict[str, Any]:
    """What a shard holds of an image; stores nothing, because a shard is one file."""
    files = data.read(record)
    return {
        "__key__": record.id,
        files.suffix.removeprefix("."): files.image,
        "mask.png": files.grey_mask,
        "json": json.dumps(record.provenance(), ensure_ascii=False).encode(),
    }


WRITER = Writer(
    _sample,
    _finish,
    order=lambda data: sorted(data.records, key=lambda r: (seed_of(r.id), r.id)),
    splits_work=False,  # only when its samples are read is it known where a shard ends
)


class _Shards:
    """webdataset's ShardWriter on files of the sink, reproducible and with a count of each shard."""

    def __init__(self, sink: Sink, split: str) -> None:
        from webdataset import ShardWriter

        self.counts: dict[str, int] = {}
        self._sink = sink
        self._file: _Hashed | None = None
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

    def _open(self, name: str) -> _Hashed:
        self._file = _Hashed(self._sink.path(name))
        self._name = name
        self.counts[name] = 0
        return self._file

    def _finished(self, name: str) -> None:
        assert self._file is not None
        self._file.close()
        self._sink.adopt(name, self._file.sha256)


class _Hashed(io.BufferedWriter):
    """A new file, hashed as it is written, so that it need not be read again. It is written from start to end."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.open("wb", buffering=0))
        self._digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return super().write(data)

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of what was written so far."""
        return self._digest.hexdigest()


# -- reading --------------------------------------------------------------------------------------------


def recognises(root: Path) -> bool:
    """Tar files, with or without an index."""
    return any(root.glob("*.tar"))


def read(root: Path) -> LabelledDataset:
    """Read shard after shard; samples are not kept.

    The shards are read as plain tar files: webdataset's own reader takes a name such as ``pipe:rm x`` or
    ``http://...`` in the index as a command to run or a page to fetch.
    """
    files = DatasetFiles(root)
    try:
        index = files.json(INDEX)
    except DataError as error:
        if error.problem.kind != "missing_file":
            raise
        text = "is missing, so the meaning of the indices is unknown"
        raise DataError("no_classes", INDEX, text) from None
    classes, shards = _index(index)
    problems = []
    for name in sorted({p.name for p in root.glob("*.tar")} ^ set(shards)):
        if name in shards:
            plain = "/" not in name and name_problem(name) is None
            text = "is in the index but not in the folder" if plain else "is not the name of a file here"
            problems.append(Problem("missing_file" if plain else "outside_path", name, text))
        else:
            problems.append(Problem("stray_file", name, "is not in the index"))
    here = {name: count for name, count in shards.items() if "/" not in name and files.is_file(name)}
    return LabelledDataset("webdataset", root, classes, _Records(files, here), problems)


def _index(index: Any) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names, and the number of samples of each shard."""
    classes = labels_in(index.get("classes")) if isinstance(index, dict) else None
    shards = index.get("shards") if isinstance(index, dict) else None
    if not classes or not isinstance(shards, dict) or not all(isinstance(n, int) for n in shards.values()):
        raise DataError("bad_file", INDEX, "does not list classes and shards")
    if len(classes) >= VOID:
        raise DataError("too_many_classes", INDEX, f"names more than {VOID - 1} classes")
    return classes, shards


class _Records:
    """The records of all shards, read again at each iteration."""

    def __init__(self, files: DatasetFiles, shards: Mapping[str, int]) -> None:
        self._files = files
        self._shards = shards

    def __iter__(self) -> Iterator[Record]:
        for name, expected in self._shards.items():
            yield from self._of_shard(name, expected)

    def _of_shard(self, name: str, expected: int) -> Iterator[Record]:
        split = name.rpartition("-")[0]
        count = 0
        try:
            for key, parts in _samples(self._files.path(name)):
                count += 1
                where = f"{name}: {key}"
                yield Record(key, split, where, partial(_load, parts, where), _labels(parts))
        except (TarError, OSError) as error:
            yield _broken(
                split, name, DataError("corrupt_shard", name, f"cannot be read to its end: it {error}")
            )
        else:
            if count != expected:
                text = f"holds {count} samples, the index says {expected}"
                yield _broken(split, name, DataError("corrupt_shard", name, text))


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, suffix -> content) of neighbouring files with the same key, the path up to the name's first dot."""
    key, parts, size = "", dict[str, bytes](), 0
    for path_name, content in members(path, MAX_IMAGE_BYTES):
        folder, slash, name = path_name.rpartition("/")
        stem, _, suffix = name.partition(".")
        if folder + slash + stem != key:
            if parts:
                yield key, parts
            key, parts, size = folder + slash + stem, {}, 0
        size += len(content)
        if size > MAX_SAMPLE_BYTES:
            raise TarError(f"holds a sample {key!r} of more than {MAX_SAMPLE_BYTES >> 20} MiB")
        parts[suffix.lower()] = content
    if parts:
        yield key, parts


def _broken(split: str, name: str, error: DataError) -> Record:
    return Record(f"({name})", split, name, _raiser(error))


def _raiser(error: DataError) -> Callable[[], Sample]:
    def load() -> Sample:
        raise error

    return load


def _labels(parts: Mapping[str, bytes]) -> tuple[str, ...] | None:
    try:
        about = parse_json(parts["json"].decode("utf-8"), "")
    except (KeyError, UnicodeDecodeError, DataError):
        return None
    return labels_in(about.get("classes")) if isinstance(about, dict) else None


def _load(parts: Mapping[str, bytes], where: str) -> Sample:
    image = next((suffix for suffix in IMAGE_PARTS if suffix in parts), "png")
    for part in (image, "mask.png", "json"):
        if part not in parts:
            raise DataError("missing_file", where, f"has no .{part}")
    try:
        parse_json(parts["json"].decode("utf-8"), where)
    except UnicodeDecodeError as error:
        raise DataError("bad_file", where, f"its .json is not UTF-8 ({error})") from None
    mask = index_map_of(parts["mask.png"], where)
    if mask.has_palette:
        raise DataError("colour_mask", where, "is a palette image; webdataset would decode its colours")
    return sample_of(parts[image], mask.indices, where)
