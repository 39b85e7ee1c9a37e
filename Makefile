# Everything runs in .venv, made by `make setup` from requirements.lock. Needs git, make and Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MODEL ?= latent-vit-demo
OUT ?= runs/$(MODEL)

export PYTHONUNBUFFERED := 1
# On a CPU, glibc gives the pages of every large tensor back at once and then faults them in again: a quarter of the time.
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format typecheck train eval bench lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP) ## the environment, made with uv

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --requirements requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: $(STAMP) ## image tars to a report, on a small world: about seven minutes on two cores
	$(BIN)/python -m demo run

test: $(STAMP) ## all tests
	$(BIN)/python -m pytest -q

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## ruff: mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(STAMP) ## mypy, strict
	$(BIN)/mypy

train: $(STAMP) ## train MODEL on the latent store DATA, into OUT
	@test -n "$(DATA)" || { echo "error: say which latents: make train MODEL=$(MODEL) DATA=STORE (make demo makes runs/demo/store)"; exit 2; }
	$(BIN)/python -m train model=$(MODEL) data=$(DATA) out=$(OUT)

eval: $(STAMP) ## zero-shot accuracy of CHECKPOINT on the latent store DATA, with the class names in CLASSES
	@test -n "$(DATA)" -a -n "$(CHECKPOINT)" -a -n "$(CLASSES)" || { echo "error: say make eval CHECKPOINT=DIR DATA=STORE CLASSES=DIR"; exit 2; }
	$(BIN)/python -m eval zero-shot checkpoint=$(CHECKPOINT) data=$(DATA) classes=$(CLASSES)

bench: $(STAMP) ## measured rates on this machine, as JSON
	$(BIN)/python -m benchmarks

lock: $(STAMP) ## resolve requirements.lock anew
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --no-header --no-annotate \
	  --no-emit-index-url pyproject.toml --output-file requirements.lock

clean: ## remove the environment, caches and runs
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
