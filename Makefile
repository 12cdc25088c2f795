# The interpreter from which .venv is made, once; to change it later: make distclean setup PYTHON=...
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCK := requirements.lock
COMMA := ,

# The same with the lower bounds of pyproject.toml instead of the locked versions.
LOWEST_VENV := .venv-lowest
LOWEST_BIN := $(LOWEST_VENV)/bin
LOWEST_STAMP := $(LOWEST_VENV)/.installed
LOWEST_LOCK := requirements-lowest.lock

# SIGKILLs in `make torture`, half in runs of one process and half of two; the counts of the other
# faults are proportional.
N ?= 50

# Processes that share the tests of `make test` and `make lowest`; 0: all in one.
WORKERS ?= 2

# Seconds of `make fuzz` for each of its targets.
SECONDS ?= 600

# `make bench SMALL=1` measures the model type mini.
SMALL ?=

.PHONY: help setup lint test docs notebook lowest lock torture fuzz demo bench miniature clean distclean

help:
	@echo "make setup      install the package, its tools and LAVIS into $(VENV)"
	@echo "make lint       ruff and mypy"
	@echo "make test       all tests, in WORKERS=2 processes"
	@echo "make docs       the documentation as a site in build/docs; fails on a broken link or reference"
	@echo "make notebook   run docs/notebook.ipynb and store what it prints and shows"
	@echo "make lowest     lint and core tests with the lowest versions that are claimed, in $(LOWEST_VENV)"
	@echo "make lock       renew the versions in $(LOCK) and $(LOWEST_LOCK)"
	@echo "make torture    interrupt training runs, N=50 times by SIGKILL, and compare their results"
	@echo "make fuzz       fuzz the readers of questions, configs, weights and names, SECONDS=600 each"
	@echo "make demo       fusion training and the whole answer pipeline on a small data set"
	@echo "make bench      training speed, from a straightforward step to all optimizations, and what"
	@echo "                scale costs (25 minutes; SMALL=1: model type mini, 5 minutes)"
	@echo "make miniature  retrain the small models that ship with the package (two hours)"
	@echo "make clean      remove caches and build folders"
	@echo "make distclean  remove $(VENV) and $(LOWEST_VENV) as well"

setup: $(STAMP)

# A virtual environment $(1) with the versions of $(2) and the extras $(3). LAVIS comes last and
# without its dependencies; pyproject.toml says why.
define install
@test -x $(1)/bin/python || $(PYTHON) -c 'import sys; sys.exit(None \
	if (3, 11) <= sys.version_info[:2] < (3, 14) \
	else "error: $(PYTHON) is not Python 3.11 to 3.13. Name one that is: make setup PYTHON=python3.12")'
test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
$(1)/bin/python -m pip install --constraint $(2) --upgrade pip
$(1)/bin/python -m pip install --constraint $(2) --build-constraint $(2) --editable '.[$(3)]'
$(1)/bin/python -m pip install --no-deps salesforce-lavis==1.0.2
touch $(1)/.installed
endef

$(STAMP): pyproject.toml $(LOCK)
	$(call install,$(VENV),$(LOCK),dev$(COMMA)docs)

$(LOWEST_STAMP): pyproject.toml $(LOWEST_LOCK)
	$(call install,$(LOWEST_VENV),$(LOWEST_LOCK),dev)

# Resolved without an installation, from PyPI alone. The lock is for every Python and platform
# that the package is for; the lowest versions are for the lowest Python, on Linux.
COMPILE = $(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 \
	--no-annotate --custom-compile-command 'make lock' --quiet --upgrade

lock: | $(BIN)/uv
	$(COMPILE) --extra docs --universal --fork-strategy fewest --output-file $(LOCK)
	$(COMPILE) --resolution lowest-direct --python-platform linux --output-file $(LOWEST_LOCK)

$(BIN)/uv:
	$(MAKE) setup

# A file's tests share fixtures, and some follow each other, so one process runs all of them. The
# order of the files is that of tests/conftest.py: the longest first.
PARALLEL = --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup
	$(BIN)/python -m pytest $(PARALLEL)

# The page of every config key is made from the package, so it is on the path.
docs: setup
	PYTHONPATH=. $(BIN)/mkdocs build --strict

# Without warnings, which would name folders of this machine.
notebook: setup
	PYTHONPATH=. PYTHONWARNINGS=ignore $(BIN)/jupyter execute --inplace docs/notebook.ipynb

lowest: $(LOWEST_STAMP)
	$(LOWEST_BIN)/ruff check .
	$(LOWEST_BIN)/ruff format --check .
	$(LOWEST_BIN)/mypy
	$(LOWEST_BIN)/python -m pytest $(PARALLEL) -m "not beyond_core"

torture: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.robustness.torture --kills $(N) --terms $$(( $(N) * 2 / 5 )) \
		--corrupts $$(( $(N) / 5 )) --fills $$(( $(N) / 5 )) --stalls $$(( $(N) / 5 ))

fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzzing.fuzz --seconds $(SECONDS)

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" ./run_scripts/demo.sh

bench: setup
	$(BIN)/python -m benchmarks.speed output/speed$(if $(SMALL),_small --small)
	$(BIN)/python -m benchmarks.scale output/speed$(if $(SMALL),_small --small)

miniature: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" ./run_scripts/miniature.sh

clean:
	rm -rf build .cache dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(LOWEST_VENV)
