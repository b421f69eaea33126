# `make run` and `make test` set everything up on a fresh machine; nothing else is needed beside Python and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint figures notebooks clean

run: .venv/ready
	$(BIN)/python -m vg_utils run --preset scenes

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The figures of Visuals/ that no notebook or study draws: of the main job, and of the shipped flagship on its test split
figures: run
	cp runs/scenes/figures/training_curves.png runs/scenes/figures/comparison.png Visuals/
	$(BIN)/python -m vg_utils evaluate scenes/dense-grounder --data data/scenes --split test --figures Visuals

# The notebooks from top to bottom, their outputs kept
notebooks: .venv/ready
	$(BIN)/python notebooks/execute.py

.venv/ready: requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.lock
	touch $@

clean:
	rm -rf runs data/scenes data/scenes-fast data/features
