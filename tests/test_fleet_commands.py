"""Commands of a session are applied at most once, although every owner reads their stream from the beginning."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.fleet_sessions import new_session
from worker.call.handing_over import Messages, Wish
from worker.fleet import chats, record_moves, records
from worker.fleet.chats import THINK
from worker.fleet.errors import StaleEpoch
from worker.fleet.redis_operations import connect, run
from worker.fleet.session import Reason, Session, State

FIRST, SECOND = "first@test#1", "second@test#2"


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis"]:
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def live(client: "redis.Redis") -> Session:
    session = new_session()
    run(client, record_moves.create(session, lifetime=60))
    return go_live(client, session, owner=FIRST)


def go_live(client: "redis.Redis", session: Session, *, owner: str) -> Session:
    run(client, record_moves.claim(session.session_id, epoch=session.epoch, owner=owner, lifetime=60))
    step = record_moves.move(
        session.session_id, State.LIVE, epoch=session.epoch, owner=owner, lifetime=60, stamp="first_audio_at"
    )
    return run(client, step)


def succeed(client: "redis.Redis", live: Session) -> Session:
    """The session as its next owner has it, after the first one was lost."""
    recovering = run(client, record_moves.recover(live, most=3, settled=60, patience=30, lifetime=60))
    return go_live(client, recovering, owner=SECOND)


def commands(client: "redis.Redis", session: Session) -> list[dict[str, str]]:
    found: Any = client.xrange(records.commands_key(session.session_id))
    return [fields for _, fields in found]


def write(client: "redis.Redis", session: Session, turn_id: str) -> None:
    step = chats.write(
        session.session_id,
        turn_id,
        tenant=session.tenant,
        user_id=session.user_id,
        text="How much is it?",
        digest="digest",
        patience=10,
        command_lifetime=60,
    )
    assert run(client, step).way == THINK


def test_a_request_to_hand_over_is_not_for_the_owner_after_the_one_that_was_asked(
    client: "redis.Redis", live: Session
) -> None:
    run(client, record_moves.ask(live.session_id, to="worker-2", command_id=uuid.uuid4().hex, lifetime=60))
    successor = succeed(client, live)
    heard = {owner.epoch: Wish() for owner in (live, successor)}
    for epoch, wish in heard.items():
        for command in commands(client, live):
            assert Messages.none().hear(command, epoch=epoch, wish=wish)
    assert [wish.to for wish in heard.values()] == ["worker-2", ""]


def test_a_pass_and_the_word_before_it_are_for_one_epoch(client: "redis.Redis", live: Session) -> None:
    offered = run(client, record_moves.offer(live)).offered_epoch
    run(client, record_moves.stand_by(live.session_id, offered=offered, owner=SECOND))
    passed = run(client, record_moves.give(live, offered=offered, is_open=False, lifetime=60))
    later = succeed(client, passed)
    heard = {owner.epoch: Messages.none() for owner in (live, passed, later)}
    for epoch, messages in heard.items():
        for command in commands(client, live):
            messages.hear(command, epoch=epoch, wish=Wish())
    assert [messages.passed.is_set() for messages in heard.values()] == [False, True, False]
    assert run(client, record_moves.offer(later)).offered_epoch not in heard


def test_a_text_that_was_taken_is_not_taken_by_the_next_owner(client: "redis.Redis", live: Session) -> None:
    write(client, live, "turn")
    assert run(client, chats.take(live, "turn")) is not None
    successor = succeed(client, live)
    assert [command["kind"] for command in commands(client, live)] == [THINK]
    assert run(client, chats.take(successor, "turn")) is None


def test_a_text_that_nobody_has_taken_is_taken_by_the_next_owner_and_not_by_the_last(
    client: "redis.Redis", live: Session
) -> None:
    write(client, live, "turn")
    successor = succeed(client, live)
    with pytest.raises(StaleEpoch):
        run(client, chats.take(live, "turn"))
    assert run(client, chats.take(successor, "turn")) is not None


def test_a_wish_to_leave_outlives_its_owner_and_ends_the_session_once(client: "redis.Redis", live: Session) -> None:
    run(client, record_moves.leave(live.session_id, command_id="1", lifetime=60))
    successor = succeed(client, live)
    assert [command["kind"] for command in commands(client, live)] == ["leave"]
    run(client, record_moves.end(successor, Reason.LEFT))
    assert run(client, record_moves.leave(live.session_id, command_id="2", lifetime=60)).outcome == "over"
    assert len(commands(client, live)) == 1
