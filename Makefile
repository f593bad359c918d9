# Everything runs inside .venv, which is made on first use and remade when the requirements change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete

export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help setup demo test lint types bench load check clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## make .venv with the exact versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; point to one with: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev]'
	$(BIN)/pip check
	@touch $@

demo: $(STAMP)  ## the sample catalog on the embedded model, into build/demo
	$(BIN)/ezigen personalize ezigen/mini/catalog/catalog.csv build/demo

test: $(STAMP)  ## every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 40 --durations-min 5

lint: $(STAMP)  ## style, layers, the deployment files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/yamllint --strict prefect.yaml infra

types: $(STAMP)  ## mypy, strict
	$(BIN)/mypy

bench: $(STAMP)  ## speed, as ratios against a baseline of the same run
	@for bench in $(filter-out bench/lines.py bench/shapes.py bench/load%.py,$(wildcard bench/*.py)); do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

load: $(STAMP)  ## a catalog of 100,000 rows with a simulated engine, ten minutes
	PYTHONPATH=. $(BIN)/python bench/load.py

check: lint types test  ## what has to pass before a change is merged

clean:  ## forget the environment and what was built
	rm -rf $(VENV) build dist *.egg-info
