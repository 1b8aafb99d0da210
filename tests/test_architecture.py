"""The package structure, enforced: who may import whom, and what the command must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "segsmith"

# Lowest first. A module may import its own package and whatever stands on an earlier line.
LAYERS = (
    ("errors",),
    ("types", "reasons", "ids", "terminal_text"),
    ("files", "protocols", "presets"),
    ("config", "prompts", "world"),
    ("memory",),
    ("datasets",),
    ("segmentation",),
    ("tools",),
    ("agents",),
    ("report", "review"),
    ("graph",),
    ("workflows",),
    ("commands", "testing"),
    ("cli",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(PACKAGE.rglob("*.py"))


def package_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """Names of the packages and modules of segsmith that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "segsmith":
            base = node.module.split(".")[1:]
            yield from base[:1] or (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("segsmith."))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downward_only(path):
    package = package_of(path)
    if package == "__init__":
        return  # the public API: it imports lazily from everywhere, and nothing imports it back
    upward = [
        name
        for name in imports(path)
        if name != "__version__" and name != package and RANK[name] >= RANK[package]
    ]
    assert upward == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_command_line_prints(path):
    calls = [
        node.func.id
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    if package_of(path) not in {"cli", "commands"}:
        assert not {"print", "exit", "quit"} & set(calls)


def test_agents_and_graph_hold_no_tensors():
    for package in ("agents", "graph"):
        for path in (PACKAGE / package).rglob("*.py"):
            assert "import torch" not in path.read_text("utf-8"), path


def test_the_command_starts_without_heavy_libraries():
    heavy = ("torch", "open_clip", "timm", "chromadb", "langgraph", "langchain_core", "numpy")
    code = f"import segsmith.cli, sys; print([m for m in {heavy!r} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
