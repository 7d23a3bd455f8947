# The commands of the project. `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
CONSTRAINTS ?= constraints.txt
COMPARISON ?= comparisons/quickstart
DEMO_OVERRIDES ?=
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_WHEELS ?=
GPU_OPTIONS ?=
TESTS ?=
# Drawn each time and printed; stated, the same again: make test PYTHONHASHSEED=17 TESTS=--seed=4
PYTHONHASHSEED ?= $(shell od -An -N2 -tu2 /dev/urandom | tr -d ' ')
# One thread for the tests' own process: its tensors are small, and programs of the pool have one. OMP_NUM_THREADS=4 tries more.
OMP_NUM_THREADS ?= 1
PYTEST := PYTHONHASHSEED=$(PYTHONHASHSEED) OMP_NUM_THREADS=$(OMP_NUM_THREADS) OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest $(TESTS)

.DEFAULT_GOAL := help
.PHONY: help install demo quick test slow lint types check bench gpu-check gpu-wheels docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY) ## a .venv with the project and the pinned versions of constraints.txt (VENV=... CONSTRAINTS=...)

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "largebatch needs Python 3.11 or newer; this is $$($(PYTHON) --version). Choose one with make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv module is missing: apt-get install python3-venv, then make again"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --quiet --constraint $(CONSTRAINTS) --editable '.[dev,deepspeed,mllog]'
	@touch $@

demo: install ## the main job on real data: six recipes on Fashion-MNIST, one table, one report (about 5 minutes)
	$(BIN)/largebatch data fetch fashion_mnist
	$(BIN)/largebatch compare configs/quickstart/*.yaml --out $(COMPARISON) $(DEMO_OVERRIDES)

quick: install ## the tests that start no process: a minute or two
	$(PYTEST) -m "not worlds and not slow"

test: install ## quick, and the tests of several processes: 15 to 30 minutes on two cores
	$(PYTEST) -m "not slow"

slow: install ## the rest: kills, launchers, several hosts, power cuts, whole matrices (make slow TESTS=--sample=20 draws some)
	$(PYTEST) -m slow

lint: install ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## pyright on the package
	$(BIN)/pyright

check: lint types test ## lint, types and tests

bench: install ## the trainer beside a bare PyTorch loop, on the quickstart's recipe
	$(BIN)/largebatch data fetch fashion_mnist
	$(BIN)/largebatch bench throughput configs/quickstart/lamb2019.yaml

gpu-check: ## on a machine with CUDA: its tests and measurements in 8 minutes (GPU_WHEELS=folder GPU_PYTHON=... GPU_OPTIONS=...)
	PYTHONUNBUFFERED=1 $(GPU_PYTHON) tests/gpu_check.py $(if $(GPU_WHEELS),--wheels $(GPU_WHEELS)) $(GPU_OPTIONS)

gpu-wheels: ## the wheels that such a machine may lack, into GPU_WHEELS (.whl unless named)
	$(GPU_PYTHON) tests/gpu_check.py --fetch-wheels $(or $(GPU_WHEELS),.whl)

docs: install ## the pages that are made from the code: docs/build.py
	$(BIN)/python -m docs.build

clean: ## remove what make made, runs and comparisons excepted
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
