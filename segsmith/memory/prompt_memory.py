"""The prompt memory: admitted prompts with their CLIP text vectors, in Chroma (SynthSeg-Agents, memory M)."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segsmith.errors import SegsmithError
from segsmith.protocols import ImageTextEncoder
from segsmith.terminal_text import first_line
from segsmith.types import Vectors

ATTRIBUTES = ("place", "light", "weather", "state", "companion", "viewpoint")
PAIR = ("place", "light")
SPARE = 16
"""Further neighbours that a query asks for where some may have to be left out."""
READ_BATCH = 4096
"""Prompts read in one query; SQLite limits the number of variables of a statement."""

Cell = tuple[str, ...]
"""A cell of the attribute space: ``("place", "street")`` or the pair ``("place", "street", "light", "night")``."""


@dataclass(frozen=True)
class Remembered:
    """An admitted prompt. `score` is that of the critique, in [0, 1]."""

    id: str
    text: str
    class_name: str
    attributes: Mapping[str, str]
    run_id: str = ""
    round: int = 0
    parent_id: str | None = None
    score: float = 1.0


@dataclass(frozen=True)
class Neighbour:
    """The most similar remembered prompt; `cosine` is in [-1, 1]."""

    text: str
    id: str
    cosine: float


@dataclass(frozen=True)
class Seen:
    """What a query may see: classes are written in parallel, and the result must not depend on which is faster."""

    class_name: str
    run_id: str
    round: int

    def allows(self, data: Mapping[str, Any]) -> bool:
        """Whether a query may see the prompt with this metadata: of its class, another run or an earlier round."""
        return bool(
            data["class"] == self.class_name
            or data["run"] != self.run_id
            or int(str(data["round"])) < self.round
        )


def cells(attributes: Mapping[str, str]) -> list[Cell]:
    """Cells that a prompt with these attributes visits: each filled attribute, and the pair (place, light)."""
    visited: list[Cell] = [(name, attributes[name]) for name in ATTRIBUTES if attributes.get(name)]
    if all(attributes.get(name) for name in PAIR):
        visited.append(tuple(part for name in PAIR for part in (name, attributes[name])))
    return visited


def _of_class(class_name: str, but_run: str) -> dict[str, Any]:
    """Chroma's ``where``."""
    if not but_run:
        return {"class": class_name}
    return {"$and": [{"class": class_name}, {"run": {"$ne": but_run}}]}


