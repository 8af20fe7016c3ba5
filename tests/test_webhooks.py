"""LiveKit's webhooks: really signed, on a real Redis, and once sent by a real LiveKit server."""

import asyncio
import json
import os
import time
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from flask.testing import FlaskClient
from livekit import api, rtc
from werkzeug.test import TestResponse

from api.agent_service import create_app
from api.settings import AccessSettings, WebhookSettings
from api.webhooks import CLOCK_TOLERANCE, OLDEST
from local.errors import LiveKitMissing, RedisMissing
from local.parts import AGENT_SERVICE, LIVEKIT, REDIS, StackOptions
from local.ports import PortPicker
from local.stack import Stack
from tests.fleet_sessions import new_session
from tests.open_fleet import WORKER, client_of, lease_worker, open_joins
from tests.redis_server import RedisServer
from worker.fleet import admission, record_moves, records
from worker.fleet.departures import ON_THE_WAY, REMEMBERED, Departures
from worker.fleet.errors import MoveRefused
from worker.fleet.redis_operations import run
from worker.fleet.session import Reason, Session, State
from worker.fleet.settings import FleetSettings
from worker.fleet.times import LEASE

KEYS = {"LIVEKIT_API_KEY": "the key", "LIVEKIT_API_SECRET": "a secret of at least 32 characters"}
PATH = "/webhooks/livekit"


def sign(
    body: bytes,
    *,
    key: str = KEYS["LIVEKIT_API_KEY"],
    secret: str = KEYS["LIVEKIT_API_SECRET"],
    lifetime: timedelta = timedelta(minutes=5),
) -> str:
    """LiveKit's signature for the body."""
    digest = b64encode(sha256(body).digest()).decode()
    return api.AccessToken(key, secret).with_sha256(digest).with_ttl(lifetime).to_jwt()


def post(service: FlaskClient, body: bytes, signature: str | None) -> TestResponse:
    headers = {} if signature is None else {"Authorization": signature}
    return service.post(PATH, data=body, headers=headers, content_type="application/webhook+json")


def event(kind: str, **fields: Any) -> bytes:
    """An event of now as LiveKit writes it: 64-bit numbers are text."""
    named = {"event": kind, "id": f"EV_{uuid.uuid4().hex}", "createdAt": str(int(time.time()))}
    return json.dumps({**named, **fields}).encode()


def just_after_admission(session: Session) -> float:
    assert session.admitted_at is not None
    return session.admitted_at + 0.1


def room_of(session: Session, *, opened: float) -> dict[str, Any]:
    return {
        "sid": "RM_1",
        "name": session.room,
        "creationTime": str(int(opened)),
        "creationTimeMs": str(int(opened * 1000)),
    }


def caller_left(
    session: Session,
    *,
    identity: str = "caller",
    why: str = "CLIENT_INITIATED",
    joined: float | None = None,
    **fields: Any,
) -> bytes:
    """The session's caller has left, having joined just after the session was admitted."""
    joined = just_after_admission(session) if joined is None else joined
    participant = {"sid": "PA_1", "identity": identity, "joinedAtMs": str(int(joined * 1000)), "disconnectReason": why}
    return event("participant_left", room=room_of(session, opened=joined), participant=participant, **fields)


def room_finished(session: Session, *, opened: float | None = None, **fields: Any) -> bytes:
    """The session's room is closed, which was opened just after the session was admitted."""
    opened = just_after_admission(session) if opened is None else opened
    return event("room_finished", room=room_of(session, opened=opened), **fields)


