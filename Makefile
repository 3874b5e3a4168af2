# make demo   own virtual environment, trains on real data that needs no download, prints a table, writes a report
# make test   every check: lint, types, tests
# make lock   writes constraints.txt anew from what .venv holds

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: demo test lint types lock clean

demo: $(VENV)/.demo
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python examples/demo.py

test: lint types
	$(BIN)/python -m pytest --numprocesses 2

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# What each target needs is installed once; a stamp remembers it until the project's requirements change.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	@echo "installing torch (a minute) ..."
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.torch
	@echo "installing what the demo needs (a minute) ..."
	$(PIP) --editable ".[demo]"
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	@echo "installing what the tests need (two minutes) ..."
	$(PIP) --editable ".[dev]"
	@touch $@ $(VENV)/.demo

lock:
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) outputs
