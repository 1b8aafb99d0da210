"""`segsmith models` and `models pull` as a user runs them, against a small hub on this machine."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.tools.weights.hub_server import COMMIT, serving

WEIGHTS = bytes(range(256)) * 2000
REPOSITORIES = {
    "lab/tiny-clip": {"open_clip_config.json": b"{}", "open_clip_model.safetensors": WEIGHTS, "x.bin": b"no"},
    "lab/tiny-diffusion": {
        "model_index.json": b'{"unet": ["diffusers", "UNet2DConditionModel"]}',
        "unet/config.json": b'{"unet": 1}',
        "unet/diffusion_pytorch_model.safetensors": WEIGHTS,
        "unet/diffusion_pytorch_model.fp16.safetensors": WEIGHTS[::-1],
        "unet/diffusion_pytorch_model.bin": WEIGHTS,
        "whole-model.safetensors": WEIGHTS,
    },
    "lab/pickles-only": {"pytorch_model.bin": WEIGHTS, "config.json": b"{}"},
    "lab/large-clip": {"open_clip_model.safetensors": WEIGHTS * 16},
    "lab/gguf": {"small.q4.gguf": b"GGUF" + WEIGHTS},
}
DIFFUSION = ["--set", "images.backend=diffusion", "--set"]


@pytest.fixture
def start(tmp_path):
    """Start the command with caches of its own; returns the process."""

    def popen(*arguments, hub="http://127.0.0.1:9"):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SEGSMITH_"))}
        environment |= {
            "HF_ENDPOINT": hub,
            "HF_HOME": str(tmp_path / "hf"),
            "SEGSMITH_CACHE": str(tmp_path / "cache"),
            "COLUMNS": "80",
            "HF_HUB_DISABLE_XET": "1",
        }
        command = [sys.executable, "-m", "segsmith.cli", *arguments]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    return popen


@pytest.fixture
def segsmith(start):
    """Run the command with caches of its own; returns (exit code, stdout, stderr)."""

    def run(*arguments, **options):
        process = start(*arguments, **options)
        out, complaint = process.communicate(timeout=120)
        return process.returncode, out, complaint

    return run


def row_of(role, text):
    """The words of a role's two lines in the printed table."""
    lines = text[text.index("here\n" if "here\n" in text else "here") :].splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(role))
    return lines[at].split(), lines[at + 1].split(", ")


def test_pull_survives_cut_connections_and_the_model_is_then_found_offline(segsmith, tmp_path):
    clip = ["--preset", "sim", "--set", "judge.clip=hf-hub:lab/large-clip"]
    code, text, _ = segsmith("models", *clip)
    assert code == 0
    assert row_of("judge", text)[0][-1] == "no"
    with serving(repositories=REPOSITORIES, cuts=2) as hub:
        code, text, complaint = segsmith("models", "pull", *clip, hub=hub.url)
        assert code == 0, complaint
        assert any(r for _, _, r in hub.asked)  # the download resumed after a cut
    code, text, _ = segsmith("models", *clip, "--offline")
    assert code == 0
    row, facts = row_of("judge", text)
    assert row[-1] == "yes"
    assert facts[0].strip() == "mit"
    assert facts[1] == "from the hub"
    assert facts[2].startswith("sha256 ")
    (record,) = (json.loads(p.read_text()) for p in (tmp_path / "cache" / "models").glob("hub-*.json"))
    assert record["commit"] == COMMIT


