"""A server with S3's protocol on this machine (moto's), for as long as a test needs it."""

import contextlib
import threading

import pytest

BUCKET = "bucket"
ACCESS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}


@contextlib.contextmanager
def s3_server(*, conditional=True):
    """Yields the environment with which it is reached; an unconditional one ignores ``If-None-Match``."""
    for module in ("s3fs", "moto.server"):
        pytest.importorskip(module, reason="s3fs and moto are installed and used by `make test-s3`")
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_):
            pass

    inner = DomainDispatcherApplication(create_backend_app)
    one_at_a_time = threading.Lock()  # moto's answer to a condition is not atomic

    def app(environ, start_response):
        if not conditional:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        with one_at_a_time:
            return inner(environ, start_response)

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield {**ACCESS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def reached(monkeypatch, environment):
    """Reach a server in this process, with connections of its own, and create `BUCKET` there."""
    from s3fs import S3FileSystem

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    with contextlib.suppress(FileExistsError):
        S3FileSystem().mkdir(BUCKET)
    yield S3FileSystem()
    S3FileSystem.clear_instance_cache()


# A test module names these as its own: ``server, fs = s3_server.server, s3_server.fs``.


@pytest.fixture(scope="module")
def server():
    """The environment of a server that the tests of a module share."""
    with s3_server() as environment:
        yield environment


@pytest.fixture
def fs(server, monkeypatch):
    """That server's file system."""
    with reached(monkeypatch, server) as found:
        yield found
