"""An OpenAI-style server that obeys a script: what it supports, and how each request goes wrong.

`faults(n)` names what happens to the n-th chat request (from 0), or nothing: half, fenced, prose, garbage,
cut_body, drop, hang, die, or a status such as "429".
"""

import contextlib
import json
import random
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from segsmith.testing import example_reply

UNENFORCED = ("maxLength", "minLength", "pattern")


class ScriptedChatServer:
    def __init__(
        self,
        faults=lambda n: None,
        *,
        refuses=(),
        ignores_format=False,
        key=None,
        models=("scripted",),
        port=0,
    ):
        self.faults, self.refuses, self.ignores_format = faults, refuses, ignores_format
        self.key, self.models, self.port = key, models, port
        self.requests, self.happened = [], []
        self._lock = threading.Lock()
        self.http = None
        self.open()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def open(self):
        """Listen, again at the same port after `close`."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if outer.may(self):
                    self.reply(
                        200,
                        {
                            "object": "list",
                            "data": [
                                {"id": m, "object": "model", "created": 1, "owned_by": "t"}
                                for m in outer.models
                            ],
                        },
                    )

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if outer.may(self):
                    outer.chat(self, body)

            def reply(self, status, content, keep=None):
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data if keep is None else data[:keep])

            def log_message(self, *_):
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def may(self, handler):
        if self.key is None or handler.headers.get("Authorization") == f"Bearer {self.key}":
            return True
        said = handler.headers.get("Authorization", "")  # some servers echo the key
        handler.reply(
            401,
            {"error": {"message": f"Incorrect API key provided: {said}\x1b[31m", "code": "invalid_api_key"}},
        )
        return False

    def chat(self, handler, body):
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
        if body["model"] not in self.models:
            return handler.reply(
                404,
                {
                    "error": {
                        "message": f"The model {body['model']} does not exist",
                        "code": "model_not_found",
                    }
                },
            )
        refused = self.refusal(body)
        if refused:
            return handler.reply(
                400,
                {
                    "error": {
                        "message": f"Invalid request: {refused} is not supported",
                        "type": "invalid_request_error",
                    }
                },
            )
        fault = self.faults(number)
        with self._lock:
            self.happened.append(fault)
        text = json.dumps(
            example_reply(schema_of(body), random.Random(repr((body.get("seed"), body["messages"]))))
        )
        if self.ignores_format:
            text = f"Sure! Here you are:\n```json\n{text}\n```\nAnything else?"
        return self.answer(handler, fault, text)

    def refusal(self, body):
        """The first thing this server does not take, or None."""
        given = json.dumps(body.get("response_format", {})) + " ".join(body)
        return next((word for word in self.refuses if word in given), None)

    def answer(self, handler, fault, text):
        text = {
            "half": text[: len(text) // 2],
            "fenced": f"```json\n{text}\n```",
            "prose": "I would rather talk about the weather.",
            "comma": text.replace("}", ", }"),
            "empty": "",
        }.get(fault, text)
        whole = {
            "id": "1", "object": "chat.completion", "created": 1, "model": "scripted",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        }  # fmt: skip
        if fault and fault.isdigit():
            return handler.reply(int(fault), {"error": {"message": "because of the script"}})
        if fault == "garbage":
            return handler.reply(200, b"\x00\xff<html>not what you think")
        if fault == "hang":
            time.sleep(30)
        if fault == "die":
            self.close()
        if fault in ("drop", "hang", "die"):
            with contextlib.suppress(OSError):
                handler.connection.shutdown(socket.SHUT_RDWR)
            return None
        return handler.reply(200, whole, keep=40 if fault == "cut_body" else None)


def schema_of(body):
    """From the response format, or else out of the words of the prompt."""
    wanted = body.get("response_format", {})
    if wanted.get("type") == "json_schema":
        return wanted["json_schema"]["schema"]
    told = next((m["content"] for m in body["messages"] if "JSON schema" in str(m["content"])), None)
    if told is None:
        return {"type": "object", "properties": {}}
    return json.JSONDecoder().raw_decode(told, told.index("{"))[0]
