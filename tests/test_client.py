"""The Python client on both real services, without a network between them."""

from collections.abc import Callable, Iterator
from dataclasses import asdict

import httpx
import pytest

from api import control_plane
from api.errors import STATUSES_BY_CODE
from api.keys import generate
from api.settings import ControlPlaneSettings
from muster.client import REFUSALS, HandingOver, MusterClient, TurnEvent
from muster.errors import (
    AgentUnavailable,
    FleetFull,
    FleetNotReady,
    HandOverImpossible,
    IdempotencyKeyReused,
    InvalidRequest,
    KeyRefused,
    NoWorker,
    RequestRefused,
    RoomChanging,
    ServiceBroken,
    ServiceUnreachable,
    SessionNotFound,
    StateUnavailable,
    UnexpectedAnswer,
)
from tests.open_fleet import agent_service, claim, client_of, lease_worker, open_joins
from worker.call.timings import TurnTimings
from worker.conversation.transcript import Citation, Turn, event_turn
from worker.fleet import record_moves, records
from worker.fleet.redis_operations import run
from worker.fleet.session import State

LIVEKIT = {"LIVEKIT_URL": "ws://127.0.0.1:7880", "LIVEKIT_API_KEY": "key", "LIVEKIT_API_SECRET": "s" * 32}

