"""LiveKit's client in a process that is refused at first."""

import asyncio
import os
import sys
import uuid

from bench.marked_call import caller_token
from local.caller import Caller
from tests.calls.calling import Fleet


async def test_a_process_that_is_refused_in_its_first_attempts_to_join_hears_the_caller(fleet: Fleet) -> None:
    room = f"first-{uuid.uuid4().hex}"
    async with Caller(url=fleet.settings["LIVEKIT_URL"], token=caller_token(fleet.settings, room)):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.first_room_process", room),
            env={**os.environ, **fleet.settings},
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await process.communicate()
    assert told.decode() == "hears\n"
    assert process.returncode == 0
