# `make train` and `make test` set up what they need: a virtual environment in .venv, from requirements.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRAIN_FLAGS ?=
BENCH_FLAGS ?=
IN_PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

.PHONY: install train test test-all soak docs bench bench-data lint clean
.DELETE_ON_ERROR:

install: $(VENV)/ready

train: $(VENV)/ready
	$(BIN)/python main.py --config=configs/alexnet.py $(TRAIN_FLAGS)

test: $(VENV)/ready-test
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not slow and not soak"

test-all: $(VENV)/ready-test $(VENV)/ready-docs $(VENV)-beam/ready
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not soak"

# Prints the output of the tests, with their counts, at the end. A test may take longer than the limit in pyproject.toml.
soak: $(VENV)/ready-test
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal -m soak -rP -o faulthandler_timeout=0

# Warnings are errors. The first build executes the notebooks.
docs: $(VENV)/ready-docs
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going docs build/docs/html

bench: $(VENV)/ready-bench
	$(BIN)/python benchmarks/speed.py $(BENCH_FLAGS)

bench-data: $(VENV)/ready-bench
	$(BIN)/python benchmarks/input_pipeline.py $(BENCH_FLAGS)

lint: $(VENV)/ready-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-beam

$(VENV)/ready: requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt -e .
	touch $@

$(VENV)/ready-%: $(VENV)/ready setup.cfg requirements.txt
	$(BIN)/python -m pip install --quiet -c requirements.txt -e .[$*]
	touch $@

$(VENV)-beam/ready: requirements-beam.txt
	$(PYTHON) -m venv $(VENV)-beam
	$(VENV)-beam/bin/python -m pip install --quiet -r requirements-beam.txt
	touch $@
