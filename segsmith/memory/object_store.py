"""Objects below a URL such as ``s3://bucket/run``: the few operations that segsmith needs, with errors for users.

fsspec and s3fs do the work. Credentials come from where AWS's own tools find them (environment variables,
``~/.aws``, a role of the machine), and ``AWS_ENDPOINT_URL`` names another server with S3's protocol. Neither is ever
part of a URL or of a run's settings.
"""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from segsmith.errors import SegsmithError, causes
from segsmith.files import PART, URL
from segsmith.terminal_text import first_line

SCHEME = "s3"
"""The only scheme whose stores are known to create an object only once (``If-None-Match: *``)."""
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
KEY = re.compile(r"[A-Za-z0-9!_.*'()=/-]+")
TRANSFERS = 16
"""Requests at once where many small objects are moved."""
MOST_DELETED = 1000
"""Objects of one request, by S3's protocol."""
RESUME = "then run the same command again; it resumes from here."
UNREACHABLE = ("EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError", "HTTPClientError",
               "ReadTimeoutError", "ProxyConnectionError", "FSTimeoutError")  # fmt: skip
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError",
                  "TokenRetrievalError", "ProfileNotFound")  # fmt: skip


def store_url(path: str | Path) -> str | None:
    """The URL that a user typed where it is one of an object store, without a slash at its end; None for a path.

    ``Path`` writes ``s3:/bucket/run``, which counts, too. Raises `SegsmithError` for a URL that names no folder in a
    bucket. A URL of another scheme is none of ours: `local_folder` explains it.
    """
    found = URL.fullmatch(str(path))
    if found is None or found[1].lower() != SCHEME:
        return None
    bucket, _, key = found[2].partition("/")
    key = "/".join(part for part in key.split("/") if part)
    shown = f"{SCHEME}://{found[2].rpartition('@')[2]}"
    if "@" in bucket:
        raise SegsmithError(
            f"{shown} was typed with a user name or key.",
            "Leave it out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE.",
        )
    if not BUCKET.fullmatch(bucket) or not KEY.fullmatch(key) or {".", ".."} & set(key.split("/")):
        raise SegsmithError(
            f"{shown} does not name a folder in a bucket.",
            f"Type {SCHEME}://BUCKET/NAME, with letters, digits and -_.!*'()= in the name.",
        )
    return f"{SCHEME}://{bucket}/{key}"


