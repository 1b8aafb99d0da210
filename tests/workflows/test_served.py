"""The graph behind LangGraph's server: starting, reviewing, errors; and the real server, where it is installed."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

import segsmith
from segsmith.errors import SegsmithError
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import InstantImages, ScriptedChat
from segsmith.workflows.served import read_request, serve_graph, served_graph

ROOT = Path(__file__).parents[2]

SETTINGS = {
    "images.size": 64,
    "images.batch_size": 4,
    "judge.enabled": False,
    "labeler": {"epochs": 1, "folds": 2},
    "trainer": {"epochs": 1, "batch_size": 4},
    "evaluation.images": 0,
    "llm.concurrency": 1,
}
REQUEST = {
    "out": "runs/pets",
    "classes": ["cat", "dog"],
    "per_class": 2,
    "preset": "sim",
    "settings": SETTINGS,
}


class Client:
    """One thread of the graph, in this process."""

    def __init__(self):
        self.events = []
        self.graph = served_graph({"chat": ScriptedChat(), "backend": InstantImages(64)})
        self.graph.checkpointer = InMemorySaver()
        self.options = {"configurable": {"thread_id": "t"}}

    def send(self, given):
        async def run():
            last = {}
            async for mode, item in self.graph.astream(
                given, self.options, stream_mode=["custom", "updates"]
            ):
                if mode == "custom":
                    self.events.append(item)
                else:
                    last = item
            return last

        return asyncio.run(run())

    def asked(self, given):
        (pause,) = self.send(given)["__interrupt__"]
        return pause.value


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Client()


def test_a_request_builds_a_run_with_report_and_finished_state(client):
    ended = client.send({"request": REQUEST})["build"]
    run = segsmith.open_run("runs/pets")
    assert run.is_finished
    assert run.classes == ("cat", "dog")
    assert ended["result"]["status"] == "finished"
    assert ended["result"]["accepted"] == {"cat": 2, "dog": 2}
    for name in ("report", "segmenter", "dataset"):
        assert Path(ended["result"][name]).exists()
    assert {"start", "draw", "stage", "epoch", "end"} <= {event.kind for event in client.events}
    again = client.send({"request": {"out": "runs/pets"}})
    assert again["build"]["result"]["status"] == "already_finished"


def test_a_reviewer_decides_through_interrupts_and_mistakes_are_asked_again(client):
    asked = client.asked({"request": {**REQUEST, "step": True}})
    assert asked["kind"] == "prompt"
    assert {"subject", "class", "prompt"} == set(asked["subjects"][0])
    with RunFolder(Path("runs/pets")).held():  # nothing holds the folder during a pause
        pass
    again = client.asked(Command(resume=[{"subject": "p-nothing", "action": "reject"}]))
    assert "p-nothing" in again["problem"]
    assert again["subjects"] == asked["subjects"]
    assert "True" in client.asked(Command(resume=True))["problem"]
    rejected = asked["subjects"][0]["subject"]
    kinds = [
        client.asked(Command(resume=[{"subject": rejected, "action": "reject", "note": "dull"}]))["kind"]
    ]
    ledger = Ledger(Path("runs/pets/ledger.db"), read_only=True)
    row = ledger.decisions("prompt")[rejected]
    assert (row.action, row.note, row.source) == ("reject", "dull", "server")
    for _ in range(30):
        last = client.send(Command(resume="continue"))
        if "__interrupt__" not in last:
            break
        kinds.append(last["__interrupt__"][0].value["kind"])
    ledger.close()
    assert {"verdict", "label", "mask"} <= set(kinds)
    assert last["build"]["result"]["status"] == "finished"
    assert segsmith.open_run("runs/pets").is_finished


def test_a_reviewer_stops_and_the_command_line_can_resume(client):
    client.asked({"request": {**REQUEST, "step": True}})
    stopped = client.send(Command(resume="stop"))
    assert stopped["review"]["result"]["status"] == "stopped"
    parts = {"chat": ScriptedChat(), "backend": InstantImages(64)}
    run = segsmith.build(out="runs/pets", progress=False, parts=parts)
    assert run.is_finished


def test_a_run_in_use_by_another_process_is_named(client):
    folder = RunFolder(Path("runs/pets"))
    folder.create()
    with folder.held(), pytest.raises(SegsmithError, match="in use by process") as caught:
        client.send({"request": REQUEST})
    assert isinstance(caught.value, ValueError)  # the server hides the messages of other errors


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"clases": ["cat"]}, "unknown key 'clases'.*classes"),
        (None, "request"),
        ({"per_class": "many"}, "per_class"),
        ({"out": "../elsewhere"}, "not inside"),
        ({"out": "/etc"}, "not inside"),
        ({"out": "."}, "not inside"),
        ({"settings": {"llm.vllm_command": "sh"}}, "a program to run.*SEGSMITH_LLM__VLLM_COMMAND"),
        ({"settings": {"llm": {"base_url": "http://x/v1"}}}, "SEGSMITH_LLM__BASE_URL"),
    ],
)
def test_a_bad_request_is_rejected_with_what_is_wrong(request_, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SegsmithError, match=f"(?s){message}"):
        read_request(request_)
    assert not list(tmp_path.iterdir())


def test_a_cancelled_run_ends_at_its_next_event_and_resumes(client):
    async def cancel_at_first_drawing():
        async def run():
            async for event in client.graph.astream(
                {"request": REQUEST}, client.options, stream_mode="custom"
            ):
                if event.kind == "start":
                    task.cancel()

        task = asyncio.create_task(run())
        with pytest.raises(asyncio.CancelledError):
            await task
        folder = RunFolder(Path("runs/pets"))
        for _ in range(200):
            try:
                with folder.held():
                    return
            except SegsmithError:
                await asyncio.sleep(0.1)
        pytest.fail("the run folder is still in use")

    asyncio.run(cancel_at_first_drawing())
    assert not segsmith.open_run("runs/pets").is_finished
    assert client.send({"request": REQUEST})["build"]["result"]["status"] == "finished"


def test_langgraph_json_names_the_graph_whose_drawing_shows_the_agents():
    named = json.loads((ROOT / "langgraph.json").read_text())["graphs"]["segsmith"]
    assert named == "./segsmith/workflows/served.py:serve_graph"
    assert "build:direct" in serve_graph().get_graph(xray=2).nodes
    assert "per_class" in json.dumps(serve_graph().get_input_jsonschema())


# -- the real server ---------------------------------------------------------------------------------

GRAPH = """
from segsmith.testing import InstantImages, ScriptedChat
from segsmith.workflows.served import served_graph

