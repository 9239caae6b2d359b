# Every task of the repository as one command. `make help` lists them.
# Nothing outside .venv is touched, except that as root on Debian or Ubuntu the missing system packages are installed.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# pytest processes; each imports torch, so memory rather than cores sets the sensible number.
WORKERS ?= 2
# Passed on to the command behind check, test, test-slow, corpus, train, evaluate, export, plugins, bench and bench-triton.
ARGS ?=
# Folders of TensorRT's headers, one for each major version, with semicolons between; empty: the system's.
TENSORRT_INCLUDE ?=

SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && { echo $$p; break; }; done)

APT := $(shell [ "$$(id -u)" = 0 ] && command -v apt-get)
APT_INSTALL := DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends

# Fails with one line that names what is missing where this is not root on Debian or Ubuntu.
define INSTALL_VOICES
missing=$$(sed 's/#.*//' training/voices.txt | xargs -n 1 | while read -r package; do \
    dpkg-query -W -f '$${Status}\n' "$$package" 2>/dev/null | grep -q ' installed$$' || echo "$$package"; done | xargs); \
if [ -n "$$missing" ] && [ -z "$(APT)" ]; then \
    echo "speech synthesisers not installed: $$missing; as root on Debian or Ubuntu: make voices" >&2; false; \
elif [ -n "$$missing" ]; then \
    echo "installing $$missing"; apt-get update -qq && $(APT_INSTALL) $$missing >/dev/null; fi
endef

# Prometheus and its promtool, for the tests of the rollout; likewise.
define INSTALL_PROMETHEUS
if ! command -v prometheus >/dev/null && [ -z "$(APT)" ]; then \
    echo "prometheus is not installed; as root on Debian or Ubuntu: apt-get install prometheus" >&2; false; \
elif ! command -v prometheus >/dev/null; then \
    echo "installing prometheus"; apt-get update -qq && $(APT_INSTALL) prometheus >/dev/null; fi
endef

# Schemas of what Kubernetes is extended by, from packages that are too much, or too old, to be installed.
CRDS := @kubernetes-models/argo-rollouts@0.3.2 @kubernetes-models/keda@0.3.1 @kubernetes-models/prometheus-operator@1.6.3

# ruff, mypy, and the contracts of pyproject.toml on which package may import which.
define LINT
$(BIN)/ruff check .
$(BIN)/ruff format --check .
$(BIN)/mypy
$(BIN)/lint-imports
endef

.PHONY: help demo check test test-slow voices corpus train evaluate examples export plugins bench bench-triton clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

demo: $(VENV)/.demo ## convert the shipped sample into two voices; writes demo_output/
	@$(BIN)/python demo/demo.py

# One thread in each process: torch and ONNX Runtime would otherwise compete for the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal

check: $(VENV)/.dev ## what to run before a commit: linters and the quick tests
	$(LINT)
	$(PYTEST) -m "not (server or slow or gpu or heavy)" $(ARGS)

test: $(VENV)/.dev ## linters and all tests but the slow ones
	@$(MAKE) -s build/crds || echo "the tests of KServe's, Argo's, KEDA's and Prometheus' objects by their schemas are skipped"
	@{ $(INSTALL_VOICES); } || echo "the tests that render a corpus are skipped"
	@{ $(INSTALL_PROMETHEUS); } || echo "the tests of automatic rollback are skipped"
	$(LINT)
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(VENV)/.dev $(VENV)/.ray ## the slow tests
	@{ $(INSTALL_VOICES); } || echo "the tests that render a corpus are skipped"
	@{ $(INSTALL_PROMETHEUS); } || echo "the tests of automatic rollback are skipped"
	$(PYTEST) -m slow $(ARGS)

voices: ## install the speech synthesisers of the evaluation's sets (needs root)
	@$(INSTALL_VOICES)

corpus: $(VENV)/.train ## gather and render the training corpus into data/; ARGS="--people DIR" adds people
	@{ $(INSTALL_VOICES); } || echo "the evaluation's sets of synthesisers are left out"
	@$(BIN)/python -m autovoice_training.corpus $(ARGS)

train: $(VENV)/.train ## train the base voice, resuming where it stopped
	@$(BIN)/python -m autovoice_training.train.pitch
	@$(BIN)/python -m autovoice_training.train $(ARGS)

evaluate: $(VENV)/.judge ## measure the base voice on speakers it never heard, beside baselines
	@$(BIN)/python -m autovoice_training.evaluate $(ARGS)

