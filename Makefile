PYTHON ?= python3
SOURCES = $(wildcard celeryconfig.py graphs worker api muster local bench deploy examples tests)

.PHONY: help setup demo up test e2e check bench faults fresh platforms

# Live calls and the dead man need the machine for themselves; other tests mostly wait: two processes share them, each
# with a Redis server of its own. A server that is given is one, and its databases are emptied.
ALONE = tests/calls $(wildcard tests/faults) tests/test_call_dead_man.py
SIDE_BY_SIDE = $(if $(TEST_REDIS_URL),,--numprocesses 2 --dist loadfile --no-loadscope-reorder)

help:  ## what can be made
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup:  ## virtual environment and LiveKit server; instant when they are there
	@$(PYTHON) -m local.setup

demo: setup  ## start the stack, hold one spoken call, stop
	@.venv/bin/muster demo

up: setup  ## start the stack and stay
	@.venv/bin/muster up

test: setup  ## the test suite, on real parts
	@.venv/bin/python -m pytest $(SIDE_BY_SIDE) $(ALONE:%=--ignore=%)
	@.venv/bin/python -m pytest $(ALONE)

e2e: setup  ## the slow tests
	@.venv/bin/python -m pytest -m slow

bench: setup  ## graph, memory, requests, joins, turns and their ends, measured on this machine
	@.venv/bin/python -m bench graph
	@.venv/bin/python -m bench memory
	@.venv/bin/python -m bench storage
	@.venv/bin/python -m bench requests
	@.venv/bin/python -m bench joins
	@.venv/bin/python -m bench turns
	@.venv/bin/python -m bench turns --first-token-delay 0.4
	@.venv/bin/python -m bench endpointing

faults: setup  ## 200 seeded scenarios of faults in real calls (an hour and a half)
	@.venv/bin/python -m bench faults --seeds 0-199 --output faults.jsonl --log faults.log

check: setup  ## lint, format and types
	@.venv/bin/ruff check $(SOURCES)
	@.venv/bin/ruff format --check $(SOURCES)
	@.venv/bin/mypy $(SOURCES)

fresh:  ## clone and demo as a new user in a home without any cache (5 minutes)
	@.ci/fresh

platforms: setup  ## whether each locked package has a wheel on each platform; needs uv
	@.venv/bin/python -m local.platforms