Connect = Callable[[str], MusterClient]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes clients of agent services by the Redis behind each, and closes them."""
    clients: list[MusterClient] = []

    def connect(redis_url: str) -> MusterClient:
        clients.append(MusterClient("http://localhost", transport=httpx.WSGITransport(app=agent_service(redis_url))))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def client(redis_url: str, connect: Connect) -> MusterClient:
    """A client of a fleet that takes sessions."""
    open_joins(redis_url)
    return connect(redis_url)


def answering(response: httpx.Response) -> MusterClient:
    return MusterClient("http://agent.test", transport=httpx.MockTransport(lambda request: response))


def test_a_session_is_joined_found_listed_and_left(client: MusterClient, redis_url: str) -> None:
    joined = client.join(room="kitchen", user_id="ada", metadata={"name": "Ada"})
    again = client.join(room="kitchen", user_id="ada")
    claim(redis_url, joined.session_id)
    session = client.session(joined.session_id)
    leaving = client.leave(joined.session_id)

    assert (joined.room, joined.status, joined.created) == ("kitchen", "queued", True)
    assert (again.session_id, again.created) == (joined.session_id, False)
    assert (session.room, session.user_id, session.status, session.epoch) == ("kitchen", "ada", "connecting", 1)
    assert session.timings.admitted_at == session.created_at
    assert session.timings.claimed_at is not None and session.timings.ended_at is None
    assert client.sessions(state="connecting") == client.sessions() == (session,)
    assert client.sessions(state="live") == ()
    assert (leaving.session_id, leaving.status, session.over) == (joined.session_id, "connecting", False)


def test_turns_are_read_as_a_worker_writes_them(client: MusterClient, redis_url: str) -> None:
    session_id = client.join(room="kitchen", user_id="ada").session_id
    owned = claim(redis_url, session_id)
    timings = TurnTimings(speech_ended_at=1.0, endpointing=0.3, stt=0.2, graph_llm=0.1, tts=0.2, first_audio_at=1.8)
    reply = Turn(
        item_id="i", role="assistant", at=2.0, text="Yes.", specialist="sales", interrupted=True,
        timings=timings.to_json(), citations=(Citation("faq.md", "Plans > Premium", "faq.md#2"),),
    )  # fmt: skip
    with client_of(redis_url) as state:
        for turn in (event_turn("e", {"kind": "transfer", "from": "front_desk", "to": "sales"}), reply):
            run(state, records.append_turn(owned, asdict(turn), lifetime=60))

    page = client.turns(session_id)
    moved, said = page.turns

    assert (moved.role, moved.event) == ("event", TurnEvent("transfer", source="front_desk", target="sales"))
    assert (said.text, said.specialist, said.interrupted, said.at) == ("Yes.", "sales", True, 2.0)
    assert said.timings is not None and asdict(said.timings) == asdict(timings)
    assert [asdict(citation) for citation in said.citations] == [
        {"source": "faq.md", "title": "Plans > Premium", "passage_id": "faq.md#2"}
    ]
    assert moved.citations == ()
    assert client.turns(session_id, after=moved.cursor).turns == (said,)
    assert client.turns(session_id, after=page.cursor) == type(page)((), said.cursor)


def test_a_token_comes_with_its_session_and_is_never_printed(redis_url: str) -> None:
    open_joins(redis_url)
    with (
        httpx.Client(transport=httpx.WSGITransport(app=agent_service(redis_url)), base_url="http://localhost") as http,
        control_plane_client(http) as client,
    ):
        token = client.token(room="kitchen", identity="ada", ttl=60)

    assert (token.url, token.room, token.identity) == (LIVEKIT["LIVEKIT_URL"], "kitchen", "ada")
    assert token.session is not None and token.session.created
    assert token.agent_error is None
    assert token.token and token.token not in repr(token)


def test_without_an_agent_a_token_is_refused_or_comes_with_the_reason(unused_tcp_port: int) -> None:
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{unused_tcp_port}", trust_env=False) as absent,
        control_plane_client(absent) as client,
    ):
        with pytest.raises(AgentUnavailable) as refused:
            client.token(room="kitchen", identity="ada")
        optional = client.token(room="kitchen", identity="ada", agent="optional")

    assert refused.value.code == "agent_service_unavailable"
    assert optional.session is None
    assert optional.agent_error is not None and optional.agent_error.code == refused.value.code


def control_plane_client(agent_service: httpx.Client) -> MusterClient:
    app = control_plane.create_app(settings=ControlPlaneSettings.from_env(LIVEKIT), agent_service=agent_service)
    transport = httpx.WSGITransport(app=app)
    return MusterClient("http://localhost:8000", control_plane="http://localhost:8080", transport=transport)


def refusal(ask: Callable[[], object]) -> RequestRefused:
    with pytest.raises(RequestRefused) as refused:
        ask()
    assert refused.value.request_id
    assert (refused.value.retry_after is not None) == (refused.value.status == 503)
    return refused.value


def test_every_refused_join_is_an_exception_of_its_own(redis_url: str, connect: Connect) -> None:
    client = connect(redis_url)

    def refused_join(room: str = "kitchen", key: str | None = None) -> type[RequestRefused]:
        refused = refusal(lambda: client.join(room=room, user_id="ada", idempotency_key=key))
        assert isinstance(refused, AgentUnavailable) == (refused.status == 503)
        return type(refused)

    assert refused_join() is NoWorker
    lease_worker(redis_url)
    assert refused_join() is FleetNotReady
    open_joins(redis_url, slots=1)
    assert refused_join(room="") is InvalidRequest
    leaving = client.join(room="kitchen", user_id="ada", idempotency_key="order-7").session_id
    assert refused_join(room="attic", key="order-7") is IdempotencyKeyReused
    client.join(room="cellar", user_id="ada")
    assert refused_join(room="attic") is FleetFull
    claim(redis_url, leaving)
    with client_of(redis_url) as state:
        run(state, record_moves.move(leaving, State.ENDING, epoch=1, lifetime=60, stamp="ending_at"))
    assert refused_join() is RoomChanging


def test_a_live_session_is_handed_over_to_another_worker(client: MusterClient, redis_url: str) -> None:
    session_id = client.join(room="kitchen", user_id="ada").session_id
    owner = claim(redis_url, session_id).owner
    with client_of(redis_url) as state:
        run(state, record_moves.move(session_id, State.LIVE, epoch=1, lifetime=60, stamp="first_audio_at"))
    assert type(refusal(lambda: client.hand_over(session_id))) is HandOverImpossible
    lease_worker(redis_url, worker_id="worker-2#1")
    assert client.hand_over(session_id, to="worker-2") == HandingOver(session_id, 1, owner)


def test_an_unknown_session_and_an_absent_redis_are_told_apart(client: MusterClient, connect: Connect) -> None:
    assert type(refusal(lambda: client.leave("unknown"))) is SessionNotFound
    absent = connect("redis://127.0.0.1:1/0")
    assert type(refusal(absent.sessions)) is StateUnavailable


def test_a_record_that_cannot_be_read_is_the_services_trouble(client: MusterClient, redis_url: str) -> None:
    session_id = client.join(room="kitchen", user_id="ada").session_id
    with client_of(redis_url) as state:
        state.hset(records.record_key(session_id), "epoch", "many")

    assert type(refusal(lambda: client.session(session_id))) is ServiceBroken


def test_a_key_opens_the_service_and_without_it_the_client_says_so(redis_url: str) -> None:
    key = generate("ada")
    transport = httpx.WSGITransport(app=agent_service(redis_url, MUSTER_API_KEYS=key.entry))

    with MusterClient("http://agent.test", api_key=key.key, transport=transport) as client:
        assert client.sessions() == ()
    for shown in (None, "muster_another", "not a key"):
        with MusterClient("http://agent.test", api_key=shown, transport=transport) as client:
            assert type(refusal(client.sessions)) is KeyRefused


def test_every_code_of_the_services_is_known_to_the_client() -> None:
    webhooks = {code for code in STATUSES_BY_CODE if code.startswith("webhook")}

    assert set(REFUSALS) == set(STATUSES_BY_CODE) - webhooks


@pytest.mark.parametrize("answer", [httpx.Response(502, text="<html>"), httpx.Response(200, json={"ok": True})])
def test_an_answer_of_somebody_else_is_no_refusal(answer: httpx.Response) -> None:
    with answering(answer) as client, pytest.raises(UnexpectedAnswer):
        client.leave("s1")


def test_a_service_that_is_not_there_is_unreachable(unused_tcp_port: int) -> None:
    with MusterClient(f"http://127.0.0.1:{unused_tcp_port}") as client, pytest.raises(ServiceUnreachable):
        client.sessions()
