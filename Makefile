# Each target sets up .venv by itself: a machine with Python >= 3.11 and make is enough.
PYTHON ?= python3
VENV ?= .venv
ONNX_VENV ?= .venv-onnx
WORKDIR ?= runs/digits
COUNT ?= 10000
SEED ?= 0
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help train test test-slow test-onnx docs pictures fuzz lint format bench bench-full clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# A stamp per set of extras: made again when the dependencies change.
$(VENV)/.train: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train]'
	@touch $@

$(VENV)/.test: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train,test]'
	@touch $@ $(VENV)/.train

$(VENV)/.docs: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

$(ONNX_VENV)/.onnx: pyproject.toml
	@test -x $(ONNX_VENV)/bin/python || $(PYTHON) -m venv $(ONNX_VENV)
	$(ONNX_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[onnx]' pytest beartype
	@touch $@

train: $(VENV)/.train ## Train a PSConv network on handwritten digits (about a minute)
	$(BIN)/python -m train --config=configs/ps_resnet_digits.py --workdir=$(WORKDIR)

test: $(VENV)/.test ## Run the tests (minutes)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(VENV)/.test ## Run the long sweeps
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

test-onnx: $(ONNX_VENV)/.onnx ## Compare ONNX files with the networks, in onnxruntime (an environment of its own)
	JAX_PLATFORMS=cpu $(ONNX_VENV)/bin/python -m pytest tests/test_onnx.py

docs: $(VENV)/.docs ## Build the documentation into site (a warning is an error)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

pictures: $(VENV)/.train ## Draw the pictures of the documentation again
	JAX_PLATFORMS=cpu $(BIN)/python docs/pictures/draw.py

fuzz: $(VENV)/.test ## Read COUNT damaged inputs of each kind, drawn by SEED; those that fail are kept in fuzz
	@failed=0; for name in weights pictures annotations features metrics; do \
	  JAX_PLATFORMS=cpu $(BIN)/python -m tests.fuzz.$$name --count=$(COUNT) --seed=$(SEED) || failed=1; \
	done; exit $$failed

lint: $(VENV)/.test ## Check style, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.test ## Rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test ## Time the operators over the plain convolution (about 2 minutes)
	$(BIN)/python -m benchmarks

bench-full: $(VENV)/.test ## All benchmarks, long; NAME=... keeps them in benchmarks/results
	$(BIN)/python -m benchmarks --full $(if $(NAME),--write $(NAME))

clean: ## Remove the environment and caches (not your runs)
	rm -rf $(VENV) $(ONNX_VENV) .pytest_cache .ruff_cache .hypothesis build site *.egg-info
