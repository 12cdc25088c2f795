# The interpreter from which .venv is made, once; to change it later: make distclean setup PYTHON=...
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Deaths by SIGKILL in `make torture`, half of them in runs of one process and half of two; the
# other faults go by it.
N ?= 50

# Seconds of `make fuzz` for each of its three targets.
SECONDS ?= 600

# `make bench SMALL=1` measures the model type mini.
SMALL ?=

.PHONY: help setup lint test docs torture fuzz demo bench miniature clean distclean

help:
	@echo "make setup      install the package, its tools and LAVIS into $(VENV)"
	@echo "make lint       ruff and mypy"
	@echo "make test       all tests"
	@echo "make docs       the documentation as a site in build/docs; fails on a broken link or reference"
	@echo "make torture    torment training runs, N=50 times by SIGKILL, and compare what they leave"
	@echo "make fuzz       damage question files, configs and weights, SECONDS=600 of each"
	@echo "make demo       fusion training and the whole answer pipeline on a small data set"
	@echo "make bench      training's speed, step by step from the straightforward way (20 minutes;"
	@echo "                SMALL=1: model type mini, 3 minutes)"
	@echo "make miniature  train the small models that ship with the package anew (two hours)"
	@echo "make clean      remove caches and build folders"
	@echo "make distclean  remove $(VENV) as well"

setup: $(STAMP)

# LAVIS comes last and without its dependencies; setup.py says why.
$(STAMP): setup.py
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(None \
		if (3, 11) <= sys.version_info[:2] < (3, 14) \
		else "error: $(PYTHON) is not Python 3.11 to 3.13. Name one that is: make setup PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install --editable '.[dev,docs]'
	$(BIN)/python -m pip install --no-deps salesforce-lavis==1.0.2
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup
	$(BIN)/python -m pytest

# The page of every config key is made from the package, so it is on the path.
docs: setup
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --strict

torture: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.robustness.torture --kills $(N) --terms $$(( $(N) * 2 / 5 )) \
		--corrupts $$(( $(N) / 5 )) --fills $$(( $(N) / 5 )) --stalls $$(( $(N) / 5 ))

fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzzing.fuzz --seconds $(SECONDS)

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" ./run_scripts/demo.sh

bench: setup
	$(BIN)/python -m benchmarks.speed output/speed$(if $(SMALL),_small --small)

miniature: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" ./run_scripts/miniature.sh

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
