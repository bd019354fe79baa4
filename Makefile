# Two commands do everything on a fresh machine: `make demo` and `make test`. Only Python 3.11+ and make are assumed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check fmt clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    install, and run the whole journey on the shipped example"
	@echo "make test    install what tests need, and pass them"
	@echo "make check   ruff, mypy, import contracts"
	@echo "make bench-NAME [FAST=1]   a benchmark: generate, loglikelihood, cache, endpoint, intake, prompts, rag,"
	@echo "                         statistics, advisor, training, estimates, forgetting, forgetting_parts, suites"
	@echo "make fmt     format the code"
	@echo "make clean   remove the environment and the caches"

$(VENV)/.installed: pyproject.toml constraints.txt .ci/install
	@sh .ci/install "$(PYTHON)" "$(VENV)"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@sh .ci/install "$(PYTHON)" "$(VENV)" dev
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/advisor demo

test: check
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A script named like a module that it imports would be imported in its place.
bench-statistics bench-advisor: SCRIPT = $(patsubst bench-%,%_bench,$@)

bench-%: SCRIPT = $*
bench-%: $(VENV)/.installed-dev
	$(BIN)/python tests/bench/$(SCRIPT).py $(if $(FAST),--fast)

fmt: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
