# Every target sets up what it needs: a virtual environment in $(VENV), with the extras it uses.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet
TEST_EXTRAS := torch,onnx,bench,plan,tune,compare,dev
PYTEST_ARGS ?=

.PHONY: help demo test test-slow lint format bench wheel clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       compile, verify and time the shipped ResNet-20 models"
	@echo "make test       run the tests"
	@echo "make test-slow  run the slow tests too"
	@echo "make bench      compare with ONNX Runtime in one run"
	@echo "make lint       ruff and mypy"
	@echo "make wheel      build a wheel into dist/"

$(PY):
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: setup.cfg pyproject.toml | $(PY)
	@echo "installing into $(VENV) ..."
	$(PIP) --editable ".[torch]"
	@touch $@

$(VENV)/.test: setup.cfg pyproject.toml | $(PY)
	@echo "installing into $(VENV) ..."
	$(PIP) --editable ".[$(TEST_EXTRAS)]"
	@touch $@

demo: $(VENV)/.demo
	$(PY) examples/demo.py

test: $(VENV)/.test
	$(PY) -m pytest $(PYTEST_ARGS)

test-slow: $(VENV)/.test
	$(PY) -m pytest -m "slow or not slow" $(PYTEST_ARGS)

bench: $(VENV)/.test
	$(PY) benchmarks/cpu_resnet.py

lint: $(VENV)/.test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(VENV)/.test
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

wheel: | $(PY)
	$(PY) -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
