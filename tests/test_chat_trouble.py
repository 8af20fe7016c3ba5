"""Text turns when Redis or the broker is in trouble: whoever writes is told in time, and nothing is said twice."""

import time
from collections.abc import Iterator

import pytest

from local.ports import HOST, PortPicker
from tests.open_fleet import agent_service, client_of
from tests.redis_server import RedisServer
from worker.fleet import chats
from worker.fleet.chats import Reply, ReplyKind, TurnState
from worker.fleet.chatting import FOLLOW_TIMEOUT, FOLLOWED, ChatControl, ChatTurn
from worker.fleet.errors import StaleEpoch, StateUnavailable
from worker.fleet.redis_operations import connect, run
from worker.fleet.session import State
from worker.fleet.settings import FleetSettings

REFUSED_WITHIN = 2.5


@pytest.fixture
def control(own_redis: RedisServer) -> Iterator[ChatControl]:
    """Writes texts whose messages go nowhere."""
    with (
        connect(own_redis.url) as client,
        connect(own_redis.url, timeout=FOLLOW_TIMEOUT, connections=FOLLOWED) as replies,
    ):
        yield ChatControl(
            settings=FleetSettings.from_env({"REDIS_URL": own_redis.url, "MUSTER_CHAT_PATIENCE": "2"}),
            client=client,
            replies=replies,
            publish=lambda session_id, turn_id: None,
        )


def events(control: ChatControl, turn: ChatTurn) -> Iterator[Reply]:
    return (reply for reply in control.follow(turn) if reply is not None)


def test_a_frozen_redis_refuses_a_text_in_time_and_takes_it_when_it_thaws(own_redis: RedisServer) -> None:
    service = agent_service(own_redis.url, MUSTER_CHAT_PATIENCE="0.1").test_client()
    asked = {"user_id": "ada", "text": "Hello"}
    with own_redis.frozen():
        started = time.monotonic()
        refused = service.post("/chat", json=asked)
        assert time.monotonic() - started < REFUSED_WITHIN
    assert (refused.status_code, refused.get_json()["code"]) == (503, "redis_unavailable")
    assert refused.headers["Retry-After"] == "1"
    time.sleep(1.1)

    taken = service.post("/chat", json=asked)

    assert taken.status_code == 200
    assert "nobody_answers" in taken.text


def test_a_broker_that_is_away_refuses_a_text_and_does_not_keep_it(own_redis: RedisServer) -> None:
    absent = f"redis://{HOST}:{PortPicker().pick()}/0"
    service = agent_service(own_redis.url, BROKER_URL=absent).test_client()

    refused = service.post("/chat", json={"user_id": "ada", "text": "Hello"})

    assert (refused.status_code, refused.get_json()["code"]) == (503, "redis_unavailable")
    with client_of(own_redis.url) as client:
        assert list(client.scan_iter("muster:{s:*}:chat*")) == []


def test_an_answer_that_redis_withholds_ends_with_an_error(control: ChatControl, own_redis: RedisServer) -> None:
    turn = control.write(user_id="ada", text="Hello")
    with client_of(own_redis.url) as client:
        taken = run(client, chats.claim(turn.session_id, turn.turn_id, owner="chat@test#1"))
        assert taken is not None
        run(client, chats.reply(taken.session, turn.turn_id, Reply(ReplyKind.TEXT, {"text": "Hi", "specialist": "a"})))
    told = events(control, turn)
    assert next(told).data["text"] == "Hi"
    with own_redis.frozen():
        started = time.monotonic()
        rest = list(told)
        assert time.monotonic() - started < 20
    assert [(reply.kind, reply.data["code"]) for reply in rest] == [(ReplyKind.ERROR, "redis_unavailable")]


def test_an_answer_survives_a_redis_that_hangs_up(control: ChatControl, own_redis: RedisServer) -> None:
    turn = control.write(user_id="ada", text="Hello")
    with client_of(own_redis.url) as client:
        taken = run(client, chats.claim(turn.session_id, turn.turn_id, owner="chat@test#1"))
        assert taken is not None
        told = control.follow(turn)
        assert next(told) is None
        own_redis.hang_up()
        done = Reply(ReplyKind.DONE, {"text": "Hi"})
        run(client, chats.reply(taken.session, turn.turn_id, done, after=TurnState.DONE))
    assert [reply.kind for reply in told if reply is not None] == [ReplyKind.DONE]


