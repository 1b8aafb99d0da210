"""A small model hub and file server: it supports ranges, cuts connections, sends slowly and can lie about content."""

import hashlib
import json
import time
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from tests.loopback import loopback

COMMIT = "c0ffee" + "0" * 34
PIECE = 1 << 16


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        server = self.server
        path = unquote(urlsplit(self.path).path)
        server.asked.append((self.command, path, self.headers.get("Range")))
        if path.startswith("/api/models/"):
            return self._info(path.removeprefix("/api/models/").split("/revision/")[0])
        repository, _, rest = path[1:].partition("/resolve/")
        content = server.repositories.get(repository, {}).get(rest.partition("/")[2])
        if content is None:
            content = server.files.get(path)
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        start = 0
        if server.ranges and (asked := self.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        sent = server.lies.get(path, content)[start:]
        self._send(206 if start else 200, sent if body else b"", headers, length=len(sent))

    def _info(self, repository):
        files = self.server.repositories.get(repository)
        if files is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        siblings = [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": "0" * 40,
                "lfs": {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 1,
                },
            }
            for name, content in files.items()
        ]
        info = {"id": repository, "sha": COMMIT, "siblings": siblings, "cardData": {"license": "mit"}}
        return self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _send(self, status, content, headers, length=None):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.server.cuts and len(content) > 1000:
            self.server.cuts -= 1
            content, self.close_connection = content[: len(content) // 2], True
        try:
            for start in range(0, len(content), PIECE):
                self.wfile.write(content[start : start + PIECE])
                time.sleep(self.server.pause_s)
        except OSError:
            self.close_connection = True  # the client was killed


def serving(files=None, repositories=None, *, cuts=0, ranges=True, lies=None, pause_s=0.0):
    """A server on a free port; `asked` lists (method, path, Range) of every request.

    `pause_s` is the time between two pieces of 64 KiB.
    """
    return loopback(
        Handler,
        files=files or {},
        repositories=repositories or {},
        cuts=cuts,
        ranges=ranges,
        lies=lies or {},
        asked=[],
        pause_s=pause_s,
    )
