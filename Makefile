# make demo   the quickstart: environment, a small base model and data made on the spot, stepwise DPO, a table of steps
# make test   all tests, with the real host; `make test-core` only those that need no host, in a minute
# make lint   ruff and mypy
# make test-gpu  what only a machine with a GPU can show; elsewhere each test is skipped by name
# make matrix  the tests that tell hosts apart, on every supported host, each in an environment of its own in .matrix
#
# Everything is installed into .venv, which is made here. `make demo VENV=/path/to/venv` uses an environment that has
# the host already, and installs nothing into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUICKSTART := example_configs/quickstart

export AXOLOTL_DO_NOT_TRACK := 1
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

ifeq ($(origin VENV),file)
READY := $(VENV)/installed-$(shell cksum < pyproject.toml | cut -d' ' -f1)
else
READY := environment-of-others
export PYTHONPATH := $(CURDIR)
endif

# $(call stage,what,how long it takes on two cores,command): says both, and notes the seconds for the end.
TIMES := outputs/demo-times.txt
stage = @printf '\n==> %s: about %s\n\n' '$(1)' '$(2)'; mkdir -p $(dir $(TIMES)); began=$$(date +%s); $(3) && \
	printf '%6d s  %s\n' $$(($$(date +%s) - began)) '$(1)' >> $(TIMES)

.PHONY: demo test test-core test-gpu lint matrix matrix-newest clean environment-of-others begin-demo

$(VENV)/installed-%:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
		echo '$(PYTHON) is not Python 3.11 or 3.12, which Axolotl installs on; name another: make $(MAKECMDGOALS) PYTHON=python3.11'; exit 1; }
	$(call stage,environment in $(VENV) (Axolotl and PyTorch),4 minutes (more on a slow line: gigabytes),$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]')
	@touch $@

environment-of-others:
	@$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("axolotl", "deepspeed"))))' \
		|| { echo '$(VENV) has no Axolotl with DeepSpeed, and nothing is installed into it; leave VENV out'; exit 1; }

demo: begin-demo $(READY)
	$(call stage,base model S and preference data,1 minute,$(BIN)/python $(QUICKSTART)/make_task.py)
	@rm -rf outputs/quickstart
	$(call stage,stepwise DPO (two steps),1 minute,$(BIN)/axolotl train $(QUICKSTART)/quickstart.yaml --launcher python)
	$(call stage,held-out sets under S and M_1 and M_2,20 seconds,$(BIN)/python $(QUICKSTART)/summary.py outputs/quickstart)
	@printf '\n==> where the time went\n\n'; cat $(TIMES)

begin-demo:
	@rm -f $(TIMES)

# Whole files go to one of two processes, each with a warm host of its own; conftest.py has the longest begin.
test: $(READY)
	$(BIN)/python -m pytest tests -n 2
	$(BIN)/python -m pytest integration_tests -n 2 --dist loadfile --no-loadscope-reorder

test-core: $(READY)
	$(BIN)/python -m pytest tests

test-gpu: $(READY)
	$(BIN)/python -m pytest integration_tests/test_gpu.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

matrix: $(READY)
	$(BIN)/python -m integration_tests.matrix

matrix-newest: $(READY)
	$(BIN)/python -m integration_tests.matrix --newest

clean:
	rm -rf .venv .matrix outputs $(QUICKSTART)/build
