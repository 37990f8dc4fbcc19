# What people, CI and hooks run. `make` lists the targets.
#
# On a machine with cargo, a C compiler, make and CPython 3.11 or newer, every target first sets up what
# it needs: a virtual environment, the pinned requirements, the extension built in release mode. Stamp
# files (.venv/.requirements, .venv/.extension, dist/.wheel) remember what is up to date, so a second
# call rebuilds and reinstalls nothing. Python sources are used where they lie; only the wheel copies them.
#
# Settings, each as VARIABLE=value behind the target or in the environment:
#   PYTHON       interpreter for the environment; otherwise the first suitable one of `PYTHONS`
#   VENV         the environment, .venv
#   ARGS         arguments for `demo` and `bench`
#   PYTEST_ARGS  arguments for pytest, for instance PYTEST_ARGS='-k kill -x'
#   MANYLINUX    the platform of the wheel, manylinux_2_17
#   CI           when set, Cargo.lock must be up to date

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

VENV ?= .venv
BENCH_VENV ?= .venv-bench
WHEEL_VENV ?= .venv-wheel
# The oldest glibc, by its name in wheels, that the wheel runs with.
MANYLINUX ?= manylinux_2_17
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
MANYHANDS_STRESS_SECONDS ?= 60
MANYHANDS_STORM_SECONDS ?= 1800
LOOM_MAX_PREEMPTIONS ?= 3

TARGET := $(or $(CARGO_TARGET_DIR),target)
LOCKED := $(if $(CI),--locked)
VENV_PYTHON := $(abspath $(VENV))/bin/python
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
COUNTED := $(VENV_PYTHON) scripts/run_counted.py --
export MANYHANDS_STRESS_SECONDS MANYHANDS_STORM_SECONDS LOOM_MAX_PREEMPTIONS

# The folders are listed too: their times tell that a file was deleted.
RUST_SOURCES := Cargo.toml $(wildcard Cargo.lock rust-toolchain.toml .cargo/config.toml) \
	$(shell find crates \( -name target -o -name '.*' \) -prune -o -print)
PYTHON_SOURCES := $(shell find python \( -name __pycache__ -o -name '.*' \) -prune \
	-o \( -type d -o -name '*.py' -o -name '*.pyi' -o -name py.typed \) -print)

