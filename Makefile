# make demo | test | test-cluster | up | down | lint | bench-data | bench-train | bench-eval | clean. What needs .venv first makes it.

PYTHON ?= python3
# The torch build: GPU users name theirs, such as TORCH='torch==2.13.0+cu130' or a wheel's path.
TORCH ?= torch==2.13.0
BIN := .venv/bin

PEERS := .venv-peers
PARALLEL := --numprocesses 2 --no-loadscope-reorder

.PHONY: demo test test-quick test-cluster lint up down bench-data bench-train bench-eval clean

demo: .venv/done
	$(BIN)/atelier run digits --airflow

up: .venv/done
	$(BIN)/atelier up

down: .venv/done
	$(BIN)/atelier down

test: lint
	$(BIN)/pytest $(PARALLEL)

test-quick: lint
	$(BIN)/pytest $(PARALLEL) -m "not stack and not cluster"

# Needs root, iproute2 and PostgreSQL's server; prints how long each fault took to mend.
test-cluster: .venv/done
	$(BIN)/pytest -m cluster tests/cluster

lint: .venv/done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-data: .venv/done $(PEERS)/done
	$(BIN)/python -m tests.bench.data --peers $(PEERS)/bin/python

bench-train: .venv/done $(PEERS)/done
	$(BIN)/python -m tests.bench.train --peers $(PEERS)/bin/python

bench-eval: .venv/done
	$(BIN)/python -m tests.bench.eval

# Of the peers' dependencies torchvision goes again: PyPI's is built for CUDA and breaks imports beside a CPU torch.
$(PEERS)/done: tests/bench/peers-requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet "$(TORCH)" --requirement tests/bench/peers-requirements.txt
	$(PEERS)/bin/pip uninstall --quiet --yes torchvision
	touch $@

.venv/done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt "$(TORCH)" --editable ".[airflow,train,dev]"
	touch $@

clean: down
	rm -rf .atelier .venv $(PEERS)
