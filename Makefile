# One target per thing people do. Each makes what it needs, on a machine with Python 3.10+ and make.
#
#   make setup PYTHON=python3.12              another interpreter (before .venv exists)
#   make setup PIP_FLAGS="--find-links DIR"  anything else that pip should know
#   make test PYTEST_FLAGS="-k layout"        any pytest option; -m slow runs the long tests
#   make test TEST_JOBS=0                    in one process, such as for a debugger
PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_FLAGS ?=
TEST_JOBS ?= auto
BENCH_FLAGS ?=
FUZZ_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt $(PIP_FLAGS)
TREE := build/types/fxrebasin

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format types tree fuzz bench docs clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## make .venv with the pinned versions and the project, editable
	@echo "$(VENV) is ready."

# The stamp is written last: an interrupted set-up is taken up again by the next call. The build
# tool comes first and from the pins too, so that a set-up with nothing new needs no network.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no '$(PYTHON)'; name a Python 3.10 or newer: make setup PYTHON=python3.12" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "fxrebasin needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another interpreter: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || { \
		echo "Making $(VENV); the first time this downloads torch and what it needs."; \
		$(PYTHON) -m venv $(VENV); }
	$(PIP) setuptools
	$(PIP) --no-build-isolation --editable '.[demo,draw,models,test,site,dev]'
	@touch $@

demo: $(READY) ## rebasin two small models, verify on onnxruntime, draw the barrier
	$(BIN)/fxrebasin demo --overwrite

# Tests take one thread each, so there is a process for each core; files stay whole for their fixtures.
test: $(READY) ## run the tests
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile $(PYTEST_FLAGS)

lint: $(READY) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## mend style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy and the site know modules by their place, so they get links in the shape of the installed package.
tree:
	@rm -rf $(TREE) && mkdir -p $(TREE)
	@cd $(TREE) && ln -s ../../../fxrebasin/* ../../../passes ../../../exporters .

types: $(READY) tree ## check types, strictly
	cd $(TREE)/.. && ../../$(BIN)/mypy --config-file ../../pyproject.toml \
		--cache-dir ../../.mypy_cache -p fxrebasin

fuzz: $(READY) ## try random programs and damaged files; FUZZ_FLAGS="--seconds 600 --seed 1"
	$(BIN)/python -m tests.fuzz $(FUZZ_FLAGS)
	$(BIN)/python -m tests.corrupter $(FUZZ_FLAGS)

bench: $(READY) ## measure torchvision's models
	$(BIN)/python -m benchmarks.equivalence $(BENCH_FLAGS)

docs: $(READY) tree ## write the documentation site to build/site
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "The site is made with Python 3.11 or newer." >&2; exit 1; }
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "Open build/site/index.html"

clean: ## remove what the other targets wrote, except .venv
	rm -rf build dist fxrebasin.egg-info fxrebasin-demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find fxrebasin passes exporters tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)
