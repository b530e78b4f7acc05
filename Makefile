# Two commands: `make train` (the main job) and `make test` (everything that must hold). Both make .venv first, once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?=

.PHONY: help train test env lint types docs tests clean
.DEFAULT_GOAL := help

help:
	@echo "make train   train PlaNet on cartpole-balance from pixels (ARGS='--env dmc:walker-walk' passes flags)"
	@echo "make test    lint, types, docs and tests"
	@echo "make env     only the environment, in $(VENV)"
	@echo "make clean   remove the environment and what the tools left behind"

train: $(INSTALLED)
	$(BIN)/python examples/train_planet.py $(ARGS)

test: lint types docs tests

env: $(INSTALLED)

# pip reads its own configuration (mirrors, proxies). Nothing is fetched again until one of these files changes.
$(INSTALLED): pyproject.toml requirements/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, found $$($(PYTHON) --version): make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt --editable '.[all,docs,dev]'
	@touch $(INSTALLED)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/sphinx-build -W --keep-going -n -q -b html docs docs/_build/html

tests: $(INSTALLED)
	$(BIN)/pytest

clean:
	rm -rf $(VENV) docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
