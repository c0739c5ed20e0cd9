# Every task of the project: `make` lists them. All of it happens in .venv, runs/ and .cache folders here.

PYTHON ?= python3
CORPUS ?= phantom
DATA ?=
STORE ?=
TESTS ?=
PAIRS ?= 320
SCALE ?= 0.0625

BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo ablations test lint format pipelines parity benchmark soak lock clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: .venv/.installed ## Create .venv with every dependency at its locked version

.venv/.installed: locks/unirg.txt locks/torch.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: $(PYTHON) is not Python 3.11 or newer: run 'make PYTHON=/path/to/python3.11 ...'" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: $(PYTHON) has no venv module: install it (on Debian: apt-get install python3-venv)" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	@echo "Installing $$(grep -c '==' locks/unirg.txt) locked packages; this takes some minutes"
	$(BIN)/pip install -qq --no-deps --require-hashes -r locks/unirg.txt
	@# With its dependencies: none are missing for a CPU build, the CUDA libraries for a CUDA build.
	$(BIN)/pip install -qq -r locks/torch.txt
	$(BIN)/pip install -qq --no-deps --no-build-isolation -e .
	$(BIN)/pip check
	@touch $@

demo: venv ## Run the whole pipeline at toy scale (CORPUS=iu_xray DATA=DIR for real radiographs; STORE=DIR)
	$(BIN)/python -m pipelines.demo --corpus $(CORPUS) $(if $(DATA),--data $(DATA)) $(if $(STORE),--store $(STORE))

ablations: venv ## Train the paper's ablations at toy scale, and hold its order of results against them (STORE=DIR)
	$(BIN)/python -m pipelines.ablations $(if $(STORE),--store $(STORE))

test: venv ## Run the tests (TESTS=tests/metrics for some of them)
	tools/apt.sh
	$(PYTEST) -n 2 --dist loadfile $(TESTS)

lint: venv ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv ## Put imports and formatting right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pipelines: venv ## Compile the Kubeflow pipelines to IR YAML
	$(BIN)/python -m pipelines.compile

parity: venv ## Compare our metrics with the upstream packages on the same weights (an hour of CPU; PAIRS=320)
	tools/parity.sh
	$(BIN)/python -m parity.compare --pairs $(PAIRS)

benchmark: venv ## Time the metric engine beside the upstream packages (SCALE=1 takes hours of CPU)
	tools/parity.sh
	$(BIN)/python benchmarks/metrics.py --scale $(SCALE)

soak: venv ## Run the tests that take hours or kill at random
	tools/apt.sh
	$(PYTEST) -m soak --timeout 0 $(TESTS)

lock: venv ## Resolve pyproject.toml into the lock files again (tools/lock.sh --upgrade moves the pins)
	tools/lock.sh

clean: ## Remove caches and build leftovers (.venv and runs/ stay)
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