@dataclass
class Fleet:
    """An agent service on a Redis, the sessions there, and a clock that goes on when the service waits."""

    redis_url: str
    now: float = 0.0
    shown: list[tuple[str, Reason]] = field(default_factory=list)
    while_waiting: Callable[[], None] = lambda: None

    def service(self, **environ: str) -> FlaskClient:
        """A replica that knows LiveKit's keys."""
        departures = Departures(
            client=self.client,
            tenant="default",
            show=lambda session, reason: self.shown.append((session.session_id, reason)),
            clock=lambda: self.now,
            wait=self._wait,
        )
        return create_app(
            settings=FleetSettings.from_env({"REDIS_URL": self.redis_url}),
            access=AccessSettings.from_env({}),
            webhooks=WebhookSettings.from_env(environ or KEYS),
            departures=departures,
        ).test_client()

    def queue(self, *, age: float = 0.0) -> Session:
        """A session that was admitted so many seconds ago and waits for a worker."""
        session = new_session(room=f"room {uuid.uuid4().hex}")
        session = replace(session, admitted_at=time.time() - age)
        admit = admission.admit("default", session.room, session.session_id, join_ttl=60, limit=99)
        assert run(self.client, admit).outcome == "admitted"
        assert run(self.client, record_moves.create(session, lifetime=60))
        return session

    def claim(self, session: Session, *, owner: str) -> Session:
        return run(self.client, record_moves.claim(session.session_id, epoch=1, owner=owner, lifetime=60))

    def end_of(self, session: Session) -> tuple[State, Reason | None]:
        found = run(self.client, records.read(session.session_id))
        assert found is not None
        return found.state, found.reason

    def is_held(self, session: Session) -> bool:
        return run(self.client, admission.holder("default", session.room)) == session.session_id

    @property
    def client(self) -> "redis.Redis":
        return self._client

    def __enter__(self) -> "Fleet":
        self._context = client_of(self.redis_url)
        self._client = self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(None, None, None)

    def _wait(self, seconds: float) -> None:
        self.now += seconds
        self.while_waiting()


@pytest.fixture
def fleet(redis_url: str) -> Iterator[Fleet]:
    with Fleet(redis_url) as fleet:
        yield fleet


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        (caller_left, Reason.CALLER_LEFT),
        (lambda session: caller_left(session, why="PARTICIPANT_REMOVED"), Reason.CALLER_LEFT),
        (lambda session: caller_left(session, why="ROOM_DELETED"), Reason.ROOM_CLOSED),
        (room_finished, Reason.ROOM_CLOSED),
    ],
)
def test_a_session_that_nobody_claimed_ends_with_its_caller_or_room(
    fleet: Fleet, gone: Callable[[Session], bytes], reason: Reason
) -> None:
    session, other = fleet.queue(), fleet.queue()
    body = gone(session)

    answer = post(fleet.service(), body, sign(body))

    assert (answer.status_code, answer.get_json()) == (200, {"outcome": "ended", "session_id": session.session_id})
    assert fleet.end_of(session) == (State.ENDED, reason)
    assert not fleet.is_held(session)
    assert fleet.end_of(other) == (State.QUEUED, None)
    with pytest.raises(MoveRefused):
        fleet.claim(session, owner=WORKER)


def test_the_same_request_twice_has_one_effect(fleet: Fleet) -> None:
    session = fleet.queue()
    body = caller_left(session)
    signature = sign(body)

    first = post(fleet.service(), body, signature)
    again = replace(session, session_id=uuid.uuid4().hex, admitted_at=session.admitted_at)
    run(fleet.client, admission.admit("default", again.room, again.session_id, join_ttl=60, limit=99))
    run(fleet.client, record_moves.create(again, lifetime=60))
    second = post(fleet.service(), body, signature)

    assert first.get_json()["outcome"] == "ended"
    assert (second.status_code, second.get_json()) == (200, {"outcome": "replayed", "session_id": None})
    assert fleet.end_of(again) == (State.QUEUED, None)


def test_an_event_is_remembered_for_longer_than_its_signature_is_accepted(fleet: Fleet) -> None:
    body = room_finished(fleet.queue())
    post(fleet.service(), body, sign(body))

    [key] = fleet.client.keys("*:departure:*")
    assert REMEMBERED > OLDEST + CLOCK_TOLERANCE
    assert OLDEST + CLOCK_TOLERANCE < fleet.client.ttl(key) <= REMEMBERED