def stored_vectors(path: Path, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Prompt id -> vector in the memory in folder `path`, of whichever encoder.

    Opens no encoder. Empty for a folder without a memory, or with one that cannot be read.
    """
    if not (path / "chroma.sqlite3").exists():
        return {}
    from chromadb.errors import ChromaError

    best: dict[str, NDArray[np.float32]] = {}
    try:
        with closing(_open_folder(path)) as client:
            for collection in client.list_collections():
                found: dict[str, NDArray[np.float32]] = {}
                for start in range(0, len(ids), READ_BATCH):
                    part = collection.get(ids=list(ids[start : start + READ_BATCH]), include=["embeddings"])
                    if (vectors := part["embeddings"]) is not None:
                        pairs = zip(part["ids"], vectors, strict=True)
                        found |= {i: np.asarray(v, np.float32) for i, v in pairs}
                # A run uses one encoder, so the collection with most of its prompts is its own.
                best = max(best, found, key=len)
    except (ChromaError, OSError, ValueError):
        return {}
    return best


def copy_memory(sources: Sequence[Path], target: Path) -> None:
    """Write the prompts of several memories, with their vectors, into a memory in the folder `target`."""
    with ExitStack() as stack:
        into = None
        for source in sources:
            if not (source / "chroma.sqlite3").exists():
                continue
            client = stack.enter_context(closing(_open_folder(source)))
            for collection in client.list_collections():
                target.mkdir(exist_ok=True)
                into = into or stack.enter_context(closing(_open_folder(target)))
                copy = into.get_or_create_collection(
                    collection.name, metadata=collection.metadata, embedding_function=None
                )
                for start in range(0, collection.count(), READ_BATCH):
                    part = collection.get(
                        limit=READ_BATCH, offset=start, include=["embeddings", "documents", "metadatas"]
                    )
                    copy.upsert(
                        ids=part["ids"],
                        embeddings=part["embeddings"],
                        documents=part["documents"],
                        metadatas=part["metadatas"],
                    )


def _open_folder(path: Path) -> Any:
    """Chroma's client of a folder; the caller closes it.

    Chroma keeps one open database for each spelling of a path until its last client is closed, whatever has become of
    the folder since. So the path is absolute: a relative one could mean another folder by now.
    """
    import chromadb
    from chromadb.config import Settings

    return chromadb.PersistentClient(str(path.resolve()), Settings(anonymized_telemetry=False))


class PromptMemory:
    """Prompts of one or several runs; safe to share between the threads of one process.

    Each encoder has its own collection, named after `encoder.name`.
    """

    def __init__(self, path: Path | None, encoder: ImageTextEncoder) -> None:
        """Open the memory in folder `path`; None for one that exists only as long as this object."""
        import chromadb  # takes seconds, and only runs that write prompts need it
        from chromadb.config import Settings
        from chromadb.errors import ChromaError

        self._encoder = encoder
        self._path = path
        self.lock = threading.RLock()
        """Hold it to search and add without another thread adding in between."""
        name = f"prompts-{hashlib.sha256(encoder.name.encode()).hexdigest()[:16]}"
        try:
            if path is None:
                # All ephemeral clients of a process share one store; the name separates them.
                name = f"{name}-{uuid.uuid4().hex}"
                self._client: Any = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
            else:
                path.mkdir(parents=True, exist_ok=True)
                self._client = _open_folder(path)
            self._prompts: Any = self._client.get_or_create_collection(
                name,
                embedding_function=None,
                configuration={"hnsw": {"space": "cosine"}},
                metadata={"encoder": encoder.name},
            )
        except (ChromaError, OSError, ValueError) as error:
            raise SegsmithError(
                f"The prompt memory in {path} cannot be opened: {error}.",
                "Name another folder with the setting 'memory'.",
            ) from None

    def close(self) -> None:
        """Close the files, unless another memory of this process has the same folder open."""
        self._client.close()

    def count(self) -> int:
        """Prompts remembered under this encoder."""
        with self._readable():
            return int(self._prompts.count())

    def nearest(
        self, texts: Sequence[str], *, but: Sequence[str] = (), seen: Seen | None = None
    ) -> list[Neighbour | None]:
        """The most similar remembered prompt for each text, without the ids in `but`; None where there is none."""
        return [near[0] if near else None for near in self.around(texts, 1, but=but, seen=seen)]

    def around(
        self, texts: Sequence[str], count: int, *, but: Sequence[str] = (), seen: Seen | None = None
    ) -> list[list[Neighbour]]:
        """Up to `count` neighbours of each text, the most similar first, in one query.

        `seen` leaves out what other classes of the same run were given in the same round.
        """
        if not texts:
            return []
        vectors, excluded = self._vectors(texts), set(but)
        found: list[list[Neighbour]] = [[] for _ in texts]
        about: dict[str, tuple[str, Mapping[str, Any]]] = {}
        todo, asked = list(range(len(texts))), count + (SPARE if seen or but else 0)
        while todo:
            # Neither Chroma's own filter, which reads the metadata of every prompt, nor the number of prompts, which
            # it counts one by one: it gives fewer than asked for where it has no more.
            near = self._query(vectors[todo], asked)
            if near is None:
                break
            ranked = {
                i: [(id_, 1.0 - far) for id_, far in zip(ids, distances, strict=True) if id_ not in excluded]
                for i, ids, distances in zip(todo, near["ids"], near["distances"], strict=True)
            }
            for i, chosen in self._allowed(ranked, count, seen, about).items():
                found[i] = chosen
            full = {i for i, ids in zip(todo, near["ids"], strict=True) if len(ids) == asked}
            todo = [i for i in todo if len(found[i]) < count and i in full]
            asked *= 4
        return found

    def _query(self, vectors: Vectors, count: int) -> Any:
        """Chroma's answer to a search; None while nothing is remembered.

        While a collection gets its first vectors, a search in Chroma 1.5.9 sometimes raises, since it finds no index
        yet. Whoever adds them may be another process, so no lock can prevent that.
        """
        from chromadb.errors import InternalError

        search = partial(
            self._prompts.query, query_embeddings=vectors, n_results=count, include=["distances"]
        )
        with self._readable():
            try:
                return search()
            except InternalError:
                return search() if self._prompts.get(limit=1, include=[])["ids"] else None

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turns Chroma's errors into one line."""
        from chromadb.errors import ChromaError

        try:
            yield
        except ChromaError as error:
            raise SegsmithError(
                f"The prompt memory in {self._path} is damaged: {first_line(error)}.",
                "If it is the run's own, remove that folder and type the same command again, which makes it anew; "
                "else name another folder with the setting 'memory'.",
            ) from None

    def _allowed(
        self,
        ranked: Mapping[int, Sequence[tuple[str, float]]],
        count: int,
        seen: Seen | None,
        about: dict[str, tuple[str, Mapping[str, Any]]],
    ) -> dict[int, list[Neighbour]]:
        """The first `count` of each list of (id, cosine) that `seen` allows.

        Text and metadata, which take Chroma longer than the search, are read only as far as they are needed; `about`
        keeps them.
        """
        found: dict[int, list[Neighbour]] = {i: [] for i in ranked}
        start, step = 0, count
        while wanted := {
            i: part
            for i, near in ranked.items()
            if len(found[i]) < count and (part := near[start : start + step])
        }:
            if unread := sorted({id_ for part in wanted.values() for id_, _ in part} - about.keys()):
                with self._readable():
                    read = self._prompts.get(ids=unread, include=["documents", "metadatas"])
                about |= {
                    id_: (text, data)
                    for id_, text, data in zip(read["ids"], read["documents"], read["metadatas"], strict=True)
                }
            for i, part in wanted.items():
                found[i] += [
                    Neighbour(about[id_][0], id_, cosine)
                    for id_, cosine in part
                    if seen is None or seen.allows(about[id_][1])
                ]
            start, step = start + step, 2 * step
        return {i: neighbours[:count] for i, neighbours in found.items()}

    def add(self, rows: Sequence[Remembered]) -> None:
        """Add or replace prompts; recorded yields are kept."""
        if not rows:
            return
        with self.lock, self._readable():
            self._prompts.upsert(
                ids=[row.id for row in rows],
                embeddings=self._vectors([row.text for row in rows]),
                documents=[row.text for row in rows],
                metadatas=[
                    {
                        **{name: row.attributes.get(name, "") for name in ATTRIBUTES},
                        "class": row.class_name,
                        "run": row.run_id,
                        "round": row.round,
                        "parent": row.parent_id or "",
                        "score": row.score,
                    }
                    for row in rows
                ],
            )

    def held(self, ids: Sequence[str]) -> set[str]:
        """Those of these prompts that are remembered."""
        with self._readable():
            return set(self._prompts.get(ids=list(ids), include=[])["ids"])

    def visits(self, class_name: str, *, but_run: str = "") -> Counter[Cell]:
        """Number of visits of each cell by prompts of a class, over all runs but one; reads them all."""
        with self._readable():
            found = self._prompts.get(where=_of_class(class_name, but_run), include=["metadatas"])
        counts: Counter[Cell] = Counter()
        for data in found["metadatas"] or []:
            counts.update(cells({name: str(data[name]) for name in ATTRIBUTES}))
        return counts

    def record_yields(self, yields: Mapping[str, tuple[int, int]]) -> None:
        """Store prompt id -> (images drawn, accepted). Unknown prompts are ignored."""
        with self._readable():
            self._prompts.update(
                ids=list(yields),
                metadatas=[{"drawn": drawn, "accepted": accepted} for drawn, accepted in yields.values()],
            )

    def yields(self, class_name: str) -> dict[str, tuple[int, int]]:
        """Prompt id -> (drawn, accepted), for the prompts of a class that have a recorded yield."""
        with self._readable():
            found = self._prompts.get(where={"class": class_name}, include=["metadatas"])
        return {
            id_: (int(str(data["drawn"])), int(str(data["accepted"])))
            for id_, data in zip(found["ids"], found["metadatas"] or [], strict=True)
            if "drawn" in data
        }

    def _vectors(self, texts: Sequence[str]) -> Vectors:
        return self._encoder.embed_texts(texts)
