# Needs Python >= 3.10, a C++ compiler and make; everything else goes into .venv.
PYTHON ?= python3
# Pinned: a bare `torch` is the newest release, with gigabytes of CUDA libraries.
TORCH ?= torch==2.13.0
# Of `make cuda-build`; those gigabytes.
TORCH_CUDA ?= torch==2.14.1
# Of `make gpu`: where its results go.
OUT ?= build/gpu

VENV := .venv
BIN := $(VENV)/bin
# The stamp carries the torch asked for, so that `make test TORCH=...` sets up again.
ENV_STAMP := $(VENV)/.stamp-env-$(subst /,_,$(TORCH))
BUILD_STAMP := $(VENV)/.stamp-build
CLIENTS_STAMP := $(VENV)/.stamp-clients
VENV_CUDA := .venv-cuda
CUDA_STAMP := $(VENV_CUDA)/.stamp-env-$(subst /,_,$(TORCH_CUDA))

BUILD_SOURCES := setup.py pyproject.toml $(wildcard build_backend/*.py)
CSRC := $(shell find csrc -type f)
FORMATTED := $(filter %.h %.cpp %.cu %.cuh,$(CSRC) $(wildcard tests/cpu_driver/* tests/cuda_on_cpu/* bench/gpu/*))

.DEFAULT_GOAL := help
.PHONY: help demo test test-all clients bench bench-conv bench-clients bench-variants cuda-env cuda-check cuda-build gpu gpu-kit lint format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: $(BUILD_STAMP) ## train a small model with torch and with adl_kernels, side by side
	$(BIN)/python examples/demo.py

test: $(BUILD_STAMP) ## run the fast tests, then the CUDA kernels on the CPU (4 minutes with two cores)
	$(BIN)/python -m pytest -n 2 --durations 10 tests
	$(BIN)/python tests/cuda_on_cpu/run.py

test-all: $(BUILD_STAMP) $(CLIENTS_STAMP) ## the same with all tests, and cuda-check; before a change of kernels is done (40 minutes)
	$(BIN)/python -m pytest -n 2 --all --durations 40 tests
	$(BIN)/python tests/cuda_on_cpu/run.py --all
	$(MAKE) cuda-check

clients: $(BUILD_STAMP) $(CLIENTS_STAMP) ## install public libraries and try them on converted models (2 minutes)
	$(BIN)/python -m pytest --all -ra tests/clients

bench: $(BUILD_STAMP) ## measure against torch, results to bench/results (40 minutes)
	$(BIN)/python -m bench rnn --grid full --save

bench-variants: $(BUILD_STAMP) ## measure cells and sequences that torch has not (4 minutes)
	$(BIN)/python -m bench variants

bench-conv: $(BUILD_STAMP) ## measure convolutions against torch, results with one thread (17 minutes)
	$(BIN)/python -m bench conv --threads 1 --seconds-per-case 0.08 --save

bench-clients: $(BUILD_STAMP) $(CLIENTS_STAMP) ## measure models of public libraries against torch's layers (2 minutes)
	$(BIN)/python -m bench clients --save

cuda-env: $(CUDA_STAMP) ## install a CUDA torch into .venv-cuda

# With the Python of cuda-env, if it is there, the operators are parsed too.
cuda-check: ## compile the CUDA kernels for every architecture, or for ADL_CUDA_ARCHS; needs the toolkit, no GPU
	$(firstword $(wildcard $(VENV_CUDA)/bin/python) $(PYTHON)) tests/build/cuda_check.py

# info from another folder: in this one the sources would be imported, not what was installed.
cuda-build: $(CUDA_STAMP) ## build and import against a CUDA torch, in .venv-cuda; needs no GPU
	ADL_CUDA=1 $(VENV_CUDA)/bin/python -m pip install --quiet --no-build-isolation --no-deps .
	cd $(VENV_CUDA) && bin/python -m adl_kernels.info

gpu: ## build, calibrate, test and measure on a GPU with the Python at hand, no network (25 minutes); LINES=...
	$(PYTHON) tests/gpu $(OUT) all $(if $(LINES),--only $(LINES))

# Where time on a GPU is short: what takes it is built beforehand, for that machine's Python and torch.
gpu-kit: ## build gpu_kit for PYTHON and TORCH (torch==2.11.0) of a machine with a Hopper GPU; needs no GPU
	$(PYTHON) tests/gpu/kit.py --python "$(PYTHON)" --torch "$(TORCH)" $(if $(ARCHS),--archs "$(ARCHS)")

lint: $(BUILD_STAMP) ## check style and types, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

format: $(BUILD_STAMP) ## rewrite Python and C++ in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

clean: ## remove what was built, .venv and .venv-cuda
	rm -rf $(VENV) $(VENV_CUDA) gpu_kit build dist *.egg-info adl_kernels/*.so adl_kernels/_build_info.py

$(ENV_STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("needs Python 3.10 or newer: make PYTHON=/path/to/python3")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)" "setuptools>=77" ninja
	rm -f $(VENV)/.stamp-*
	touch $@

$(CUDA_STAMP):
	test -x $(VENV_CUDA)/bin/python || $(PYTHON) -m venv $(VENV_CUDA)
	$(VENV_CUDA)/bin/python -m pip install --quiet "$(TORCH_CUDA)" "setuptools>=77" ninja
	rm -f $(VENV_CUDA)/.stamp-*
	touch $@

$(BUILD_STAMP): $(ENV_STAMP) $(BUILD_SOURCES) $(CSRC)
	$(BIN)/python -m pip install --quiet --no-build-isolation -e ".[test,bench,dev]"
	touch $@

$(CLIENTS_STAMP): $(BUILD_STAMP) tests/clients/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r tests/clients/requirements.txt
	touch $@
