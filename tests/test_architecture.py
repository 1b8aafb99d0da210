"""The package structure, enforced: who may import whom, and what the command must not load."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "segsmith"

# Lowest first. A module may import its own package and whatever stands on an earlier line.
LAYERS = (
    ("errors",),
    ("types", "reasons", "ids", "terminal_text"),
    ("files", "locks", "protocols", "presets", "events", "devices", "device_memory", "model_loading"),
    ("config", "prompts", "world"),
    ("memory",),
    ("datasets",),
    ("segmentation",),
    ("tools",),
    ("agents",),
    ("engine",),
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


HEAVY = ("torch", "open_clip", "timm", "transformers", "diffusers", "chromadb", "langgraph", "langchain_core")


@pytest.mark.parametrize(
    ("module", "absent"),
    [("segsmith", (*HEAVY, "numpy")), ("segsmith.cli", (*HEAVY, "numpy")), ("segsmith.testing", HEAVY)],
)
def test_importing_loads_no_heavy_library(module, absent):
    code = f"import {module}, sys; print([m for m in {absent!r} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def modules_imported(path, *, anywhere=False):
    """Full names of the modules of segsmith that a file imports at module level, or `anywhere` in it.

    What stands under ``if TYPE_CHECKING`` is left out: it never runs.
    """
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree) if anywhere else _at_module_level(tree.body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            submodules = [name for name in members if name in MODULES]
            yield from submodules or ([node.module] if node.module in MODULES else [])


def _at_module_level(body):
    """Statements that run on import, those in ``try`` and ``if`` included."""
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from _at_module_level(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody", "handlers"):
                yield from _at_module_level(getattr(node, part, []))
        elif isinstance(node, ast.ExceptHandler | ast.ClassDef):
            yield from _at_module_level(node.body)
        else:
            yield node


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def circles(graph):
    """The import circles of {module: modules it imports}: groups of modules that import one another."""
    order = TopologicalSorter(graph)
    try:
        order.prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_one_another_in_a_circle():
    graph = {name: set(modules_imported(path)) - {name} for name, path in MODULES.items()}
    assert circles(graph) == []


def test_no_commands_import_one_another_in_a_circle_even_inside_functions():
    graph = {
        name: {
            other for other in modules_imported(path, anywhere=True) if other.startswith("segsmith.commands.")
        }
        for name, path in MODULES.items()
        if name.startswith("segsmith.commands.")
    }
    assert graph
    assert circles(graph) == []


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})


TESTS = sorted(Path(__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda p: str(p.relative_to(Path(__file__).parent)))
def test_no_test_imports_a_benchmark(path):
    """They run benchmarks as a user does; what both need is in `segsmith.testing`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        assert not [name for name in names if name.split(".")[0] == "benchmarks"]
