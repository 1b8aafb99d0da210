import math
import shutil
import threading
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from chromadb.errors import InternalError

from segsmith.errors import SegsmithError
from segsmith.memory.prompt_memory import PromptMemory, Remembered, cells, stored_vectors


class WordEncoder:
    """Each word is a direction of its own, a text the sum of its words."""

    logit_scale = 10.0
    words: ClassVar[dict[str, int]] = {}

    def __init__(self, name="words", dim=64):
        self.name, self.dim, self.calls = name, dim, 0

    def embed_texts(self, texts):
        self.calls += 1
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in text.split():
                row[self.words.setdefault(word, len(self.words))] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def prompt(id_, text, class_name="dog", **more):
    attributes = {"place": "park", "light": "night", **more.pop("attributes", {})}
    return Remembered(id=id_, text=text, class_name=class_name, attributes=attributes, **more)


@pytest.fixture
def memory():
    return PromptMemory(None, WordEncoder())


def test_an_empty_memory_has_no_neighbours(memory):
    assert memory.count() == 0
    assert memory.nearest(["a b", "c"]) == [None, None]
    assert memory.nearest([]) == []
    assert memory.around(["a"], 3) == [[]]
    memory.add([])
    assert memory.visits("dog") == {}


def test_nearest_is_the_most_similar_prompt_with_its_cosine(memory):
    memory.add([prompt("p-1", "red dog park"), prompt("p-2", "blue bus street")])
    near = memory.nearest(["red dog street", "blue bus street"])
    assert [n.id for n in near] == ["p-1", "p-2"]
    assert near[0].text == "red dog park"
    assert math.isclose(near[0].cosine, 2 / 3, abs_tol=1e-5)
    assert math.isclose(near[1].cosine, 1, abs_tol=1e-5)


def test_ids_can_be_left_out(memory):
    memory.add([prompt("p-1", "red dog"), prompt("p-2", "red cat"), prompt("p-3", "sky")])
    assert memory.nearest(["red dog"], but=["p-1"])[0].id == "p-2"
    assert memory.nearest(["red dog"], but=["p-1", "p-2", "p-3"]) == [None]
    assert [n.id for n in memory.around(["red dog"], 2)[0]] == ["p-1", "p-2"]


def test_a_batch_is_embedded_in_one_call(memory):
    memory.add([prompt("p-1", "a")])
    before = memory._encoder.calls
    memory.nearest(["a", "b", "c"])
    assert memory._encoder.calls == before + 1


def test_visits_count_cells_and_pairs_of_one_class(memory):
    memory.add(
        [
            prompt("p-1", "a"),
            prompt("p-2", "b", attributes={"light": "day", "state": "old", "weather": ""}),
            prompt("p-3", "c", class_name="cat"),
        ]
    )
    assert memory.visits("dog") == {
        ("place", "park"): 2,
        ("light", "night"): 1,
        ("light", "day"): 1,
        ("state", "old"): 1,
        ("place", "park", "light", "night"): 1,
        ("place", "park", "light", "day"): 1,
    }
    assert cells({"place": "park"}) == [("place", "park")]


def test_visits_of_this_run_can_be_left_out(memory):
    memory.add(
        [
            prompt("p-1", "a", run_id="old", round=5),
            prompt("p-2", "b", run_id="now", round=0),
            prompt("p-3", "c", run_id="now", round=1),
        ]
    )
    assert memory.visits("dog", but_run="now")["place", "park"] == 1
    assert memory.visits("dog")["place", "park"] == 3


def test_adding_twice_changes_nothing_and_keeps_the_yield(memory):
    row = prompt("p-1", "a b", score=0.5)
    memory.add([row])
    memory.record_yields({"p-1": (4, 1)})
    memory.add([row])
    assert memory.count() == 1
    assert memory.yields("dog") == {"p-1": (4, 1)}
    memory.record_yields({"p-1": (6, 3)})
    assert memory.yields("dog") == {"p-1": (6, 3)}


def test_the_yield_of_a_prompt_not_remembered_is_passed_over(memory):
    memory.record_yields({"p-unknown": (2, 2)})
    assert memory.count() == 0
    assert memory.held(["p-unknown"]) == set()


def test_two_memories_without_a_folder_are_apart(memory):
    memory.add([prompt("p-1", "a")])
    assert PromptMemory(None, WordEncoder()).count() == 0


def test_it_survives_reopening_and_never_mixes_encoders(tmp_path):
    PromptMemory(tmp_path / "memory", WordEncoder()).add([prompt("p-1", "red dog")])
    again = PromptMemory(tmp_path / "memory", WordEncoder())
    assert again.count() == 1
    assert again.nearest(["red dog"])[0].id == "p-1"
    other = PromptMemory(tmp_path / "memory", WordEncoder("wider", dim=96))
    assert other.count() == 0
    other.add([prompt("p-2", "red dog")])
    assert again.count() == 1


class Unready:
    """A collection whose first search raises, as Chroma's does now and then while the first vectors are added."""

    def __init__(self, inner):
        self._inner, self.raised = inner, False

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def query(self, **question):
        if not self.raised:
            self.raised = True
            raise InternalError("Error creating hnsw segment reader: Nothing found on disk")
        return self._inner.query(**question)


def test_a_search_while_the_first_prompts_are_added_finds_what_is_there(memory):
    collection = memory._prompts
    memory._prompts = Unready(collection)
    assert memory.around(["a b", "c"], 2) == [[], []]
    memory.add([prompt("1", "a")])
    memory._prompts = Unready(collection)
    assert memory.nearest(["a"])[0].id == "1"
    assert memory._prompts.raised


def test_an_index_that_cannot_be_read_is_one_line(tmp_path):
    with closing(PromptMemory(tmp_path, WordEncoder())) as memory:
        # Chroma writes its index once there are a thousand prompts.
        memory.add([prompt(f"{i}", "a b") for i in range(1100)])
        memory.nearest(["a"])
    (index,) = (path for path in tmp_path.iterdir() if path.is_dir())
    for file in index.iterdir():
        file.write_bytes(file.read_bytes()[:10])
    with closing(PromptMemory(tmp_path, WordEncoder())) as memory, pytest.raises(SegsmithError) as caught:
        memory.nearest(["a"])
    assert "damaged" in str(caught.value)
    assert "\n" not in f"{caught.value}{caught.value.remedy}"


def test_threads_add_side_by_side(memory):
    def add(start):
        for i in range(start, start + 10):
            memory.add([prompt(f"p-{i}", f"text {i}")])

    threads = [threading.Thread(target=add, args=(k * 10,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert memory.count() == 40


def test_a_broken_folder_is_one_clean_error(tmp_path):
    (tmp_path / "chroma.sqlite3").write_text("not a database at all")
    with pytest.raises(SegsmithError, match="cannot be opened") as caught:
        PromptMemory(tmp_path, WordEncoder())
    assert "memory" in caught.value.remedy
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SegsmithError):
        PromptMemory(file, WordEncoder())


def test_a_folder_that_was_deleted_and_made_again_holds_a_new_memory(tmp_path, monkeypatch):
    """Chroma keeps databases open by the spelling of their path."""
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        for _ in range(2):
            with closing(PromptMemory(Path("memory"), WordEncoder())) as memory:
                assert memory.count() == 0
                memory.add([prompt("p-1", "red dog")])
                assert memory.count() == 1
            assert set(stored_vectors(Path("memory"), ["p-1"])) == {"p-1"}
            shutil.rmtree("memory")
