# Every command a user or developer needs; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
INSTALLED := $(VENV)/.installed
SOAK_NAME ?= latest
# Further options, such as SOAK="--seed 2 --kills 20".
SOAK ?=
FUZZ_NAME ?= latest
FUZZ ?=
# The same pins for a part of the dependencies: what one image needs.
LOCK_PART = $(BIN)/uv pip compile --universal --python-version 3.11 --constraint requirements.txt \
	--generate-hashes --no-emit-index-url --no-annotate --no-header --quiet
# Empty means: keep compiled modules, even where the environment says not to. Without them every
# process that imports torch compiles it again, for seconds.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo up test soak fuzz lint format lock clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/'

install: $(INSTALLED) ## create .venv with everything pinned in requirements.txt

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Expunge needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
		  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing Expunge into $(VENV) (PyTorch is large; once only) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet uv==$(UV_VERSION)
	@$(BIN)/uv pip sync --python $(BIN)/python --require-hashes requirements.txt
	@$(BIN)/uv pip install --python $(BIN)/python --no-deps --editable . --quiet
	@touch $@

demo: install ## run the main job on real images and show the result (under demo/)
	@$(BIN)/expunge demo

up: install ## run the whole service on this machine
	@$(BIN)/expunge up

test: install ## run all tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile

soak: install ## kill processes a hundred times and check what was promised (a quarter of an hour)
	@OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python benchmarks/soak.py --name $(SOAK_NAME) $(SOAK)

fuzz: install ## send 35,000 generated calls and check every answer (ten minutes)
	@OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python benchmarks/fuzz.py --name $(FUZZ_NAME) $(FUZZ)

lint: install ## check style, formatting, types and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: install ## format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: install ## pin all dependencies anew, with hashes and without addresses
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-annotate --no-header --upgrade \
		--quiet --output-file requirements.txt
	@$(LOCK_PART) --extra tracing --output-file docker/requirements-service.txt pyproject.toml
	@$(LOCK_PART) --extra tracing --extra worker --output-file docker/requirements-worker.txt pyproject.toml
	@sed -n 's/^requires = \["\(.*\)"\]$$/\1/p' pyproject.toml | \
		$(LOCK_PART) --output-file docker/requirements-build.txt -

clean: ## remove the environment and the demo's output
	rm -rf $(VENV) demo
