# Thin: one purpose a target; what needs a program is in tools/. `make` alone prints the list.

VENV ?= .venv
# The interpreter that makes the virtual environment; empty: tools/find-python.sh looks for one.
PYTHON ?=
# More arguments for pytest, such as PYTEST="-k placement -x".
PYTEST ?=
# How many tests run at once: most of them wait for processes. The slow ones run one at a time.
JOBS ?= 3
# Benchmarks to run, such as BENCH=restart or BENCH="memory threads"; empty: all of them.
BENCH ?=

BIN = $(VENV)/bin
# A stamp for each set of extras: installed again only when what says what to install has changed.
PACKAGING = setup.cfg setup.py pyproject.toml
CONFIG = conf/workers.ini

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test test-slow test-versions lint bench docs clean

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 24

run: $(VENV)/.installed-run ## install what the digits example needs and run it in the foreground
	@echo
	@echo "In another terminal, here:"
	@echo "    $(BIN)/modelsupervisor predict -c $(CONFIG) digits models/digits/samples/7.png"
	@echo "    $(BIN)/modelsupervisor status -c $(CONFIG)"
	@echo
	@exec $(BIN)/modelsupervisor start -c $(CONFIG)

test: $(VENV)/.installed-test ## run the test suite, without what is marked slow
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) $(PYTEST)

test-slow: $(VENV)/.installed-test ## run the tests that are marked slow
	$(BIN)/python -m pytest -m slow $(PYTEST)

test-versions: ## run the suite on every Python 3.10 to 3.13 that is installed
	tools/test-versions.sh $(PYTEST)

lint: $(VENV)/.installed-develop ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-test ## measure restarts, capture, memory, threads and the rest
	$(BIN)/python -m benchmarks.run $(BENCH)

docs: $(VENV)/.installed-run ## write the reference pages that are made from the code
	$(BIN)/python tools/configuration_page.py --write
	$(BIN)/python tools/events_page.py --write

clean: ## remove virtual environments, caches and builds
	rm -rf $(VENV) .venv-3.* build dist supervisor/*.egg-info worker/*.egg-info *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find supervisor worker tests models benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-run: $(PACKAGING)
	@tools/install.sh $(VENV) mxnet,examples $(PYTHON)
	@touch $@

$(VENV)/.installed-test: $(PACKAGING)
	@tools/install.sh $(VENV) mxnet,examples,test $(PYTHON)
	@touch $@ $(VENV)/.installed-run

$(VENV)/.installed-develop: $(PACKAGING)
	@tools/install.sh $(VENV) mxnet,examples,test,develop $(PYTHON)
	@touch $@ $(VENV)/.installed-run $(VENV)/.installed-test
