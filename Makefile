# make demo: install and train the embedded model on five rewards. make test: install and pass the tests.
# make test-fast: those of the mathematics, the data and the rewards, in under a minute.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PLUGINS := $(wildcard plugins/*)
SEED ?= 0
THREADS ?= 1

.PHONY: install demo bench test test-fast test-faults test-gpu test-standin lint format reference docs study pretrain clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]' $(addprefix --editable ,$(PLUGINS))
	touch $@

demo: install
	$(BIN)/python -m scripts.demo --seed $(SEED)

# Measure what MARBLE costs beside its alternatives: about ten minutes. BENCH="--quick" or BENCH="--output FILE.md --json FILE".
bench: install
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m scripts.bench $(BENCH)

# A room's tests share a worker and its fixtures; tests/conftest.py puts the longest rooms first.
WORKERS := --numprocesses auto --maxprocesses 8 --dist loadscope --no-loadscope-reorder
test: install
	$(BIN)/python -m pytest $(WORKERS)

# The rooms of pure functions, without any test that has a model: under a minute on two cores.
FAST := $(addprefix tests/,balance data explain objective rewards rollout)
test-fast: install
	$(BIN)/python -m pytest $(WORKERS) -m 'not long and not model' $(FAST)

# Try every fault for real, at random instants: minutes each. FAULTS="--output docs/explanation/reliability.md"
# writes its table.
test-faults: install
	$(BIN)/python -m scripts.faults $(FAULTS)

# What needs a CUDA device, on a machine that has one; four processes share it. Each test is named as it ends.
test-gpu: install
	$(BIN)/python -m pytest -m gpu tests/gpu -n 4 -vv

# Torch's CUDA build on a device that is not there (tests/standin): 2.5 GB of wheels at first, then a quarter of an hour.
CUDA := .venv-cuda
test-standin: $(CUDA)/installed
	tests/standin/stub/build.sh $(CUDA)
	$(CUDA)/bin/python -m pytest -m standin tests/standin

# `===` takes the CUDA build where an index has torch's CPU build as well.
$(CUDA)/installed: pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -m venv $(CUDA)
	grep -v '^torch==' constraints.txt > $(CUDA)/constraints.txt
	$(CUDA)/bin/python -m pip install --quiet $$(sed -n 's/^torch==/torch===/p' constraints.txt)
	$(CUDA)/bin/python -m pip install --quiet --constraint $(CUDA)/constraints.txt --editable '.[dev]' $(addprefix --editable ,$(PLUGINS))
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Write the pages of docs/reference that are made from the code: configuration, command line, metrics.
reference: install
	$(BIN)/python -m scripts.reference

# Build the documentation into site/; a broken link is an error (not with --quiet, which hides warnings from --strict).
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

# Compare all balances at their best, then write docs/results/study: about seventeen hours on two cores; resumes if stopped.
study: install
	$(BIN)/python -m scripts.study
	$(BIN)/python -m scripts.study.hacking
	$(BIN)/python -m scripts.study.report
	$(BIN)/python -m scripts.study.hacking_report

# Train the embedded models from scratch: about half an hour each on two cores.
pretrain: install
	$(BIN)/python -m scripts.tiny.pretrain
	$(BIN)/python -m scripts.tiny.pretrain_edit

clean:
	rm -rf $(VENV) $(CUDA) build dist site runs .mypy_cache .ruff_cache .pytest_cache
