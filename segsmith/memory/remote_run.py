"""A run in an object store, and the working folder in which this machine keeps what it needs of it.

The store holds, below the URL of the run:

- ``images/`` and ``masks/``, as a run folder does; whoever makes one writes it there, and whoever needs one that
  is not in the working folder reads it from there;
- ``snapshots/N.json``, N = 1, 2, ...: the names and hashes of all other files of the run (ledger, graph, settings,
  segmenter, report); their content is in ``files/<sha256>``;
- ``lock/N.json``: who works on the run. The greatest number counts;
- ``units/``: results of workers that are not in a snapshot yet (`segsmith.engine.object_units`);
- ``relabelling/``: weights that workers trained, until all images are relabelled;
- ``run.toml`` and ``report.html``, for people to read.

A snapshot and a lock are created only if their number is free (`ObjectStore.create`). So of two processes that both
believe to hold the run, one finds the next number taken, and stops.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from segsmith.config import cache_dir
from segsmith.errors import SegsmithError
from segsmith.files import PART, local_folder, sha256_of, write_atomic
from segsmith.locks import folder_lock, this_process
from segsmith.memory.object_store import ObjectStore, in_parallel, store_url

STATE = ".remote.json"
"""File of a working folder: the URL, and which snapshot the folder continues."""
LEASE_S = 180.0
"""Seconds without a sign of life after which another process may take a run over."""
BEAT_S = 20.0
"""Seconds between two signs of life."""
SAVE_EVERY_S, SAVE_SHARE = 15.0, 0.05
"""Least seconds between two snapshots, and the greatest share of the time that they may take."""
KEPT = 2
"""Snapshots that stay, so that another machine can finish reading the one before the newest."""
ELSEWHERE = ("images", "masks", "units", "relabelling", "dataset", "memory", "duplicates.index", "objects.db",
             "graph.db", "ledger.db")  # fmt: skip
"""What a snapshot leaves out, in the run folder: kept in the store by itself, made again, or copied as a database."""
DATABASES = ("graph.db", "ledger.db")
"""In this order: the graph relies on what the ledger holds, and not the other way."""
PUBLISHED = ("run.toml", "report.html")
KEYS = {"images", "masks", "snapshots", "files", "lock", "units", "relabelling", "dataset", *PUBLISHED}
AGAIN = "Run the same command again."


def working_folder(path: str | Path, *, new: bool = False) -> Path:
    """The folder on this machine for a run that a user named: the path itself, or the working folder of a URL.

    A working folder is brought up to date first, unless another process on this machine works on it. Raises
    `SegsmithError` for a URL without a run, unless a `new` run is to be started there, and for a URL of another kind.
    """
    url = store_url(path)
    if url is None:
        return local_folder(path)
    name = f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    remote = RemoteRun(ObjectStore(url), cache_dir() / "runs" / name)
    remote.update(new=new)
    return remote.folder


@contextmanager
def fresh_copy(url: str) -> Iterator[Path]:
    """A working folder in which everything comes from the store; it is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="segsmith-copy-") as folder:
        RemoteRun(ObjectStore(url), Path(folder)).update(new=False)
        yield Path(folder)


