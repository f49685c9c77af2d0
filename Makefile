.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-fast test-low test-long test-spandrel quality docs bench bench-ladder release-check

PYTHON ?= python3
BIN := .venv/bin

help:  ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

install: .venv/installed  ## Install idc-hub and its tools into .venv

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "idc-hub needs Python 3.11 or newer; say make PYTHON=python3.12 install")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

quickstart: install  ## Condense five photographs, make their HR side, load the dataset (CPU, offline)
	$(BIN)/idc condense quickstart

# Most of a test's time is the start of processes, and tensors are small: a process for each core, with one thread each.
# Tests of one file share what they prepare. The files with slow tests come first.
XDIST := --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(XDIST) --durations 15

test: install  ## Run the whole test suite
	$(PYTEST)

FAST := $(PYTEST) -m "not slow"

test-fast: install  ## Run the tests that take little time, in every room
	$(FAST)

# torch and oneDNN choose their kernels by the processor, and two kernels round differently. Told to use SSE alone they
# compute as an old processor does, so that no test can hold on the developer's machine only.
test-low: install  ## Run the fast tests with the kernels of an old processor
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(FAST)

test-long: install  ## Disturb commands at random, IDC_LONG times (default 60); all faults of push and pull; mutated files
	IDC_LONG=$${IDC_LONG:-60} $(BIN)/python -m pytest -s --timeout 0 tests/flow/test_kills.py tests/flow/test_hub_faults.py tests/unit/test_strangers.py

# Beside the CPU build of torch, torchvision cannot be imported, and its mere presence breaks diffusers and transformers. So
# spandrel gets an environment of its own, on top of .venv and without torchvision (tests/conftest.py).
test-spandrel: install .venv-spandrel/installed  ## Run the tests that need spandrel, in an environment of their own
	.venv-spandrel/bin/python -m pytest -m spandrel tests/unit

.venv-spandrel/installed:
	$(PYTHON) -m venv .venv-spandrel
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(.venv-spandrel/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	.venv-spandrel/bin/pip install --quiet --no-deps spandrel einops
	touch $@

quality: install  ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: install  ## Build the documentation in site/; a warning or a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: install  ## Measure the quickstart's patches beside random real ones
	$(BIN)/idc quality runs/quickstart

IMDN_WEIGHTS ?= imdn_x4.safetensors

bench-ladder: install  ## Repeat the ladder: DATA has photos, Set5, Set14, BSD100 and HeldBack50 (benchmarks/held_back.py)
	@test -d "$(DATA)" || { echo "Say make bench-ladder DATA=folder IMDN_WEIGHTS=file; benchmarks/README.md names both."; exit 2; }
	cd "$(DATA)" && IMDN_WEIGHTS="$(abspath $(IMDN_WEIGHTS))" PYTHONPATH=$(CURDIR)/benchmarks \
		$(CURDIR)/$(BIN)/idc benchmark $(CURDIR)/benchmarks/ladder.yaml --out $(CURDIR)/ladder $(OPTIONS)

# torch is the one that constraints.txt names in both environments: it is large, and its lower bound is not tried here.
TORCH := $(shell grep '^torch==' constraints.txt)
NEWEST := /dev/null
LOWEST := constraints-lowest.txt

release-check:  ## Build wheel and sdist, and run the quickstart from the wheel with the newest and the lowest dependencies
	rm -rf dist .release && mkdir .release
	$(PYTHON) -m venv .release/build
	.release/build/bin/pip install --quiet build
	.release/build/bin/python -m build --outdir dist . > /dev/null
	for versions in $(NEWEST) $(LOWEST); do \
		rm -rf .release/venv && $(PYTHON) -m venv .release/venv && \
		.release/venv/bin/pip install --quiet --constraint $$versions $(TORCH) dist/*.whl && \
		(cd .release && rm -rf runs && venv/bin/idc --version && \
		venv/bin/idc condense quickstart optimizer.steps=40 assignment.events=5 --quiet && \
		venv/bin/idc verify runs/quickstart) || exit 1; \
	done
