# `make demo` and `make test` each set up everything they need in .venv, once.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint test-gpu clean

demo: $(VENV)/.installed-demo
	$(BIN)/hysac demo --out runs/demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build dist *.egg-info

# A stamp per set of extras: a second run installs nothing unless pyproject.toml changed.
$(VENV)/.installed-demo: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install --progress-bar on -e '.[train]'
	touch $@

$(VENV)/.installed-test: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install --progress-bar on -e '.[train,bench,test]'
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
