# The commands of daily work; `make help` lists them.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
TORCH_CPU ?= https://download.pytorch.org/whl/cpu

# Files of tests that run at once. Those of test-ci do not: their jobs have both cores already.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --durations 15

MEGATRONS := 0.18.2 0.19.2
OVERLAYS := $(MEGATRONS:%=$(CURDIR)/.cache/megatron-core-%)

DOCS := .cache/docs

GPU_PYTHON ?= $(if $(wildcard $(READY)),$(BIN)/python,python3)
GPU_SITE := .cache/gpu-site
GPU_READY := $(if $(wildcard gpu-wheels/*.whl),$(GPU_SITE)/.ready)
GPU_PATH := PYTHONPATH=$(CURDIR)/src:$(CURDIR)/$(GPU_SITE)

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-all test test-ci test-all test-gpu bench-gpu gpu-wheels test-megatron resolve lock-gpu docs docs-serve lint check bench format clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv from requirements/cpu.lock (again only when that or pyproject.toml changes).

# --no-deps: the lock is complete, and a few of its packages name others that are of no use here.
# A torch that cannot be imported is the registry's, built for CUDA, whose libraries are not here.
$(READY): requirements/cpu.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the packages of requirements/cpu.lock into .venv: 4 GB, some minutes"
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/cpu.lock
	@$(BIN)/python -c "import torch" 2>/dev/null || { set -ex; \
	  : "this torch needs the libraries of CUDA: the same version from $(TORCH_CPU) instead"; \
	  $(BIN)/python -m pip install --quiet --no-deps --force-reinstall --index-url $(TORCH_CPU) \
	    $$(grep '^torch==' requirements/cpu.lock) || { \
	      echo "no torch from $(TORCH_CPU); another index: make setup TORCH_CPU=URL" >&2; exit 1; }; }
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q src stages
	$(BIN)/python -c "import torch"
	touch $(READY)

demo: setup ## A tiny Llama on two CPU processes: convert, fine-tune, convert back; align. 3 minutes.
	$(BIN)/python examples/demo.py

demo-all: setup ## The same, then a tiny Bloom, and a Llama with grouped queries.
	$(BIN)/python examples/demo.py --models tiny-llama tiny-bloom tiny-llama-gqa

test: setup ## The tests of every day, in minutes: the quick ones, and one chain from end to end.
	$(PYTEST) -m "not ci and not slow and not gpu"

test-ci: setup ## The tests that start processes: layouts, formats, resumed runs, every stage.
	$(BIN)/python -m pytest --durations 15 -m "ci and not slow and not gpu"

test-all: setup ## All tests but those of a GPU.
	$(BIN)/python -m pytest -m "not gpu"

test-gpu: $(GPU_READY) ## The tests of a GPU, in minutes on one; several GPUs and vLLM where they are.
	$(GPU_PATH) $(GPU_PYTHON) -m pytest -m gpu tests/gpu

bench-gpu: $(GPU_READY) ## Tokens/s and use of a GPU, beside TRL and transformers; nothing is asserted.
	$(GPU_PATH) $(GPU_PYTHON) benchmarks/gpu.py

gpu-wheels: setup ## Collect, for a machine with torch but without a network, what it lacks besides.
	$(BIN)/python requirements/gpu_wheels.py gpu-wheels

# Without .venv the machine's own Python serves, with what `make gpu-wheels` has collected elsewhere.
$(GPU_SITE)/.ready: $(wildcard gpu-wheels/*.whl)
	rm -rf $(GPU_SITE)
	$(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --target $(GPU_SITE) gpu-wheels/*.whl
	touch $@

test-megatron: setup $(OVERLAYS) ## The tests of parallel layouts with later versions of Megatron-Core.
	@set -e; for overlay in $(OVERLAYS); do \
	  echo "with $$overlay"; PYTHONPATH=$$overlay $(BIN)/python -m pytest tests/parallel; done

# They say that they want Python 3.12 and run on 3.11 too, but for one module in C++, whose source
# is the same in all versions: that of the installed one serves.
$(CURDIR)/.cache/megatron-core-%: | setup
	$(BIN)/python -m pip install --quiet --no-deps --ignore-requires-python --python-version 3.12 \
	  --only-binary=:all: --target $@ megatron-core==$*
	cp .venv/lib/python3*/site-packages/megatron/core/datasets/helpers_cpp.*.so \
	  $@/megatron/core/datasets/

resolve: setup ## Whether a resolver accepts every extra, on Python 3.11, 3.12 and 3.13.
	$(BIN)/python requirements/resolve.py

lock-gpu: setup ## Write requirements/gpu.lock and te.lock anew, from the ranges of pyproject.toml.
	$(BIN)/python requirements/lock_gpu.py

docs: $(DOCS)/.ready ## Build the site from docs/ into build/site; a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

docs-serve: $(DOCS)/.ready ## Show the site at http://127.0.0.1:8000, anew after each change.
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs serve --dev-addr 127.0.0.1:8000

# An environment of its own, half a minute to make: nothing in it that .venv needs.
$(DOCS)/.ready: requirements/docs.lock
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --no-deps -r requirements/docs.lock
	touch $@

lint: setup ## Format, lint and types, nothing changed.
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

check: lint test ## Everything a change must pass.

format: setup ## Rewrite the sources as ruff wants them.
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# kills.py, bad_inputs.py and house.py measure no speed; gpu.py wants a GPU.
SPEEDS := $(filter-out %/kills.py %/bad_inputs.py %/house.py %/gpu.py,$(wildcard benchmarks/*.py))

bench: setup ## Throughput and memory, side by side with other trainers; nothing is asserted.
	@set -e; for script in $(SPEEDS); do $(BIN)/python "$$script"; done

clean: ## Remove what was built, cached or trained here; .venv and runs/ stay.
	rm -rf .cache build dist demo src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src stages tests -name __pycache__ -type d -prune -exec rm -rf {} +
