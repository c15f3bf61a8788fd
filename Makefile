# Every target sets itself up first: a virtual environment in .venv with the engine, the package and the test tools.
#   make demo            serve the shipped demo; ONCE=1 leaves after the table, PORT=8000 picks the port
#   make test            all tests that need no GPU
#   make check           lint, format, types, import contracts, architecture tests
#   make test-gpu        tests that need an NVIDIA GPU
#   make test-timing     tests that compare latencies, on a machine that does nothing else
#   make bench           decode latency of the demo with adapters as a ratio to the bare base
#   make hooks           run the linters on each commit
#   make clean           remove .venv and caches
# PYTHON=python3.12 picks the interpreter, ENGINE=cpu|gpu the engine, VENV=dir the environment's folder.

VENV ?= .venv
export VENV
BIN := $(VENV)/bin

.PHONY: help setup demo test check test-gpu test-timing bench hooks clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

setup:
	@.ci/setup.sh

demo: setup
	@exec $(BIN)/shadowserve demo $(if $(ONCE),--once) $(if $(PORT),--port $(PORT))

test: setup
	@.ci/test.sh

check: setup
	@.ci/check.sh

test-gpu: setup
	@$(BIN)/python -m pytest -q -m gpu

test-timing: setup
	@$(BIN)/python -m pytest -q -m timing

bench: setup
	@$(BIN)/python benchmarks/engine.py --model demo

hooks: setup
	@$(BIN)/pre-commit install

clean:
	rm -rf $(VENV) $(VENV).lock .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
