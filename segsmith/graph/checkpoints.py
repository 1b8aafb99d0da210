"""LangGraph's checkpoints in ``graph.db``, in the order in which they were written.

LangGraph's own SQLite saver takes the checkpoint with the greatest id for the newest, and ids are made from the
clock: after the clock was set back, a resumed run would continue from an old checkpoint for ever. SQLite's row ids
count up whatever the clock says.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.sqlite import SqliteSaver

NEWEST = """SELECT checkpoint_id FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = ?
            ORDER BY rowid DESC LIMIT 1"""


class OrderedSaver(SqliteSaver):
    """A `SqliteSaver` whose newest checkpoint is the one written last."""

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


@contextmanager
def open_checkpoints(path: Path) -> Iterator[OrderedSaver]:
    """The saver of a run's ``graph.db``."""
    with closing(sqlite3.connect(path, check_same_thread=False)) as connection:
        yield OrderedSaver(connection)
