# `make run` and `make test` are the two commands; the rest is what they are made of.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready

.PHONY: run test quick check clean

# One federated run, its closing table, and a failure when the run failed: make run ARGS="rounds=2"
run: $(READY)
	$(BIN)/fedtuners run $(ARGS)

test: $(READY) check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)

quick: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(ARGS)

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

clean:
	rm -rf $(VENV) .flwr outputs state
