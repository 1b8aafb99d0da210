"""Loading weights through libraries that look into the hub's cache: from the cache alone, if it has the files."""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from huggingface_hub import constants, get_session
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]
from safetensors import SafetensorError

from segsmith.errors import causes

Loaded = TypeVar("Loaded")

READ_ERRORS = (
    RuntimeError,
    ValueError,
    OSError,
    KeyError,
    EOFError,
    ImportError,
    AttributeError,
    TypeError,
    SafetensorError,
    pickle.UnpicklingError,
    HTTPError,
)
"""Errors of open_clip, timm and transformers for a missing, truncated, invalid or mismatched file, and of the hub's
client, whose timeouts are no OSError, for a hub that does not answer."""

ANSWER_TIMEOUT_S = 20
"""Seconds without an answer after which the hub is taken to be silent."""

_switching = threading.RLock()


@contextlib.contextmanager
def cached_files_only() -> Iterator[None]:
    """While open, libraries read the hub's cache and send no requests: not even to ask whether a file has changed.

    The hub's client has one switch for the whole process, so one thread at a time loads this way.
    """
    with _switching:
        before = constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before


def cached_first(load: Callable[[], Loaded]) -> Loaded:
    """`load()` from the hub's cache; only where that fails, and requests are allowed, once more with requests.

    So a model that is in the cache loads although the hub does not answer. Raises what `load` raises, and an error of
    the hub's client within `ANSWER_TIMEOUT_S` if the hub is silent: `load` would ask for each file again and again,
    for six minutes and more.
    """
    try:
        with cached_files_only():
            return load()
    except READ_ERRORS as error:
        if constants.HF_HUB_OFFLINE:
            raise
        wanted_the_hub = any(isinstance(cause, OfflineModeIsEnabled) for cause in causes(error))
    if wanted_the_hub:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_TIMEOUT_S)  # any answer will do
    return load()
