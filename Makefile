# `make run` and `make test` are the two commands; the rest is what they are made of.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready

.PHONY: run test test-quantised check bench stop clean

# One federated run, its closing table, and a failure when the run failed: make run ARGS="federation.rounds=2"
run: $(READY)
	$(BIN)/fedtuners run $(ARGS)

QUANTISED := tests/adapters/test_quantised.py tests/tasks/test_quantisation.py tests/test_quantised_runs.py \
  tests/test_optimisers.py

# All cores for the many short tests; one by one those that start servers, kill them and take minutes,
# which run where CI is set, or by: make test CI=1. They want a machine with nothing else to do, since
# Flower gives a process a minute to start.
test: $(READY) check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile -m "not slow" $(ARGS)
	$(if $(CI),OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(ARGS))
	$(if $(CI),$(MAKE) test-quantised)

# bitsandbytes lies beside the environment: PEFT imports it wherever it is installed, which would cost
# every process a second.
test-quantised: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/quantised bitsandbytes==0.50.2
	OMP_NUM_THREADS=1 PYTHONPATH=$(VENV)/quantised $(BIN)/python -m pytest $(QUANTISED)

# Every figure of docs/performance.md that a CPU gives, each beside its reference.
BENCHMARKS := adapter_step abba_forms residual wire start clients batching generation federation
bench: $(READY)
	for name in $(BENCHMARKS); do OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.$$name || exit; done

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Torch first: the pin decides its build, and everything after finds it in place.
# A site with a GPU chooses its own: make run TORCH="torch==2.13.0 --index-url <your CUDA index>"
$(READY): pyproject.toml constraints.txt fedtuners/cli/flower_environment.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m fedtuners.cli.flower_environment
	touch $(READY)

# The local SuperLink that Flower leaves running for the next run.
stop:
	-pkill -f "flower-superlink.*$(CURDIR)/.flwr"

clean: stop
	rm -rf $(VENV) .flwr outputs state
