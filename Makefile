# Everything runs inside .venv, which is made on first use and remade when the requirements change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete

export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help setup demo test fuzz lint types bench load check audit sbom clean
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

FUZZ_EXAMPLES ?= 5000
fuzz: $(STAMP)  ## damaged inputs of every kind, random ones and many of each: FUZZ_EXAMPLES=5000
	OMP_NUM_THREADS=1 EZIGEN_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/fuzz --timeout 7200 -x --durations 0

lint: $(STAMP)  ## style, layers, the deployment files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/yamllint --strict prefect.yaml infra
	$(BIN)/pip-licenses >/dev/null  # says which package has a licence that is not allowed

types: $(STAMP)  ## mypy, strict
	$(BIN)/mypy

bench: $(STAMP)  ## speed, as ratios against a baseline of the same run
	@for bench in $(filter-out bench/lines.py bench/shapes.py bench/load%.py,$(wildcard bench/*.py)); do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

load: $(STAMP)  ## a catalog of 100,000 rows with a simulated engine, ten minutes
	PYTHONPATH=. $(BIN)/python bench/load.py

check: lint types test  ## what has to pass before a change is merged

AUDIT := .venv-audit

$(AUDIT)/.complete: constraints.txt
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt cyclonedx-bom pip-audit
	@touch $@

audit: $(AUDIT)/.complete  ## advisories about the exact versions (asks PyPI); those in advisories.txt are known
	$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt \
	  $(addprefix --ignore-vuln ,$(shell sed -n 's/^\([A-Z][A-Za-z0-9-]*\) .*/\1/p' advisories.txt))

sbom: $(STAMP) $(AUDIT)/.complete  ## what is installed, as CycloneDX: build/sbom.json
	@mkdir -p build
	$(AUDIT)/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
	  --output-file build/sbom.json $(BIN)/python

clean:  ## forget the environment and what was built
	rm -rf $(VENV) $(AUDIT) build dist *.egg-info
