"""``graph.db`` stays small, keeps what a run resumes from, and reads back plain values only."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

from segsmith.graph.checkpoints import KEPT, SqliteSaver, open_checkpoints

OPTIONS = {"configurable": {"thread_id": "t"}, "recursion_limit": 10_000}


class Count(TypedDict, total=False):
    n: int
    until: int
    ballast: str


class Inner(TypedDict, total=False):
    n: int


def counting(saver, stop_at=-1):
    """A graph that counts to `until`, through a sub-graph, and asks at `stop_at`."""
    inner = StateGraph(Inner)
    inner.add_node("add", lambda state: {"n": state["n"] + 1})
    inner.add_edge(START, "add")
    inner.add_edge("add", END)
    graph = StateGraph(Count)

    def look(state):
        return {"ballast": interrupt("more?")} if state["n"] == stop_at else {}

    graph.add_node("step", inner.compile())
    graph.add_node("look", look)
    graph.add_edge(START, "step")
    graph.add_edge("step", "look")
    graph.add_conditional_edges("look", lambda state: END if state["n"] >= state["until"] else "step")
    return graph.compile(checkpointer=saver)


def rows(path, table):
    with closing(sqlite3.connect(path)) as db:
        return db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]


def test_only_the_last_checkpoints_are_kept(tmp_path):
    path = tmp_path / "graph.db"
    with open_checkpoints(path, lambda: 0) as saver:
        counting(saver).invoke({"n": 0, "until": 100, "ballast": "x" * 1000}, OPTIONS)
    with closing(sqlite3.connect(path)) as db:
        main = db.execute("SELECT COUNT(*) FROM checkpoints WHERE checkpoint_ns=''").fetchone()[0]
    assert main == KEPT
    assert rows(path, "checkpoints") < 4 * KEPT
    assert rows(path, "ledger_sequences") < 20 * KEPT
    assert path.stat().st_size < 500_000


def test_an_interrupted_run_resumes_after_pruning(tmp_path):
    path = tmp_path / "graph.db"
    with open_checkpoints(path, lambda: 0) as saver:
        asked = counting(saver, stop_at=60).invoke({"n": 0, "until": 100}, OPTIONS)
        assert asked["__interrupt__"][0].value == "more?"
    with open_checkpoints(path, lambda: 0) as saver:
        ended = counting(saver, stop_at=60).invoke(Command(resume="yes"), OPTIONS)
    assert (ended["n"], ended["ballast"]) == (100, "yes")


def test_a_ledger_behind_all_kept_checkpoints_leaves_none(tmp_path):
    sequence = iter(range(10_000))
    with open_checkpoints(tmp_path / "graph.db", lambda: next(sequence)) as saver:
        graph = counting(saver)
        graph.invoke({"n": 0, "until": 50}, OPTIONS)
        assert saver.follow(3)
        assert not graph.get_state(OPTIONS).values


def test_the_checkpoints_of_an_earlier_version_are_pruned_and_the_file_shrinks(tmp_path):
    path = tmp_path / "graph.db"
    with closing(sqlite3.connect(path, check_same_thread=False)) as db:
        counting(SqliteSaver(db)).invoke({"n": 0, "until": 100, "ballast": "x" * 20_000}, OPTIONS)
    before = path.stat().st_size
    with open_checkpoints(path, lambda: 0) as saver:
        assert counting(saver).get_state(OPTIONS).values["n"] == 100
    assert path.stat().st_size < before / 4


@dataclass
class Witness:
    """Leaves a file when it is made."""

    path: str

    def __post_init__(self):
        Path(self.path).write_text("made")


def test_a_checkpoint_that_names_a_type_does_not_make_it(tmp_path):
    kind, data = JsonPlusSerializer().dumps_typed({"n": Witness(str(tmp_path / "made"))})
    (tmp_path / "made").unlink()
    with open_checkpoints(tmp_path / "graph.db", lambda: 0) as saver:
        assert not isinstance(saver.serde.loads_typed((kind, data))["n"], Witness)
    assert not (tmp_path / "made").exists()
    JsonPlusSerializer(allowed_msgpack_modules=True).loads_typed((kind, data))
    assert (tmp_path / "made").exists(), "without the list it would be made"