# --- people --------------------------------------------------------------------------------------

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{ printf "  make %-10s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: $(VENV)/.extension ## set up .venv and build the extension into it

.PHONY: demo
demo: $(VENV)/.extension ## see it work: manyhands demo
	$(VENV)/bin/python -m manyhands demo $(ARGS)

.PHONY: test
test: test-rust test-loom test-crash test-python test-install ## all tests but the long ones

.PHONY: stress
stress: stress-rust stress-python ## the long tests, MANYHANDS_STRESS_SECONDS (60) each; storms, MANYHANDS_STORM_SECONDS (1800) each

.PHONY: bench
bench: $(BENCH_VENV)/.wheel ## measure against the peers, in .venv-bench
	$(BENCH_VENV)/bin/python -m benchmarks $(ARGS)

.PHONY: lint
lint: lint-rust lint-python lint-docs ## formatting, lints, types, crate layers, documentation

.PHONY: format
format: $(VENV)/.requirements ## format all sources in place
	cargo fmt --all
	$(VENV)/bin/ruff check --fix-only --quiet .
	$(VENV)/bin/ruff format .

.PHONY: wheel
wheel: dist/.wheel ## build the source distribution and the wheel into dist/

.PHONY: licences
licences: $(VENV)/.requirements ## write THIRD_PARTY_LICENSES anew
	$(VENV)/bin/python scripts/third_party_licences.py

.PHONY: wheel-size
wheel-size: dist/.wheel ## write the size of the wheel into the README
	$(VENV)/bin/python scripts/wheel_size.py

.PHONY: clean
clean: ## remove all that was built, and the environments
	rm -rf target dist .venv .venv-* .mypy_cache .pytest_cache .ruff_cache
	rm -f python/manyhands/_core*.so
	find python tests benchmarks examples scripts -name __pycache__ -prune -exec rm -rf {} +

# --- tests ---------------------------------------------------------------------------------------

# The extension module links against no libpython, so its crate is tested from Python.
RUST_CRATES := --workspace --exclude manyhands-python

.PHONY: test-rust
test-rust: $(VENV)/.requirements
	$(COUNTED) cargo test $(LOCKED) $(RUST_CRATES)

# The lock-free code under loom, which tries the interleavings and the weak memory of each model.
.PHONY: test-loom
test-loom: $(VENV)/.requirements
	RUSTFLAGS="$$RUSTFLAGS --cfg manyhands_loom" $(COUNTED) \
		cargo test $(LOCKED) -p manyhands-shm -p manyhands-runtime --lib --release --target-dir $(TARGET)/loom

# The crash table: a process is killed at each named step of each protocol.
.PHONY: test-crash
test-crash: $(VENV)/.requirements
	$(COUNTED) cargo test $(LOCKED) -p manyhands-runtime --features fail-points --test 'crash*' \
		--target-dir $(TARGET)/fail-points

.PHONY: test-python
test-python: $(VENV)/.extension
	$(VENV)/bin/pytest -m 'not stress and not wheel' $(PYTEST_ARGS)

# The wheel as users get it: in an empty environment, without cargo, with what the README shows.
.PHONY: test-install
test-install: $(VENV)/.extension dist/.wheel
	$(VENV)/bin/pytest -m wheel tests/wheel

# The same tests against the wheel, as users get it, on any CPython it is for:
# make test-wheel WHEEL_VENV=.venv-3.13 WHEEL_PYTHON=python3.13
.PHONY: test-wheel
test-wheel: $(WHEEL_VENV)/.wheel
	$(WHEEL_VENV)/bin/pytest -m 'not stress and not wheel' $(PYTEST_ARGS)

.PHONY: stress-rust
stress-rust: $(VENV)/.requirements
	MANYHANDS_STRESS=1 $(COUNTED) cargo test $(LOCKED) $(RUST_CRATES) --release --tests

# A stress test may run for its seconds several times over, a storm for its own once, with slack for a
# busy machine.
.PHONY: stress-python
stress-python: $(VENV)/.extension
	MANYHANDS_STRESS=1 $(VENV)/bin/pytest -m stress \
		-o faulthandler_timeout=$$(( $(MANYHANDS_STRESS_SECONDS) * 5 + $(MANYHANDS_STORM_SECONDS) + 300 )) $(PYTEST_ARGS)

# --- checks --------------------------------------------------------------------------------------

CLIPPY := PYO3_PYTHON=$(VENV_PYTHON) cargo clippy $(LOCKED) --all-targets

.PHONY: lint-rust
lint-rust: $(VENV)/.requirements
	cargo fmt --all --check
	$(VENV)/bin/python scripts/check_crate_layers.py
	$(VENV)/bin/python scripts/third_party_licences.py --check
	$(CLIPPY) --workspace -- -D warnings
	$(CLIPPY) -p manyhands-runtime --features fail-points -- -D warnings
	RUSTFLAGS="$$RUSTFLAGS --cfg manyhands_loom" \
		$(CLIPPY) -p manyhands-shm --target-dir $(TARGET)/loom -- -D warnings

.PHONY: lint-python
lint-python: $(VENV)/.extension
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict python/manyhands
	$(VENV)/bin/python -m mypy.stubtest --mypy-config-file pyproject.toml manyhands._core

.PHONY: lint-docs
lint-docs: $(VENV)/.requirements
	$(VENV)/bin/python scripts/check_documentation.py
	PYO3_PYTHON=$(VENV_PYTHON) RUSTDOCFLAGS='-D warnings' \
		cargo doc $(LOCKED) --quiet --workspace --no-deps --document-private-items

# --- set-up --------------------------------------------------------------------------------------

# $(call create_venv,FOLDER,INTERPRETERS): an environment made with the first interpreter that is new
# enough, a CPython, and able to make one. A pyenv shim answers to its name and then refuses to run, and
# Debian's python3 comes without ensurepip, so each is tried and not merely looked up.
define create_venv
@for python in $(2); do \
	if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.implementation.name != "cpython" or sys.version_info < (3, 11))' >/dev/null 2>&1; then \
		echo "$(1): $$($$python --version)"; \
		exec $$python -m venv --clear $(1); \
	fi; \
done; \
echo "No interpreter for $(1): of [$(2)] none is CPython 3.11 or newer with the venv module." >&2; \
echo "hint: install one, or name it: make PYTHON=/path/to/python" >&2; \
exit 1
endef

