"""Ctrl-C is told to the nodes, and still ends the command."""

import signal
import threading

import pytest

from segsmith.graph.interrupt import stop_on_interrupt


def test_an_interrupt_is_told_and_passed_on():
    stopping, before = threading.Event(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt(stopping):
        signal.raise_signal(signal.SIGINT)
    assert stopping.is_set()
    assert signal.getsignal(signal.SIGINT) is before
