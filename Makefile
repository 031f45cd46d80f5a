# make reproduce   sets up .venv and brings a profile up to date; PROFILE=smoke PAPER=xmoe JOBS=4 choose, the default is cpu: hours;
#                  PAPER=xmoe METHOD=name trains that method alone and adds it to the tables that are there
# make tables      tables and figures from the records in git, in seconds; PROFILE= and PAPER= choose
# make test        the tests; make test-slow: those that CI runs besides; make lint: format, style, types, imports
# make setup       .venv from requirements.lock, once; make clean: removes caches, keeps .venv, data and runs

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin

.PHONY: reproduce tables test test-slow lint setup clean

reproduce: setup
	@$(BIN)/python -m moebench run $(if $(PROFILE),--profile $(PROFILE)) $(if $(PAPER),--paper $(PAPER)) $(addprefix --method ,$(METHOD)) $(if $(JOBS),--jobs $(JOBS))

tables: setup
	@$(BIN)/python -m moebench tables $(if $(PROFILE),--profile $(PROFILE)) $(if $(PAPER),--paper $(PAPER))

TESTS := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

test: setup
	$(TESTS)

test-slow: setup
	$(TESTS) -m slow

lint: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "moebench needs Python 3.11 or newer; name one with: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up $(VENV) from requirements.lock (a few minutes, once)"
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info build
	find moebench tests -name __pycache__ -type d -prune -exec rm -rf {} +
