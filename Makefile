# Two commands on a fresh machine: `make demo` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
# For a CPU build of torch from its own index: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# pip would compile 20,000 files, one after another; the few that are imported are compiled then, and kept.
export PYTHONDONTWRITEBYTECODE =
PIP_OPTIONS = -q --no-compile -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
BIN = $(VENV)/bin

# Two processes, each with one thread; a file's tests stay together.
PYTEST_FLAGS ?= -n 2 --dist loadfile

PYTHON38 ?= python3.8
POD = .venv-pod/bin

.PHONY: demo test test-pod check setup clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    set up and do the main job on synthetic chests (about 4 minutes on 2 cores)"
	@echo "             on your own data: make demo NIH_CSV=labels.csv NIH_IMAGES=images MODEL=model-folder-or-hub-id"
	@echo "make test    set up and run formatting, lint, types, layers and tests"
	@echo "make test-pod  the tests on the Pod stack; needs Python 3.8: make test-pod PYTHON38=/path/to/python3.8"

demo: $(VENV)/.installed
	$(BIN)/python scripts/demo_chest_xray.py --output $(or $(OUTPUT),demo) \
		$(if $(NIH_CSV),--csv "$(NIH_CSV)") $(if $(NIH_IMAGES),--images "$(NIH_IMAGES)") $(if $(MODEL),--model "$(MODEL)") $(TRAIN_FLAGS)

test: $(VENV)/.tested check
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

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

# timm in a folder of its own: its torchvision of PyPI belongs to CUDA builds of torch, and Transformers would import it everywhere.
$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/pip install $(PIP_OPTIONS) -e ".[test]"
	$(BIN)/pip install $(PIP_OPTIONS) --no-deps --target $(VENV)/timm --upgrade timm torchvision
	touch $@

# Python 3.8, torch 2.0.1, transformers 4.29.2, as on a Pod with Poplar SDK 3.3 or 3.4 (without its poptorch). 5 GB, 3 minutes.
# The pages' commands and programs are run on the modern stack alone: `make test` has them.
test-pod: .venv-pod/.tested
	$(POD)/python -m pytest $(PYTEST_FLAGS) --ignore tests/test_documentation.py

.venv-pod/.tested: setup.cfg pyproject.toml constraints-pod.txt
	$(PYTHON38) -m venv .venv-pod
	$(POD)/pip install -q --no-compile --upgrade pip setuptools wheel
	$(POD)/pip install -q --no-compile -c constraints-pod.txt torch
	$(POD)/pip install -q --no-compile -c constraints-pod.txt -e ".[test]" optimum-graphcore
	touch $@

clean:
	rm -rf $(VENV) .venv-pod demo build dist *.egg-info
