# Every target works alone on a fresh clone: it sets up what it needs first.

VENV := .venv
STAMP := $(VENV)/.stamp
BIN := $(VENV)/bin
PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
export PATH := $(PATH):/usr/sbin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test check format bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

setup: $(STAMP) ## make .venv, and as root install the Debian packages the tests use

demo: $(STAMP) ## serve the demo model with a broker, predict, stay up
	@$(BIN)/inferctl demo

test: $(STAMP) ## run every test
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(STAMP) ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## put the code in form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## measure inferd next to its peers; BENCH_ARGS=--help says more
	@command -v wrk >/dev/null || [ "$$(id -u)" != 0 ] || apt-get -qq install -y --no-install-recommends wrk >/dev/null || true
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean: ## remove everything that was made
	rm -rf $(VENV) .bench .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache
	rm -rf .ruff_cache build dist
	find . -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@$(install_packages)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "setup: $(PYTHON) is older than 3.11; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "setup: installing Python packages into $(VENV)"
	@$(BIN)/python -m pip install --quiet --editable '.[test,check]'
	@touch $@

# The packages of which a program or module is missing. apt is asked only then, and only as root;
# anybody else is told, and what needs them is skipped with its reason.
define install_packages
missing=; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
command -v mosquitto >/dev/null || missing="$$missing mosquitto"; \
command -v mosquitto_rr >/dev/null || missing="$$missing mosquitto-clients"; \
command -v curl >/dev/null || missing="$$missing curl"; \
if [ -z "$$missing" ]; then :; \
elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
  echo "setup: installing$$missing"; \
  export DEBIAN_FRONTEND=noninteractive; \
  { apt-get -qq update && apt-get -qq install -y --no-install-recommends $$missing >/dev/null; } || \
    echo "setup: could not install$$missing; going on without"; \
else \
  echo "setup: not installed:$$missing; going on without. As root: apt-get install$$missing"; \
fi
endef
