# make venv           a virtual environment in .venv with all dependencies of the tests
# make demo [VIDEO=…] a few clips in outputs/ (VIDEO: round trip of your own file through the tokenizer)
# make test           all tests, slow ones included       make lint   ruff and pyright
# make docs           the documentation as a site in site/, with API pages from the docstrings
#
# pip installs PyTorch from its configured index. To choose another build, name its index at the first call:
#   make venv PIP_ARGS="--index-url ADDRESS-OF-THE-BUILD-YOU-WANT"      (PIP_ARGS goes to the torch install only)

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PIP_ARGS ?=
VIDEO ?=
EXTRAS := dev,docs,metrics,text,vae,data,worlds,playground,web,hub
TORCH := $(shell grep '^torch==' constraints.txt)
# The first Python of at least 3.11 that starts.
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: venv demo test lint docs clean

venv: $(VENV)/.installed

# torch is installed first and alone, so that no later package selects another build of it; the build is recorded, and
# tests/test_environment.py compares it with the installed one.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make venv needs Python 3.11 or newer; pass PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(PIP_ARGS) $(TORCH)
	$(BIN)/python -c "from importlib.metadata import version; print(version('torch'))" > $(VENV)/torch-build
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$(EXTRAS)]' tensorboard
	touch $@

demo: venv
	$(BIN)/python scripts/demo.py --out outputs $(if $(VIDEO),--video "$(VIDEO)")

# One thread per worker: two workers on two cores, and the same numbers on every machine.
test: venv
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Strict: an unresolved link, anchor or module fails the build. NO_MKDOCS_2_WARNING silences an announcement of the theme.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf outputs site build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
