"""The run folder: where its files are, how they are locked, and how they are checked when they are read."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segsmith.errors import SegsmithError
from segsmith.files import (
    PART,
    SUFFIXES,
    ImageFormat,
    Unchanged,
    clock_of,
    count_unchanged,
    local_folder,
    make_folder,
    read_image,
    remove_leftovers,
    sha256_of,
    write_atomic,
)
from segsmith.locks import folder_lock
from segsmith.memory.ledger import FileCheck, ImageRow
from segsmith.memory.object_store import in_parallel
from segsmith.memory.remote_run import remote_of

RESTORE = "Restore the file from a copy, or build again into another folder with --out."


ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def is_id(name: object) -> bool:
    """Whether this is an id that is safe as a file name: a ledger may come from anyone."""
    return isinstance(name, str) and ID.fullmatch(name) is not None


def _checked_id(name: str) -> str:
    if not is_id(name):
        raise SegsmithError(
            f"The ledger names an image {name!r}, which is not an id.", "Do not use this run folder."
        )
    return name


IMAGE_SUFFIXES, MASK_SUFFIXES = tuple(SUFFIXES.values()), (".png",)


def _sub_folder(folder: Path, image_id: str) -> str:
    """``images/ab`` for ``i-ab12...``: ids are hashes, so the files spread evenly over 256 folders."""
    return f"{folder}/{_checked_id(image_id).rpartition('-')[2][:2]}"


def _place(folder: Path, image_id: str, suffix: str) -> Path:
    """The path of a new file; one that an earlier version wrote without a sub-folder is replaced in its place."""
    before = Path(
        _existing(folder, image_id, (suffix,)) or f"{_sub_folder(folder, image_id)}/{image_id}{suffix}"
    )
    if not before.parent.exists():
        make_folder(before.parent)
    return before


def _existing(folder: Path, image_id: str, suffixes: tuple[str, ...]) -> str | None:
    """The file of an image with one of `suffixes`; None where there is none."""
    stem = f"{_sub_folder(folder, image_id)}/{image_id}"
    for suffix in suffixes:
        if os.path.exists(f"{stem}{suffix}"):
            return f"{stem}{suffix}"
    flat = f"{folder}/{image_id}.png"  # earlier versions had no sub-folders, and PNG alone
    return flat if ".png" in suffixes and os.path.exists(flat) else None


def _folders_in(folder: Path) -> list[str]:
    with suppress(OSError), os.scandir(folder) as entries:
        return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []


def _files_below(folder: Path) -> Iterator[Path]:
    """Files in a folder and its sub-folders, sorted; unfinished ones are left out."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(PART):
            continue
        if path.is_dir():
            yield from _files_below(path)
        else:
            yield path


