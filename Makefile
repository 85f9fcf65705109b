# `make train` and `make test` set up what they need: a virtual environment in .venv, from requirements.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRAIN_FLAGS ?=

.PHONY: train test test-all bench lint clean
.DELETE_ON_ERROR:

train: $(VENV)/ready
	$(BIN)/python main.py --config=configs/alexnet.py $(TRAIN_FLAGS)

test: $(VENV)/ready-test
	$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/ready-test
	$(BIN)/python -m pytest

bench: $(VENV)/ready-bench
	$(BIN)/python benchmarks/train_step.py

lint: $(VENV)/ready-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV)

$(VENV)/ready: requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt -e .
	touch $@

$(VENV)/ready-%: $(VENV)/ready setup.cfg
	$(BIN)/python -m pip install --quiet -e .[$*]
	touch $@
