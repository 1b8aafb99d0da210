"""The house's rules, enforced: who may import whom, and what the command must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "segsmith"

# Room -> rooms it may import besides itself. `errors` and `config` are open to all.
ALLOWED = {
    "world": set(),
    "prompts": set(),
    "memory": {"tools.protocols"},
    "segmentation": {"tools.protocols", "memory.store"},
    "tools": {"segmentation", "memory.store", "world", "prompts"},
    "agents": {"tools.protocols", "memory", "segmentation", "prompts"},
    "exports": {"memory", "segmentation", "tools.protocols"},
    "report": {"memory", "segmentation", "exports", "tools.protocols"},
    "graph": {"agents", "memory", "tools", "exports", "report", "segmentation"},
}
OPEN = {"errors", "config"}
FILES = sorted(p for room in ALLOWED for p in (PACKAGE / room).rglob("*.py"))


def imports(path):
    """Dotted names inside segsmith that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("segsmith"):
            base = node.module.removeprefix("segsmith").lstrip(".")
            yield from ([base] if base else [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            yield from (
                a.name.removeprefix("segsmith.") for a in node.names if a.name.startswith("segsmith.")
            )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_import_in_the_allowed_directions(path):
    room = path.relative_to(PACKAGE).parts[0]
    for name in imports(path):
        parts = name.split(".")
        if parts[0] in {room, *OPEN} or name == "__version__":
            continue
        assert parts[0] in ALLOWED[room] or ".".join(parts[:2]) in ALLOWED[room], (
            f"{path.name} imports {name}"
        )


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_command_line_prints(path):
    calls = [
        node.func.id
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    if path.relative_to(PACKAGE).parts[0] != "cli":
        assert not {"print", "exit", "quit"} & set(calls)


def test_agents_and_graph_hold_no_tensors():
    for room in ("agents", "graph"):
        for path in (PACKAGE / room).glob("*.py"):
            assert "import torch" not in path.read_text("utf-8"), path


def test_the_command_starts_without_heavy_libraries():
    heavy = ("torch", "open_clip", "timm", "chromadb", "langgraph", "langchain_core", "numpy")
    code = f"import segsmith.cli, sys; print([m for m in {heavy!r} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
