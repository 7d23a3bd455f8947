# The commands of the project. `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
COMPARISON ?= comparisons/quickstart
DEMO_OVERRIDES ?=
GPU_PYTHON ?= $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types check bench gpu-check clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY) ## a .venv with the project and the pinned versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "largebatch needs Python 3.11 or newer; this is $$($(PYTHON) --version). Choose one with make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv module is missing: apt-get install python3-venv, then make again"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --quiet --constraint constraints.txt --editable '.[dev,deepspeed,mllog]'
	@touch $@

demo: install ## the main job on real data: six recipes on Fashion-MNIST, one table, one report (about 5 minutes)
	$(BIN)/largebatch data fetch fashion_mnist
	$(BIN)/largebatch compare configs/quickstart/*.yaml --out $(COMPARISON) $(DEMO_OVERRIDES)

test: install ## every test
	$(BIN)/python -m pytest

lint: install ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## pyright on the package
	$(BIN)/pyright

check: lint types test ## lint, types and tests

bench: install ## the trainer beside a bare PyTorch loop, on the quickstart's recipe
	$(BIN)/largebatch data fetch fashion_mnist
	$(BIN)/largebatch bench throughput configs/quickstart/lamb2019.yaml

gpu-check: ## on a machine with CUDA: the gpu tests, and the measurements of results/gpu/ (GPU_PYTHON=..., torch 2.11 or newer)
	mkdir -p results/gpu
	$(GPU_PYTHON) -m pytest -m gpu
	$(GPU_PYTHON) -m largebatch bench optimizer --device cuda --json results/gpu/optimizer.json
	$(GPU_PYTHON) -m largebatch bench batch configs/studies/lecture/mnist.yaml --sizes 1,10,100,1000,10000,60000 \
		--json results/gpu/batch-mnist.json --picture results/gpu/batch-mnist.svg

clean: ## remove what make made, runs and comparisons excepted
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
