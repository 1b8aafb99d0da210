"""An HTTP server on a free port of this machine, for as long as a test needs it."""

import contextlib
import threading
from http.server import ThreadingHTTPServer


@contextlib.contextmanager
def loopback(handler, **attributes):
    """Serve requests with a `BaseHTTPRequestHandler`; `attributes` and `url` are set on its `server`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.url = f"http://127.0.0.1:{server.server_port}"
    for name, value in attributes.items():
        setattr(server, name, value)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
