# Everything here works on a bare Debian 12 machine: `make demo` and `make test` set up what they need, once.
PYTHON ?= python3
VENV := .venv/bin
UNIT := tests/unit
LOCAL := $(UNIT) tests/contract tests/local
export GIT_CONFIG_NOSYSTEM := 1

.DEFAULT_GOAL := help
.PHONY: help setup engine demo test torture unit local lint format bench soak gapless collection lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with the locked dependencies
	@$(PYTHON) tools/setup_venv.py

engine: ## have a Docker engine and the base image (root installs and starts what is missing)
	@$(PYTHON) tools/engine.py ensure
	@$(PYTHON) tools/base_image.py ensure >/dev/null

demo: setup engine ## the main job: real deploys of the example service under load
	@$(VENV)/python tools/demo.py

lint: setup ## ruff and mypy
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy

unit: setup ## the tests that need nothing but Python, with few examples each
	@$(VENV)/pytest $(UNIT) -n 2 --dist worksteal --hypothesis-profile few $(ARGS)

local: setup ## all tests that need no engine, those that start git and other processes too
	@$(VENV)/pytest $(LOCAL) -n 2 --dist worksteal $(ARGS)

test: setup ## lint, then every test on the real engine
	@$(MAKE) --no-print-directory --jobs 2 lint engine
	@$(VENV)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 $(ARGS)

torture: setup engine ## cut deploys off at random places: N=1000 runs, from SEED=1 on
	@PYTHONPATH=tests $(VENV)/python -m support.torture --runs $(or $(N),100) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: setup engine ## the measured promises, as ratios
	@$(VENV)/python -m benchmarks $(ARGS)

soak: setup engine ## N=200 deploys in a row, good and broken, under load: nothing fails, nothing grows
	@PYTHONPATH=tests $(VENV)/python -m support.endurance --deploys $(or $(N),200)

gapless: setup engine ## N=40 container and full deploys behind the proxy, under load: no request fails
	@PYTHONPATH=tests $(VENV)/python -m support.endurance --proxy --deploys $(or $(N),40)

format: setup ## put the sources in order
	@$(VENV)/ruff check --fix .
	@$(VENV)/ruff format .

collection: setup ## build the Ansible collection into dist/
	@$(VENV)/ansible-galaxy collection build ansible --output-path dist --force

lock: ## renew requirements/*.lock from pyproject.toml and requirements/dev.in
	@$(PYTHON) tools/lock.py

clean: ## remove all that was made here, the engine too if it was started here
	@$(PYTHON) tools/clean.py
