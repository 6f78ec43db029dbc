# make demo: install and train the embedded model on five rewards. make test: install and pass the tests.
# make test-fast: those of the mathematics, the data and the rewards, in under a minute.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PLUGINS := $(wildcard plugins/*)
SEED ?= 0
THREADS ?= 1

.PHONY: install demo bench test test-fast test-faults lint format study pretrain clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]' $(addprefix --editable ,$(PLUGINS))
	touch $@

demo: install
	$(BIN)/python scripts/demo.py --seed $(SEED)

# What MARBLE costs beside its alternatives: about ten minutes. BENCH="--quick" or BENCH="--output FILE.md --json FILE".
bench: install
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python scripts/bench.py $(BENCH)

test: install
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

# The rooms of pure functions, without any test that has a model: under a minute on two cores.
FAST := $(addprefix tests/,balance data explain objective rewards rollout)
test-fast: install
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile -m 'not long and not model' $(FAST)

# Every fault for real, at random instants, for minutes each. FAULTS="--output docs/reliability.md" writes its table.
test-faults: install
	$(BIN)/python scripts/faults.py $(FAULTS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every balance against every other, then docs/study/results.md: about two hours on two cores; goes on where it was stopped.
study: install
	$(BIN)/python scripts/study.py
	$(BIN)/python scripts/study_report.py

# Make the embedded model anew: about half an hour on two cores.
pretrain: install
	$(BIN)/python scripts/pretrain_tiny.py

clean:
	rm -rf $(VENV) build dist runs .mypy_cache .ruff_cache .pytest_cache
