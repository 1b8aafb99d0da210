"""The files of an untrusted dataset: nothing outside its folder is opened, and sizes are limited."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from segsmith.datasets.records import DataError, Problem, Sample
from segsmith.files import MAX_IMAGE_BYTES, ImageHeader, IndexMap, NotAnIndexMap, open_index_map, read_header

METADATA = "metadata.jsonl"
MAX_TABLE_BYTES = 1 << 30
"""Largest JSON, CSV or text file that is read."""
MAX_YAML_BYTES = 1 << 20
MAX_YAML_DEPTH = 32
MAX_YAML_NODES = 100_000
MAX_NAME_BYTES = 200
"""Longest part of a path; file systems allow 255 with the suffix."""
FORBIDDEN_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories that a name may not hold: control characters, lone surrogates, line and paragraph separators."""
BIDIRECTIONAL = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that change the reading direction."""


def name_problem(name: str) -> str | None:
    """What makes an id unusable as a relative path and as a line of a list; None if nothing does."""
    if PurePosixPath(name).is_absolute() or any(part in ("", ".", "..") for part in name.split("/")):
        return "is not a plain path below the dataset"
    return _text_problem(name)


def class_name_problem(name: str) -> str | None:
    """What makes a class name unusable in a list, or in labels.csv, where | separates classes."""
    return "holds |" if "|" in name else _text_problem(name)


def _text_problem(name: str) -> str | None:
    if not name or name != name.strip():
        return "is empty, or begins or ends with a space"
    if any(unicodedata.category(c) in FORBIDDEN_CATEGORIES or c in BIDIRECTIONAL for c in name):
        return "holds a line break, an escape or another control character"
    if any(len(part.encode()) > MAX_NAME_BYTES for part in name.split("/")):
        return f"is longer than {MAX_NAME_BYTES} bytes"
    return None


def labels_in(value: Any) -> tuple[str, ...] | None:
    """A JSON list of names as a tuple; None for anything else."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    return None


class DatasetFiles:
    """Opens files by their path relative to the root of a dataset.

    Every method raises `DataError`: "outside_path" for a path that leaves the root, directly or through a
    symbolic link, "missing_file" where there is none, and "bad_file" for what cannot be read or parsed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # paths below it can then be told from names relative to it
        self._resolved = root.resolve()

    def path(self, name: str | Path) -> Path:
        """The path of a file or folder, existing or not, that is inside the dataset after following links."""
        path = self.root / name
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL byte
            raise DataError("outside_path", self.where(path), f"is not a usable path ({error})") from None
        if not resolved.is_relative_to(self._resolved):
            text = "leads out of the dataset's folder; copy what it points to into the folder"
            raise DataError("outside_path", self.where(path), text)
        return path if path.is_relative_to(self.root) else self.root / resolved.relative_to(self._resolved)

    def where(self, path: Path) -> str:
        """A path as messages state it: relative to the root where that can be."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def is_file(self, name: str | Path) -> bool:
        """Is there a regular file in the dataset under this path?"""
        try:
            return self.path(name).is_file()
        except (DataError, OSError):
            return False

    def is_dir(self, name: str | Path) -> bool:
        """Is there a folder in the dataset under this path?"""
        try:
            return self.path(name).is_dir()
        except (DataError, OSError):
            return False

    def files(self, folder: str | Path, *suffixes: str) -> list[Path]:
        """Files right inside a folder, sorted; those of `suffixes` where given. Empty without the folder."""
        if not self.is_dir(folder):
            return []
        children = sorted((self.root / folder).iterdir())
        return [p for p in children if not p.is_dir() and (not suffixes or p.suffix.lower() in suffixes)]

    def walk(self, folder: str | Path, *suffixes: str) -> list[Path]:
        """Files of `suffixes` in a folder and the folders below it, sorted; links to folders are not followed."""
        if not self.is_dir(folder):
            return []
        return [p for p in sorted((self.root / folder).rglob("*")) if p.suffix.lower() in suffixes]

    def read(self, name: str | Path, limit: int, kind: str = "bad_file") -> bytes:
        """The bytes of a regular file of at most `limit` bytes; `kind` names other problems than a missing file."""
        path = self.path(name)
        where = self.where(path)
        try:
            if path.exists() and not path.is_file():
                raise DataError(kind, where, "is not a regular file")
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            raise DataError("missing_file", where, "the file does not exist") from None
        except OSError as error:
            raise DataError(kind, where, f"cannot be read ({error.strerror or error})") from None
        if len(data) > limit:
            raise DataError(kind, where, f"has more than {limit >> 20} MiB")
        return data

    def text(self, name: str | Path, limit: int = MAX_TABLE_BYTES) -> str:
        """A UTF-8 text file."""
        try:
            return self.read(name, limit).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError("bad_file", self.where(self.root / name), f"is not UTF-8 ({error})") from None

    def lines(self, name: str | Path) -> list[str]:
        """The lines of a text file without surrounding spaces; empty ones are left out."""
        return [line.strip() for line in self.text(name).splitlines() if line.strip()]

    def json(self, name: str | Path) -> Any:
        """The content of a JSON file."""
        return parse_json(self.text(name), self.where(self.root / name))

    def yaml(self, name: str | Path) -> Any:
        """The content of a YAML file; see `parse_yaml`."""
        return parse_yaml(self.text(name, MAX_YAML_BYTES), self.where(self.root / name))

    def rows(self, name: str | Path) -> list[dict[str, str]]:
        """The rows of a CSV file with a header; cells that a row lacks are ""."""
        try:
            rows = list(csv.DictReader(io.StringIO(self.text(name), newline="")))
        except csv.Error as error:
            raise DataError("bad_file", self.where(self.root / name), f"is not CSV ({error})") from None
        return [{key: value or "" for key, value in row.items() if key is not None} for row in rows]

    def sample(
        self, image: str | Path, read_label_map: Callable[[], NDArray[np.uint8]] | None = None
    ) -> Sample:
        """Read an image, then its label map; errors as of `sample_of`."""
        data = self.read(image, MAX_IMAGE_BYTES, "corrupt_image")
        label_map = None if read_label_map is None else read_label_map()
        return sample_of(data, label_map, self.where(self.root / image))

    def index_map(self, name: str | Path) -> IndexMap:
        """Read a mask; `DataError` of kind "colour_mask" if it holds no indices, "corrupt_mask" if it is damaged."""
        return index_map_of(self.read(name, MAX_IMAGE_BYTES, "corrupt_mask"), self.where(self.root / name))

    def metadata(self) -> dict[str, tuple[str, ...]]:
        """Image id -> classes, from what `RunDataset.metadata_lines` wrote; empty where it is not that."""
        if not self.is_file(METADATA):
            return {}
        labels: dict[str, tuple[str, ...]] = {}
        try:
            for number, line in enumerate(self.text(METADATA).split("\n"), 1):
                row = parse_json(line or "{}", f"{METADATA} line {number}")
                classes = labels_in(row.get("classes")) if isinstance(row, dict) else None
                if classes is not None and isinstance(row.get("id"), str):
                    labels[row["id"]] = classes
        except DataError:
            return {}
        return labels

    def stray_masks(self, folder: str, listed: set[str]) -> list[Problem]:
        """The PNGs of a mask folder that no list names."""
        return [
            Problem("stray_file", f"{folder}/{path.name}", "is in no image set")
            for path in self.files(folder, ".png")
            if path.stem not in listed
        ]


