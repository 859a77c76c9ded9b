PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Passed to pip: the versions that are tested. An unpinned torch may bring gigabytes of CUDA packages.
CONSTRAINTS := -c constraints.txt

# A file's tests stay in one process: they share what takes long to make.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo test other-arithmetic lint types check-all completions commands package clean cardboard

demo: $(INSTALLED)  ## built-in data, a trained Decision Transformer, its returns and a video
	$(BIN)/gq download builtin/hopper/medium
	$(BIN)/gq train dt --dataset builtin/hopper/medium --steps 600 --set optim.warmup_steps=60 --set eval.num_episodes=4
	$(BIN)/gq eval --latest --episodes 10
	$(BIN)/gq render --latest --episodes 1 --fps 30 --size 320x320

test: $(INSTALLED) lint types  ## everything that must hold before a change goes in
	$(PYTEST) -m "not slow"

other-arithmetic: $(INSTALLED)  ## what computes in the other arithmetic, parity on the recordings kept here
	GQ_FIXTURES=tests/data/recorded GQ_PRECISION=$$($(BIN)/python -c "from gq.policies.compute import choose_compute as choose; \
	  print('float32' if choose('cpu').bfloat16 else 'bfloat16')") $(PYTEST) -m "(computes or parity) and not slow"

CARD ?= ../card

cardboard:  ## gq on a GPU of cardboard: needs the CUDA build of torch in a venv of its own, see tools/cardboard
	$(PYTHON) tools/cardboard/matrix.py $(CARD)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

check-all: $(INSTALLED)  ## with the slow tests
	$(PYTEST)

completions: $(INSTALLED)  ## regenerate the shell completions
	$(BIN)/python scripts/write_completions.py

commands: $(INSTALLED)  ## regenerate docs/commands.md
	$(BIN)/python scripts/write_commands.py

package: $(INSTALLED)  ## wheel and sdist in dist/, and a test of both
	$(BIN)/python -m hatchling build -d dist
	$(BIN)/python -m pytest -m slow tests/test_package.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) torch
	$(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[dev,dmc]"
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