def test_two_copies_at_the_same_time_end_one_session_once(fleet: Fleet) -> None:
    services = [fleet.service() for _ in range(2)]
    for _ in range(10):
        body = caller_left(fleet.queue())
        with ThreadPoolExecutor() as threads:
            answers = [*threads.map(lambda service, body=body: post(service, body, sign(body)), services)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert [answer.get_json()["outcome"] for answer in answers].count("ended") == 1


def test_a_claim_at_the_same_time_gets_the_session_or_finds_it_over(fleet: Fleet) -> None:
    def claim(session: Session) -> bool:
        try:
            fleet.claim(session, owner=WORKER)
        except MoveRefused:
            return False
        return True

    lease_worker(fleet.redis_url)
    service = fleet.service()
    for _ in range(20):
        session = fleet.queue()
        body = caller_left(session)
        with ThreadPoolExecutor() as threads:
            claimed, answer = threads.submit(claim, session), threads.submit(post, service, body, sign(body))
            outcome = answer.result().get_json()["outcome"]
            if claimed.result():
                assert (outcome, *fleet.end_of(session)) == ("left_alone", State.CONNECTING, None)
            else:
                assert (outcome, *fleet.end_of(session)) == ("ended", State.ENDED, Reason.CALLER_LEFT)
        assert fleet.is_held(session) is (outcome == "left_alone")


@pytest.mark.parametrize("gone", [caller_left, room_finished])
def test_an_owner_whose_lease_holds_is_never_touched(fleet: Fleet, gone: Callable[[Session], bytes]) -> None:
    lease_worker(fleet.redis_url)
    session = fleet.claim(fleet.queue(age=600), owner=WORKER)
    body = gone(session)

    assert post(fleet.service(), body, sign(body)).get_json()["outcome"] == "left_alone"
    assert fleet.end_of(session) == (State.CONNECTING, None)
    assert fleet.is_held(session)
    assert fleet.now == 0.0


def test_the_session_of_a_lost_worker_ends_when_its_lease_stays_away_for_a_whole_lease(fleet: Fleet) -> None:
    session = fleet.claim(fleet.queue(), owner="gone@here#1")
    body = caller_left(session)

    assert post(fleet.service(), body, sign(body)).get_json()["outcome"] == "ended"
    assert fleet.end_of(session) == (State.ENDED, Reason.CALLER_LEFT)
    assert not fleet.is_held(session)
    assert fleet.shown == [(session.session_id, Reason.CALLER_LEFT)]
    assert fleet.now >= LEASE


def test_a_worker_that_renews_its_lease_after_an_outage_keeps_its_session(fleet: Fleet) -> None:
    session = fleet.claim(fleet.queue(), owner=WORKER)
    body = room_finished(session)
    service = fleet.service()
    fleet.while_waiting = lambda: lease_worker(fleet.redis_url)

    assert post(service, body, sign(body)).get_json()["outcome"] == "left_alone"
    assert fleet.end_of(session) == (State.CONNECTING, None)
    assert fleet.shown == []


def test_a_session_that_was_ending_when_its_worker_was_lost_keeps_its_reason(fleet: Fleet) -> None:
    session = fleet.claim(fleet.queue(), owner="gone@here#1")
    leaving = record_moves.move(
        session.session_id, State.ENDING, epoch=1, lifetime=60, stamp="ending_at", fields={"reason": Reason.LEFT}
    )
    run(fleet.client, leaving)
    body = caller_left(session)

    post(fleet.service(), body, sign(body))

    assert fleet.end_of(session) == (State.ENDED, Reason.LEFT)


def seconds_ago(seconds: float) -> float:
    return time.time() - seconds


@pytest.mark.parametrize(
    ("gone", "age"),
    [
        (lambda session: caller_left(session, identity="somebody else"), 0),
        (lambda session: caller_left(session, identity=session.agent_identity), 0),
        (lambda session: caller_left(replace(session, room="another room")), 0),
        (lambda session: room_finished(replace(session, room="another room")), 0),
        # An earlier call in the same room.
        (lambda session: caller_left(session, joined=seconds_ago(60)), 1),
        (lambda session: room_finished(session, opened=seconds_ago(60)), 1),
        (lambda session: room_finished(session, opened=seconds_ago(60)), ON_THE_WAY - 2),
        (lambda session: room_finished(session, opened=seconds_ago(60), createdAt=str(int(seconds_ago(5)))), 0),
    ],
)
def test_what_is_not_of_this_session_leaves_it_alone(
    fleet: Fleet, gone: Callable[[Session], bytes], age: float
) -> None:
    session = fleet.queue(age=age)
    body = gone(session)

    answer = post(fleet.service(), body, sign(body))

    assert (answer.status_code, answer.get_json()["outcome"]) == (200, "left_alone")
    assert fleet.end_of(session) == (State.QUEUED, None)


@pytest.mark.parametrize(
    "gone",
    [
        lambda session: caller_left(session, joined=seconds_ago(60)),
        lambda session: room_finished(session, opened=seconds_ago(60)),
    ],
)
def test_what_was_in_the_room_before_counts_once_the_caller_had_the_time_to_come(
    fleet: Fleet, gone: Callable[[Session], bytes]
) -> None:
    session = fleet.queue(age=ON_THE_WAY + 1)
    body = gone(session)

    assert post(fleet.service(), body, sign(body)).get_json()["outcome"] == "ended"


@pytest.mark.parametrize(
    "other",
    [
        lambda session: event("participant_joined", room={"name": session.room}, participant={"identity": "caller"}),
        lambda session: event("track_published", room={"name": session.room}, newer_field={"of": ["LiveKit"]}),
        lambda session: caller_left(session, why="SIGNAL_CLOSE"),
        lambda session: caller_left(session, why="DUPLICATE_IDENTITY"),
        lambda session: caller_left(session, why="UNKNOWN_REASON"),
        lambda session: event("participant_left", room={"name": session.room}),
    ],
)
def test_other_events_are_taken_and_do_nothing(fleet: Fleet, other: Callable[[Session], bytes]) -> None:
    session = fleet.queue()
    body = other(session)

    answer = post(fleet.service(), body, sign(body))

    assert (answer.status_code, answer.get_json()["outcome"]) == (200, "ignored")
    assert fleet.end_of(session) == (State.QUEUED, None)
    assert fleet.client.keys("*:departure:*") == []


def callers_own_token(body: bytes) -> str:
    grants = api.VideoGrants(room_join=True, room="room")
    return api.AccessToken(*KEYS.values()).with_identity("caller").with_grants(grants).to_jwt()


def unsigned_token(body: bytes) -> str:
    """The algorithm `none`."""
    claims = sign(body).split(".")[1]
    return ".".join((b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("="), claims, ""))


def deep_token(body: bytes) -> str:
    _, claims, signature = sign(body).split(".")
    return ".".join((b64encode(b'{"alg":' + b"[" * 5000).decode().rstrip("="), claims, signature))


@pytest.mark.parametrize(
    "forge",
    [
        lambda body: sign(body, secret="another secret of at least 32 characters"),
        lambda body: sign(body, key="another key"),
        lambda body: sign(body + b" "),
        lambda body: sign(body, lifetime=timedelta(seconds=-CLOCK_TOLERANCE - 5)),
        lambda body: "Bearer " + sign(body),
        lambda body: sign(body)[:-4] + "AAAA",
        callers_own_token,
        unsigned_token,
        deep_token,
        lambda body: "",
        lambda body: "..",
        lambda body: "Bearer muster_key",
        lambda body: "é.é.é",
    ],
)
def test_a_webhook_that_livekit_did_not_sign_is_refused(fleet: Fleet, forge: Callable[[bytes], str]) -> None:
    session = fleet.queue()
    body = caller_left(session)

    answer = post(fleet.service(), body, forge(body))

    assert (answer.status_code, answer.get_json()["code"]) == (401, "webhook_forged")
    assert fleet.end_of(session) == (State.QUEUED, None)


@pytest.mark.parametrize("at", [-OLDEST - 5, CLOCK_TOLERANCE + 5])
def test_an_event_of_another_time_is_refused_although_it_is_signed(fleet: Fleet, at: int) -> None:
    session = fleet.queue()
    body = caller_left(session, createdAt=str(int(time.time()) + at))

    answer = post(fleet.service(), body, sign(body))

    assert (answer.status_code, answer.get_json()["code"]) == (401, "webhook_forged")
    assert fleet.end_of(session) == (State.QUEUED, None)


def test_a_webhook_without_signature_is_refused(fleet: Fleet) -> None:
    answer = post(fleet.service(), room_finished(fleet.queue()), None)

    assert (answer.status_code, answer.get_json()["code"]) == (401, "webhook_not_signed")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 5000,
        b'{"room": ' * 500,
        event("room_finished", id=""),
        event("room_finished", id="x" * 129),
        event(""),
        event("room_finished", room=7),
        event("room_finished", createdAt="yesterday"),
    ],
    # An event's own id and time are others in each process that collects the tests.
    ids=[
        "nothing",
        "not JSON",
        "no object",
        "not UTF-8",
        "deep lists",
        "deep objects",
        "no id",
        "a long id",
        "no kind",
        "a room that is a number",
        "no time",
    ],
)
def test_a_signed_body_that_is_no_event_is_refused(fleet: Fleet, body: bytes) -> None:
    answer = post(fleet.service(), body, sign(body))

    assert (answer.status_code, answer.get_json()["code"]) == (400, "webhook_malformed")