def sample_of(
    data: bytes, label_map: NDArray[np.uint8] | None, where: str, problems: tuple[Problem, ...] = ()
) -> Sample:
    """A decoded sample; `DataError` of kind "corrupt_image" for an image that `open_image` rejects."""
    try:
        return Sample(data, label_map, problems).decode()
    except OSError as error:
        raise DataError("corrupt_image", where, str(error)) from None


def header_of(data: bytes, where: str, kind: str) -> ImageHeader:
    """The header of an image; `DataError` of `kind` for what `read_header` rejects."""
    try:
        return read_header(data)
    except OSError as error:
        raise DataError(kind, where, str(error)) from None


def index_map_of(data: bytes, where: str) -> IndexMap:
    """The index map in the bytes of a mask; errors as of `DatasetFiles.index_map`."""
    try:
        return open_index_map(data)
    except NotAnIndexMap as error:
        raise DataError("colour_mask", where, str(error)) from None
    except OSError as error:
        raise DataError("corrupt_mask", where, str(error)) from None


def parse_json(text: str, where: str) -> Any:
    """JSON of any size; `DataError` for what is not JSON, or too deeply nested."""
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError("bad_file", where, "is nested too deeply") from None
    except ValueError as error:
        raise DataError("bad_file", where, f"is not JSON ({error})") from None


def parse_yaml(text: str, where: str) -> Any:
    """YAML of plain data; `DataError` for aliases, tags of other types, or too many or too deep nodes.

    Aliases are rejected since a few lines of them stand for billions of nodes.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_events(yaml.parse(text, Loader=loader), where)
        return yaml.load(text, Loader=loader)
    except DataError:
        raise
    except (
        Exception
    ) as error:  # PyYAML's constructors raise KeyError, IndexError ... on values that fit no tag
        raise DataError("bad_file", where, f"is not YAML ({error})") from error


def _check_events(events: Iterator[yaml.Event], where: str) -> None:
    depth = 0
    for number, event in enumerate(events):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise DataError("bad_file", where, "uses an alias (*name), which is not read")
        if depth > MAX_YAML_DEPTH or number > MAX_YAML_NODES:
            raise DataError("bad_file", where, "is nested too deeply, or too large")