def test_pull_resumes_after_it_was_killed_and_leaves_no_partial_files(start, segsmith, tmp_path):
    clip = ["--preset", "sim", "--set", "judge.clip=hf-hub:lab/large-clip"]
    blobs = tmp_path / "hf" / "hub" / "models--lab--large-clip" / "blobs"
    with serving(repositories=REPOSITORIES, pause_s=0.05) as hub:
        process = start("models", "pull", *clip, hub=hub.url)
        deadline = time.monotonic() + 60
        while not any(p.stat().st_size > 500_000 for p in blobs.glob("*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.communicate()
        hub.pause_s = 0
        before = len(hub.asked)
        code, _, complaint = segsmith("models", "pull", *clip, hub=hub.url)
        starts = [int(r[6:].rstrip("-")) for method, _, r in hub.asked[before:] if r and method == "GET"]
    assert code == 0, complaint
    assert len(starts) == 1
    assert starts[0] >= 500_000
    assert [p.read_bytes() for p in blobs.iterdir()] == [
        REPOSITORIES["lab/large-clip"]["open_clip_model.safetensors"]
    ]


@pytest.mark.parametrize(("variant", "fetched_variant"), [([], ".fp16"), (["plain"], "")])
def test_one_variant_of_a_pipeline_is_downloaded_and_no_pickle(segsmith, variant, fetched_variant):
    with serving(repositories=REPOSITORIES) as hub:
        settings = [*DIFFUSION, "images.model=lab/tiny-diffusion"]
        for name in variant:
            settings += ["--set", f"images.variant={name}"]
        code, _, complaint = segsmith("models", "pull", "--preset", "sim", *settings, hub=hub.url)
        fetched = {path.partition("/resolve/")[2].partition("/")[2] for m, path, _ in hub.asked if m == "GET"}
    assert code == 0, complaint
    assert fetched - {""} == {
        "model_index.json",
        "unet/config.json",
        f"unet/diffusion_pytorch_model{fetched_variant}.safetensors",
    }


def test_a_pipeline_that_cannot_be_used_is_one_line_before_weights_are_fetched(segsmith):
    with serving(repositories=REPOSITORIES) as hub:
        settings = [*DIFFUSION, "images.model=lab/tiny-diffusion", "--set", "images.variant=bf16"]
        code, _, complaint = segsmith("models", "pull", "--preset", "sim", *settings, hub=hub.url)
        assert not [path for _, path, _ in hub.asked if path.endswith(".safetensors")]
    assert code == 2
    assert "has no weights of variant 'bf16'; it has: fp16, plain" in " ".join(complaint.split())
    assert complaint.count("\n") == 1


def test_a_pulled_model_is_found_by_libraries_that_name_no_revision(segsmith, tmp_path):
    from huggingface_hub import try_to_load_from_cache

    with serving(repositories=REPOSITORIES) as hub:
        code, _, complaint = segsmith(
            "models", "pull", "--preset", "sim", "--set", "judge.clip=hf-hub:lab/tiny-clip", hub=hub.url
        )
    assert code == 0, complaint
    found = try_to_load_from_cache(
        "lab/tiny-clip", "open_clip_model.safetensors", cache_dir=tmp_path / "hf" / "hub"
    )
    assert isinstance(found, str)


def test_a_gguf_file_of_the_hub(segsmith):
    gguf = ["--preset", "sim", "--set", "llm.gguf=hf:lab/gguf/small.q4.gguf"]
    with serving(repositories=REPOSITORIES) as hub:
        code, text, complaint = segsmith("models", "pull", *gguf, hub=hub.url)
    assert code == 0, complaint
    assert row_of("llm", text)[0][-1] == "yes"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("judge.clip=hf-hub:lab/nothing", "The hub has no model 'lab/nothing'"),
        ("judge.clip=hf-hub:lab/pickles-only", "has none of the files"),
        ("llm.gguf=hf:lab/gguf", "names no file"),
        ("llm.gguf=hf:lab/gguf/other.gguf", "has none of the files"),
    ],
)
def test_a_model_that_the_hub_lacks_is_a_one_line_error(segsmith, setting, words):
    with serving(repositories=REPOSITORIES) as hub:
        code, _, complaint = segsmith("models", "pull", "--preset", "sim", "--set", setting, hub=hub.url)
    assert code == 2
    assert words in complaint
    assert complaint.count("\n") == 1


def test_a_file_that_arrives_damaged_is_reported_and_removed(segsmith):
    path = "/lab/tiny-clip/resolve/main/open_clip_model.safetensors"
    clip = ["--preset", "sim", "--set", "judge.clip=hf-hub:lab/tiny-clip"]
    with serving(repositories=REPOSITORIES, lies={path: b"?" + WEIGHTS[1:]}) as hub:
        code, _, complaint = segsmith("models", "pull", *clip, hub=hub.url)
        assert code == 2
        assert "is not the expected file" in complaint
        hub.lies.clear()
        code, _, complaint = segsmith("models", "pull", *clip, hub=hub.url)
    assert code == 0, complaint


def test_offline_with_a_model_missing(segsmith):
    code, _, complaint = segsmith("models", "pull", "--preset", "cpu", "--offline")
    assert code == 2
    assert "--offline allows no downloads" in complaint
    assert complaint.count("\n") == 1
    code, _, complaint = segsmith("models", "pull", "--preset", "hosted", "--offline")
    assert code == 2
    assert "--offline allows no requests" in complaint


@pytest.mark.parametrize("preset", ["sim", "cpu", "gpu", "hosted"])
def test_the_table_fits_a_hundred_columns_and_names_every_role(segsmith, preset):
    code, text, _ = segsmith("models", "--preset", preset)
    assert code == 0
    assert max(map(len, text.splitlines())) <= 100
    for role in ("llm", "images", "judge", "masks"):
        assert role in text
