# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test soak check lint types imports clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev]'
	touch $@

demo: $(STAMP)  ## Embed real sample videos and images with a tiny random model, and show the table.
	$(BIN)/python examples/demo.py

test: $(STAMP)  ## All tests, those of a Ray one after the other in a process of their own; gpu tests skip without a CUDA device.
	$(BIN)/python -m pytest -q --numprocesses 3 --dist loadfile --no-loadscope-reorder -m "not ray and not soak"
	$(BIN)/python -m pytest -q -m "ray and not soak"

soak: $(STAMP)  ## Faults at the contract's lengths (some 25 minutes on two cores); writes docs/soak.md.
	$(BIN)/python -m tests.soak.report

check: lint types imports  ## Everything that reads code without running it.

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

clean:
	rm -rf demo-output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