def test_an_event_that_only_a_newer_worker_knows_is_passed_over(control: ChatControl, own_redis: RedisServer) -> None:
    turn = control.write(user_id="ada", text="Hello")
    with client_of(own_redis.url) as client:
        taken = run(client, chats.claim(turn.session_id, turn.turn_id, owner="chat@test#1"))
        assert taken is not None
        client.xadd(chats.replies_key(turn.session_id, turn.turn_id), {"kind": "picture", "data": "{}"})
        done = Reply(ReplyKind.DONE, {"text": "Hi"})
        run(client, chats.reply(taken.session, turn.turn_id, done, after=TurnState.DONE))
    assert [reply.kind for reply in events(control, turn)] == [ReplyKind.DONE]


def test_who_has_lost_a_session_writes_nothing_into_its_answers(control: ChatControl, own_redis: RedisServer) -> None:
    turn = control.write(user_id="ada", text="Hello")
    with client_of(own_redis.url) as client:
        first = run(client, chats.claim(turn.session_id, turn.turn_id, owner="chat@test#1"))
        assert first is not None
        assert first.text == "Hello"
        # It is taken once.
        assert run(client, chats.claim(turn.session_id, turn.turn_id, owner="chat@test#2")) is None
        client.delete(f"muster:{{s:{turn.session_id}}}:chat")
        other = control.write(user_id="ada", text="Anybody?", session_id=turn.session_id)
        second = run(client, chats.claim(turn.session_id, other.turn_id, owner="chat@test#2"))
        assert second is not None
        assert second.session.epoch == first.session.epoch + 1
        with pytest.raises(StaleEpoch):
            run(client, chats.keep(first.session, turn.turn_id))
        with pytest.raises(StaleEpoch):
            run(client, chats.reply(first.session, turn.turn_id, Reply(ReplyKind.TEXT, {})))
        run(client, chats.keep(second.session, other.turn_id))


def test_a_lost_answer_to_a_written_text_is_repeated_and_the_text_taken_once(
    control: ChatControl, own_redis: RedisServer
) -> None:
    first = control.write(user_id="ada", text="Hello", idempotency_key="key")
    again = control.write(user_id="ada", text="Hello", idempotency_key="key")

    assert again == first
    assert first.status is State.CHAT
    with client_of(own_redis.url) as client:
        taken = [run(client, chats.claim(first.session_id, first.turn_id, owner="chat@test#1")) for _ in range(2)]
    assert [one is None for one in taken] == [False, True]


def test_nobody_is_told_an_answer_of_a_redis_that_forgot_it(control: ChatControl, own_redis: RedisServer) -> None:
    turn = control.write(user_id="ada", text="Hello")
    with client_of(own_redis.url) as client:
        client.flushdb()
    (told,) = events(control, turn)
    assert (told.kind, told.data["code"]) == (ReplyKind.ERROR, "turn_not_found")
    with pytest.raises(StateUnavailable), own_redis.frozen():
        control.find(turn.session_id, turn.turn_id)


def test_an_answer_that_outlives_its_turn_in_redis_leaves_nothing_for_ever(
    control: ChatControl, own_redis: RedisServer
) -> None:
    turn = control.write(user_id="ada", text="Hello")
    with client_of(own_redis.url) as client:
        taken = run(client, chats.claim(turn.session_id, turn.turn_id, owner="chat@test#1"))
        assert taken is not None
        # As when a call registers again in an emptied Redis.
        client.delete(f"muster:{{s:{turn.session_id}}}:chat:{turn.turn_id}")
        done = Reply(ReplyKind.DONE, {"text": "Hi"})
        run(client, chats.reply(taken.session, turn.turn_id, done, after=TurnState.DONE))
        assert [key for key in client.scan_iter("muster:{s:*") if client.pttl(key) < 0] == []
