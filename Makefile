# Two commands on a bare machine (Python >= 3.11 and make): `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
WORKERS ?= auto

.PHONY: help setup run test check bench notebooks clean

help:
	@echo "make run    set up $(VENV) from the pins and run the main experiment"
	@echo "make test   the same set-up, then the whole test suite"
	@echo "make check  ruff, type check, docs"
	@echo "make bench  benchmarks: ratios against named baselines"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("reweight needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -c constraints.txt -e ".[experiments,dev,docs]"
	touch $(STAMP)

run: setup
	$(PY) -m experiments.long_tail

test: setup
	$(PY) -m pytest -n $(WORKERS) --dist worksteal

check: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m reweight.catalog table --check docs/methods.md
	$(PY) -m mkdocs build --strict --quiet

bench: setup
	$(PY) -m benchmarks

clean:
	rm -rf $(VENV) .cache site runs
