# Every target sets itself up: `make train` and `make test` work in a fresh clone.
ENV   ?= HalfCheetah-v5
STEPS ?= 1000000
SEED  ?= 0
ARGS  ?=

PYTHON  ?= python3
VENV    := .venv
RUN     := $(VENV)/bin
READY   := $(VENV)/.ready
WORKERS ?= 2

.PHONY: help train test test-all test-pools check format bench learning clean

help:            ## what can be made
	@grep -E '^[a-z-]+: .*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

train: $(READY)  ## train a policy: make train ENV=CartPole-v1 STEPS=100000
	$(RUN)/inchworm train $(ENV) --total-steps $(STEPS) --seed $(SEED) $(ARGS)

test: $(READY)   ## the tests, in under ten minutes on two cores
	$(RUN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

test-all: $(READY)  ## the tests and the long ones
	$(RUN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-pools: $(READY)  ## the tests of EnvPool and Atari games, whose packages (900 MB) it installs
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,envpool,atari]"
	$(RUN)/python -m pytest tests/envs/test_envpool.py tests/envs/test_ale.py $(ARGS)

check: $(READY)  ## format, lint, types, layers
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/pyright --pythonpath $(RUN)/python
	$(RUN)/lint-imports

format: $(READY) ## put the code into its form
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

bench: $(READY)  ## training speed beside other libraries, and start-up time, into benchmarks/results/ and the README
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,envpool]"
	$(RUN)/python benchmarks/compare.py --work all
	$(RUN)/python benchmarks/throughput.py
	$(RUN)/python benchmarks/seeds.py
	$(RUN)/python benchmarks/growth.py
	$(RUN)/python benchmarks/startup.py
	$(RUN)/python benchmarks/readme.py

learning: $(READY)  ## the learning runs of experiments/learning, about two hours on two cores
	$(RUN)/python experiments/learning/run.py

clean:           ## remove what was built, not what was trained
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(READY)
