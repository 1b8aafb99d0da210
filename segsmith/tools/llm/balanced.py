"""Several servers with one model: each request goes to the one with the fewest, and a dead one is left out.

The reply to a prompt does not depend on which server gives it: they serve the same model, and each request brings its
own seed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import openai

from segsmith.tools.http import MALFORMED_REPLY, ReplyRejected
from segsmith.tools.llm.endpoint import Endpoint, connect

log = logging.getLogger(__name__)

PROBE_S = 5.0
"""Seconds between two questions to a server that was left out."""
ANSWER_S = 10.0
"""Seconds within which a server must say anything at all; one that is busy with prompts lists its models slowly."""


class BalancedServers:
    """A `ChatServer` of several URLs. `close` it at the end."""

    def __init__(self, servers: Sequence[Endpoint], tell: Callable[[str], None] = lambda line: None) -> None:
        """`tell` is called when a server is left out or taken back, by any thread."""
        self._busy = dict.fromkeys(servers, 0)
        self._dead: set[Endpoint] = set()
        self._tell = tell
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._last = servers[-1]

    def endpoint(self) -> Endpoint:
        """The server with the fewest requests; of equals, the one after the last that was chosen."""
        with self._lock:
            order = list(self._busy)
            start = order.index(self._last) + 1
            turn = order[start:] + order[:start]
            # Where none answers, any may be back.
            alive = [where for where in turn if where not in self._dead] or turn
            self._last = min(alive, key=self._busy.__getitem__)
            return self._last

    @contextmanager
    def during(self, where: Endpoint) -> Iterator[None]:
        """See `ChatServer.during`."""
        with self._lock:
            self._busy[where] += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy[where] -= 1

    def revive(self, seen: Endpoint) -> bool:
        """Leave out a server that does not answer; returns whether another one is left."""
        with self._lock:
            is_new = seen not in self._dead
            self._dead.add(seen)
            left = len(self._busy) - len(self._dead)
        if is_new:
            self._say(
                f"No language model answers at {seen.base_url}; {left} of {len(self._busy)} servers are left."
            )
            threading.Thread(target=self._wait_for, args=(seen,), name="segsmith-probe", daemon=True).start()
        return left > 0

    def close(self) -> None:
        """Ask no more whether servers are back."""
        self._closed.set()

    def _wait_for(self, where: Endpoint) -> None:
        """Take a server back when it answers."""
        while not self._closed.wait(PROBE_S):
            if answers(where):
                with self._lock:
                    self._dead.discard(where)
                self._say(f"The language model at {where.base_url} answers again.")
                return

    def _say(self, line: str) -> None:
        log.warning(line)
        self._tell(line)


def answers(where: Endpoint) -> bool:
    """Whether a server answers at all, whatever it says."""
    try:
        with connect(where, ANSWER_S, retries=0) as client:
            client.models.list()
    except openai.APIConnectionError:
        return False
    except (openai.OpenAIError, ReplyRejected, *MALFORMED_REPLY):
        pass
    return True
