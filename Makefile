# Everything runs in .venv, made by `make setup` from requirements.lock. Needs git, make and Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOWNLOAD := .venv-download
MODEL ?= latent-vit-demo

export PYTHONUNBUFFERED := 1
# On a CPU, glibc gives the pages of every large tensor back at once and then faults them in again: a quarter of the time.
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296

.DEFAULT_GOAL := help
.PHONY: help setup demo table1-demo steer-demo test lint format typecheck cluster-check download train eval bench bench-gpu bench-compare soak lock clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

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

cluster-check: $(STAMP) ## what is wrong with cluster/: Ray's, Kubernetes' and cron's files, without a cloud or a network
	$(BIN)/python -m cluster.check $(FILES)

$(DOWNLOAD)/.installed: download/requirements.lock
	$(PYTHON) -m venv $(DOWNLOAD)
	$(DOWNLOAD)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(DOWNLOAD)/bin/uv pip install --quiet --python $(DOWNLOAD)/bin/python --requirements download/requirements.lock
	@touch $@

# Keys of `python -m download run` that may be given in capitals.
DOWNLOAD_KEYS := URL_COL CAPTION_COL SHORT_SIDE PER_TAR PROCESSES THREADS TIMEOUT RETRIES

download: ## image tars in OUT from the pictures that URLS, a LAION or COYO parquet, names (img2dataset)
	@test -n "$(URLS)" -a -n "$(OUT)" || { echo "error: say make download URLS=LIST.parquet OUT=DIR [URL_COL=URL] [CAPTION_COL=TEXT]" >&2; exit 2; }
	@$(MAKE) --no-print-directory $(DOWNLOAD)/.installed
	@$(DOWNLOAD)/bin/python -m download run "urls=$(URLS)" "out=$(OUT)" \
	  $(foreach key,$(DOWNLOAD_KEYS),$(if $($(key)),"$(shell echo $(key) | tr A-Z a-z)=$($(key))"))

# What `make train` and `make eval` use when no DATA is given.
DEMO := runs/demo
demo_latents = $(if $(DATA),,@echo "no DATA is given: the demo's latents, which are made first"; $(BIN)/python -m demo latents out=$(DEMO) >&2)
classes = $(or $(CLASSES),$(if $(DATA),,$(DEMO)/world/test))

train_words = "model=$(MODEL)" "data=$(or $(DATA),$(DEMO)/store)" $(if $(OUT),"out=$(OUT)") $(if $(GPUS),"gpus=$(GPUS)") $(ARGS)

train: $(STAMP) ## train MODEL on the latent store DATA (else the demo's), on all GPUs here or on GPUS of them
	$(if $(DATA),,@$(BIN)/python -m train.launch --check $(train_words))
	$(demo_latents)
	$(BIN)/python -m train.launch $(train_words)

eval: $(STAMP) ## zero-shot accuracy of CHECKPOINT on DATA, pictures or latents (else the demo's), among CLASSES
	@test -n "$(CHECKPOINT)" || { echo "error: say make eval CHECKPOINT=DIR [DATA=STORE] [CLASSES=DIR]" >&2; exit 2; }
	$(demo_latents)
	$(BIN)/python -m eval zero-shot "checkpoint=$(CHECKPOINT)" "data=$(or $(DATA),$(DEMO)/test-store)" \
	  $(if $(classes),"classes=$(classes)") $(ARGS)

table1-demo: $(STAMP) ## the paper's Table 1 in miniature: a latent tower against its twin of pixels; about an hour on two cores
	$(BIN)/python -m demo table1 $(ARGS)

steer-demo: $(STAMP) ## generation led by a latent tower, before anything is decoded, in miniature: about half an hour
	$(BIN)/python -m demo steer $(ARGS)

bench: $(STAMP) ## this machine's CPUs: everything against the straightforward way, as a table, JSON and a picture; a quarter of an hour
	$(BIN)/python -m benchmarks $(ARGS)

bench-gpu: $(STAMP) ## this machine's GPU: encoder, pipeline, training and steering; eight minutes
	$(BIN)/python -m benchmarks gpu $(ARGS)

bench-compare: $(STAMP) ## OLD.json NEW.json: which figures of two records changed by more than their noise
	@$(BIN)/python -m benchmarks compare $(RECORDS) $(ARGS)

# In `make bench-compare OLD.json NEW.json` the two files are no targets.
ifeq (bench-compare,$(firstword $(MAKECMDGOALS)))
RECORDS := $(wordlist 2,$(words $(MAKECMDGOALS)),$(MAKECMDGOALS))
.PHONY: $(RECORDS)
$(RECORDS): ; @:
endif

soak: $(STAMP) ## twenty minutes of a random fault every few seconds on a small fleet, then every sample accounted for
	$(BIN)/python -m tests.soak

# The extra nudity is not in it: whoever asks for it takes on the AGPL.
lock: $(STAMP) ## resolve the two requirements.lock anew
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev --extra gcs --no-header \
	  --no-annotate --no-emit-index-url pyproject.toml --output-file requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate \
	  --no-emit-index-url download/requirements.in --output-file download/requirements.lock

clean: ## remove the environment, caches and runs
	rm -rf $(VENV) $(DOWNLOAD) runs .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