def test_a_large_event_is_taken_and_a_huge_one_refused(fleet: Fleet) -> None:
    large = event("participant_joined", participant={"metadata": "x" * 200_000})
    huge = event("participant_joined", participant={"metadata": "x" * 1_100_000})
    service = fleet.service()

    assert post(service, large, sign(large)).status_code == 200
    answer = post(service, huge, sign(huge))
    assert (answer.status_code, answer.get_json()["code"]) == (413, "payload_too_large")


def test_a_webhook_of_another_type_is_refused(fleet: Fleet) -> None:
    body = room_finished(fleet.queue())
    answer = fleet.service().post(PATH, data=body, headers={"Authorization": sign(body)}, content_type="text/plain")

    assert (answer.status_code, answer.get_json()["code"]) == (415, "unsupported_media_type")


def test_without_livekit_s_keys_no_webhook_is_taken(fleet: Fleet) -> None:
    body = room_finished(fleet.queue())

    answer = post(fleet.service(LIVEKIT_API_KEY=KEYS["LIVEKIT_API_KEY"]), body, sign(body))

    assert (answer.status_code, answer.get_json()["code"]) == (404, "webhooks_not_configured")


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that may be stopped and filled."""
    server = RedisServer(port=PortPicker().pick(), directory=tmp_path)
    server.start()
    yield server
    server.stop()


def test_what_could_not_be_done_while_redis_was_away_is_done_when_livekit_repeats_it(own_server: RedisServer) -> None:
    with Fleet(own_server.url) as fleet:
        service, session = fleet.service(), fleet.queue()
        body = caller_left(session)
        signature = sign(body)
        own_server.stop()
        away = post(service, body, signature)
        own_server.start()
        repeated = post(service, body, signature)

        assert (away.status_code, away.get_json()["code"]) == (503, "redis_unavailable")
        assert int(away.headers["Retry-After"]) > 0
        assert (repeated.status_code, repeated.get_json()["outcome"]) == (200, "ended")
        assert fleet.end_of(session) == (State.ENDED, Reason.CALLER_LEFT)


def test_what_was_done_and_could_not_be_remembered_is_not_done_again(own_server: RedisServer) -> None:
    with Fleet(own_server.url) as fleet:
        service, session = fleet.service(), fleet.queue()
        body = caller_left(session)
        signature = sign(body)
        fleet.client.config_set("maxmemory", 1)
        full = post(service, body, signature)
        ended = fleet.end_of(session)
        fleet.client.config_set("maxmemory", 0)
        outcomes = [post(service, body, signature).get_json()["outcome"] for _ in range(2)]

        assert (full.status_code, full.get_json()["code"]) == (503, "redis_unavailable")
        assert ended == (State.ENDED, Reason.CALLER_LEFT)
        assert outcomes == ["left_alone", "replayed"]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Redis, LiveKit and the agent service, which LiveKit tells about its rooms; no worker claims anything."""
    options = StackOptions(parts=frozenset({REDIS, LIVEKIT, AGENT_SERVICE}), preferred_ports=False, home=tmp_path)
    try:
        with Stack(options=options) as running:
            open_joins(running.urls[REDIS])
            yield running
    except (LiveKitMissing, RedisMissing) as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))


