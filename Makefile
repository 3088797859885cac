# `make demo` and `make test` set up all that they need, on a fresh machine too.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Any PyTorch from 2.3 on; this is the release that the tests run on.
TORCH ?= torch==2.13.0
# Most tests wait more than they compute; those that measure times run after the others, alone.
JOBS ?= 3

.PHONY: demo test check scenarios bench docs clean
.DEFAULT_GOAL := help

help:  ## List the verbs
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## Train a small model on files of this disk and print the report
	$(BIN)/gpumon demo

test: $(VENV)/.test  ## Run the tests (on Linux as root: with real slow disks)
	@sh tests/system-packages.sh
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m pytest -m 'not alone' --numprocesses $(JOBS) --dist loadfile
	$(BIN)/python -m pytest -m alone
endif

check: $(VENV)/.test  ## Lint, format, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

scenarios: $(VENV)/.test  ## Train on slow, limited and healthy storage; judge every report (long)
	@sh tests/system-packages.sh
	$(BIN)/python -m pytest -m scenario -p no:randomly $(ARGS)

bench: $(VENV)/.test  ## What gpumon costs: per step, per import, per report
	$(BIN)/python benchmarks/step_cost.py --check
	$(BIN)/python benchmarks/import_cost.py --check
	$(BIN)/python -m pytest -q tests/analysis/test_report.py -k million --durations 1

docs: $(VENV)/.test  ## Write the generated parts of docs/, the dashboards and the alerts anew
	$(BIN)/python docs/generate.py
	$(BIN)/python -m monitoring

clean:  ## Remove what make made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $(TORCH) numpy
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --editable . --group test --group check
	@touch $@
