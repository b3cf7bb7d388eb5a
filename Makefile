# The commands of this project. `make help` lists them; each does the set-up that it needs.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON3 ?= python3
SETUP := $(PYTHON3) -m scripts.setup_env
BIN := .venv/bin
TOOLS := .venv-tools/bin
ARGS ?=

POLYLOOP_STRESS_SECONDS ?= 60
export POLYLOOP_STRESS_SECONDS

.PHONY: help setup setup-tools loops demo test stress test-gil test-compat bench lint types format docs lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  ARGS=… is handed to the program behind demo, test, stress, test-compat and bench."

setup: ## .venv with a free-threaded Python and the pinned packages (a second run takes no time)
	@$(SETUP) main

setup-tools:
	@$(SETUP) tools

loops: ## add uvloop and rloop to .venv, for the tests and benchmarks that run on them
	@$(SETUP) loops

demo: setup ## run the published experiments on this machine, within a minute, and write a chart
	@$(BIN)/polyloop bench all $(ARGS)

test: setup ## the fast tests, examples included
	$(BIN)/python -m pytest -m "not stress" -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder $(ARGS)

stress: setup ## seeded random races for POLYLOOP_STRESS_SECONDS (60)
	$(BIN)/python -m pytest -m "stress$(if $(QUICK), and not slow)" -s --timeout=0 -o faulthandler_timeout=0 $(ARGS)

test-gil: ## the fast tests on a Python 3.13 or newer with a GIL
	@$(PYTHON3) -m scripts.setup_env.compat gil $(ARGS)

test-compat: ## the fast tests on the GIL builds of 3.14 and 3.15
	@$(PYTHON3) -m scripts.setup_env.compat 3.14 3.15 $(ARGS)

bench: setup ## compare with asyncio and others (benchmarks/)
	$(BIN)/python -m benchmarks $(ARGS)

lint: setup-tools ## ruff, mypy --strict, pyright
	$(TOOLS)/ruff check .
	$(TOOLS)/ruff format --check .
	@$(MAKE) --no-print-directory types

types: setup-tools ## mypy --strict and pyright alone
	$(TOOLS)/mypy
	$(TOOLS)/pyright --pythonpath $(TOOLS)/python

format: setup-tools ## let ruff repair and format the sources
	$(TOOLS)/ruff check --fix-only --quiet .
	$(TOOLS)/ruff format .

docs: setup-tools ## build docs/_build/html; a warning is an error
	$(TOOLS)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

lock: ## compile requirements/*.txt anew (LOCK_ARGS=--upgrade for new versions)
	@UV=$$($(SETUP) uv | tail -n 1) requirements/lock.sh

clean: ## remove what the other targets made, but not the interpreters in the user's cache
	rm -rf .venv .venv-tools build dist out docs/_build .pytest_cache .mypy_cache .ruff_cache
	find src tests scripts benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
