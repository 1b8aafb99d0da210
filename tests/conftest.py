"""Fixtures for all tests."""

import sys

import pytest

from segsmith import cli


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
