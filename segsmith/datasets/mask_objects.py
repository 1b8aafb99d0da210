"""What exports state of a mask: its objects with areas, boxes and outlines, and its unknown pixels.

Finding them takes longer than copying image and mask, so a build finds them once, when it writes its own dataset, and
keeps them in `ObjectCache` for all later exports. It also keeps which files were read and had the right hash.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import struct
import threading
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segsmith.datasets.formats.coco_masks import MAX_OUTLINE, encode
from segsmith.datasets.formats.yolo_lines import line_of
from segsmith.datasets.instances import EIGHT, find_instances, instance_map
from segsmith.datasets.objects import present_classes
from segsmith.datasets.outlines import outlines
from segsmith.datasets.palette import voc_palette
from segsmith.errors import SegsmithError
from segsmith.files import clock_of, png_bytes

log = logging.getLogger(__name__)

VERSION = 3
"""Changes whenever `find_objects` gives other results, `pack` another form, or a table other columns."""
MAX_PACKED = 64 << 20
"""Bytes that a part of an entry may unpack to; the objects of the noisiest mask take less."""
PAGE_BYTES = 16_384
"""Of the database: entries of large masks are tens of kilobytes."""
BATCH = 500
"""Entries that are added in one transaction."""


@dataclass(frozen=True)
class Region:
    """Pixels of a mask: their number, their box (x, y, width, height), and where they are."""

    area: int
    box: tuple[int, int, int, int]
    segmentation: str
    """JSON as in COCO: polygons that give back the pixels exactly, or RLE where they would be too long."""


@dataclass(frozen=True)
class Place:
    """An object: the index of its class, its number of pixels, and its box (x, y, width, height)."""

    index: int
    area: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class MaskObjects:
    """The objects of a mask (`find_instances`) and its unknown pixels, those of specks among them.

    Outlines are kept as the text that formats want, compressed, because decoding and encoding them again takes longer
    than copying the mask. Reading them raises `SegsmithError` where a cache holds something else.
    """

    size: tuple[int, int]
    """(H, W)."""
    present: tuple[int, ...]
    """Class indices that occur, ascending."""
    objects: tuple[Place, ...]
    unknown: Place | None
    """The unknown pixels; the index is 0."""
    specks: int
    """Number of objects that are too small; their pixels are unknown."""
    numbers: bytes
    """PNG of `instance_map` with VOC's palette."""
    packed_outlines: bytes
    packed_lines: bytes

    @property
    def regions(self) -> list[Region]:
        """The objects with their outlines."""
        return [
            Region(place.area, place.box, text)
            for place, text in zip(self.objects, self._outlines, strict=False)
        ]

    @property
    def unknown_region(self) -> Region | None:
        """The unknown pixels with their outlines."""
        if self.unknown is None:
            return None
        return Region(self.unknown.area, self.unknown.box, self._outlines[-1])

    @property
    def lines(self) -> bytes:
        """The label file of Ultralytics."""
        lines = _decompressed(self.packed_lines)
        if lines.translate(None, b"0123456789.e- \n"):
            raise _foreign()
        return lines

    @cached_property
    def _outlines(self) -> list[str]:
        """The segmentation of each object, then that of the unknown pixels if there are any."""
        lines = _decompressed(self.packed_outlines).splitlines()
        if len(lines) != len(self.objects) + (self.unknown is not None):
            raise _foreign()
        if any(line.translate(None, b"0123456789, []") and not _is_rle(line) for line in lines):
            raise _foreign()
        return [line.decode("ascii") for line in lines]


def find_objects(label_map: NDArray[np.uint8]) -> MaskObjects:
    """The objects of an (H, W) label map: 0 is background, 255 unknown."""
    found = find_instances(label_map)
    size = (label_map.shape[0], label_map.shape[1])
    rings = [instance.polygons for instance in found.objects]
    texts = [
        _polygons(polygons, size) or _json(encode(found.numbers == number))
        for number, polygons in enumerate(rings, 1)
    ]
    unknown = (found.numbers == 0) & (label_map != 0)
    pieces, _ = ndimage.label(unknown, EIGHT)
    # As polygons, too: several importers take every list for polygons and fail on RLE.
    region = region_of(unknown, _polygons([outline.polygon() for outline in outlines(pieces)], size))
    texts += [region.segmentation] if region else []
    lines = "".join(line_of(o.index, p, size) for o, p in zip(found.objects, rings, strict=True))
    return MaskObjects(
        size,
        present_classes(label_map),
        tuple(Place(instance.index, instance.area, instance.box) for instance in found.objects),
        None if region is None else Place(0, region.area, region.box),
        found.specks,
        png_bytes(instance_map(label_map, found), voc_palette()),
        zlib.compress("\n".join(texts).encode(), 1),
        zlib.compress(lines.encode(), 1),
    )


