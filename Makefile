PYTHON ?= python3
SOURCES = $(wildcard celeryconfig.py graphs worker api muster local bench tests)

.PHONY: help setup demo up test check

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup:  ## virtual environment and LiveKit server; instant when they are there
	@$(PYTHON) -m local.setup

demo: setup  ## start the stack, hold one spoken call, stop
	@.venv/bin/muster demo

up: setup  ## start the stack and stay
	@.venv/bin/muster up

test: setup  ## the whole test suite, on real parts
	@.venv/bin/python -m pytest

check: setup  ## lint, format and types
	@.venv/bin/ruff check $(SOURCES)
	@.venv/bin/ruff format --check $(SOURCES)
	@.venv/bin/mypy $(SOURCES)