class ObjectStore:
    """The objects below a URL of `store_url`; keys are relative to it. May be used by several threads.

    Every method raises `SegsmithError` where the store cannot be reached or does not allow what is asked.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = url.removeprefix(f"{SCHEME}://")

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    # -- single objects ---------------------------------------------------------------------------

    def put(self, key: str, data: bytes) -> None:
        """Write an object; readers see the old or the new one."""
        with self._errors():
            self._fs.pipe_file(self._path(key), data)

    def put_file(self, key: str, path: Path) -> None:
        """Write the content of a file, of any size."""
        with self._errors():
            self._fs.put_file(str(path), self._path(key))

    def create(self, key: str, data: bytes) -> bool:
        """Write an object that must not be there yet; returns whether it holds `data` now.

        Of several processes, on any machines, that write different data, one succeeds.
        """
        with self._errors():
            try:
                self._fs.pipe_file(self._path(key), data, mode="create")
                return True
            except FileExistsError:
                pass
            except OSError as error:
                # Two requests at once: the store lets one of them through, or asks both to try again.
                if _code(error) not in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                    raise
        # A request that is repeated after a lost reply finds what it wrote itself.
        return self.get(key) == data

    def get(self, key: str) -> bytes | None:
        """The content of an object; None where there is none."""
        with self._errors():
            try:
                data: bytes = self._fs.cat_file(self._path(key))
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return None
            return data

    def get_file(self, key: str, path: Path) -> bool:
        """Write an object to a file, whole or not at all; returns whether there is one."""
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=PART)
        os.close(handle)
        try:
            with self._errors():
                try:
                    self._fs.get_file(self._path(key), temporary)
                except FileNotFoundError as error:
                    if _code(error) == "NoSuchBucket":
                        raise
                    return False
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            return True
        finally:
            Path(temporary).unlink(missing_ok=True)

    def copy(self, key: str, to: str) -> bool:
        """Copy an object within the store; returns whether there is one."""
        with self._errors():
            try:
                self._fs.cp_file(self._path(key), self._path(to))
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return False
            return True

    def modified(self, key: str) -> datetime | None:
        """When an object was written last, by the store's clock."""
        with self._errors():
            try:
                found: datetime = self._fs.info(self._path(key), refresh=True)["LastModified"]
            except FileNotFoundError:
                return None
            return found

    # -- many objects -----------------------------------------------------------------------------

    def names(self, folder: str = "") -> list[str]:
        """Names of objects and folders directly below a folder, sorted."""
        path = self._path(folder) if folder else self._root
        with self._errors():
            try:
                found = self._fs.ls(path, detail=False, refresh=True)
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return []
        return sorted(name.rpartition("/")[2] for name in found if name.rstrip("/") != path)

    def keys(self, folder: str = "") -> list[str]:
        """Keys of all objects below a folder, in its sub-folders, too, sorted."""
        path = self._path(folder) if folder else self._root
        with self._errors():
            try:
                found = self._fs.find(path, refresh=True)
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return []
        return sorted(name.removeprefix(f"{self._root}/") for name in found)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, whether or not they are there."""
        from fsspec.asyn import sync

        paths = [self._path(key) for key in keys]
        with self._errors():
            for start in range(0, len(paths), MOST_DELETED):
                # Not `rm`, which first asks for each object whether it is there.
                sync(self._fs.loop, self._fs._bulk_delete, paths[start : start + MOST_DELETED])

    def delete_folder(self, folder: str) -> None:
        """Remove all objects below a folder."""
        self.delete(self.keys(folder))

    # -- the store itself -------------------------------------------------------------------------

    def check(self) -> datetime:
        """The time by the store's clock. Raises `SegsmithError` where an object could be created twice."""
        key = f"probe-{uuid.uuid4().hex[:8]}"
        try:
            with self._errors(missing_bucket=True):
                self._fs.pipe_file(self._path(key), b"first", mode="create")
            if self.create(key, b"second"):
                raise SegsmithError(
                    f"The store of {self.url} ignores `If-None-Match: *`, so several processes could commit the same "
                    "work.",
                    "Use a store with conditional writes (AWS S3, MinIO, R2 and others), or a folder with --out.",
                )
            now = self.modified(key)
            assert now is not None
            return now
        finally:
            # The error that is on its way already says what is wrong.
            with suppress(Exception):
                self.delete([key])

    @cached_property
    def _fs(self) -> Any:
        if find_spec("s3fs") is None:
            raise SegsmithError(
                f"{self.url} needs the package s3fs, which is not installed.",
                'Type: pip install "segsmith[s3]", or name a folder.',
            )
        import fsspec

        return fsspec.filesystem(SCHEME, use_listings_cache=False)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    @contextmanager
    def _errors(self, *, missing_bucket: bool = False) -> Iterator[None]:
        try:
            yield
        except (SegsmithError, FileExistsError):
            raise
        except Exception as error:  # the client's libraries have no common base class
            known = self._explained(error, missing_bucket)
            if known is None:
                raise
            raise known from error

    def _explained(self, error: Exception, missing_bucket: bool) -> SegsmithError | None:
        names = {kind.__name__ for cause in causes(error) for kind in type(cause).__mro__}
        bucket = self._root.partition("/")[0]
        if names & set(NO_CREDENTIALS):
            return SegsmithError(
                f"There are no credentials for {self.url}.",
                "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
            )
        if _code(error) == "NoSuchBucket" or (missing_bucket and isinstance(error, FileNotFoundError)):
            return SegsmithError(
                f"There is no bucket {bucket!r}.",
                f"Create it, or check the URL {self.url} and AWS_ENDPOINT_URL.",
            )
        if names & set(UNREACHABLE):
            return SegsmithError(
                f"The store of {self.url} does not answer ({first_line(error):.200}).",
                f"Check the network and AWS_ENDPOINT_URL, {RESUME}",
            )
        if isinstance(error, PermissionError) or _code(error) in ("AccessDenied", "403"):
            return SegsmithError(
                f"The store does not allow that at {self.url} ({first_line(error):.200}).",
                f"Use credentials that may read, list, write and delete there, {RESUME}",
            )
        # A full local disk is explained elsewhere; what the store reports carries a response.
        if _code(error) or type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore", "aiohttp"):
            return SegsmithError(
                f"The store of {self.url} failed ({first_line(error):.200}).", f"Fix that, {RESUME}"
            )
        return None


def in_parallel(function: Any, items: Iterable[Any]) -> list[Any]:
    """``list(map(function, items))`` with `TRANSFERS` requests at once. Raises the first error."""
    with ThreadPoolExecutor(TRANSFERS, "segsmith-store") as pool:
        return list(pool.map(function, items))


def _code(error: BaseException) -> str:
    """The store's error code, such as "NoSuchBucket"; "" for an error that the store did not report."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""