examples: $(VENV)/.judge ## write conversions to listen to into training/examples/
	@$(BIN)/python -m autovoice_training.evaluate.examples $(ARGS)

export: $(VENV)/.train ## write model_repository/ from the checkpoint
	@$(BIN)/python -m autovoice build $(ARGS)

plugins: $(VENV)/.cmake ## compile the ops' CUDA kernels and TensorRT plugins into build/plugins/
	@$(BIN)/cmake -S plugins -B build/plugins -DAUTOVOICE_TENSORRT_INCLUDE="$(TENSORRT_INCLUDE)" $(ARGS)
	@$(BIN)/cmake --build build/plugins --parallel
	@cat build/plugins/summary.txt

bench: $(VENV)/.dev ## speed, latency and memory; pitch accuracy beside its peers
	@$(BIN)/python benchmarks/pipeline.py $(ARGS)
	@$(BIN)/python benchmarks/pitch.py $(ARGS)

bench-triton: $(VENV)/.dev ## the server under load, with perf_analyzer and live streams
	@$(BIN)/python benchmarks/triton.py $(ARGS)

.PHONY: docs
docs: $(VENV)/.docs ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

build/crds: | $(VENV)/.created
	@if ! command -v npm >/dev/null; then \
	    if [ -z "$(APT)" ]; then echo "npm is not installed; as root on Debian or Ubuntu: apt-get install npm" >&2; exit 2; fi; \
	    apt-get update -qq && $(APT_INSTALL) npm >/dev/null; fi
	@rm -rf $@.partial; mkdir -p $@.partial
	@$(BIN)/python -m pip download -qq --disable-pip-version-check --no-deps --dest $@.partial kserve==0.21.0
	@cd $@.partial && npm pack --silent $(CRDS) >/dev/null
	@mv $@.partial $@

clean: ## remove the environment and what was built
	rm -rf $(VENV) demo_output build dist site

# The stamps below make a repeated call quick: pip runs again only when pyproject.toml changed.

$(VENV)/.created:
	@if ! $(or $(PYTHON),false) -c '$(SUPPORTED)' 2>/dev/null; then \
	    found=$$($(or $(PYTHON),python3) --version 2>&1 | tail -n 1 || true); \
	    echo "AutoVoice needs Python 3.10 to 3.13, found: $$found; name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	    exit 2; fi
	@if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
	    package=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	    if [ -z "$(APT)" ]; then \
	        echo "$(PYTHON) cannot create environments; as root: apt-get install $$package" >&2; exit 2; fi; \
	    apt-get update -qq && $(APT_INSTALL) $$package >/dev/null; fi
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@touch $@

$(VENV)/.runtime: pyproject.toml | $(VENV)/.created
	@echo "installing the runtime into $(VENV)"
	@before=$$(du -sm $(VENV) | cut -f 1); SECONDS=0; \
	$(BIN)/python -m pip install -qq --disable-pip-version-check -e .; \
	echo "runtime installed in $$SECONDS s, $$(($$(du -sm $(VENV) | cut -f 1) - before)) MB"
	@touch $@

$(VENV)/.demo: $(VENV)/.runtime
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[demo]'
	@touch $@

$(VENV)/.docs: $(VENV)/.runtime
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[docs]'
	@touch $@

$(VENV)/.compiler: | $(VENV)/.created
	@header=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")'); \
	if ! command -v cc >/dev/null || ! command -v c++ >/dev/null || [ ! -e "$$header" ]; then \
	    packages="g++ gcc libc6-dev $$($(BIN)/python -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])')"; \
	    if [ -z "$(APT)" ]; then \
	        echo "webrtcvad and the ops are built from source and need C and C++ compilers; as root: apt-get install $$packages" >&2; \
	        exit 2; fi; \
	    apt-get update -qq && $(APT_INSTALL) $$packages >/dev/null; fi
	@touch $@

$(VENV)/.cmake: | $(VENV)/.created $(VENV)/.compiler
	@$(BIN)/python -m pip install -qq --disable-pip-version-check 'cmake>=3.24'
	@touch $@

$(VENV)/.train: $(VENV)/.runtime $(VENV)/.compiler
	@echo "installing what training and export need into $(VENV)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[train]'
	@touch $@

$(VENV)/.judge: $(VENV)/.runtime $(VENV)/.compiler
	@echo "installing the judges of the evaluation into $(VENV)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[judge]'
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime $(VENV)/.compiler
	@echo "installing what tests need into $(VENV)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@

$(VENV)/.ray: $(VENV)/.dev
	@echo "installing Ray into $(VENV)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev,ray]'
	@touch $@
