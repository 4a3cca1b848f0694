# CONTRIBUTING.md lists the same commands without make.
#
#   make demo PYTHON=python3.12                          another Python
#   make demo PIP_ARGS="--index-url ADDRESS"             another package index, such as one with CPU builds of torch
#   make test PYTEST_ARGS="-k coco"                      a part of the tests

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
SCENES ?= 12
SEED ?= 7
OUT ?= demo-output
REVISION ?=
GPU_REPORT ?= gpu-report.json
TRAIN_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS)
REQUIREMENTS := pyproject.toml constraints.txt
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test

# Each process with a single thread; tests of one group run in the same process. The programs that tests start would
# compile the project each time if compiled modules were not kept.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder

# Without them, training returns its memory to the system after every step and requests it again in the next. The second
# ones are for glibc's own allocator, and others ignore them.
COMMA := ,
JEMALLOC := $(firstword $(wildcard /usr/lib/*/libjemalloc.so.2 /usr/lib64/libjemalloc.so.2))
KEEP_MEMORY := $(if $(JEMALLOC),LD_PRELOAD=$(JEMALLOC) MALLOC_CONF=dirty_decay_ms:-1$(COMMA)muzzy_decay_ms:-1,\
    MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=68719476736)

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick test-wheel test-gpu environments lint style format docs benchmark benchmark-against benchmark-gpu train-playground readers readers-table clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{ printf "  make %-18s %s\n", $$1, $$2 }'

demo: $(INSTALLED) ## label sample images with the embedded model; writes a COCO file and pages to open in a browser
	@echo "== Drawing $(SCENES) sample images"
	@rm -rf "$(OUT)"
	$(BIN)/tcl-annotate playground scenes --out "$(OUT)/scenes" --count $(SCENES) --seed $(SEED)
	@echo "== Labeling them with the embedded model"
	$(BIN)/tcl-annotate prelabel "$(OUT)/scenes" --labels "$(OUT)/scenes/labels.yaml" --model playground \
	    --out "$(OUT)/annotations.json" --preview "$(OUT)/preview"
	@echo "== Checking the COCO file"
	$(BIN)/tcl-annotate validate-coco "$(OUT)/annotations.json" --images "$(OUT)/scenes"
	@echo "== Comparing two methods on the first scenes"
	$(BIN)/tcl-annotate compare "$(OUT)/scenes/scene-000[1-4].png" --labels "$(OUT)/scenes/labels.yaml" \
	    --model playground --model maskclip:playground --title "Two methods on the same scenes" --preview "$(OUT)/compare"
	@echo
	@echo "Open in a browser:"
	@echo "  $(OUT)/compare/index.html   masks, polygons, tables of regions, and two methods side by side"
	@echo "  $(OUT)/preview/index.html   all images"
	@echo "COCO file:"
	@echo "  $(OUT)/annotations.json"

test: $(INSTALLED_TEST) style environments ## everything: lint, types, all tests, the built wheel
	@echo "== Tests, and types beside them"
	@mkdir -p build; $(BIN)/mypy > build/types.txt 2>&1 & types=$$!; \
	    TCL_ANNOTATE_WHEEL_TEST=reuse $(PYTEST) $(PYTEST_ARGS); tests=$$?; \
	    wait $$types || { cat build/types.txt; tests=1; }; exit $$tests

test-quick: $(INSTALLED_TEST) ## fast tests, while you work
	$(PYTEST) -q -m "not slow" $(PYTEST_ARGS)

test-wheel: $(INSTALLED_TEST) ## before a release: install the built wheel with PyTorch into an empty environment
	$(BIN)/python -m pytest tests/packaging/test_wheel.py $(PYTEST_ARGS)

environments: $(INSTALLED_TEST) ## create the environments that some tests need in build/, once
	@echo "== Environments of the tests (takes minutes the first time)"
	@$(BIN)/python -m tests.environments

test-gpu: $(INSTALLED) ## check training on this machine's GPU: speed, memory, agreement with the CPU (four minutes)
	$(BIN)/python -m training.gpu_check --out "$(GPU_REPORT)" --device cuda

lint: style ## style, formatting, types and the direction of imports
	$(BIN)/mypy

style: $(INSTALLED_TEST)
	@echo "== Style, formatting, imports"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(INSTALLED_TEST) ## apply ruff's fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED_TEST) ## API reference from the docstrings, in build/docs
	$(BIN)/python docs/build_reference.py build/docs
	@echo "API reference: build/docs/index.html"

benchmark: $(INSTALLED) ## measure polygons and speed on this machine
	$(BIN)/tcl-annotate benchmark polygons
	$(BIN)/tcl-annotate benchmark segment

benchmark-against: $(INSTALLED_TEST) ## compare the speed with another revision: make benchmark-against REVISION=56cd0a1
	@test -n "$(REVISION)" || { echo "Which revision? Run make benchmark-against REVISION=56cd0a1" >&2; exit 2; }
	$(BIN)/python benchmarks/compare_revision.py "$(REVISION)"

benchmark-gpu: $(INSTALLED) ## measure speed, memory and agreement with the CPU on a GPU, in four minutes
	$(BIN)/python -m benchmarks.gpu

readers: ## install libraries that read COCO files into .venv-readers, for the slow test of our files
	$(PYTHON) -m venv .venv-readers
	.venv-readers/bin/python -m pip install --quiet $(PIP_ARGS) -r tests/readers/requirements.txt

readers-table: $(INSTALLED_TEST) ## regenerate the table of docs/coco-readers.md
	$(BIN)/python -W ignore -m tests.readers.table

train-playground: $(INSTALLED) ## retrain the embedded model on two idle cores; resumes an interrupted run
	$(KEEP_MEMORY) $(BIN)/python -m training.playground $(TRAIN_ARGS)

clean: ## remove the environment and all outputs, except the training in build/playground
	rm -rf "$(VENV)" "$(OUT)" build/docs dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Stamp files: the environment is updated only when its requirements change.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit("tcl-annotate needs Python 3.11 or newer, not " + sys.version.split()[0] + "; run make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "== Creating the virtual environment $(VENV)"
	$(PYTHON) -m venv "$(VENV)"
	@touch $@

$(INSTALLED): $(VENV)/.made $(REQUIREMENTS)
	@echo "== Installing tcl-annotate (PyTorch is large; this can take several minutes)"
	$(PIP) --editable .
	@touch $@

$(INSTALLED_TEST): $(INSTALLED) $(REQUIREMENTS)
	@echo "== Installing the test tools"
	$(PIP) --editable ".[test]"
	@touch $@
