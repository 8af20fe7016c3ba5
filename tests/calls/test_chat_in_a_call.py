"""One conversation across channels: written, spoken, written while it is spoken, and written again."""

import asyncio

from local.caller import Caller
from muster.client import ChatEvent
from tests.calls.calling import Fleet, new_room

CALLER = "ada"


async def write(fleet: Fleet, text: str, session_id: str | None = None) -> list[ChatEvent]:
    """The whole answer's events."""
    return await asyncio.to_thread(
        lambda: list(fleet.client.chat(text, user_id=CALLER, session_id=session_id, metadata=None))
    )


async def test_a_conversation_goes_from_text_to_the_phone_and_back(fleet: Fleet) -> None:
    written = await write(fleet, "How much is the premium plan?")
    first = written[0].session_id
    assert first is not None
    assert written[-1].specialist == "sales"

    room = new_room()
    session = await asyncio.to_thread(fleet.client.join, room=room, user_id=CALLER, continue_session=first)
    token = await asyncio.to_thread(fleet.client.token, room=room, identity=CALLER)
    async with Caller(url=token.url, token=token.token) as caller:
        await fleet.state(session.session_id, "live", within=15)
        await caller.heard.silent_since(await caller.heard.first_audible_after(0, within=10), gap=0.8, within=15)

        spoken = await caller.say(await asyncio.to_thread(fleet.voice.render, "And the family plan?"))
        answered_at = await caller.heard.first_audible_after(spoken.ended_at, within=12)
        await caller.heard.silent_since(answered_at, gap=1.0, within=30)
        live = await write(fleet, "And the basic plan?", session.session_id)
    await fleet.over(session.session_id, within=30)
    after = await write(fleet, "Thank you.", session.session_id)

    assert (live[0].status, live[-1].kind, live[-1].specialist) == ("live", "done", "sales")
    assert (after[0].status, after[-1].kind) == ("ended", "done")
    turns = [turn for turn in await fleet.turns(session.session_id) if turn.role != "event"]
    assert [(turn.role, turn.channel) for turn in turns] == [
        ("assistant", "voice"),
        ("user", "voice"),
        ("assistant", "voice"),
        ("user", "chat"),
        ("assistant", "chat"),
        ("user", "chat"),
        ("assistant", "chat"),
    ]
    # The one who answered in text answers on the phone, without a hand-over.
    assert turns[2].specialist == "sales"
    assert turns[3].text == "And the basic plan?"
    ended = await asyncio.to_thread(fleet.client.session, session.session_id)
    assert (ended.status, ended.continues) == ("ended", first)
