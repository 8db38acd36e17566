# make up      install what is missing and serve here; ARGS="--model DIR" goes to busway up
# make test    install what is missing and run the tests
# make lint    style, types and layers
# make conformance    clients' own test suites against the server at OPENAI_BASE_URL
# make clean   forget the environment and all state

SHELL := /bin/bash -euo pipefail
VENV := .venv
BIN := $(VENV)/bin
CONFORMANCE := $(VENV)/conformance
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
TORCH := 2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

# The first interpreter that runs and is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: up test lint clean conformance

up: $(VENV)/.installed
	@$(BIN)/busway up $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .busway .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: needs Python 3.11 or newer; make up PYTHON=/path/to/python3"; exit 2; }
	@echo "busway: making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# Without a GPU, torch's CPU build (200 MB) instead of the CUDA build (several GB): from the indexes that pip is set up
# with, else from torch's own; whatever pip finds if neither can be had.
$(VENV)/.torch: | $(BIN)/python
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then \
		echo "busway: torch is there"; \
	elif [ "$$(uname -s)" != Linux ] || nvidia-smi >/dev/null 2>&1; then \
		echo "busway: installing torch"; \
		$(PIP) install 'torch>=2.8'; \
	else \
		echo "busway: installing torch $(TORCH), CPU build (no GPU here; about 200 MB)"; \
		$(PIP) install torch==$(TORCH)+cpu 2>/dev/null \
		|| $(PIP) install torch==$(TORCH)+cpu --extra-index-url $(TORCH_CPU_INDEX) --retries 1 --timeout 15 2>/dev/null \
		|| { echo "busway: no CPU build can be had; taking the CUDA build (several GB)"; $(PIP) install 'torch>=2.8'; }; \
	fi
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	@echo "busway: installing busway and what it needs"
	@$(PIP) install --editable '.[torch]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.torch
	@echo "busway: installing busway and what its tests need"
	@$(PIP) install --editable '.[torch,dev]'
	@touch $@ $(VENV)/.installed

# langchain's suite brings pytest plugins that change how tests run: an environment of its own.
$(CONFORMANCE)/.installed: tests/conformance/requirements.txt | $(BIN)/python
	@echo "busway: making $(CONFORMANCE)"
	@$(BIN)/python -m venv $(CONFORMANCE)
	@$(CONFORMANCE)/bin/python -m pip --disable-pip-version-check -qq install -r $<
	@touch $@

conformance: $(CONFORMANCE)/.installed
	$(CONFORMANCE)/bin/python -m pytest -q -c tests/conformance/pytest.ini tests/conformance $(ARGS)