def read_verified(path: Path, sha256: str, what: str) -> bytes:
    """The bytes of a file of the run; `what` names it in errors, such as "image i-1f9c0a2b7d3e".

    Raises `SegsmithError` where it is gone or its hash is not `sha256`.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SegsmithError(f"{path} is in the run's ledger but not in its folder.", RESTORE) from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise SegsmithError(f"The file of {what} is not the one that the run wrote ({path}).", RESTORE)
    return data


class RunFolder:
    """Paths of one run. Nothing here deletes a finished file."""

    def __init__(self, root: Path) -> None:
        """Raises `SegsmithError` for a URL (`local_folder`)."""
        self.root = root = local_folder(root)
        self.remote = remote_of(root)
        """The run in an object store whose working folder this is; None for all others."""
        self.config = root / "run.toml"
        self.ledger = root / "ledger.db"
        self.graph = root / "graph.db"
        self.images = root / "images"
        self.masks = root / "masks"
        self.patch_scores = root / "patch_scores.npz"
        self.objects = root / "objects.db"
        self.relabelling = root / "relabelling"  # see `weights`
        self.memory = root / "memory"
        self.checkpoints = root / "checkpoints"
        self.segmenter = self.checkpoints / "segmenter.safetensors"
        self.dataset = root / "dataset"
        self.voc = self.dataset / "voc"
        self.evaluation = root / "evaluation"
        self.real = root / "real"
        self.report = root / "report.html"
        self.log = root / "segsmith.log"
        self.llm_log = root / "llm-server.log"

    def create(self) -> None:
        """Create the folder and its sub-folders. Raises `SegsmithError` where that is not allowed."""
        try:
            for folder in (self.root, self.images, self.masks, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.root / ".writable", b"")
        except OSError as error:
            raise SegsmithError(
                f"Cannot write to {self.root}: {error.strerror or error}.",
                "Name a folder you may write to with --out.",
            ) from None

    def image(self, image_id: str, *, fetch: bool = True) -> Path:
        """The file of an image, in whichever format it is stored; where there is none, its path as a PNG.

        An image that is in the run's store alone is fetched from there first.
        """
        return Path(self.image_file(image_id, fetch=fetch))

    def image_file(self, image_id: str, *, fetch: bool = True) -> str:
        """As `image`: a string, because a path of pathlib takes as long as the question to the file system."""
        return self._file(self.images, image_id, IMAGE_SUFFIXES, fetch)

    def new_image(self, image_id: str, form: ImageFormat) -> Path:
        """Where to write a new image; creates the sub-folder."""
        return _place(self.images, image_id, SUFFIXES[form])

    def mask(self, image_id: str, *, fetch: bool = True) -> Path:
        """The palette PNG file of an image's mask; it may not exist. `fetch` as for `image`."""
        return Path(self.mask_file(image_id, fetch=fetch))

    def mask_file(self, image_id: str, *, fetch: bool = True) -> str:
        """As `mask`: a string."""
        return self._file(self.masks, image_id, MASK_SUFFIXES, fetch)

    def missing(self, images: Iterable[str], masks: Iterable[str]) -> tuple[int, int]:
        """How many of these images and masks have no file in this folder; nothing is fetched or opened."""
        return (
            sum(_existing(self.images, image_id, IMAGE_SUFFIXES) is None for image_id in images),
            sum(_existing(self.masks, image_id, MASK_SUFFIXES) is None for image_id in masks),
        )

    def new_mask(self, image_id: str) -> Path:
        """Where to write a new mask, or the new version of one; creates the sub-folder."""
        return _place(self.masks, image_id, ".png")

    def write(self, path: Path, data: bytes) -> None:
        """Write the file of an image or mask (`new_image`, `new_mask`), to the run's store first if it has one."""
        if self.remote is not None:
            self.remote.upload(path, data)
        write_atomic(path, data)

    def fetch(self, image_ids: Iterable[str], *, masks: bool = False) -> None:
        """Fetch images, or also their masks, that are in the run's store alone: faster than one at a time."""
        if self.remote is not None:
            in_parallel(lambda i: (self.image(i), masks and self.mask(i)), image_ids)

    def _file(self, folder: Path, image_id: str, suffixes: tuple[str, ...], fetch: bool) -> str:
        found = _existing(folder, image_id, suffixes)
        if found is not None:
            return found
        stem = f"{_sub_folder(folder, image_id)}/{image_id}"
        paths = [f"{stem}{suffix}" for suffix in suffixes]
        if not fetch or self.remote is None:
            return paths[0]
        return next((path for path in paths if self.remote.fetch(Path(path))), paths[0])

    def weights(self, unit: str) -> Path:
        """The weights that a worker trained in a unit of relabelling; the file may not exist."""
        path = self.relabelling / unit
        if self.remote is not None and not path.exists():
            self.remote.fetch(path)
        return path

    def drop_weights(self) -> None:
        """Remove all weights once workers have relabelled the images, or are not going to."""
        shutil.rmtree(self.relabelling, ignore_errors=True)
        if self.remote is not None:
            self.remote.remove_folder(self.relabelling)

    def image_files(self) -> Iterator[Path]:
        """All files below ``images/``, known to the ledger or not, sorted."""
        return _files_below(self.images)

    def mask_files(self) -> Iterator[Path]:
        """All files below ``masks/``, known to the ledger or not, sorted."""
        return _files_below(self.masks)

    def read_image(self, row: ImageRow) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB. Raises `SegsmithError` unless the file is the one that was drawn."""
        return read_image(read_verified(self.image(row.id), row.sha256, f"image {row.id}"))

    def damaged_masks(self, hashes: Iterable[tuple[str, str]], since: int = 0) -> Iterator[str]:
        """Ids whose mask is missing or is not the one with the given hash; `hashes` are (image id, SHA-256 or "").

        Masks that have not changed `since` (see `Unchanged`) are not read. Fast where ids come sorted.
        """
        unchanged = Unchanged(since)
        for image_id, expected in hashes:
            if f"{_sub_folder(self.masks, image_id)}/{image_id}.png" in unchanged:
                continue
            path = self.mask(image_id)
            if not path.exists() or expected not in ("", sha256_of(path)):
                yield image_id

    def check_now(self) -> FileCheck:
        """What to record of a check of files that begins now."""
        return FileCheck(clock_of(self.root), self.root.stat().st_ino)

    @staticmethod
    def still_known(check: FileCheck | None, now: FileCheck) -> FileCheck:
        """An earlier check as of `now`; it knows of no file if the folder is a copy or the clock was set back."""
        if check is not None and check.inode == now.inode and check.at <= now.at:
            return check
        return FileCheck(0, 0)

    def counted(self, folder: Path, check: FileCheck) -> FileCheck:
        """A check of a folder that has ended, with the number of files."""
        return replace(check, files=count_unchanged(folder, check.at))

    def set_aside(self, path: Path) -> Path:
        """Move a file that the ledger does not know to ``set_aside/`` and return its new path."""
        folder = self.root / "set_aside"
        folder.mkdir(exist_ok=True)
        target, number = folder / path.name, 1
        while target.exists():
            number += 1
            target = folder / f"{path.stem}-{number}{path.suffix}"
        path.rename(target)
        return target

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder for this process (`folder_lock`), and remove what killed ones left half-written.

        Raises `SegsmithError` that names the process which has locked it.
        """
        with ExitStack() as stack:
            if stack.enter_context(folder_lock(self.root)):
                self._sweep()
            if self.remote is not None:
                stack.enter_context(self.remote.held())
            yield

    @contextmanager
    def held_for_reading(self) -> Iterator[None]:
        """Lock the folder where it is writable; a folder that is not can still be read."""
        if self.remote is not None:
            with folder_lock(self.root):  # whoever holds the run in the store does not change this copy
                yield
        elif os.access(self.root, os.W_OK):
            with self.held():
                yield
        else:
            yield

    def clean_up(self) -> None:
        """Remove what killed processes left half-written, unless a session is working on the run."""
        with suppress(SegsmithError, OSError), self.held():
            pass

    def _sweep(self) -> None:
        """Remove the unfinished files of a killed process; the caller has locked the folder."""
        folders = (self.root, self.root / "training", self.images, self.masks, self.checkpoints,
                   self.checkpoints / "training",
                   self.dataset, self.evaluation, self.evaluation / "real" / "Predictions",
                   self.real / "masks")  # fmt: skip
        shards = (part for folder in (self.images, self.masks) for part in _folders_in(folder))
        for folder in (*folders, *map(Path, shards)):
            remove_leftovers(folder)
