# Two commands: `make train` (the main job) and `make test` (everything that must hold). Both make .venv first, once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?=

.PHONY: help train test env lint types docs tests torture fuzz soak matrix audit clean
.DEFAULT_GOAL := help

help:
	@echo "make train   train PlaNet on cartpole-balance from pixels (ARGS='--env dmc:walker-walk' passes flags)"
	@echo "make test    lint, types, docs and tests"
	@echo "make env     only the environment, in $(VENV)"
	@echo "make torture kill a training run at 50 random moments, and hold its end against one that was left alone"
	@echo "make fuzz    more than 100,000 wrong arguments and broken files"
	@echo "make soak    1,000,000 steps of collection and sampling: memory, files, speed; then workers that are killed"
	@echo "make matrix  the tests with the oldest and the newest versions of what is needed"
	@echo "make audit   known weaknesses of what is installed"
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

torture: $(INSTALLED)
	$(BIN)/python tests/reliability/torture.py $(ARGS)

fuzz: $(INSTALLED)
	PLANET_LIB_FUZZ_CASES=$${PLANET_LIB_FUZZ_CASES:-1000} $(BIN)/pytest tests/fuzz $(ARGS)

soak: $(INSTALLED)
	$(BIN)/python tests/reliability/soak.py $(ARGS)

matrix: $(INSTALLED)
	$(BIN)/python tests/reliability/matrix.py --write $(ARGS)

# In an environment of its own: pip-audit is not what is audited.
audit: $(INSTALLED)
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet -r requirements/audit.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > $(VENV)/audit/frozen.txt
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r $(VENV)/audit/frozen.txt

clean:
	rm -rf $(VENV) docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