def serve():
    return served_graph({"chat": ScriptedChat(), "backend": InstantImages(64)})
"""


def langgraph_command():
    """`langgraph` in the environment of the tests, or the one that SEGSMITH_TEST_LANGGRAPH names."""
    beside = Path(sys.executable).with_name("langgraph")
    return os.environ.get("SEGSMITH_TEST_LANGGRAPH") or (str(beside) if beside.exists() else None)


@pytest.fixture
def server(tmp_path):
    """Sends requests to a `langgraph dev` of its own."""
    command = langgraph_command()
    if command is None:
        pytest.skip("langgraph-cli[inmem] is not installed (docs/studio.md)")
    (tmp_path / "graph.py").write_text(GRAPH)
    (tmp_path / "langgraph.json").write_text(
        '{"dependencies": ["."], "graphs": {"segsmith": "./graph.py:serve"}}'
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [command, "dev", "--no-reload", "--no-browser", "--port", str(port)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300, trust_env=False) as http:
            for _ in range(600):
                assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
                try:
                    http.get("/ok").raise_for_status()
                    break
                except httpx.TransportError:
                    time.sleep(0.2)
            thread = http.post("/threads", json={}).json()["thread_id"]

            def send(**body):
                reply = http.post(f"/threads/{thread}/runs/wait", json={"assistant_id": "segsmith", **body})
                return reply.raise_for_status().json()

            yield send
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.server
def test_the_real_server_builds_asks_and_says_what_is_wrong(server, tmp_path):
    wrong = server(input={"request": {"clases": ["cat"]}})
    assert "unknown key 'clases'" in wrong["__error__"]["message"]
    (pause,) = server(input={"request": {**REQUEST, "step": True}})["__interrupt__"]
    subject = pause["value"]["subjects"][0]["subject"]
    bad = server(command={"resume": [{"subject": subject, "action": "burn"}]})
    assert "burn" in bad["__interrupt__"][0]["value"]["problem"]
    server(command={"resume": [{"subject": subject, "action": "reject"}]})
    assert server(command={"resume": "stop"})["result"]["status"] == "stopped"
    ended = server(input={"request": {"out": "runs/pets", "step": False}})
    assert ended["result"]["status"] == "finished"
    run = segsmith.open_run(tmp_path / "runs" / "pets")
    assert run.is_finished
    assert run.report.exists()
