# Each target sets itself up in .venv; bench and parity, which need torch, in .venv-bench and
# .venv-parity. `make train EXTRAS=test,cuda` adds setup.cfg's extras, `make bench
# BENCH_EXTRAS=bench,cuda` too.

CONFIG ?= experiments/sci.py
WORKDIR ?= runs/sci
ARGS ?=
EXTRAS ?= test
BENCH_EXTRAS ?= bench
JOBS ?= 2
PYTHON ?=

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed-$(EXTRAS)
TEST_INSTALLED := $(VENV)/.installed-test

.PHONY: train bench bench-diff parity test test-slow check format clean
.DEFAULT_GOAL := test

# Huge pages: malloc's default page size costs training a third of its speed on CPUs (glibc only).
train: $(INSTALLED)
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(PY) -m elpo_jax.train \
	  --config $(CONFIG) --workdir $(WORKDIR) $(ARGS)

bench:
	$(MAKE) --no-print-directory VENV=.venv-bench .venv-bench/.installed-$(BENCH_EXTRAS)
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 .venv-bench/bin/python -m benchmarks $(ARGS)

bench-diff: $(INSTALLED)
	$(PY) -m benchmarks.compare $(ARGS)

# `make parity ARGS=--write-golden` also writes the files that the ordinary tests compare with.
parity:
	$(MAKE) --no-print-directory VENV=.venv-parity .venv-parity/.installed-parity
	.venv-parity/bin/python -m pytest parity -n $(JOBS) --dist loadfile -q $(ARGS)

test: check
	$(PY) -m pytest -n $(JOBS) --dist loadfile -q $(ARGS)

test-slow: check
	$(PY) -m pytest -n $(JOBS) --dist loadfile -q -m "slow or not slow" $(ARGS)

check: $(TEST_INSTALLED)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: $(TEST_INSTALLED)
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

clean:
	rm -rf .venv .venv-bench .venv-parity build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is made last, so an interrupted installation is taken up again.
$(VENV)/.installed-%: setup.cfg pyproject.toml
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	    if $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' \
	        >/dev/null 2>&1; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then \
	    echo "elpo_jax needs Python 3.11 or newer with venv; found $$(python3 --version 2>&1)." \
	      "Install it (Debian, Ubuntu: python3-venv) or say make PYTHON=/path/to/python3." >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$found"; \
	  $$found -m venv --clear $(VENV); \
	fi
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $@
