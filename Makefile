# Every target sets itself up: `make train` and `make test` work in a fresh clone.
ENV   ?= HalfCheetah-v5
STEPS ?= 1000000
SEED  ?= 0
ARGS  ?=

# Where they are run from: the first Python that will do.
PYTHON  ?= python3 python3.13 python3.12 python3.11
VENV    := .venv
RUN     := $(VENV)/bin
READY   := $(VENV)/.ready
WORKERS ?= 2
INSTALL := python -m pip install --quiet --disable-pip-version-check
PYTEST  := python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help train test test-all test-newest test-pythons test-extras check format bench learning soak clean FORCE

help:            ## what can be made
	@grep -E '^[a-z-]+: .*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

train: $(READY)  ## train a policy: make train ENV=CartPole-v1 STEPS=100000
	$(RUN)/inchworm train $(ENV) --total-steps $(STEPS) --seed $(SEED) $(ARGS)

test: $(READY)   ## the tests, in under ten minutes on two cores
	$(RUN)/$(PYTEST) -m "not slow" $(ARGS)

test-all: $(READY)  ## the tests and the long ones, then the tests against the newest releases of everything
	$(RUN)/$(PYTEST) $(ARGS)
	$(MAKE) test-newest

test-newest:     ## the tests against the newest releases of everything, on the newest Python that is here
	.ci/venv .venv-newest python3.14 python3.13 python3.12 $(PYTHON)
	.venv-newest/bin/$(INSTALL) --upgrade pip
	.venv-newest/bin/$(INSTALL) --upgrade --upgrade-strategy eager --editable ".[dev]"
	.venv-newest/bin/$(PYTEST) -m "not slow" $(ARGS)

test-pythons:    ## the tests on every Python that is supported
	$(MAKE) test PYTHON=python3.11 VENV=.venv-3.11
	$(MAKE) test PYTHON=python3.12 VENV=.venv-3.12
	$(MAKE) test PYTHON=python3.13 VENV=.venv-3.13

test-extras: $(READY)  ## the tests of EnvPool, Atari games and networks of Flax, whose packages (1 GB) it installs
	$(RUN)/$(INSTALL) --constraint constraints.txt --editable ".[dev,envpool,atari]" flax
	$(RUN)/python -m pytest tests/envs/test_envpool.py tests/envs/test_ale.py tests/models/test_custom.py $(ARGS)

check: $(READY)  ## format, lint, types, layers
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/pyright --pythonpath $(RUN)/python
	$(RUN)/lint-imports

format: $(READY) ## put the code into its form
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

bench: $(READY)  ## training speed beside other libraries, and start-up time, into benchmarks/results/ and the README
	$(RUN)/$(INSTALL) --constraint constraints.txt --editable ".[dev,envpool]"
	$(RUN)/python benchmarks/compare.py --work all
	$(RUN)/python benchmarks/throughput.py
	$(RUN)/python benchmarks/seeds.py
	$(RUN)/python benchmarks/growth.py
	$(RUN)/python benchmarks/startup.py
	$(RUN)/python benchmarks/readme.py

learning: $(READY)  ## the learning runs of experiments/learning, about two hours on two cores
	$(RUN)/python experiments/learning/run.py

soak: $(READY)   ## faults and loads for hours, in pieces that can be stopped: make soak ARGS="--minutes 60"
	$(RUN)/python experiments/faults/soak.py $(ARGS)

clean:           ## remove what was built, not what was trained
	rm -rf .venv .venv-* build dist .pytest_cache .ruff_cache .hypothesis

$(READY): $(VENV)/.python pyproject.toml constraints.txt
	$(RUN)/$(INSTALL) --upgrade pip
	$(RUN)/$(INSTALL) --constraint constraints.txt --editable ".[dev]"
	@touch $(READY)

# Asked every time, and newer only where the environment was made anew.
$(VENV)/.python: FORCE
	@.ci/venv $(VENV) $(PYTHON)
