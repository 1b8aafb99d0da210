"""`push` against a server that speaks as much of the Hub's API as an upload needs."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler

import pytest
from huggingface_hub import HfApi

from segsmith.errors import SegsmithError
from segsmith.workflows.push import push_folder
from tests.loopback import loopback


class Hub(BaseHTTPRequestHandler):
    """Keeps what is committed in `server.files`; answers everything with `server.status` unless that is 200."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        server = self.server
        if server.status != 200:
            return self.answer({"error": "no"}, server.status)
        if self.path == "/api/repos/create":
            server.created.append(json.loads(body))
            return self.answer({"url": f"{server.url}/datasets/me/pets"})
        if "/preupload/" in self.path:
            wanted = json.loads(body)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".png") else "regular",
                    "shouldIgnore": False,
                }
                for f in wanted
            ]
            return self.answer({"files": modes})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for item in objects:
                if item["oid"] not in server.stored:
                    item["actions"] = {"upload": {"href": f"{server.url}/lfs/{item['oid']}"}}
            return self.answer({"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            for line in body.decode().splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    server.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
                if row["key"] == "lfsFile":
                    server.files[row["value"]["path"]] = server.stored[row["value"]["oid"]]
            return self.answer(
                {"commitUrl": f"{server.url}/datasets/me/pets/commit/1", "commitOid": "1" * 40}
            )
        return self.answer({})

    def do_PUT(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        server = self.server
        with server.lock:
            if len(server.stored) >= server.room:
                return self.answer({"error": "the connection broke"}, 400)
            server.stored[self.path.rpartition("/")[2]] = body
            server.uploads.append(body)
        return self.answer({})

    def do_GET(self):
        missing = "/tree/" in self.path
        self.answer({"id": "me/pets"}, 404 if missing else self.server.status)

    def answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)
    # An earlier test of the same process may have gone offline.
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    state = {"files": {}, "created": [], "status": 200, "stored": {}, "uploads": [], "room": 1000}
    with loopback(Hub, lock=threading.Lock(), **state) as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train/images").mkdir(parents=True)
    (tmp_path / "README.md").write_text("---\nlicense: other\n---\n# Pets\n")
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "train/images/a.png").write_bytes(b"pixels")
    return tmp_path


def test_all_files_but_the_manifest_arrive(hub, folder):
    api = HfApi(endpoint=hub.url, token="hf_test")
    address = push_folder(folder, "me/pets", api=api)
    assert address.endswith("me/pets")
    assert hub.created[0]["type"] == "dataset"
    assert set(hub.files) - {".gitattributes"} == {"README.md", "train/images/a.png"}
    assert hub.files["train/images/a.png"] == b"pixels"


def test_an_upload_that_broke_off_resumes_and_sends_nothing_twice(hub, folder):
    for number in range(12):
        (folder / f"train/images/{number}.png").write_bytes(b"pixels of %d" % number)
    api = HfApi(endpoint=hub.url, token="hf_test")
    hub.room = 5
    with pytest.raises(SegsmithError, match="HTTP 400") as caught:
        push_folder(folder, "me/pets", api=api)
    assert "to resume" in caught.value.remedy
    assert len(hub.uploads) == 5
    assert hub.files == {}  # a dataset appears complete or not at all
    hub.room = 1000
    push_folder(folder, "me/pets", api=api)
    assert len(hub.uploads) == len(set(hub.uploads)) == 13
    assert hub.files["train/images/7.png"] == b"pixels of 7"
    assert len([name for name in hub.files if name.endswith(".png")]) == 13


@pytest.mark.parametrize(("status", "remedy"), [(401, "hf auth login"), (500, "to resume")])
def test_what_the_hub_rejects_is_one_line_with_a_remedy(hub, folder, status, remedy):
    hub.status = status
    with pytest.raises(SegsmithError, match=f"HTTP {status}") as caught:
        push_folder(folder, "me/pets", api=HfApi(endpoint=hub.url, token="hf_test"))
    assert remedy in str(caught.value.remedy)


@pytest.mark.parametrize("name", ["pets", "me/pets/x", "../x", ""])
def test_names_that_are_no_repository(folder, name):
    with pytest.raises(SegsmithError, match="not the name of a repository"):
        push_folder(folder, name)


def test_a_hub_that_cannot_be_reached(folder):
    api = HfApi(endpoint="http://127.0.0.1:1", token="hf_test")
    with pytest.raises(SegsmithError, match="failed"):
        push_folder(folder, "me/pets", api=api)
