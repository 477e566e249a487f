# make train: environment, data or the built-in phantom, a training that suits two cores, results in runs/quick
# make test:  environment, all tests that need no real data
# make notebooks: run the notebooks, on the data that is there or on the phantom
# make figures: the figures of README that need no real data
PYTHON ?= python3
TOO_OLD := "this Python is too old: make PYTHON=python3.12 (3.11 or later)"
BIN := .venv/bin
# a name of its own for the run on your data, so that it does not meet the phantom's
RUN ?= $(if $(wildcard datasets/segmentation/*),quick_data,quick)
QUICK := --model classic_unet --n-filters 8 --epochs 6 --batch-size 8 --name $(RUN)

.PHONY: train test lint real-data notebooks figures

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and $(TOO_OLD))'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

.venv/notebooks: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[notebooks]'
	touch $@

train: .venv/installed
	$(BIN)/python training/unet_training.py $(QUICK)

test: .venv/installed
	$(BIN)/python -m pytest -m "not real_data" --numprocesses auto --dist loadfile --no-loadscope-reorder

real-data: .venv/installed
	$(BIN)/python -m pytest -m real_data -rs

# the timeout is that of a cell, in seconds: the first one decodes all data
notebooks: .venv/notebooks
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=3000 --durations=0 notebooks

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/mypy

figures: .venv/installed
	$(BIN)/python utils/diagrams.py --out images
	$(BIN)/python utils/figures.py --out images
	$(BIN)/python benchmarks/attention_epochs.py
