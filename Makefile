# plmsae: `make` lists the targets. Everything happens inside .venv; nothing is installed elsewhere.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3 2>/dev/null))
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
export OMP_WAIT_POLICY := PASSIVE
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

.PHONY: help install run test test-all test-long lint render bench reproduce

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.installed ## create .venv and install the lock and plmsae into it

# --no-deps: the lock is complete, and the resolver would add a torchvision that breaks the CPU build of torch.
# Where the registry's torch is the CUDA build, importing it fails without its CUDA libraries: then they are added.
.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "plmsae needs Python 3.11, 3.12 or 3.13; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet "$$(grep '^torch==' requirements.lock)"
	@touch $@

run: install data ## the main job: proteins -> activations -> SAE -> evaluation -> registry -> report
	$(BIN)/dvc repro
	@echo
	@cat outputs/register/summary.md
	@echo "report:  $(CURDIR)/outputs/register/report.html"
	@echo "next:    source .venv/bin/activate && plmsae models"

data: data.dvc | install
	$(BIN)/dvc pull --quiet data.dvc
	@touch data

test: install ## what CI runs: everything but containers and the hours-long tests
	$(PYTEST) -m "not containers and not long"

test-all: install ## `make test` and the tests that need podman and a browser
	$(PYTEST) -m "not long"

test-long: install ## every test, hours included
	$(PYTEST)

lint: install ## ruff, mypy, that generated files are up to date, and that every test can be imported
	$(BIN)/ruff check src tests scripts benchmarks components pipelines docker
	$(BIN)/ruff format --check src tests scripts benchmarks components pipelines docker
	$(BIN)/mypy
	$(BIN)/python -m plmsae.cluster.render --check
	@$(BIN)/python -m pytest --collect-only -qq >/dev/null || { $(BIN)/python -m pytest --collect-only -qq; exit 1; }

render: install ## write dvc.yaml, schema, reference, components and compiled pipelines from the stage catalogue
	$(BIN)/python -m plmsae.cluster.render

bench: install ## side-by-side benchmarks; each writes a Markdown table to benchmarks/results
	set -o pipefail; for script in benchmarks/*.py; do \
		$(BIN)/python $$script | tee benchmarks/results/$$(basename $$script .py).md || exit 1; done

reproduce: run ## run the demo and rewrite the tables of README.md from its outputs
	$(BIN)/python scripts/readme_tables.py
