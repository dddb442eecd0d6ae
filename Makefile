# damfs: `make demo` shows the main job, `make test` runs the tests. Both install what is missing.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install packages check test drill demo bench lock clean

help:           ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

packages:       ## the Debian packages that are missing (apt, with sudo when not root)
	@tests/install-packages

$(VENV)/.installed: requirements-dev.txt pyproject.toml | packages
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "damfs needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

install: $(VENV)/.installed   ## damfs and its development tools in .venv

check: install  ## ruff, mypy --strict, the direction of the imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

test: install   ## every test, on real mounts; what measures time runs last and alone
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not alone' $(TEST_ARGS)
	$(BIN)/python -m pytest -m alone $(TEST_ARGS)

drill: install  ## the random tests and the kills with many more rounds: an hour or more
	DRILL=1 $(BIN)/python -m pytest -m drill $(TEST_ARGS)

demo: install   ## publish, mount and read real media, and compare every byte
	$(BIN)/python -m tests.demo

bench: install  ## ratios against cp, curl, s3fs, rclone, the native file, plain SQLite …, as a table and JSON
	@tests/install-packages bench
	$(BIN)/python -m tests.bench

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links --upgrade

lock: install   ## pin the newest dependencies, with their hashes
	$(COMPILE) --extra dev --output-file requirements-dev.txt pyproject.toml
	$(COMPILE) --constraint requirements-dev.txt --output-file requirements.txt pyproject.toml

clean:          ## everything that make made
	rm -rf $(VENV) build demo bench-results .mypy_cache .ruff_cache .pytest_cache .hypothesis
