"""An HTTP server on a free port of this machine, for as long as a test needs it."""

import contextlib
import sys
import threading
from http.server import ThreadingHTTPServer


class LoopbackServer(ThreadingHTTPServer):
    """Says nothing of a client that has gone: tests that read standard error may run when its thread notices."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def loopback(handler, **attributes):
    """Serve requests with a `BaseHTTPRequestHandler`; `attributes` and `url` are set on its `server`."""
    server = LoopbackServer(("127.0.0.1", 0), handler)
    server.url = f"http://127.0.0.1:{server.server_port}"
    for name, value in attributes.items():
        setattr(server, name, value)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