async def test_livekit_s_own_word_ends_sessions_that_nobody_serves(stack: Stack) -> None:
    server, keys = stack.urls[LIVEKIT], (stack.settings["LIVEKIT_API_KEY"], stack.settings["LIVEKIT_API_SECRET"])
    async with (
        httpx.AsyncClient(base_url=stack.urls[AGENT_SERVICE], trust_env=False) as service,
        api.LiveKitAPI(server, *keys) as rooms,
    ):

        async def join(room: str) -> str:
            answer = await service.post("/join", json={"room": room, "user_id": "caller"})
            assert answer.status_code == 202, answer.text
            return str(answer.json()["session_id"])

        async def enter(room: str) -> rtc.Room:
            grants = api.VideoGrants(room_join=True, room=room)
            caller = rtc.Room()
            await caller.connect(server, api.AccessToken(*keys).with_identity("caller").with_grants(grants).to_jwt())
            return caller

        async def end_of(session_id: str) -> tuple[str, str]:
            async with asyncio.timeout(15):
                while True:
                    session = (await service.get(f"/sessions/{session_id}")).json()
                    if session["reason"]:
                        return session["status"], session["reason"]
                    await asyncio.sleep(0.05)

        left, deleted, closed = await join("left"), await join("deleted"), await join("closed")
        hung_up, thrown_out = await enter("left"), await enter("deleted")
        await rooms.room.create_room(api.CreateRoomRequest(name="closed"))
        await hung_up.disconnect()
        for room in ("deleted", "closed"):
            await rooms.room.delete_room(api.DeleteRoomRequest(room=room))
        assert await end_of(left) == ("ended", "caller_left")
        assert await end_of(deleted) == ("ended", "room_closed")
        assert await end_of(closed) == ("ended", "room_closed")
        await thrown_out.disconnect()
