"""Fixtures for all tests."""

import sys
from collections import Counter

import pytest

from segsmith import cli


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that with several processes no long file is left for the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture
def segsmith(monkeypatch, capsys):
    """Run the command; returns (exit code, stdout, stderr)."""

    def command(*arguments, parts=None):
        monkeypatch.setattr(sys, "argv", ["segsmith", *map(str, arguments)])
        code = 0
        try:
            cli.main(parts)
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return command
