# `make demo` and `make test` each work alone on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A process for each core, eight at most; each file in one of them, as its tests share what is slow to make; in the order
# of tests/conftest.py, the longest first.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo benchmark benchmark-full release-artifacts test test-slow test-gpu test-annotators annotators test-full lint \
	format
.DEFAULT_GOAL := help

help:
	@echo "make demo        64 labelled pictures from prompts, as a COCO dataset with a contact sheet"
	@echo "make test        the tests (minutes)"
	@echo "make test-slow   the slow ones that CI runs too"
	@echo "make test-gpu    reading, drawing and training on a GPU, which the other tests leave alone"
	@echo "make test-annotators  controlnet-aux installed, and its Canny on our pictures"
	@echo "make test-full   all tests, full-size UNets included (needs 16 GiB of memory)"
	@echo "make benchmark   the toys of BENCHMARK.md anew, against the committed figures (an hour at most)"
	@echo "make benchmark-full  all of BENCHMARK.md; what is measured is kept (ten hours of two slow cores a seed)"
	@echo "make release-artifacts  the embedded model, its ControlNet and all committed figures anew (days)"
	@echo "make lint        ruff and pyright"
	@echo "make format      ruff, changing files"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is older: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/datagen generate configs/demo.yaml

benchmark: $(STAMP)
	$(BIN)/python -m benchmarks.worth --scale quick --again

benchmark-full: $(STAMP)
	$(BIN)/python -m benchmarks.worth --scale quick
	$(BIN)/python -m benchmarks.worth --scale full --seeds 0
	$(BIN)/python -m benchmarks.written
	$(BIN)/python -m benchmarks.worth --scale full
	$(BIN)/python -m benchmarks.written

# In this order: each line needs what those before it made. What is in training goes on, from the user's cache folder.
release-artifacts: $(STAMP)
	$(BIN)/datagen pocket train --stages scenes,vae,vae_decoder,latents,prior,judge,export
	$(BIN)/datagen adapt configs/game_look.yaml
	$(BIN)/datagen generate configs/demo.yaml
	$(BIN)/datagen control configs/control.yaml
	$(BIN)/python -m datagen.pocket.ship models/control
	for each in "few_shot_reader pocket" pocket_world confidence long_tail reader_tasks open_vocabulary \
		"style_swap --only guidance fusion cost rare" "style_swap --only renders pictures --updates 3000 --scenes 4000"; do \
		$(BIN)/python -m benchmarks.$$each || exit 1; done
	test ! -d ../shared/data/camvid || for each in "few_shot_reader camvid" style_swap_camvid; do \
		$(BIN)/python -m benchmarks.$$each || exit 1; done
	$(MAKE) benchmark-full
	$(BIN)/python -m benchmarks.mixes

test: $(STAMP)
	$(BIN)/pytest $(PARALLEL) $(CHOSEN)

test-slow: $(STAMP)
	$(BIN)/pytest $(PARALLEL) -m 'slow and not real_size' --timeout 900

test-gpu: $(STAMP)
	DATAGEN_TEST_GPU=1 $(BIN)/pytest -m slow tests/test_other_device.py

test-annotators: annotators
	$(BIN)/pytest tests/datagen/test_annotators.py

annotators: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[annotators]'

test-full: $(STAMP)
	$(BIN)/pytest -m 'slow or real_size or not slow' --timeout 3600

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
