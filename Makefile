# make demo   the quickstart: environment, a small base model and data made on the spot, stepwise DPO, a table of steps
# make test   all tests, with the real host; `make test-core` only those that need no host, in half a minute
# make lint   ruff and mypy
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed-$(shell cksum < pyproject.toml | cut -d' ' -f1)

export AXOLOTL_DO_NOT_TRACK := 1
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-core lint clean

$(INSTALLED):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python example_configs/quickstart/make_task.py
	rm -rf outputs/quickstart
	$(BIN)/axolotl train example_configs/quickstart/quickstart.yaml --launcher python
	$(BIN)/python example_configs/quickstart/summary.py outputs/quickstart

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-core: $(INSTALLED)
	$(BIN)/python -m pytest tests

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) outputs example_configs/quickstart/build
