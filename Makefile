.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-fast test-low quality bench

PYTHON ?= python3
BIN := .venv/bin

help:  ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

install: .venv/installed  ## Install idc-hub and its tools into .venv

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "idc-hub needs Python 3.11 or newer; say make PYTHON=python3.12 install")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: install  ## Condense five photographs, make their HR side, load the dataset (CPU, offline)
	$(BIN)/idc condense quickstart

test: install  ## Run the whole test suite
	$(BIN)/python -m pytest

FAST := $(BIN)/python -m pytest -m "not slow"

test-fast: install  ## Run the tests that take little time, in every room
	$(FAST)

# torch and oneDNN choose their kernels by the processor, and two kernels round differently. Told to use SSE alone they
# compute as an old processor does, so that no test can hold on the developer's machine only.
test-low: install  ## Run the fast tests with the kernels of an old processor
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(FAST)

quality: install  ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: install  ## Measure the quickstart's patches beside random real ones
	$(BIN)/idc quality runs/quickstart
