# `make demo` and `make test` set up .venv and run; nothing else is needed but Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast bench-smoke lint setup clean

demo: setup
	$(BIN)/teachclip demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

test-fast: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow"

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
