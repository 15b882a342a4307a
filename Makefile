# Two commands: `make run` sets up and goes the whole way on the bundled sample; `make test` sets up and passes every check.
VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= python3

.PHONY: cluster-env run test fast slow cuda chaos docs format bench-peers clean

run: $(VENV)/.run
	@bash examples/quickstart.sh $(BIN)/finetune

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest -m "not slow and not cuda" -n 2

# the suite without the tests that start worker processes: seconds
fast: $(VENV)/.dev
	$(BIN)/pytest -m "not distributed and not end_to_end and not slurm and not cuda" -n 2

# what `test` leaves out: a model of gigabytes under a memory limit
slow: $(VENV)/.dev
	$(BIN)/pytest -m slow

# what `test` cannot show without a GPU; one is enough
cuda: $(VENV)/.dev
	$(BIN)/pytest -m cuda tests/test_cuda.py

# runs on the real test cluster that are cut off, killed, preempted and powered down at random moments: 12 to 30 minutes
chaos: $(VENV)/.dev
	$(BIN)/python -m slurm.testcluster.chaos $(CHAOS)

# slurm/env/*.sh and tests/sbatch/*.sh from the profiles in conf/cluster
cluster-env: $(VENV)/.run
	$(BIN)/python -m finetune.launch.render slurm/env tests/sbatch

# the pages of docs/ as HTML in build/docs; a warning or a dangling link is an error
docs: $(VENV)/.dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs build/docs

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# training speed beside TRL, LLaMA-Factory and axolotl, each in an environment of its own: 20 to 30 minutes on two idle cores.
# TEXT=FOLDER of Lovdata downloads makes the documents; BENCH="--allocator jemalloc" and the like go to the script
bench-peers: $(VENV)/.run
	$(BIN)/python -m benchmarks.peers $(if $(TEXT),--text $(TEXT)) $(BENCH)

# torch alone first: under the constraint every later package finds it there and asks for no other build
$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("finetune needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[train]'
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
