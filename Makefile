# Every target sets itself up first. Needs: make, Python >= 3.11 with venv, and a package index.
PYTHON ?= python3
BIN := .venv/bin
# Test processes at a time; a file's tests stay together.
JOBS ?= 2
STAMP := .venv/.installed
# One thread a process: the tests start ranks of their own, and more threads than cores is slower.
export OMP_NUM_THREADS ?= 1
# Behind a hospital's or company's proxy the certificates that count are the system's.
export UV_SYSTEM_CERTS ?= 1

.PHONY: help setup demo test test-slow test-long lint bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       the whole chain on generated data, ends with runs/demo/report.html"
	@echo "make test       the tests (make test-slow, make test-long: those that take long)"
	@echo "make lint       ruff, mypy, import-linter"
	@echo "make bench      throughput of the loader against its peers"
	@echo "make setup      only the environment, .venv (the others make it too)"
	@echo "make clean      remove the environment and all caches (not data/ or runs/)"

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/uv || { echo "Setting up .venv (once; about 6 GB with CUDA's libraries)"; \
	  $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; }
	@$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(STAMP)

demo: $(STAMP)
	@env -u OMP_NUM_THREADS $(BIN)/mstl demo

test: $(STAMP)
	$(BIN)/pytest -n $(JOBS) --dist loadfile -m "not slow and not long"

test-slow: $(STAMP)
	$(BIN)/pytest -m slow

# Whole jobs on two ranks and two nodes, killed, starved and resumed.
test-long: $(STAMP)
	$(BIN)/pytest -m long

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks.loader

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
