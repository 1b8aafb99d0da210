"""Ctrl-C reaches the nodes, and still ends the command."""

import signal
import threading

import pytest

from segsmith.workflows.interrupt import stop_on_interrupt


@pytest.fixture(autouse=True)
def listening():
    """Python's own answer to Ctrl-C, whatever the tests were started by: in the background a shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_sets_the_event_and_calls_the_previous_handler():
    stopping, before = threading.Event(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt(stopping):
        signal.raise_signal(signal.SIGINT)
    assert stopping.is_set()
    assert signal.getsignal(signal.SIGINT) is before
