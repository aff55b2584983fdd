# Two commands on a fresh machine: `make demo` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
# For a CPU build of torch from its own index: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP_OPTIONS = -q -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
BIN = $(VENV)/bin

.PHONY: demo test check setup clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    set up and do the main job on synthetic chests (about 4 minutes on 2 cores)"
	@echo "             on your own data: make demo NIH_CSV=labels.csv NIH_IMAGES=images MODEL=model-folder-or-hub-id"
	@echo "make test    set up and run formatting, lint, types, layers and tests"

demo: $(VENV)/.installed
	$(BIN)/python scripts/demo_chest_xray.py --output $(or $(OUTPUT),demo) \
		$(if $(NIH_CSV),--csv "$(NIH_CSV)") $(if $(NIH_IMAGES),--images "$(NIH_IMAGES)") $(if $(MODEL),--model "$(MODEL)") $(TRAIN_FLAGS)

test: $(VENV)/.tested check
	$(BIN)/python -m pytest

check: $(VENV)/.tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(VENV)/.tested

# torch first and alone: a range in another package could otherwise pick a CUDA build of several gigabytes.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_OPTIONS) torch
	$(BIN)/pip install $(PIP_OPTIONS) -e ".[fast]"
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/pip install $(PIP_OPTIONS) -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) demo build dist *.egg-info
