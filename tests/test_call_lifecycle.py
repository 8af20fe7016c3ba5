"""What a call does by itself, without a room: its last words."""

import asyncio
from types import SimpleNamespace

from tests.fleet_sessions import new_session
from worker.call.ending import Ending
from worker.call.lifecycle import Call
from worker.fleet.session import Reason


def silent_call(ending: Ending) -> Call:
    """A call without a pipeline."""
    call = object.__new__(Call)
    call._ending, call._session, call._failures = ending, new_session(), 1
    call._settings = SimpleNamespace(farewell="Goodbye.")  # type: ignore[assignment]
    return call


async def test_a_call_whose_farewell_cannot_be_said_ends() -> None:
    ending = Ending("session")
    call = silent_call(ending)

    def say(text: str, *, interruptible: bool = True) -> None:
        raise RuntimeError("closing")

    call._say = say  # type: ignore[method-assign,assignment]
    call._turn_failed()
    async with asyncio.timeout(1):
        await ending.wait()
    assert ending.reason is Reason.INTERNAL_ERROR
