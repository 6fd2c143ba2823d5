# Two commands on a fresh machine with Python 3.11 or newer:
#   make demo   a real model, before and after, with measured latency
#   make test   the whole suite
PYTHON ?= python3
BIN := .venv/bin
# One more than there are cores: many tests wait for processes that they have started.
WORKERS = $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)')

.PHONY: demo test test-heavy lint format corpus clean

demo: .venv/.runtime
	@$(BIN)/python -m models fetch u2netp || $(MAKE) --no-print-directory .venv/.torch
	@$(BIN)/python -m bench.demo

test: .venv/.dev
	@echo "tests marked heavy are left out here: make test-heavy runs them"
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not heavy"

test-heavy: .venv/.dev
	$(BIN)/python -m pytest -m heavy

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict models bench examples tests/user_script.py

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

corpus: .venv/.runtime
	$(BIN)/python -m models fetch --all

clean:
	rm -rf .venv demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit("onnxdecomp needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.runtime: .venv/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[cpu,plot]"
	@touch $@

# The pin comes first: an unpinned torch could bring gigabytes of CUDA libraries.
.venv/.torch: .venv/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@touch $@

.venv/.dev: .venv/.torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[cpu,plot,search,torch,dev]"
	@touch $@