def region_of(pixels: NDArray[np.bool_], polygons: str = "") -> Region | None:
    """The region of an (H, W) mask, as RLE without `polygons`; None for an empty mask."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not rows.size:
        return None
    left, top = int(columns[0]), int(rows[0])
    box = (left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)
    return Region(int(np.count_nonzero(pixels)), box, polygons or _json(encode(pixels)))


def _polygons(polygons: Sequence[NDArray[np.int32]], size: tuple[int, int]) -> str:
    """Polygons as COCO lists them; empty for outlines so long that readers reject them (noise)."""
    outline = sum(int(np.abs(np.diff(p, axis=0, append=p[:1])).sum()) for p in polygons)
    return "" if outline > MAX_OUTLINE * sum(size) // 2 else _json([p.ravel().tolist() for p in polygons])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# -- the cache --------------------------------------------------------------------------------------------

HEADER = struct.Struct(">4I")
"""CRC-32 of what follows it; the lengths of the facts (JSON), of the outlines and of the lines. The PNG is last."""


def pack(found: MaskObjects) -> bytes:
    """The bytes of an entry."""
    facts = {
        "size": found.size,
        "present": found.present,
        "objects": [(o.index, o.area, *o.box) for o in found.objects],
        "unknown": found.unknown and (0, found.unknown.area, *found.unknown.box),
        "specks": found.specks,
    }
    parts = json.dumps(facts, separators=(",", ":")).encode(), found.packed_outlines, found.packed_lines
    content = b"".join((*parts, found.numbers))
    return HEADER.pack(zlib.crc32(content), *map(len, parts)) + content


def unpack(data: bytes) -> MaskObjects:
    """The reverse of `pack`. Raises `ValueError` for bytes that it did not make, except for outlines."""
    try:
        checksum, *lengths = HEADER.unpack_from(data)
        if zlib.crc32(memoryview(data)[HEADER.size :]) != checksum:
            raise ValueError("an entry is damaged")
        ends = list(accumulate(lengths, initial=HEADER.size))
        facts, outlined, lines = (data[start:end] for start, end in pairwise(ends))
        stated = json.loads(facts)
        return MaskObjects(
            size=_numbers(stated["size"], 2),
            present=_numbers(stated["present"]),
            objects=tuple(map(_place, stated["objects"])),
            unknown=None if stated["unknown"] is None else _place(stated["unknown"]),
            specks=_numbers([stated["specks"]])[0],
            numbers=data[ends[-1] :],
            packed_outlines=outlined,
            packed_lines=lines,
        )
    except (struct.error, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"an entry is damaged ({error})") from None


def _place(stated: Any) -> Place:
    index, area, *box = _numbers(stated, 6)
    return Place(index, area, (box[0], box[1], box[2], box[3]))


def _numbers(values: Any, length: int | None = None) -> Any:
    """The list as a tuple, if it holds integers alone, and `length` of them; else raises `TypeError`."""
    found = tuple(values)
    if {*map(type, found)} - {int} or (length is not None and len(found) != length):
        raise TypeError("no list of whole numbers")
    return found


def _decompressed(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(data, MAX_PACKED)
    except zlib.error:
        raise _foreign() from None
    if not unpacker.eof:
        raise _foreign()
    return content


def _is_rle(text: bytes) -> bool:
    try:
        stated = json.loads(text)
        return (
            stated.keys() == {"size", "counts"}
            and isinstance(stated["counts"], str)
            and len(_numbers(stated["size"])) == 2
        )
    except (ValueError, AttributeError, TypeError, RecursionError):
        return False


def _foreign() -> SegsmithError:
    return SegsmithError(
        "The run's objects.db holds outlines that segsmith did not write.",
        "Delete objects.db and export again.",
    )


@dataclass(frozen=True)
class Stamp:
    """What the file system says of files that are to have certain hashes (the idea of git's index).

    Whoever writes, replaces or restores a file changes its change time, which programs cannot choose; a copy of a run
    has other inodes. So a file with the same stamp has not changed. Damage by the disk itself is not noticed.
    """

    text: str
    changed_at: int
    """Nanoseconds, by the clock of the file system: when the last of them changed."""

    @classmethod
    def of(cls, sha256s: Mapping[str, str]) -> Stamp:
        """The stamp of files, given as path -> SHA-256. Raises `OSError` where one is missing."""
        text, changed_at = "", 0
        for path, sha256 in sha256s.items():
            about = os.stat(path)
            text += f"{sha256} {about.st_dev} {about.st_ino} {about.st_size} {about.st_ctime_ns} "
            changed_at = max(changed_at, about.st_ctime_ns)
        return cls(text, changed_at)


class ObjectCache:
    """What `find_objects` found in masks, by the SHA-256 of their files, so that no entry can be out of date.

    And the stamps that files had when an export read them and they were those that the run wrote. The cache may be
    deleted at any time: what is missing, damaged or of another version is found again. Safe to share between threads;
    entries that were added are stored in batches and when the context ends.
    """

    def __init__(self, path: Path, *, read_only: bool, entries: int = 1 << 40) -> None:
        """`path` is the file; with `read_only` nothing is written, and it need not exist.

        `entries` is the number of masks of the run. A file with more than twice as many holds mostly masks that were
        made again since, and is started anew.
        """
        self._path = path
        self._read_only = read_only
        self._entries = entries
        self._lock = threading.Lock()
        self._new: dict[str, bytes] = {}
        self._verified: dict[str, str] = {}
        self._began = 0
        """A file that changed later, in nanoseconds, may have changed after it was read, in the same tick."""
        self._db: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        try:
            self._db = self._opened()
        except sqlite3.Error as error:
            self._give_up(error)
            with suppress(sqlite3.Error):
                self._db = None if self._read_only else self._created()
        if self._db is not None and not self._read_only:
            self._began = clock_of(self._path.parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._store()
            if self._db is not None:
                self._db.close()
                self._db = None

    def get(self, mask_sha256: str) -> MaskObjects | None:
        """What was found in the mask with this hash; None where it is not known."""
        with self._lock:
            if self._db is None:
                return None
            try:
                row = self._db.execute(
                    "SELECT data FROM objects WHERE mask_sha256=?", (mask_sha256,)
                ).fetchone()
            except sqlite3.Error as error:
                self._give_up(error)
                return None
        try:
            return None if row is None else unpack(row[0])
        except ValueError as error:
            log.warning("%s: %s; the objects are found again", self._path, error)
            return None

    def is_verified(self, name: str, stamp: Stamp) -> bool:
        """Whether the files of this image had this stamp when they were found to have the right hashes."""
        with self._lock:
            if self._db is None:
                return False
            try:
                row = self._db.execute("SELECT stamp FROM verified WHERE name=?", (name,)).fetchone()
            except sqlite3.Error as error:
                self._give_up(error)
                return False
        return row is not None and row[0] == stamp.text

    def add_verified(self, name: str, stamp: Stamp) -> None:
        """Keep that files whose stamp was taken before they were read have the right hashes."""
        if self._db is None or self._read_only or stamp.changed_at >= self._began:
            return
        with self._lock:
            self._verified[name] = stamp.text
            if len(self._verified) >= BATCH:
                self._store()

    def add(self, mask_sha256: str, found: MaskObjects) -> None:
        """Keep what was found in a mask."""
        if self.is_kept:
            self.add_packed(mask_sha256, pack(found))

    @property
    def is_kept(self) -> bool:
        """Whether what is added is of use later."""
        return self._db is not None and not self._read_only

    def add_packed(self, mask_sha256: str, data: bytes) -> None:
        """As `add`, with what `pack` returned, where entries are kept (`is_kept`)."""
        with self._lock:
            self._new[mask_sha256] = data
            if len(self._new) >= BATCH:
                self._store()

    def _opened(self) -> sqlite3.Connection | None:
        if self._read_only:
            if not self._path.exists():
                return None
            # Immutable: no session writes while an export reads, and the folder may be one that cannot be written.
            db = sqlite3.connect(
                f"{self._path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
            )
            if db.execute("PRAGMA user_version").fetchone() != (VERSION,):
                db.close()
                return None
            return db
        db = self._created()
        try:
            (version,), (stored,) = (
                db.execute(sql).fetchone() for sql in ("PRAGMA user_version", "SELECT COUNT(*) FROM objects")
            )
        except sqlite3.Error:
            db.close()
            raise
        if version != VERSION or stored > 2 * self._entries:
            db.close()
            self._path.unlink(missing_ok=True)
            db = self._created()
        return db

    def _created(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, check_same_thread=False)
        try:
            db.execute("PRAGMA synchronous=OFF")  # a cache that is lost in a power failure is made again
            db.execute(f"PRAGMA page_size={PAGE_BYTES}")  # of a new file
            if not db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                db.execute(
                    "CREATE TABLE objects (mask_sha256 TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID"
                )
                db.execute("CREATE TABLE verified (name TEXT PRIMARY KEY, stamp TEXT NOT NULL) WITHOUT ROWID")
                db.execute(f"PRAGMA user_version={VERSION}")
                db.commit()
        except BaseException:
            db.close()
            raise
        return db

    def _store(self) -> None:
        if self._db is None or not (self._new or self._verified):
            return
        try:
            with self._db:
                self._db.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?)", self._new.items())
                self._db.executemany("INSERT OR REPLACE INTO verified VALUES (?, ?)", self._verified.items())
        except sqlite3.Error as error:
            self._give_up(error)
        self._new, self._verified = {}, {}

    def _give_up(self, error: sqlite3.Error) -> None:
        """Go on without the cache; a file that cannot be used is removed where that is allowed."""
        log.warning("%s cannot be used (%s); objects of masks are found again", self._path, error)
        if self._db is not None:
            self._db.close()
            self._db = None
        if not self._read_only:
            with suppress(OSError):
                self._path.unlink()


class FoundObjects(ObjectCache):
    """Reads a cache that another process keeps, and collects what that process is to add to it (`add_packed`)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, read_only=True)
        self.packed: dict[str, bytes] = {}
        """SHA-256 of a mask -> what `pack` made of its objects."""

    def add(self, mask_sha256: str, found: MaskObjects) -> None:
        self.packed[mask_sha256] = pack(found)
