# make demo   own virtual environment, trains on real data that needs no download, prints a table, writes a report
# make test   every check: lint, types, tests
# make zoo    gates on every model of benchmarks/zoo_models, beside two other tools; hours; prints a table
# make lock   writes constraints.txt anew from what .venv holds

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: demo test zoo lint types lock clean

demo: $(VENV)/.demo
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python examples/demo.py

test: lint types $(VENV)/.zoo
	$(BIN)/python -m pytest --numprocesses 2

zoo: $(VENV)/.dev $(VENV)/.zoo-more
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/zoo.py

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

# The model libraries of the zoo live in a folder of their own; the requirements file says why.
$(VENV)/.zoo: benchmarks/zoo-requirements.txt | $(VENV)/bin/python
	@echo "installing the models that the zoo compares with (a minute) ..."
	@rm -rf $(VENV)/zoo
	$(BIN)/pip install --quiet --no-deps --target $(VENV)/zoo --requirement $<
	@touch $@

$(VENV)/.zoo-more: benchmarks/zoo-more-requirements.txt $(VENV)/.zoo
	@echo "installing more of them (a minute) ..."
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/zoo --requirement $<
	@touch $@

lock:
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) outputs
