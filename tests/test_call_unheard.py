"""An agent that is not heard after its connection was mended, or has no track in the room, makes way for another."""

import asyncio

from livekit import rtc

from worker.call.ending import Ending
from worker.call.unheard import Unheard, patience
from worker.fleet.recovery import MOST_IN_A_ROW


async def given_back(
    *,
    is_mended: bool = False,
    is_due: bool = True,
    is_published: bool = True,
    is_heard: bool = False,
    within: float = 0.05,
) -> bool:
    ending, room = Ending("s"), rtc.Room()
    unheard = Unheard(
        room,
        session_id="s",
        ending=ending,
        is_due=lambda: is_due,
        is_published=lambda: is_published,
        heard_within=0.05,
        published_within=within,
    )
    watching = asyncio.create_task(unheard.watch())
    if is_mended:
        room.emit("reconnected")
    if is_heard:
        unheard.stop()
    await asyncio.sleep(1.2)
    unheard.stop()
    await watching
    assert ending.is_lost == ending.given_back
    return ending.given_back


async def test_a_caller_who_does_not_hear_a_mended_agent_gets_another_one() -> None:
    assert await given_back(is_mended=True)


async def test_a_caller_in_whose_room_the_agent_has_no_track_gets_another_one() -> None:
    assert await given_back(is_published=False)


async def test_the_last_owners_that_a_session_may_have_wait_as_long_as_it_takes() -> None:
    assert await given_back(is_published=False, within=patience(0) / 100)
    assert await given_back(is_published=False, within=patience(MOST_IN_A_ROW - 2) / 100)
    assert not await given_back(is_published=False, within=patience(MOST_IN_A_ROW - 1) / 100)


async def test_an_agent_that_is_heard_stays() -> None:
    assert not await given_back(is_mended=True, is_heard=True)


async def test_nobody_makes_way_for_a_caller_who_is_not_there_or_while_another_agent_speaks() -> None:
    assert not await given_back(is_mended=True, is_published=False, is_due=False)


async def test_a_connection_that_was_never_lost_has_all_its_time() -> None:
    assert not await given_back()
