"""LangGraph's checkpoints in ``graph.db``: in the order in which they were written, and in step with the ledger.

LangGraph's own SQLite saver takes the checkpoint with the greatest id for the newest, and ids are made from the
clock: after the clock was set back, a resumed run would continue from an old checkpoint for ever. SQLite's row ids
count up whatever the clock says.

A checkpoint relies on what the nodes before it wrote to the ledger. So each one records how many transactions the
ledger had by then (`Ledger.sequence`); one that has fewer now has lost some (a lost write-ahead log, an older backup,
a copy made while the run was going), and the run must continue from an earlier checkpoint.

LangGraph stores the whole state at every step and keeps all of it. A run only ever continues from the newest
checkpoint, or a little earlier, so the last `KEPT` stay. Only plain values are read back (`ALLOWED`): a ``graph.db``
from a stranger cannot name code to run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver

KEPT = 16
"""Number of newest checkpoints of the main graph that stay, with those of its sub-graphs: two to three rounds."""
ALLOWED: tuple[tuple[str, ...], ...] = ()
"""(module, name) of types of our own in the state, besides LangGraph's safe list: there are none."""
WORTH_VACUUM = 1 << 20
"""Bytes of unused pages from which a database of mostly unused pages is rewritten when it is opened."""

NEWEST = """SELECT checkpoint_id FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = ?
            ORDER BY rowid DESC LIMIT 1"""
SEQUENCES = """CREATE TABLE IF NOT EXISTS ledger_sequences (
    checkpoint_id TEXT NOT NULL,    -- two rows or more: when it was written, and when results were added to it
    sequence INTEGER NOT NULL       -- `Ledger.sequence` at that time
)"""
LAST_COVERED = """SELECT MAX(c.rowid) FROM checkpoints c JOIN ledger_sequences s USING (checkpoint_id)
                  WHERE c.checkpoint_ns = '' GROUP BY c.rowid HAVING MIN(s.sequence) <= ?
                  ORDER BY c.rowid DESC LIMIT 1"""


FIRST_KEPT = """SELECT rowid FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = ''
                ORDER BY rowid DESC LIMIT 1 OFFSET ?"""


class OrderedSaver(SqliteSaver):
    """A `SqliteSaver` whose newest checkpoint is the one written last, and which can follow the ledger back.

    It keeps the last `KEPT` checkpoints of a thread.
    """

    def __init__(self, connection: sqlite3.Connection, ledger_sequence: Callable[[], int]) -> None:
        super().__init__(connection, serde=JsonPlusSerializer(allowed_msgpack_modules=ALLOWED))
        self._ledger_sequence = ledger_sequence
        with self.cursor() as cursor:
            cursor.execute(SEQUENCES)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that `config` names, else the newest of its thread."""
        named = config["configurable"]
        if named.get("checkpoint_id"):
            return super().get_tuple(config)
        thread, namespace = str(named["thread_id"]), named.get("checkpoint_ns", "")
        with self.cursor(transaction=False) as cursor:
            newest = cursor.execute(NEWEST, (thread, namespace)).fetchone()
        if newest is None:
            return None
        keys = {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": newest[0]}
        return super().get_tuple({"configurable": keys})

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint, and before it what it relies on: a row too many does no harm, one too few would."""
        self._note(checkpoint["id"])
        written = super().put(config, checkpoint, metadata, new_versions)
        if not config["configurable"].get("checkpoint_ns"):
            self._prune(str(config["configurable"]["thread_id"]))
        return written

    def _prune(self, thread: str) -> None:
        """Delete the thread's checkpoints before the last `KEPT`, with their results."""
        with self.cursor() as cursor:
            first = cursor.execute(FIRST_KEPT, (thread, KEPT - 1)).fetchone()
            if first is None:
                return
            # Row ids count up, so what sub-graphs wrote since the first checkpoint that is kept stays, too.
            cursor.execute("DELETE FROM checkpoints WHERE thread_id = ? AND rowid < ?", (thread, first[0]))
            if cursor.rowcount:
                for table in ("writes", "ledger_sequences"):
                    cursor.execute(
                        f"DELETE FROM {table} WHERE checkpoint_id NOT IN (SELECT checkpoint_id FROM checkpoints)"
                    )

    def compact(self) -> None:
        """Prune every thread, and give unused pages back to the disk where most of the file is unused."""
        with self.cursor(transaction=False) as cursor:
            threads = cursor.execute("SELECT DISTINCT thread_id FROM checkpoints").fetchall()
        for (thread,) in threads:
            self._prune(thread)
        with self.cursor(transaction=False) as cursor:
            unused, pages, size = (
                cursor.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("freelist_count", "page_count", "page_size")
            )
            if unused > pages // 2 and unused * size > WORTH_VACUUM:
                cursor.execute("VACUUM")

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store the results of a node that finished beside others; they rely on the ledger, too."""
        self._note(str(config["configurable"]["checkpoint_id"]))
        super().put_writes(config, writes, task_id, task_path)

    def follow(self, sequence: int) -> bool:
        """Forget every checkpoint and result that relies on more than `sequence` transactions of the ledger.

        Returns whether there were any. Checkpoints by earlier versions recorded nothing and are kept.
        """
        with self.cursor() as cursor:
            (newest,) = cursor.execute("SELECT MAX(sequence) FROM ledger_sequences").fetchone()
            if newest is None or newest <= sequence:
                return False
            row = cursor.execute(LAST_COVERED, (sequence,)).fetchone()
            kept = 0 if row is None else row[0]
            cursor.execute("DELETE FROM checkpoints WHERE rowid > ?", (kept,))
            # A later result of the checkpoint that is kept may rely on lost transactions: its nodes run again.
            cursor.execute(
                """DELETE FROM writes WHERE checkpoint_id NOT IN (SELECT checkpoint_id FROM checkpoints)
                   OR checkpoint_id = (SELECT checkpoint_id FROM checkpoints WHERE rowid = ?)""",
                (kept,),
            )
            cursor.execute("DELETE FROM ledger_sequences WHERE sequence > ?", (sequence,))
            return True

    def _note(self, checkpoint_id: str) -> None:
        with self.cursor() as cursor:
            cursor.execute(
                "INSERT INTO ledger_sequences VALUES (?, ?)", (checkpoint_id, self._ledger_sequence())
            )


def newest_sequence(path: Path) -> int:
    """The highest `Ledger.sequence` that a run's ``graph.db`` relies on; 0 for one that records none."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'ledger_sequences'").fetchone():
            return 0
        (newest,) = db.execute("SELECT MAX(sequence) FROM ledger_sequences").fetchone()
        return int(newest or 0)


@contextmanager
def open_checkpoints(path: Path, ledger_sequence: Callable[[], int]) -> Iterator[OrderedSaver]:
    """The saver of a run's ``graph.db``; `ledger_sequence` gives the ledger's number of transactions."""
    connection = sqlite3.connect(path, check_same_thread=False)
    saver = OrderedSaver(connection, ledger_sequence)
    try:
        saver.compact()
        yield saver
    finally:
        with saver.lock:  # closing a connection that another thread is using would crash the process
            connection.close()
