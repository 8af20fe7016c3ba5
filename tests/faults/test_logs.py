"""An error in a background task fails a scenario, although the call it belonged to went on."""

import asyncio
import logging
from pathlib import Path

import pytest

from bench.faults.logs import unseen_errors

HERE = Path(__file__).parent


async def test_an_error_that_nobody_took_is_found_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    async def breaks() -> None:
        raise ValueError("broken")

    task = asyncio.create_task(breaks())
    await asyncio.wait([task])
    with caplog.at_level(logging.ERROR):
        del task
    [error] = unseen_errors(caplog.text.splitlines(), root=HERE)
    assert "breaks() done" in error
    assert "ValueError('broken')" in error


async def test_so_is_one_in_a_callback(caplog: pytest.LogCaptureFixture) -> None:
    def breaks() -> None:
        raise ValueError("broken")

    with caplog.at_level(logging.ERROR):
        asyncio.get_running_loop().call_soon(breaks)
        await asyncio.sleep(0.01)
    assert len(unseen_errors(caplog.text.splitlines(), root=HERE)) == 1


def test_a_librarys_own_is_none_of_ours() -> None:
    library = "future: <Task finished coro=<close() done, defined at /x/site-packages/y.py:1> exception=OSError()>"
    assert not unseen_errors([library, "Task exception was never retrieved"], root=Path("/x"))
