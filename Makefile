# The whole project in a few words; `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
# Another torch build: make train TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
TORCH ?= torch==2.13.0
CONFIGS ?= $(sort $(wildcard configs/sentiment/bundled-*.yaml)) configs/generation/bundled-lstm.yaml \
  configs/translation/bundled-lstm.yaml
# One config of each task that has baselines.
BASELINES := $(foreach task,sentiment generation translation,$(firstword $(filter configs/$(task)/%,$(CONFIGS))))
ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup train test check format serve mlflow compare sweep long-memory bench docs clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything in it (the other targets do this at first use)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "seqapp needs Python 3.11 or newer; make PYTHON=/path/to/python3.11 names one"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

train: $(READY) ## train the networks of CONFIGS on the bundled data, log, register and compare (ARGS="train.seed=2")
	$(foreach config,$(BASELINES),$(BIN)/seqapp baseline $(config) &&) true
	$(BIN)/seqapp train $(CONFIGS) $(ARGS)

test: check ## everything that CI runs: style, types, tests
	$(BIN)/python -m pytest $(ARGS)

check: $(READY) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve: $(READY) ## answer over HTTP with the champions of the registry (ARGS="MODEL --port 8001")
	$(BIN)/seqapp serve $(ARGS)

mlflow: $(READY) ## look at the experiments in a browser
	MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db} $(ARGS)

compare: $(READY) ## the finished runs side by side, and which one to keep (ARGS=sentiment)
	$(BIN)/seqapp compare $(ARGS)

sweep: $(READY) ## search for better values of CONFIG's keys (CONFIG=configs/translation/bundled-lstm.yaml ARGS="--jobs 2")
	$(BIN)/seqapp sweep $(or $(CONFIG),configs/sentiment/bundled-lstm.yaml) $(ARGS)

long-memory: $(READY) ## train every network on the long-memory problems and print the longest length each solves (1-2 h)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/long_memory.py $(ARGS)

bench: $(READY) ## measure training, unrolling, decoding and prediction speed again; docs/benchmarks.md says what the long ones are
	$(BIN)/python benchmarks/training_speed.py
	$(BIN)/python benchmarks/unroll.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/predict.py
	$(BIN)/python benchmarks/distributed.py
	$(BIN)/python benchmarks/report.py

docs: $(READY) ## write docs/benchmarks.md from benchmarks/results, and the pictures of docs/models.md
	$(BIN)/python benchmarks/report.py
	$(BIN)/python docs/draw_models.py

clean: ## remove caches, but neither runs nor the registry
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
