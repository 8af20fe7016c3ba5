"""LiveKit Agents' own workers, which the faults are measured on beside Muster's: they answer, and are told apart."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bench.native.call import native_call
from bench.native.fleet import NativeFleet
from local.caller_voice import CallerVoice
from local.marks import marks_of
from local.parts import LIVEKIT, PROVIDERS, REDIS, StackOptions
from local.stack import Stack

PARTS = frozenset({REDIS, LIVEKIT, PROVIDERS})


def living_processes() -> set[int]:
    return {process.pid for process in psutil.process_iter() if process.status() != psutil.STATUS_ZOMBIE}


@pytest.mark.slow
async def test_a_native_worker_answers_a_call_in_a_process_that_is_known(
    start_stack: Callable[[StackOptions], Stack], tmp_path: Path
) -> None:
    stack = start_stack(StackOptions(parts=PARTS, preferred_ports=False, marked=True, home=tmp_path))
    try:
        voice = CallerVoice(providers=stack.urls[PROVIDERS])
        question = await asyncio.to_thread(voice.render, " ".join(map(str, marks_of(0, 3))))
        async with (
            NativeFleet(stack=stack, home=tmp_path, workers=1) as fleet,
            native_call(fleet, stack.settings, question) as call,
        ):
            assert await call.is_answered()
            agent = await call.agent()
            [worker] = fleet.workers
            assert fleet.worker_of(agent) is worker
            assert agent.pid in living_processes()
        assert agent.pid not in living_processes(), "the fleet's end leaves no job process"
    finally:
        stack.stop()
