"""What a caller has begun to say survives its owner: kept in a real Redis, and part of the next turn."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
import redis
from livekit.agents import LanguageCode, llm, stt

from tests.fleet_sessions import new_session
from tests.scripted_llm import says
from tests.test_call_drafts import conversation
from worker.call.open_turn import OpenTurn, joined
from worker.fleet import drafts, record_moves, records
from worker.fleet.errors import SessionNotFound, StaleEpoch
from worker.fleet.redis_operations import connect, connect_async, run
from worker.fleet.session import Session

OWNER = "owner@test#00000000"


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis"]:
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def session(client: "redis.Redis") -> Session:
    """A session that has an owner."""
    session = new_session()
    run(client, record_moves.create(session, lifetime=60))
    return run(client, record_moves.claim(session.session_id, epoch=1, owner=OWNER, lifetime=60))


def recognised(kind: stt.SpeechEventType, text: str) -> stt.SpeechEvent:
    return stt.SpeechEvent(kind, alternatives=[stt.SpeechData(language=LanguageCode("en"), text=text)])


@asynccontextmanager
async def listening(redis_url: str, session: Session) -> AsyncIterator[OpenTurn]:
    async with connect_async(redis_url) as client:
        open_turn = OpenTurn(session, client=client)
        keeping = asyncio.create_task(open_turn.keep())
        try:
            yield open_turn
        finally:
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping


def test_a_draft_is_the_owner_s_alone_and_expires(client: "redis.Redis", session: Session) -> None:
    run(client, drafts.write(session, "I would like"))
    assert run(client, drafts.read(session.session_id)) == "I would like"
    assert 0 < client.ttl(records.draft_key(session.session_id)) <= drafts.KEPT
    for stranger in (replace(session, epoch=2), replace(session, owner="stranger@test#0")):
        with pytest.raises(StaleEpoch):
            run(client, drafts.write(stranger, "to cancel"))
    with pytest.raises(SessionNotFound):
        run(client, drafts.write(new_session(), "anything"))
    assert run(client, drafts.read(session.session_id)) == "I would like"
    run(client, drafts.write(session, ""))
    assert run(client, drafts.read(session.session_id)) == ""


def test_the_turn_that_is_stored_takes_the_place_of_its_draft(client: "redis.Redis", session: Session) -> None:
    run(client, drafts.write(session, "I would like"))
    run(client, records.append_turn(session, {"role": "assistant", "text": "Yes?"}, lifetime=60))
    assert run(client, drafts.read(session.session_id)) == "I would like"
    with pytest.raises(StaleEpoch):
        late = replace(session, epoch=0)
        run(client, records.append_turn(late, {"role": "user", "text": "I would like tea."}, lifetime=60))
    assert run(client, drafts.read(session.session_id)) == "I would like"
    run(client, records.append_turn(session, {"role": "user", "text": "I would like tea."}, lifetime=60))
    assert run(client, drafts.read(session.session_id)) == ""


async def test_words_are_kept_while_the_turn_is_open_and_are_in_no_log(
    redis_url: str, client: "redis.Redis", session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    heard = [
        (stt.SpeechEventType.PREFLIGHT_TRANSCRIPT, "I would", "I would"),
        (stt.SpeechEventType.PREFLIGHT_TRANSCRIPT, "I would like", "I would like"),
        (stt.SpeechEventType.FINAL_TRANSCRIPT, "I would like tea", "I would like tea"),
        (stt.SpeechEventType.PREFLIGHT_TRANSCRIPT, "and milk", "I would like tea and milk"),
    ]
    async with listening(redis_url, session) as open_turn:
        for kind, words, kept in heard:
            open_turn.heard(recognised(kind, words))
            async with asyncio.timeout(3):
                while run(client, drafts.read(session.session_id)) != kept:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert open_turn.close("I would like tea and milk.") == "I would like tea and milk."
        assert open_turn.words == ""
    assert "would" not in caplog.text


async def test_who_stands_by_keeps_nothing_and_goes_on(redis_url: str, client: "redis.Redis", session: Session) -> None:
    run(client, drafts.write(session, "what the owner has heard"))
    async with listening(redis_url, replace(session, epoch=2, owner="successor@test#0")) as open_turn:
        open_turn.heard(recognised(stt.SpeechEventType.PREFLIGHT_TRANSCRIPT, "heard by both"))
        await asyncio.sleep(0.3)
        assert open_turn.words == "heard by both"
    assert run(client, drafts.read(session.session_id)) == "what the owner has heard"


@pytest.mark.parametrize(
    ("cut_off", "words", "whole"),
    [
        ("How much is", "the premium plan?", "How much is the premium plan?"),
        ("How much is", "How much, is the premium plan?", "How much, is the premium plan?"),
        ("How much is", "", "How much is"),
        ("", "The premium plan.", "The premium plan."),
    ],
)
def test_what_was_cut_off_begins_the_next_turn_unless_it_is_said_again(cut_off: str, words: str, whole: str) -> None:
    assert joined(cut_off, words) == whole


async def test_the_next_turn_is_answered_and_stored_with_what_was_cut_off(redis_url: str) -> None:
    async with conversation(redis_url, says("Never said."), says("Forty nine."), says("Nine.")) as talk:
        talk.open_turn.cut_off = "How much is"
        talk.hear_draft("the premium plan")
        await asyncio.sleep(0.1)
        await talk.hear("the premium plan?")
        assert talk.model.requests[-1].messages[-1].content == "How much is the premium plan?"
        await talk.hear("When do you open?")
        assert await talk.turns() == [
            ("user", "How much is the premium plan?"),
            ("assistant", "Forty nine."),
            ("user", "When do you open?"),
            ("assistant", "Nine."),
        ]


async def test_what_was_cut_off_is_a_turn_when_the_caller_says_no_more(redis_url: str) -> None:
    async with conversation(redis_url, says("Forty nine.")) as talk:
        message = llm.ChatMessage(role="user", content=["How much is the premium plan"])
        await talk.voice_agent.say_for_caller(message)
        talk.voice.generate_reply(user_input=message)
        async with asyncio.timeout(5):
            await talk.answered.wait()
        assert await talk.turns() == [("user", "How much is the premium plan"), ("assistant", "Forty nine.")]
        assert [message.content for message in talk.agent.history] == ["How much is the premium plan", "Forty nine."]
