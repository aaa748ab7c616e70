# fabrictap for its developers. `make` alone lists what there is; everything is safe to repeat.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# What to test, what to require (REQUIRE=all, or a list as in REQUIRE=vm,collector: failing instead of skipping).
T       ?= tests
REQUIRE ?=
ARGS    ?=
SCRIPT  ?=
# Which Pythons packages are made for (all that are here by default), and from which image the image takes its
# Debian packages (by default one that debootstrap makes).
PYTHONS ?=
BASE    ?=
# Which measurements make bench takes (uprobe completions counters infiniband ringbuffer export agent growth readers volume); all by default.
B       ?=

export REQUIRE
# What tests are to record anew instead of comparing it, as in make test T=tests/vm/test_kernels.py RECORD=kernels.
RECORD ?=
export RECORD
# Programs beside the tests are run as `python tests/vm/x.py` and import each other as the tests do.
export PYTHONPATH := tests

# Stamps of an environment that somebody has removed say nothing.
ifeq ($(wildcard $(BIN)/python),)
$(shell rm -f build/python)
endif

BUILD_INPUTS := setup.py pyproject.toml $(shell find probes ext -type f \( -name '*.bpf.c' -o -name '*.h' -o -name '*.pyx' -o -name '*.pxd' -o -name 'fold.c' \) 2>/dev/null)

.PHONY: help setup packages demo run test collector kube manifests dashboards pictures lint format bench vm wheel deb image clean

help: ## this list
	@echo 'make TARGET [VARIABLE=value ...]'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

setup: build/installed ## system packages, .venv, the compiled parts; does nothing when nothing has changed

packages: build/packages ## only the system packages (packaging/setup/packages.sh lists them and what each is for)

demo: setup ## what fabrictap sees, shown on two RDMA devices in a VM
	@$(BIN)/python tests/vm/demo.py $(ARGS)

run: setup ## the agent on this machine: make run ARGS='--config my.yaml'
	@$(BIN)/fabrictap run $(ARGS)

test: lint collector kube ## lint, then the tests: T=tests/unit, REQUIRE=all (see docs), ARGS='-k name'
ifneq (,$(filter tests tests/,$(T)))
	@tests/everything.sh $(BIN)/python $(ARGS)
else
	@$(BIN)/python -m pytest $(T) $(ARGS)
endif

# The OpenTelemetry Collector for the end-to-end tests, kept in the cache; without Go they are skipped.
collector: setup
ifneq (,$(filter tests tests/ tests/e2e%,$(T)))
	@tests/e2e/collector/build.sh >/dev/null || echo 'setup: no Collector: its tests are skipped, or fail with REQUIRE=collector'
endif

# What judges the Helm chart, kept in the cache likewise.
kube: setup
ifneq (,$(filter tests tests/ tests/kube%,$(T)))
	@tests/kube/build.sh >/dev/null || echo 'setup: no helm: the tests of the chart are skipped, or fail with REQUIRE=kube'
endif

manifests: setup ## packaging/kubernetes/manifests, made from the Helm chart
	@tests/kube/build.sh >/dev/null
	@$(BIN)/python tests/kube/manifests.py

lint: setup ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup ## let ruff put the sources in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup ## measurements against peers: all, or a part as in make bench B=counters
	@$(BIN)/python -m bench $(B) $(ARGS)

vm: setup ## a shell in the VM with its two RDMA devices; make vm SCRIPT=path runs a script there
	@$(BIN)/python tests/vm/shell.py $(SCRIPT) $(ARGS)

dashboards: setup ## packaging/grafana/dashboards from the catalog and packaging/grafana/dashboards_as_code
	@PYTHONPATH=packaging/grafana $(BIN)/python -m dashboards_as_code

pictures: setup ## docs/pictures, drawn by a browser from simulated nodes and a recording (needs pngquant)
	@tests/e2e/collector/build.sh >/dev/null
	@REQUIRE=all $(BIN)/python -m pytest tests/e2e/pictures.py -q

wheel: setup ## dist/*.whl for each Python 3.10 to 3.13 that is here: make wheel PYTHONS=3.11,3.13
	@$(BIN)/python packaging/wheel/build.py --python '$(PYTHONS)'

deb: wheel ## dist/fabrictap_*.deb for the distributions with these Pythons
	@$(BIN)/python packaging/deb/build.py --python '$(PYTHONS)'

image: deb ## dist/fabrictap_*.oci.tar, a container image (buildah): make image BASE=debian:12-slim
	@$(BIN)/python packaging/container/build.py --base '$(BASE)'

clean: ## remove what was built; downloads stay in the cache (FABRICTAP_CACHE)
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .pytest_cache agent/*.egg-info
	find agent ext probes -name '*.so' -delete -o -name '*.bpf.o' -delete
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
	find ext -maxdepth 1 -name '*.pyx' -exec sh -c 'for f; do rm -f "$${f%.pyx}.c"; done' _ {} +

# --- setup, step by step; each stamp is newer than what it was made from

build/packages: packaging/setup/packages.sh
	@mkdir -p build
	@packaging/setup/packages.sh install
	@touch $@

build/python: build/packages
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else f"Python 3.10 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@touch $@

# The build tools of pyproject.toml are put into .venv and used from there: building needs no network after that.
build/dependencies: build/python pyproject.toml
	@echo 'setup: Python packages'
	@$(BIN)/python packaging/setup/requirements.py >build/requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r build/requirements.txt
	@touch $@

build/installed: build/dependencies $(BUILD_INPUTS)
	@echo 'setup: compiling probes and extensions'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@
