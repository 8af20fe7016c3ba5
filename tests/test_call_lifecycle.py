"""What a call does by itself, without a room: its last words."""

import asyncio
from types import SimpleNamespace
from typing import Any

from livekit.agents import AgentSession

from tests.fleet_sessions import new_session
from worker.call.ending import Ending
from worker.call.lifecycle import Call
from worker.fleet.session import Reason


class ClosingVoice(AgentSession[None]):
    """A pipeline that is just being closed."""

    def __init__(self) -> None:
        pass

    def say(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("AgentSession is closing, cannot use say()")


class SilentCall(Call):
    """A call without a room, after a first turn has failed."""

    def __init__(self, ending: Ending) -> None:
        self._ending, self._session = ending, new_session()
        self._settings: Any = SimpleNamespace(farewell="Goodbye.")
        self._voice, self._spoken, self._failures = ClosingVoice(), {}, 1

    def fail(self) -> None:
        """The next turn fails, too."""
        self._turn_failed()


async def test_a_call_whose_farewell_cannot_be_said_ends() -> None:
    ending = Ending("session")
    SilentCall(ending).fail()
    async with asyncio.timeout(1):
        await ending.wait()
    assert ending.reason is Reason.INTERNAL_ERROR
