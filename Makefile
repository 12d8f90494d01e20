# `make help` tells what there is.  Everything is installed into .venv, at the versions of constraints.txt.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt

DEMO := build/ernie-nano-int4
HEADERS := build/onnxruntime-headers
NATIVE := ernie_export/engine/native
DOCS := build/python-doc
REGISTRY := build/docker-registry
CLEAN_ROOT := build/debian
ARM64 := build/arm64
DEBIAN := g++ cmake ninja-build chromium debootstrap fonts-inter fonts-dejavu-core openssh-client openssh-server openssl strace systemd \
    g++-aarch64-linux-gnu qemu-user-static
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS)
PYTEST_FLAGS ?=

.DELETE_ON_ERROR:
.PHONY: help demo native test test-slow test-plugins plugins kernels-compiled kernel-mutants kernel-coverage lint fuzz schemas system-deps \
    ernie-nano clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

demo: .venv/.cpu ## build the embedded checkpoint for this machine's CPU, and let it speak
	$(BIN)/ernie-export build --target cpu --output $(DEMO) --replace

native: $(HEADERS) ## operators of our own for CPUs with AVX-512 VNNI: an engine opens at once and copies no weights
	$(CXX) $(shell cat $(NATIVE)/flags) -isystem $(HEADERS)/usr/include/onnxruntime $(NATIVE)/operators.cpp -o $(NATIVE)/libernie_cpu.so

test: lint .venv/.plugins ## the linters, then every test that is not slow
	$(PYTEST) -m "not slow" --timeout 300 $(PYTEST_FLAGS)

test-slow: .venv/.dev ## the tests that take minutes
	$(PYTEST) -m slow --timeout 3600 $(PYTEST_FLAGS)

test-plugins: .venv/.dev .venv/.plugins ## the CUDA kernels, emulated on this machine's CPU
	$(PYTEST) -m "not slow" --timeout 300 $(PYTEST_FLAGS) tests/plugins

plugins: .venv/.plugins ## the CUDA kernels and TensorRT plugins for GPUs and Jetsons; the plugins go into the wheel too
	$(BIN)/python plugins/build.py cuda
	$(BIN)/python plugins/build.py --payload

kernels-compiled: .venv/.dev .venv/.plugins ## what nvcc makes of the kernels, for every SM: benchmarks/results/kernels_compiled.json
	$(BIN)/python benchmarks/kernels_compiled.py

kernel-mutants: .venv/.dev .venv/.plugins ## changes to the kernels, each of which the tests must find: an hour
	$(BIN)/python benchmarks/kernel_mutants.py

kernel-coverage: .venv/.dev .venv/.plugins ## which lines of the kernels their tests run: all, by benchmarks/results/kernel_coverage.json
	$(BIN)/python benchmarks/kernel_coverage.py

lint: .venv/.dev ## ruff and mypy, hadolint, shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ernie_export
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/shellcheck .ci/run docker/install.sh tests/graph/native/fetch_headers.sh

SECONDS ?= 60
fuzz: .venv/.fuzz ## fuzz every parser of foreign bytes, SECONDS=60 each
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

schemas: .venv/.cpu ## write docs/schemas anew
	$(BIN)/python -m ernie_export.cli.schemas docs/schemas

system-deps: $(HEADERS) $(REGISTRY) $(ARM64) ## what the tests need of Debian: compilers, ONNX Runtime's C++ headers, a browser, a registry, ssh, systemd's checker, a bare system, an aarch64 one, qemu
	@missing=; for package in $(DEBIAN); do dpkg -s $$package > /dev/null 2>&1 || missing="$$missing $$package"; done; \
	    [ -z "$$missing" ] || { apt-get -q update && apt-get -q install --yes --no-install-recommends $$missing; }
	@$(MAKE) --no-print-directory $(CLEAN_ROOT)

ernie-nano: .venv/.cpu $(DOCS) ## train the embedded checkpoint anew: about two hours on two cores
	$(BIN)/python benchmarks/ernie_nano/train.py --text $(DOCS)/usr/share/doc/python3.11/html/_sources \
	    --output ernie_export/checkpoint/ernie-nano --held-out ernie_export/validate/heldout.txt \
	    --work build/ernie-nano-work

clean: ## remove what make made
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/.python:
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'Python 3.11 or newer is needed: install it, or name one with `make PYTHON=...`.' >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

# One stamp an extra: a second make installs nothing.
.venv/.cpu .venv/.dev .venv/.fuzz .venv/.plugins: .venv/.%: pyproject.toml constraints.txt | .venv/.python
	@echo 'Installing into .venv: the first time this takes minutes.'
	$(INSTALL) hatchling editables setuptools
	$(INSTALL) --no-build-isolation --editable '.[$*]'
	@touch $@

$(HEADERS):
	tests/graph/native/fetch_headers.sh $@

# Debian's registry, unpacked and not installed: the tests start it, nothing else does.
$(REGISTRY):
	rm -rf $@.partial && mkdir -p $@.partial
	apt-get -q update
	cd $@.partial && apt-get -q -o APT::Sandbox::User=root download docker-registry && dpkg -x docker-registry_*.deb .
	rm $@.partial/*.deb && mv $@.partial $@

# A Debian with nothing in it: where the tests install ernie-export as on a bare machine.
$(CLEAN_ROOT):
	rm -rf $@.partial
	debootstrap --variant=minbase bookworm $@.partial > $@.log || { tail $@.log; exit 1; }
	mv $@.partial $@

# Python, numpy and ONNX Runtime of aarch64, and qemu: what kits for arm64 are tried in.
$(ARM64): tests/kit/arm64/fetch_root.sh
	tests/kit/arm64/fetch_root.sh $@ $(PYTHON)
	@touch $@

# The text that ernie-nano learns: Debian 12's python3.11-doc, unpacked, not installed.
$(DOCS):
	mkdir -p $@.partial
	cd $@.partial && apt-get -q -o APT::Sandbox::User=root download python3.11-doc && dpkg -x python3.11-doc_*.deb .
	mv $@.partial $@
