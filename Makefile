# `make` lists the targets. Everything runs in .venv, which `make setup` makes from uv.lock.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

BIN := .venv/bin
SYNCED := .venv/.synced
PYTEST_ARGS ?=

# uv from PATH, or else a copy of our own, which needs only python3 with pip.
OWN_UV := $(HOME)/.cache/rectrain/uv/bin/uv
UV := $(or $(shell command -v uv 2>/dev/null),$(OWN_UV))

# uv works on ./.venv whatever environment is active; processes of a test share the cores, so each gets one thread.
export UV_PROJECT_ENVIRONMENT := .venv
export OMP_NUM_THREADS ?= 1

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(SYNCED) ## Make .venv with everything that tests need, as locked (kernels for CPU).

$(SYNCED): pyproject.toml uv.lock | $(UV)
	$(UV) sync --frozen --extra cpu --extra operator --extra serving --extra spark --extra dev
	@touch $@

$(OWN_UV):
	python3 -m pip install --quiet --upgrade --target $(HOME)/.cache/rectrain/uv 'uv>=0.9'

.PHONY: train
train: | $(UV) ## Install what training needs and train the example on Amazon CDs; ARGS='--set training.maxSteps=50' for a look.
	$(UV) sync --frozen --inexact --extra cpu
	$(BIN)/rectrain run examples/amazon-cds/job.yaml $(ARGS)

# For pip, which cannot be told to leave torchrec's CUDA kernels out of the extra `cpu`.
REQUIREMENTS := { echo '\# From uv.lock by make generate. pip install --no-deps -r requirements-cpu.txt .'; $(UV) export --quiet \
	--frozen --no-hashes --no-annotate --no-header --no-emit-project --extra cpu; }

.PHONY: generate
generate: $(SYNCED) | $(UV) ## Write docs/reference, the CustomResourceDefinition and requirements-cpu.txt.
	$(BIN)/python -m rectrain.api.generate
	$(REQUIREMENTS) > requirements-cpu.txt

.PHONY: format
format: $(SYNCED) ## Format the code and mend what the linter can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: verify
verify: $(SYNCED) | $(UV) ## Check lint, format, types, the direction of imports and the generated files.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m rectrain.api.generate --check
	$(REQUIREMENTS) | diff - requirements-cpu.txt || { echo "requirements-cpu.txt: run make generate"; exit 1; }

.PHONY: test
test: verify test-unit test-worker test-cluster ## Run everything that a merge has to pass.

.PHONY: test-unit
test-unit: $(SYNCED) ## Run the tests that need no processes and no servers.
	$(BIN)/pytest tests/unit $(PYTEST_ARGS)

.PHONY: test-worker
test-worker: $(SYNCED) ## Run the tests of the worker: torch processes over gloo, object storage in MinIO.
	$(BIN)/pytest tests/worker $(PYTEST_ARGS)

.PHONY: setup-cluster
setup-cluster: $(SYNCED) ## Install the system packages that tests on a Kubernetes node need (Debian or Ubuntu, as root).
	$(BIN)/python tests/cluster/harness/requirements.py

.PHONY: test-cluster
test-cluster: setup-cluster ## Run the tests against Kubernetes: its API server, and a whole node where the machine can run one.
	$(BIN)/pytest tests/cluster $(PYTEST_ARGS)

.PHONY: images
images: ## Build the operator's, the worker's and the services' image with docker or buildah; see images/build.
	images/build operator worker serving

.PHONY: bench
bench: $(SYNCED) ## Run the benchmarks.
	for benchmark in benchmarks/*.py; do echo "== $$benchmark"; $(BIN)/python "$$benchmark"; done

.PHONY: clean
clean: ## Remove caches and build outputs; .venv and ~/.cache stay.
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find operator jobs tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