class RemoteRun:
    """The working folder of a run in an object store. `RunFolder.remote` is the one of a folder."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self.store = store
        self.folder = Path(os.path.abspath(folder))
        self._lock = _StoreLock(store)
        self._saving = threading.Lock()
        self._saved_at = 0.0
        self._took = 0.0
        self._hashes: dict[str, tuple[int, int, str]] = {}
        """Name -> size, time of change and SHA-256 of a file that was in a snapshot."""
        self._manifests: dict[int, dict[str, str]] = {}
        """Number -> name -> SHA-256, of the snapshots that stay."""
        self._shared: set[str] = set()
        """Content that was stored for workers, in a snapshot or not."""
        self.folded: set[str] = set()
        """Units whose results the ledger has, and which are still in the store."""
        self._obsolete: list[Callable[[], object]] = []
        """What to remove from the store once a snapshot holds what was made of it."""

    # -- images and masks -------------------------------------------------------------------------

    def upload(self, path: Path, data: bytes) -> None:
        """Store what is to be the content of a file of the working folder."""
        self._lock.check()
        self.store.put(self.key(path), data)

    def fetch(self, path: Path) -> bool:
        """Read a file of the working folder from the store; returns whether it is there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return self.store.get_file(self.key(path), path)

    def remove_folder(self, path: Path) -> None:
        """Remove a folder of the run from the store."""
        self._lock.check()
        self.store.delete_folder(self.key(path))

    def key(self, path: Path) -> str:
        """The key of a file of the working folder."""
        return Path(os.path.abspath(path)).relative_to(self.folder).as_posix()

    # -- files for workers ------------------------------------------------------------------------

    def share(self, path: Path, sha256: str) -> None:
        """Store a file of the working folder, whose hash is known, for workers, before the next snapshot does."""
        if sha256 not in self._shared:
            self.store.put_file(_content(sha256), path)
            self._shared.add(sha256)

    def fetch_shared(self, path: Path, sha256: str) -> bool:
        """Read a file that was shared or is in a snapshot; returns whether it is in the store."""
        return self.store.get_file(_content(sha256), path)

    def remove_later(self, remove: Callable[[], object]) -> None:
        """Call `remove` after the next snapshot, which holds what makes something in the store obsolete."""
        self._obsolete.append(remove)

    # -- this machine follows the store -----------------------------------------------------------

    def update(self, *, new: bool) -> None:
        """Bring the working folder up to date, unless another process of this machine works on it.

        Raises `SegsmithError` where the store holds no run, unless a `new` one may be started.
        """
        newest = self._newest()
        if not newest:
            strange = sorted(set(self.store.names()) - KEYS)
            strange = [name for name in strange if not name.startswith("probe-")]
            if not new or strange:
                holds = f" (it holds {strange[0]!r})" if strange else ""
                raise SegsmithError(
                    f"There is no run at {self.store.url}{holds}.",
                    "Name another URL." if strange else f"Start one: segsmith build --out {self.store.url}",
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(folder_lock(self.folder))
            except SegsmithError:
                return
            self._follow(newest)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run against other machines; a snapshot is taken at the end. The caller has locked the folder.

        Raises `SegsmithError` where another process holds it, where the store cannot keep two processes apart, and
        where the run has been changed since `update`.
        """
        with self._lock.held():
            if self._follow(self._newest()):
                raise SegsmithError(f"The run at {self.store.url} was changed a moment ago.", AGAIN)
            self._remove_orphans()
            try:
                yield
            except BaseException:
                with suppress(SegsmithError):  # the error on its way is the one to report
                    self.save()
                raise
            self.save()

    def _follow(self, newest: int) -> bool:
        """Replace the working folder by snapshot number `newest`, unless it continues that one; True if it did not.

        What a killed session left in the folder after its last snapshot is kept if nobody continued the run since.
        """
        if newest == self._state().get("snapshot", -1):
            return False
        if newest < self._state().get("snapshot", 0):
            raise SegsmithError(
                f"{self.store.url} holds another run than the one that was there before.",
                f"Name another URL, or delete {self.folder}.",
            )
        if newest:
            self._pull(newest)
        self._write_state(newest, recovered=False)
        return True

    def _pull(self, number: int) -> None:
        files = self._manifest(number)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=PART) as scratch:
            for name in files:
                (Path(scratch) / name).parent.mkdir(parents=True, exist_ok=True)

            def get(name: str) -> None:
                path = Path(scratch) / name
                if not self.store.get_file(_content(files[name]), path) or sha256_of(path) != files[name]:
                    raise SegsmithError(f"The file {name} of {self.store.url} is missing or damaged.", AGAIN)

            in_parallel(get, list(files))
            (self.folder / STATE).unlink(missing_ok=True)
            for path in self.folder.iterdir():
                if not path.name.startswith((".lock", PART)):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path in Path(scratch).iterdir():
                path.rename(self.folder / path.name)
        self._hashes.clear()

    # -- the store follows this machine -----------------------------------------------------------

    def save_now_and_then(self) -> None:
        """`save`, unless the last one was a moment ago, measured by how long it took."""
        if time.monotonic() - self._saved_at >= max(SAVE_EVERY_S, self._took / SAVE_SHARE):
            self.save()

    def save(self) -> None:
        """Take a snapshot of everything but images and masks. Raises `SegsmithError` if the run was taken over."""
        with self._saving:
            self._lock.check()
            obsolete, self._obsolete = self._obsolete, []
            began = time.monotonic()
            number = self._state().get("snapshot", 0) + 1
            earlier = {n: self._manifest(n) for n in _numbers(self.store, "snapshots")}
            known = {sha for n, files in earlier.items() if n > number - KEPT for sha in files.values()}
            files = self._upload_files(known | self._shared)
            data = json.dumps({"files": files, "by": this_process(), "id": uuid.uuid4().hex}).encode()
            if not self.store.create(f"snapshots/{number:08}.json", data):
                raise _taken(self.store.url)
            self._write_state(number)
            self._manifests = {n: f for n, f in {**earlier, number: files}.items() if n > number - KEPT}
            self._publish()
            self._remove_old(earlier, number, set(files.values()) | self._shared)
            for remove in obsolete:
                remove()
            self._saved_at = time.monotonic()
            self._took = self._saved_at - began

    def _upload_files(self, known: set[str]) -> dict[str, str]:
        """Name -> SHA-256 of the files of a snapshot; stores those whose content is not `known`."""
        found: dict[str, str] = {}
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=PART) as scratch:
            for name in DATABASES:
                if (self.folder / name).exists():
                    copy = Path(scratch) / name
                    _back_up(self.folder / name, copy)
                    found[name] = sha256_of(copy)
                    if found[name] not in known:
                        self.store.put_file(_content(found[name]), copy)
            todo: dict[str, Path] = {}
            for number, path in enumerate(_files_of(self.folder)):
                name, pinned = self.key(path), Path(scratch) / f"{number}"
                with suppress(FileNotFoundError):
                    # The file may be replaced by another one at any moment; what is stored must fit its hash.
                    _pin(path, pinned)
                    found[name] = self._hash(name, pinned)
                    if found[name] not in known:
                        todo[found[name]] = pinned
            in_parallel(lambda item: self.store.put_file(_content(item[0]), item[1]), list(todo.items()))
        return found

    def _hash(self, name: str, path: Path) -> str:
        about = path.stat()
        size, changed, sha = self._hashes.get(name, (0, 0, ""))
        if (size, changed) != (about.st_size, about.st_mtime_ns):
            sha = sha256_of(path)
            self._hashes[name] = (about.st_size, about.st_mtime_ns, sha)
        return sha

    def _publish(self) -> None:
        for name in PUBLISHED:
            self.publish(self.folder / name)

    def publish(self, path: Path) -> None:
        """Store a file of the working folder under its name, if it is there and new."""
        with suppress(FileNotFoundError):
            sha, name = self._hash(self.key(path), path), self.key(path)
            if self._hashes.get(f"published {name}", (0, 0, ""))[2] != sha:
                self.store.put_file(name, path)
                self._hashes[f"published {name}"] = (0, 0, sha)

    def _remove_old(self, earlier: dict[int, dict[str, str]], number: int, used: set[str]) -> None:
        old = [n for n in earlier if n <= number - KEPT]
        used = used.union(*(files.values() for n, files in earlier.items() if n not in old))
        gone = {sha for n in old for sha in earlier[n].values()} - used
        self.store.delete([*(_content(sha) for sha in gone), *(f"snapshots/{n:08}.json" for n in old)])

    def _remove_orphans(self) -> None:
        """Remove content that a killed session stored for a snapshot that it did not finish."""
        kept = [self._manifest(n) for n in _numbers(self.store, "snapshots")]
        used = {_content(sha) for files in kept for sha in files.values()}
        self.store.delete(key for key in self.store.keys("files") if key not in used)

    # -- what a snapshot does not hold ------------------------------------------------------------

    def recover_images(
        self, known: Callable[[Sequence[str]], set[str]], add: Callable[[dict[str, str]], None]
    ) -> int:
        """Use images that an ended session stored after its last snapshot; returns their number.

        Done once after the working folder was replaced. `known` returns those of some ids that the ledger has, and
        `add` is called with id -> SHA-256 of others, whose files are then in the working folder.
        """
        state = self._state()
        if state.get("recovered", True):
            return 0
        count = 0
        for part in self.store.names("images"):
            names = {name.partition(".")[0]: name for name in self.store.names(f"images/{part}")}
            lost = sorted(names.keys() - known(list(names)))
            paths = [self.folder / "images" / part / names[image_id] for image_id in lost]
            in_parallel(self.fetch, paths)
            add({image_id: sha256_of(path) for image_id, path in zip(lost, paths, strict=True)})
            count += len(lost)
        self._write_state(state["snapshot"], recovered=True)
        return count

    # -- state ------------------------------------------------------------------------------------

    def _newest(self) -> int:
        return max(_numbers(self.store, "snapshots"), default=0)

    def _manifest(self, number: int) -> dict[str, str]:
        """Name -> SHA-256 of the files of a snapshot. Raises `SegsmithError` for one that is gone or is not ours."""
        if number in self._manifests:
            return self._manifests[number]
        data = self.store.get(f"snapshots/{number:08}.json")
        try:
            files = json.loads(data or b"")["files"]
            found = {str(name): str(sha) for name, sha in files.items()}
            inside = all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in found)
            if not inside or not all(len(sha) == 64 and sha.isalnum() for sha in found.values()):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SegsmithError(
                f"Snapshot {number} of {self.store.url} is missing or damaged.", AGAIN
            ) from None
        return found

    def _state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self.folder / STATE).read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return state if state.get("url") == self.store.url else {}

    def _write_state(self, snapshot: int, *, recovered: bool | None = None) -> None:
        recovered = self._state().get("recovered", True) if recovered is None else recovered
        state = {"url": self.store.url, "snapshot": snapshot, "recovered": recovered}
        write_atomic(self.folder / STATE, json.dumps(state).encode())


_OPEN: dict[Path, RemoteRun] = {}
"""The remote runs of this process: those who write know whether this process still holds the run."""


def remote_of(folder: Path) -> RemoteRun | None:
    """The remote run whose working folder this is; None for a run that is in a folder alone."""
    state = folder / STATE
    if not state.exists():
        return None
    url = str(json.loads(state.read_text("utf-8"))["url"])
    key = Path(os.path.abspath(folder))
    if key not in _OPEN or _OPEN[key].store.url != url:
        _OPEN[key] = RemoteRun(ObjectStore(url), key)
    return _OPEN[key]


def scratch_folder(url: str, folder: Path) -> RemoteRun:
    """Make an empty folder the working folder of a worker, which reads images of a run and holds no lock."""
    write_atomic(folder / STATE, json.dumps({"url": url, "snapshot": 0}).encode())
    remote = remote_of(folder)
    assert remote is not None
    return remote


class _StoreLock:
    """The lock of a run in its store: the record with the greatest number, ``free`` or ``held``.

    A held run may be taken over where its process was on this machine and has ended, or where its record was not
    written again for `LEASE_S` seconds by the store's clock. Who holds it writes the record every `BEAT_S` seconds,
    and stops writing anything else when half of `LEASE_S` has passed without success.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._number = 0
        self._ended = threading.Event()
        self._alive = 0.0
        self._is_lost = False
        self._id = ""

    def check(self) -> None:
        """Raise `SegsmithError` if this process held the run and does so no longer."""
        if self._number and (self._is_lost or _now() - self._alive > LEASE_S / 2):
            raise _taken(self._store.url)

    @contextmanager
    def held(self) -> Iterator[None]:
        self._acquire()
        self._ended.clear()
        beats = threading.Thread(target=self._beat, name="segsmith-lock", daemon=True)
        beats.start()
        try:
            yield
        finally:
            self._ended.set()
            beats.join()
            with suppress(SegsmithError):  # it ends by itself
                if max(_numbers(self._store, "lock"), default=0) == self._number:
                    self._store.put(_lock_key(self._number), self._record("free"))
            self._number = 0

    def _acquire(self) -> None:
        now = self._store.check()
        top = max(_numbers(self._store, "lock"), default=0)
        if top:
            self._reject_holder(top, now)
        self._id, self._is_lost, self._alive = uuid.uuid4().hex, False, _now()
        created = self._store.create(_lock_key(top + 1), self._record("held"))
        numbers = _numbers(self._store, "lock")
        if not created or max(numbers, default=0) != top + 1:
            raise SegsmithError(f"The run at {self._store.url} is in use by another process.", "Wait for it.")
        self._number = top + 1
        self._store.delete(_lock_key(number) for number in numbers if number <= top)

    def _reject_holder(self, number: int, now: Any) -> None:
        """Raise `SegsmithError` unless the lock with this number is free or its process has ended."""
        try:
            record = json.loads(self._store.get(_lock_key(number)) or b"{}")
            state, holder, where, process = (record.get(k) for k in ("state", "holder", "where", "process"))
        except (ValueError, AttributeError):
            state, holder, where, process = "held", "by an unknown process", "", 0
        if state != "held" or (where == _where() and not _runs(process)):
            return
        seen = self._store.modified(_lock_key(number))
        silent = (now - seen).total_seconds() if seen is not None else LEASE_S
        if silent < LEASE_S:
            raise SegsmithError(
                f"The run at {self._store.url} is in use {holder}.",
                f"Wait for it or stop it; if its machine is gone, wait {LEASE_S - silent:.0f} s more.",
            )

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with suppress(SegsmithError):  # tried again; `check` notices if it keeps failing
                if max(_numbers(self._store, "lock"), default=0) > self._number:
                    self._is_lost = True
                    return
                began = _now()
                self._store.put(_lock_key(self._number), self._record("held"))
                self._alive = began

    def _record(self, state: str) -> bytes:
        about = {"state": state, "holder": this_process(), "where": _where(), "process": os.getpid()}
        return json.dumps({**about, "id": self._id}).encode()


def _lock_key(number: int) -> str:
    return f"lock/{number:08}.json"


def _content(sha256: str) -> str:
    return f"files/{sha256}"


def _numbers(store: ObjectStore, folder: str) -> list[int]:
    """The numbers N of the objects ``folder/N.json``."""
    stems = (name.removesuffix(".json") for name in store.names(folder) if name.endswith(".json"))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _taken(url: str) -> SegsmithError:
    return SegsmithError(
        f"The run at {url} was taken over by another process, or its store was out of reach for too long.",
        "Run the same command again when no other process works on it.",
    )


def _now() -> float:
    """Seconds of a clock that also counts while the machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _where() -> str:
    """This boot of this machine, or container: where a process id means the same process; "" where unknown."""
    with suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _runs(process: Any) -> bool:
    """Whether a process of this machine still runs; True where that cannot be known."""
    if not _where() or not isinstance(process, int):
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def _back_up(database: Path, copy: Path) -> None:
    """A copy of a SQLite database as it is at one moment, whoever is writing to it."""
    with (
        closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)


def _pin(path: Path, link: Path) -> None:
    """Another name for the content that a file has now."""
    try:
        os.link(path, link)
    except OSError:
        shutil.copy2(path, link)


def _files_of(folder: Path) -> Iterator[Path]:
    """Files of a working folder that are part of a snapshot, beside the databases."""
    for path in sorted(folder.iterdir()):
        if not path.name.startswith((*ELSEWHERE, ".")) and not path.name.endswith(".log"):
            yield from _files_below(path)


def _files_below(path: Path) -> Iterator[Path]:
    if path.is_symlink() or path.name.startswith("."):
        return
    if path.is_dir():
        for child in sorted(path.iterdir()):
            yield from _files_below(child)
    elif path.is_file():
        yield path
