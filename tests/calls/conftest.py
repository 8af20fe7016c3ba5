"""Real calls: a whole local stack, and a second fleet beside it whose timers run out fast."""

import os
from collections.abc import Callable, Iterator

import pytest

from local.caller_voice import CallerVoice
from local.errors import LocalError
from local.parts import AGENT_SERVICE, ALL_PARTS, CONTROL_PLANE, PROVIDERS, WORKER, StackOptions
from local.stack import Stack
from muster.client import MusterClient
from tests.calls.calling import Fleet

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
            return Stack(options=options).__enter__()
        except LocalError as missing:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(missing))

    return start


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
            yield Fleet(stack=stack, client=client, voice=voice, providers=stack.urls[PROVIDERS])
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def impatient_fleet(
    fleet: Fleet, start_stack: Callable[[StackOptions], Stack], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """An agent service and a worker of their own on the same servers, in another Redis database."""
    shared = dict(fleet.stack.settings)
    shared["REDIS_URL"] = shared["REDIS_URL"].removesuffix("/0") + "/1"
    del shared["AGENT_SERVICE_URL"]
    stack = start_stack(
        StackOptions(
            parts=frozenset({AGENT_SERVICE, CONTROL_PLANE, WORKER}),
            slots=2,
            preferred_ports=False,
            home=tmp_path_factory.mktemp("impatient"),
            environment=shared | BRIEF | IMPATIENT,
        )
    )
    try:
        with MusterClient(stack.urls[AGENT_SERVICE], control_plane=stack.urls[CONTROL_PLANE]) as client:
            yield Fleet(stack=stack, client=client, voice=fleet.voice, providers=fleet.providers)
    finally:
        stack.stop()