# An environment of another version than the one asked for would silently be used.
ifneq ($(PYTHON),)
ifneq ($(wildcard $(VENV)/pyvenv.cfg),)
WANTED_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
PRESENT_VERSION := $(shell sed -n 's/^version *= *\([0-9]*\.[0-9]*\).*/\1/p' $(VENV)/pyvenv.cfg)
ifneq ($(WANTED_VERSION),$(PRESENT_VERSION))
ifeq ($(filter clean help,$(MAKECMDGOALS)),)
$(error $(VENV) holds Python $(PRESENT_VERSION), and PYTHON is $(WANTED_VERSION): run `make clean`, or add VENV=.venv-$(WANTED_VERSION))
endif
endif
endif
endif

$(VENV)/bin/python:
	$(call create_venv,$(VENV),$(PYTHONS))

$(VENV)/.requirements: requirements-dev.txt $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

# `maturin develop` puts the extension into python/manyhands/, and python/ on the environment's path.
EXTENSION := python/manyhands/_core.abi3.so

$(VENV)/.extension: $(VENV)/.requirements pyproject.toml $(RUST_SOURCES) \
		$(if $(wildcard $(EXTENSION)),,build-extension)
	unset CONDA_PREFIX; VIRTUAL_ENV='$(abspath $(VENV))' \
		$(VENV)/bin/maturin develop --release $(LOCKED)
	@test -f $(EXTENSION)
	@touch $@

.PHONY: build-extension
build-extension:

$(VENV)/.wheel-requirements: requirements-wheel.txt $(VENV)/.requirements
	$(VENV)/bin/python $(PIP_INSTALL) -r requirements-wheel.txt
	@touch $@

# The wheel is built from the source distribution, which so is known to be complete, in a target folder
# of its own: all files of a source distribution are equally old, so cargo would take what it finds in a
# folder that it knows for up to date. zig links against the glibc that is asked for, and maturin refuses
# a wheel that needs a newer one. No path of this machine stays in it.
CARGO_REGISTRY := $(or $(CARGO_HOME),$(HOME)/.cargo)/registry/src/

dist/.wheel: $(VENV)/.wheel-requirements pyproject.toml README.md LICENSE-MIT LICENSE-APACHE \
		THIRD_PARTY_LICENSES $(RUST_SOURCES) $(PYTHON_SOURCES)
	rm -rf dist
	unset CARGO_TARGET_DIR CONDA_PREFIX; \
		RUSTFLAGS="$$RUSTFLAGS --remap-path-prefix=$(CARGO_REGISTRY)=" \
		VIRTUAL_ENV='$(abspath $(VENV))' PATH='$(abspath $(VENV))/bin':"$$PATH" \
		maturin build --release $(LOCKED) --sdist --zig --compatibility $(MANYLINUX) \
			--interpreter $(VENV_PYTHON) --out dist
	@touch $@

$(WHEEL_VENV)/bin/python:
	$(call create_venv,$(WHEEL_VENV),$(or $(WHEEL_PYTHON),$(PYTHONS)))

$(BENCH_VENV)/bin/python:
	$(call create_venv,$(BENCH_VENV),$(PYTHONS))

$(BENCH_VENV)/.requirements: requirements-bench.txt $(BENCH_VENV)/bin/python
	$(BENCH_VENV)/bin/python $(PIP_INSTALL) -r requirements-bench.txt
	@touch $@

$(WHEEL_VENV)/.requirements: requirements-dev.txt $(WHEEL_VENV)/bin/python
	$(WHEEL_VENV)/bin/python $(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

$(BENCH_VENV)/.wheel $(WHEEL_VENV)/.wheel: %/.wheel: dist/.wheel %/.requirements
	$*/bin/python $(PIP_INSTALL) --no-deps --no-index --force-reinstall dist/*.whl
	@touch $@
