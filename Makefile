# Every target works alone on a fresh clone: it sets up what it needs first.

VENV := .venv
STAMP := $(VENV)/.stamp
PACKAGE_STAMP := $(VENV)/.package-stamp
BIN := $(VENV)/bin
PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
ARCH ?= $(shell dpkg --print-architecture 2>/dev/null)
SUITE ?= bookworm
KEY ?=
export PATH := $(PATH):/usr/sbin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test check format bench deb apt-repo system clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

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

deb: $(PACKAGE_STAMP) ## build dist/inferd_VERSION_ARCH.deb; ARCH=arm64, SUITE=trixie
	$(BIN)/python packaging/build_deb.py --arch $(ARCH) --suite $(SUITE) --uv $(BIN)/uv

apt-repo: $(PACKAGE_STAMP) ## sign dist/*.deb into dist/apt with the gpg key KEY=
	@test -n "$(KEY)" || { echo "apt-repo: say which key of gpg signs: make apt-repo KEY=you@example.com"; exit 2; }
	$(BIN)/python packaging/build_apt_repo.py --key $(KEY) --out dist/apt dist/inferd_*.deb

system: $(STAMP) $(PACKAGE_STAMP) ## as root: boot Debian with the package on it, and try everything
	INFERD_SYSTEM=1 $(BIN)/python -m pytest tests/system $(PYTEST_ARGS)

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
	@$(BIN)/python -m pip install --quiet --editable '.[npu]' || \
	  echo "setup: could not install OpenVINO; going on without: tests of NPUs are skipped"
	@$(BIN)/python tests/support/swiftshader.py
	@touch $@

$(PACKAGE_STAMP): $(STAMP)
	@$(call install_if_missing,dpkg-buildpackage:dpkg-dev dh:debhelper aptly:aptly gpg:gpg lintian:lintian systemd-nspawn:systemd-container mmdebstrap:mmdebstrap qemu-aarch64-static:qemu-user-static)
	@$(BIN)/python -m pip install --quiet --editable '.[package]'
	@touch $@

# The packages of which a program or module is missing. apt is asked only then, and only as root;
# anybody else is told, and what needs them is skipped with its reason.
define install_packages
missing=; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
$(call look_for,mosquitto:mosquitto mosquitto_rr:mosquitto-clients curl:curl strace:strace mkfs.ext4:e2fsprogs) \
$(PYTHON) -c 'import ctypes; ctypes.CDLL("libvulkan.so.1")' 2>/dev/null || missing="$$missing libvulkan1"; \
$(install_missing)
endef

define install_if_missing
missing=; $(call look_for,$(1)) $(install_missing)
endef

# Each word is PROGRAM:PACKAGE.
define look_for
for each in $(1); do \
  command -v "$${each%%:*}" >/dev/null || missing="$$missing $${each##*:}"; \
done;
endef

define install_missing
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
