# `make demo` and `make test` do all the set-up themselves. PYTHON=… chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
SECONDS ?= 600

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv install demo test test-full fuzz lint bench clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

venv: $(BIN)/python ## make the virtual environment, empty

install: $(STAMP) ## install the package (editable), torch and the development tools

demo: $(STAMP) ## record, pack, verify, replay and report a real training run
	$(BIN)/python examples/demo.py

test: lint ## lint, then the tests that CI runs
	$(BIN)/python -m pytest -q -m "not slow and not gpu" -n $(WORKERS)

test-full: lint ## lint, then all tests
	$(BIN)/python -m pytest -q -n $(WORKERS)

fuzz: $(STAMP) ## fuzz everything that reads hostile files, for SECONDS=600 in all; TARGETS="zip log" for some
	$(BIN)/python -m pip install --quiet 'atheris>=3'
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(TARGETS)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

bench: $(STAMP) ## measure what recording costs
	$(BIN)/python benchmarks/record_overhead.py

clean: ## remove what was built; the virtual environment stays
	rm -rf build dist demo-out benchmarks/out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("trainmem-audit needs Python 3.11 or newer: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# The dependency group is read here because the pip that comes with Python 3.11 knows no `--group`.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"], sep="\n")' > $(VENV)/dev-requirements.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[torch]' -r $(VENV)/dev-requirements.txt
	@touch $@
