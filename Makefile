# `make run` and `make test` set everything up on a fresh machine; nothing else is needed beside Python and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint figures notebooks clean

run: .venv/ready
	$(BIN)/python -m vg_utils run --preset scenes

test: .venv/ready
	$(BIN)/python -m pytest -n 2

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The figures of the README: the main job again, with its figures copied to Visuals/
figures: run
	cp runs/scenes/figures/*.jpg runs/scenes/figures/*.png Visuals/

# The notebooks from top to bottom, their outputs kept
notebooks: .venv/ready
	$(BIN)/python notebooks/execute.py

.venv/ready: requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.lock
	touch $@

clean:
	rm -rf runs data/scenes data/features
