"""Real calls: a whole local stack, and a second fleet beside it whose timers run out fast."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from local.caller_voice import CallerVoice
from local.errors import LocalError
from local.parts import AGENT_SERVICE, ALL_PARTS, CONTROL_PLANE, PROVIDERS, WORKER, StackOptions
from local.stack import Stack
from muster.client import MusterClient
from tests.calls.calling import Fleet
from worker.fleet import admission, workers
from worker.fleet.errors import StateUnavailable
from worker.fleet.redis_operations import connect, run

#: Short words, so that a test does not wait for long ones.
BRIEF = {
    "MUSTER_GREETING": "Hello.",
    "MUSTER_APOLOGY": "Sorry, again please.",
    "MUSTER_FAREWELL": "Sorry, goodbye.",
    "MUSTER_PROVIDER_TIMEOUT": "2",
}
#: Seconds; every timer of the impatient fleet is far below the usual one, and long enough to join a room.
IMPATIENT = {
    "MUSTER_CALLER_ARRIVAL_TIMEOUT": "2",
    "MUSTER_CALLER_LOST_GRACE": "3",
    "MUSTER_IDLE_TIMEOUT": "3",
    "MUSTER_MAX_DURATION": "8",
}


@pytest.fixture(scope="session")
def start_stack(tmp_path_factory: pytest.TempPathFactory) -> Callable[[StackOptions], Stack]:
    """Starts a stack; without one of its parts tests are skipped, on CI they fail."""

    def start(options: StackOptions) -> Stack:
        try:
            return _started(options)
        except LocalError as missing:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(missing))

    return start


def _started(options: StackOptions) -> Stack:
    """A stack that serves. Its joins are open at once: that they usually wait for a lease is tested elsewhere."""
    stack = Stack(options=options)
    stack.launch()
    try:
        # One that uses the Redis of another has no own one to tell of.
        _open_joins({**options.environment, **stack.settings}["REDIS_URL"])
        stack.wait_ready()
    except BaseException:
        stack.stop()
        raise
    return stack


def _open_joins(redis_url: str) -> None:
    """Wait for the Redis of a stack that starts, and let `/join` admit sessions."""
    deadline = time.monotonic() + 20
    with connect(redis_url) as client:
        while True:
            try:
                run(client, admission.open_joins("default"))
                return run(client, workers.open_joins("tests"))
            except StateUnavailable:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def _end(stack: Stack) -> None:
    """At once; that a stack ends in order is tested elsewhere."""
    stack.kill_all()
    stack.stop()


@pytest.fixture(scope="session")
def fleet(start_stack: Callable[[StackOptions], Stack], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A whole stack with one worker of two slots."""
    stack = start_stack(
        StackOptions(
            parts=ALL_PARTS,
            slots=2,
            preferred_ports=False,
            home=tmp_path_factory.mktemp("stack"),
            environment=BRIEF,
        )
    )
    try:
        with MusterClient(stack.urls[AGENT_SERVICE], control_plane=stack.urls[CONTROL_PLANE]) as client:
            voice = CallerVoice(providers=stack.urls[PROVIDERS])
            yield Fleet(
                stack=stack,
                client=client,
                voice=voice,
                providers=stack.urls[PROVIDERS],
                settings=stack.settings,
            )
    finally:
        _end(stack)


@pytest.fixture(scope="session")
def impatient_fleet(
    fleet: Fleet, start_stack: Callable[[StackOptions], Stack], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """An agent service and a worker of their own on the same servers, in another Redis database."""
    yield from _beside(fleet, start_stack, tmp_path_factory.mktemp("impatient"), database=1, environment=IMPATIENT)


@pytest.fixture(scope="session")
def pair(
    fleet: Fleet, start_stack: Callable[[StackOptions], Stack], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """The same with two workers of two slots."""
    yield from _beside(fleet, start_stack, tmp_path_factory.mktemp("pair"), database=3, workers=2)


def _beside(
    fleet: Fleet,
    start_stack: Callable[[StackOptions], Stack],
    home: Path,
    *,
    database: int,
    workers: int = 1,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Fleet]:
    shared = dict(fleet.stack.settings)
    shared["REDIS_URL"] = f"{shared['REDIS_URL'].removesuffix('/0')}/{database}"
    del shared["AGENT_SERVICE_URL"]
    stack = start_stack(
        StackOptions(
            parts=frozenset({AGENT_SERVICE, CONTROL_PLANE, WORKER}),
            workers=workers,
            slots=2,
            preferred_ports=False,
            home=home,
            environment={**shared, **BRIEF, **environment},
        )
    )
    try:
        with MusterClient(stack.urls[AGENT_SERVICE], control_plane=stack.urls[CONTROL_PLANE]) as client:
            yield Fleet(
                stack=stack,
                client=client,
                voice=fleet.voice,
                providers=fleet.providers,
                settings={**shared, **stack.settings},
            )
    finally:
        _end(stack)
