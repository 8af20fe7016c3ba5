"""One stack for all scenarios of the short form."""

import os
from collections.abc import Callable, Iterator

import pytest

from bench.faults.play import Result
from bench.faults.run import Arena
from bench.faults.scenario import Scenario
from local.errors import LocalError


@pytest.fixture(scope="session")
def arena() -> Iterator[Arena]:
    with Arena(print) as arena:
        yield arena


@pytest.fixture
def play(arena: Arena) -> Callable[[Scenario], Result]:
    """Plays a scenario; without a part of the stack the test is skipped, on CI it fails."""

    def play(scenario: Scenario) -> Result:
        try:
            return arena.play(scenario)
        except LocalError as missing:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(missing))

    return play
