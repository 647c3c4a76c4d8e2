# `make demo` and `make test` set up .venv and run; nothing else is needed but Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin
# Some tests wait for processes of their own: half as many workers again as there are cores.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(3 * len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))(0)) // 2)')
# One thread each; and what was compiled once is kept, or each of some hundred processes would compile it again.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=

.PHONY: demo test test-fast bench-smoke lint setup clean

demo: setup
	$(BIN)/teachclip demo

test: setup
	$(TEST_ENVIRONMENT) $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-fast: setup
	$(TEST_ENVIRONMENT) $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow"

bench-smoke: setup
	OMP_NUM_THREADS=1 $(BIN)/python tools/bench.py --captions 400 --batch-size 8 --steps 1 --rounds 1

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/.ready

.venv/.ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch -c constraints.txt
	$(BIN)/pip install --quiet -e ".[dev]" -c constraints.txt
	touch $@

clean:
	rm -rf .venv runs build dist *.egg-info
