# The commands of daily work; `make help` lists them.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint check bench format clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv from requirements/cpu.lock (again only when that or pyproject.toml changes).

# --no-deps: the lock is complete, and a few of its packages name others that are of no use here.
$(READY): requirements/cpu.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/cpu.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q src stages
	$(BIN)/python -c "import torch"
	touch $(READY)

demo: setup ## Tiny Llama and tiny Bloom on two CPU processes: convert, fine-tune, convert back; align.
	$(BIN)/python examples/demo.py

test: setup ## The tests that take seconds.
	$(BIN)/python -m pytest -m "not slow"

test-all: setup ## All tests.
	$(BIN)/python -m pytest

lint: setup ## Format, lint and types, nothing changed.
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

check: lint test ## Everything a change must pass.

format: setup ## Rewrite the sources as ruff wants them.
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: setup ## Throughput and memory, side by side with other trainers; nothing is asserted.
	@set -e; for script in benchmarks/*.py; do $(BIN)/python "$$script"; done

clean: ## Remove what was built, cached or trained here; .venv and runs/ stay.
	rm -rf build dist demo src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src stages tests -name __pycache__ -type d -prune -exec rm -rf {} +
