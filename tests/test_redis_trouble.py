"""Redis in trouble: what is answered meanwhile, how soon, what is left behind, and how it heals."""

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from flask.testing import FlaskClient

from local.ports import PortPicker
from tests.fleet_sessions import new_session
from tests.fleet_workers import wait_until
from tests.http_server import HttpServer
from tests.open_fleet import WORKER, agent_service, client_of, open_joins
from tests.redis_server import RedisServer
from worker.fleet import admission, records
from worker.fleet.breaker import PAUSE, STALL, Breaker
from worker.fleet.control import SessionControl
from worker.fleet.errors import SessionNotFound, StateUnavailable
from worker.fleet.joining import Join
from worker.fleet.redis_operations import Operation, connect, run
from worker.fleet.session import Session, State
from worker.fleet.settings import FleetSettings

#: Seconds within which a request is refused whatever Redis does.
REFUSED_WITHIN = 2.5
#: Seconds within which the first join succeeds once Redis is well again, with room for a busy machine.
HEALED_WITHIN = 3.0


@pytest.fixture
def own_redis(redis_server: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    """A running server that belongs to one test, with a fleet that takes sessions."""
    server = RedisServer(port=PortPicker().pick(), directory=tmp_path)
    server.start()
    open_joins(server.url, slots=100)
    # A lease that outlasts the test, because no keeper renews it.
    with client_of(server.url) as client:
        client.zadd("muster:{workers}:leases", {WORKER: time.time() * 1000 + 60_000})
    yield server
    server.stop()


@dataclass(frozen=True)
class Told:
    """What a client was told, and after how many seconds."""

    status: int
    code: str
    seconds: float
    detail: str = ""


def ask(service: FlaskClient, method: str, path: str, **options: Any) -> Told:
    started = time.monotonic()
    answer = service.open(path, method=method, **options)
    body = answer.get_json()
    code = body.get("code") or (body.get("status", "") if path == "/ready" else "")
    return Told(answer.status_code, code, time.monotonic() - started, body.get("detail") or "")


def join(service: FlaskClient, room: str, *, key: str | None = None) -> Told:
    headers = {} if key is None else {"Idempotency-Key": key}
    return ask(service, "POST", "/join", json={"room": room, "user_id": "ada"}, headers=headers)


def heal(service: FlaskClient, room: str) -> None:
    """Join until it succeeds, which it does within `HEALED_WITHIN` seconds."""
    started = time.monotonic()
    while join(service, room).status != 202:
        assert time.monotonic() - started < HEALED_WITHIN
        time.sleep(0.02)


def held_sessions(redis_url: str) -> list[Session | None]:
    """The records of all sessions that hold a room; None for a hold without one."""
    with client_of(redis_url) as client:
        return [run(client, records.read(session_id)) for session_id in run(client, admission.holders("default"))]


def record_of_room(redis_url: str, room: str) -> Session:
    """The one session that holds the room."""
    [found] = [session for session in held_sessions(redis_url) if session and session.room == room]
    return found


@dataclass(frozen=True)
class Trouble:
    """One way of not working, which is told at once."""

    begin: Callable[[RedisServer], None]
    end: Callable[[RedisServer], None]
    told: str


def _lock(server: RedisServer) -> None:
    """Ask for a password that the service does not have."""
    server.configure(requirepass="new")
    # Who is connected is not asked for it.
    with redis.Redis.from_url(server.url, password="new") as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def _unlock(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url, password="new") as client:
        client.config_set("requirepass", "")


TROUBLES = {
    "refused": Trouble(RedisServer.stop, RedisServer.start, "could not be reached"),
    "read-only": Trouble(RedisServer.demote, RedisServer.promote, "read-only replica"),
    "full": Trouble(
        lambda server: server.configure(maxmemory="1"), lambda server: server.configure(maxmemory="0"), "is full"
    ),
    "locked": Trouble(_lock, _unlock, "user or password"),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_a_redis_in_trouble_is_told_at_once_and_its_recovery_heals_it(own_redis: RedisServer, trouble: Trouble) -> None:
    service = agent_service(own_redis.url).test_client()
    assert join(service, "before").status == 202

    trouble.begin(own_redis)
    told = [join(service, "during"), ask(service, "GET", "/ready")]
    trouble.end(own_redis)

    for answer in told:
        assert (answer.status, answer.code) == (503, "redis_unavailable")
        assert trouble.told in answer.detail
        assert answer.seconds < 1
    assert join(service, "after").status == 202
    assert ask(service, "GET", "/ready").status == 200
    assert {session.room for session in held_sessions(own_redis.url) if session} == {"before", "after"}


def test_in_a_full_redis_sessions_are_shown_and_end(own_redis: RedisServer) -> None:
    service = agent_service(own_redis.url).test_client()
    assert join(service, "kitchen").status == 202
    session_id = record_of_room(own_redis.url, "kitchen").session_id

    own_redis.configure(maxmemory="1")
    shown = service.get("/sessions").get_json()["sessions"]
    left = ask(service, "POST", "/leave", json={"session_id": session_id})

    assert [session["session_id"] for session in shown] == [session_id]
    assert left.status == 202
    assert held_sessions(own_redis.url) == []


def test_a_redis_that_is_loading_is_told_so(own_redis: RedisServer) -> None:
    with client_of(own_redis.url) as client:
        client.mset({f"filling:{number}": random.randbytes(100) for number in range(300)})
        client.bgrewriteaof()
        while client.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.02)
    service = agent_service(own_redis.url).test_client()
    own_redis.stop()
    own_redis.launch("--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024")
    while "loading" not in (told := join(service, "during")).detail:
        assert told.status == 503, "it had loaded before it answered"

    assert (told.code, told.seconds < REFUSED_WITHIN) == ("redis_unavailable", True)
    heal(service, "after")


def test_nothing_waits_for_a_frozen_redis_and_the_thaw_heals_it(own_redis: RedisServer) -> None:
    service = agent_service(own_redis.url).test_client()
    assert join(service, "before").status == 202
    session_id = record_of_room(own_redis.url, "before").session_id

    with own_redis.frozen():
        first = join(service, "during")
        rest = [
            join(service, "during"),
            ask(service, "POST", "/leave", json={"session_id": session_id}),
            ask(service, "GET", "/sessions"),
            ask(service, "GET", f"/sessions/{session_id}"),
            ask(service, "GET", f"/sessions/{session_id}/turns"),
        ]
        ready = [ask(service, "GET", "/ready"), ask(service, "GET", "/ready")]

    assert {(told.status, told.code) for told in (first, *rest, *ready)} == {(503, "redis_unavailable")}
    assert first.seconds < REFUSED_WITHIN
    assert sum(told.seconds for told in rest) < 1
    assert all(told.seconds < 1 for told in ready)
    heal(service, "after")


def test_fifty_joins_that_wait_for_a_frozen_redis_starve_nobody(own_redis: RedisServer, tmp_path: Path) -> None:
    environ = {"REDIS_URL": own_redis.url}
    with (
        HttpServer(log=tmp_path / "http.log", environ=environ) as server,
        httpx.Client(base_url=server.url, timeout=20, trust_env=False, limits=httpx.Limits(max_connections=80)) as http,
        ThreadPoolExecutor(60) as pool,
    ):

        def told(number: int) -> Told:
            started = time.monotonic()
            answer = http.post("/join", json={"room": f"room {number}", "user_id": "ada"})
            return Told(answer.status_code, answer.json().get("code", ""), time.monotonic() - started)

        assert told(0).status == 202
        with own_redis.frozen():
            joins = pool.map(told, range(1, 51))
            time.sleep(0.2)
            probes = [http.get(path) for path in ("/health", "/ready", "/health")]
            refused = list(joins)
        started = time.monotonic()
        while told(51).status != 202:
            assert time.monotonic() - started < HEALED_WITHIN

    assert {(answer.status, answer.code) for answer in refused} == {(503, "redis_unavailable")}
    assert max(answer.seconds for answer in refused) < REFUSED_WITHIN
    assert [probe.status_code for probe in probes] == [200, 503, 200]
    assert all(probe.elapsed.total_seconds() < 1 for probe in probes)
    assert {session.room for session in held_sessions(own_redis.url) if session} == {"room 0", "room 51"}


def test_closed_connections_are_not_noticed(own_redis: RedisServer) -> None:
    service = agent_service(own_redis.url).test_client()
    for room in ("one", "two", "three"):
        assert join(service, room).status == 202
        own_redis.hang_up()
    assert ask(service, "GET", "/ready").status == 200


class StumblingRedis(redis.Redis):
    """A client that something happens to at one of its scripts: `before` it is sent, or `after` it was answered."""

    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None
    #: How many scripts are still to come before the one.
    steps = -1

    def evalsha(self, *arguments: Any) -> Any:
        self.steps -= 1
        if self.steps == -1 and self.before:
            self.before()
        answer = super().evalsha(*arguments)
        if self.steps == -1 and self.after:
            self.after()
        return answer


#: The scripts of a join, in their order.
FLEET, ADMIT, CREATE = 0, 1, 2


@dataclass
class StumblingControl:
    """A service whose Redis client stumbles at a chosen step of the next join."""

    server: RedisServer

    def __post_init__(self) -> None:
        self.published: list[Session] = []
        self._client = StumblingRedis(connection_pool=connect(self.server.url).connection_pool)
        self._settings = FleetSettings.from_env({"REDIS_URL": self.server.url})
        self._control = SessionControl(settings=self._settings, client=self._client, publish=self.published.append)
        # Redis knows all scripts from now on, so that each of them is one request.
        self._control.leave(self.join("warm-up"))
        self.published.clear()

    def join(self, room: str, key: str | None = None) -> str:
        joined = self._control.join(room=room, user_id="ada", metadata={"n": 0.1}, idempotency_key=key)
        assert joined.created
        return joined.session.session_id

    def freeze_before(self, step: int) -> None:
        self._client.steps, self._client.before = step, self.server.freeze

    def hang_up_after(self, step: int) -> None:
        def hang_up() -> None:
            raise redis.ConnectionError("Connection closed by server.")

        self._client.steps, self._client.after = step, hang_up

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def stumbling(own_redis: RedisServer) -> Iterator[StumblingControl]:
    control = StumblingControl(own_redis)
    yield control
    control.close()


def refuse(control: StumblingControl, room: str, *, key: str | None = None) -> None:
    """A join that is refused for Redis' sake, in time; Redis goes on afterwards with what it has not yet read."""
    started = time.monotonic()
    with pytest.raises(StateUnavailable):
        control.join(room, key)
    assert time.monotonic() - started < REFUSED_WITHIN
    control.server.thaw()
    time.sleep(PAUSE)


def test_an_admission_that_redis_gets_to_too_late_is_not_made(stumbling: StumblingControl) -> None:
    stumbling.freeze_before(ADMIT)

    refuse(stumbling, "kitchen", key="order-7")

    assert held_sessions(stumbling.server.url) == []
    assert stumbling.join("kitchen", "order-7")


def test_a_record_that_redis_gets_to_too_late_is_not_written_and_its_key_makes_the_session(
    stumbling: StumblingControl,
) -> None:
    stumbling.freeze_before(CREATE)

    refuse(stumbling, "kitchen", key="order-7")

    assert held_sessions(stumbling.server.url) == [None]
    session_id = stumbling.join("kitchen", "order-7")
    assert [session.session_id for session in stumbling.published] == [session_id]
    assert record_of_room(stumbling.server.url, "kitchen").session_id == session_id


def test_a_room_whose_join_was_given_up_halfway_is_free_within_seconds(stumbling: StumblingControl) -> None:
    stumbling.freeze_before(CREATE)
    refuse(stumbling, "kitchen")

    service = agent_service(stumbling.server.url).test_client()
    started = time.monotonic()
    while (told := join(service, "kitchen")).status != 202:
        assert told.code == "room_changing"
        assert time.monotonic() - started < 5
    assert record_of_room(stumbling.server.url, "kitchen").published_at is not None


def test_a_join_that_is_given_up_leaves_alone_what_its_key_has_made_for_another_request(own_redis: RedisServer) -> None:
    told: list[Told] = []
    settings = FleetSettings.from_env({"REDIS_URL": own_redis.url})
    with client_of(own_redis.url) as client:
        steps = itertools.count()

        def take(operation: Operation[Any], /) -> Any:
            if next(steps) == CREATE:
                told.append(join(agent_service(own_redis.url).test_client(), "kitchen", key="order-7"))
                # By then nobody waits for the answer.
                time.sleep(REFUSED_WITHIN)
            return run(client, operation)

        given_up = Join(
            replace(new_session(), room="kitchen", user_id="ada"),
            idempotency_key="order-7",
            check=lambda: None,
            run=take,
            publish=lambda session: True,
            settings=settings,
        )
        with pytest.raises(StateUnavailable):
            given_up.make()
    assert [answer.status for answer in told] == [202]
    session = record_of_room(own_redis.url, "kitchen")
    assert session.state is State.QUEUED
    assert session.user_id == "ada"


@pytest.mark.parametrize("step", [ADMIT, CREATE])
def test_a_join_whose_answer_is_lost_on_the_way_is_asked_again(stumbling: StumblingControl, step: int) -> None:
    stumbling.hang_up_after(step)

    session_id = stumbling.join("kitchen", "order-7")

    assert [session.session_id for session in stumbling.published] == [session_id]
    assert [session and session.session_id for session in held_sessions(stumbling.server.url)] == [session_id]


class SlowRedis(redis.Redis):
    """A client to which each script's answer comes after `seconds`, so that no time-out of one passes."""

    seconds = 0.0

    def evalsha(self, *arguments: Any) -> Any:
        time.sleep(self.seconds)
        return super().evalsha(*arguments)


@pytest.fixture
def slow_redis(own_redis: RedisServer) -> Iterator[SlowRedis]:
    with SlowRedis(connection_pool=connect(own_redis.url).connection_pool) as client:
        yield client


def test_a_join_that_takes_many_slow_steps_is_refused_in_time_and_leaves_nothing(
    own_redis: RedisServer, slow_redis: SlowRedis
) -> None:
    settings = FleetSettings.from_env({"REDIS_URL": own_redis.url})
    control = SessionControl(settings=settings, client=slow_redis, publish=lambda session: pytest.fail("published"))
    slow_redis.seconds = 0.9

    started = time.monotonic()
    with pytest.raises(StateUnavailable):
        control.join(room="kitchen", user_id="ada", metadata={})
    assert time.monotonic() - started < REFUSED_WITHIN
    wait_until(lambda: held_sessions(own_redis.url) == [], within=5)


def test_a_broker_that_takes_many_slow_steps_is_not_waited_for(own_redis: RedisServer) -> None:
    published = threading.Event()

    def publish(session: Session) -> None:
        time.sleep(REFUSED_WITHIN)
        published.set()

    settings = FleetSettings.from_env({"REDIS_URL": own_redis.url})
    with client_of(own_redis.url) as client:
        control = SessionControl(settings=settings, client=client, publish=publish)
        started = time.monotonic()
        joined = control.join(room="kitchen", user_id="ada", metadata={})
        assert time.monotonic() - started < REFUSED_WITHIN
        assert published.wait(5)

    assert joined.created
    assert record_of_room(own_redis.url, "kitchen").session_id == joined.session.session_id


def test_two_joins_with_one_key_make_one_session_also_when_they_cross(own_redis: RedisServer) -> None:
    replicas = [agent_service(own_redis.url).test_client() for _ in range(6)]
    together = threading.Barrier(len(replicas))

    def race(service: FlaskClient) -> int:
        together.wait()
        return join(service, "kitchen", key="order-7").status

    with ThreadPoolExecutor(len(replicas)) as pool:
        statuses = sorted(pool.map(race, replicas))

    assert statuses == [200] * (len(replicas) - 1) + [202]
    assert len(held_sessions(own_redis.url)) == 1


def test_a_key_that_crosses_with_its_use_for_another_room_sends_no_agent_there(own_redis: RedisServer) -> None:
    services = [agent_service(own_redis.url).test_client() for _ in range(6)]
    together = threading.Barrier(len(services))

    def race(number: int) -> Told:
        together.wait()
        return join(services[number], f"room {number}", key="order-7")

    with ThreadPoolExecutor(len(services)) as pool:
        told = list(pool.map(race, range(len(services))))

    assert [answer.status for answer in told].count(202) == 1
    assert {answer.code for answer in told if answer.status != 202} <= {"idempotency_key_reused", "room_changing"}
    assert len(held_sessions(own_redis.url)) == 1


@pytest.mark.parametrize(
    "trouble",
    [TROUBLES["refused"], TROUBLES["full"], Trouble(RedisServer.freeze, RedisServer.thaw, "")],
    ids=["refused", "full", "frozen"],
)
def test_a_broker_in_trouble_leaves_the_messages_to_the_keeper(
    redis_url: str, own_redis: RedisServer, trouble: Trouble
) -> None:
    open_joins(redis_url, slots=100)
    service = agent_service(redis_url, BROKER_URL=own_redis.url).test_client()
    assert join(service, "before").status == 202

    trouble.begin(own_redis)
    with ThreadPoolExecutor(30) as pool:
        told = list(pool.map(lambda number: join(service, f"room {number}"), range(30)))
    later = join(service, "later")
    trouble.end(own_redis)

    assert {answer.status for answer in (*told, later)} == {202}
    assert max(answer.seconds for answer in told) < REFUSED_WITHIN
    assert later.seconds < 1
    assert record_of_room(redis_url, "later").published_at is None


class Clock:
    """Time that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def attempt(breaker: Breaker, clock: Clock, *, seconds: float, fails: bool = True) -> None:
    """Something that takes its time and may fail; raises `StateUnavailable` when it was not even tried."""
    try:
        with breaker.attempt():
            clock.now += seconds
            if fails:
                raise OSError
    except OSError:
        assert fails


def test_after_a_stall_nobody_waits_until_one_has_found_out() -> None:
    clock = Clock()
    breaker = Breaker(at_a_time=2, clock=clock)
    attempt(breaker, clock, seconds=STALL)

    with pytest.raises(StateUnavailable):
        attempt(breaker, clock, seconds=0)
    clock.now += PAUSE
    with breaker.attempt(), pytest.raises(StateUnavailable):
        attempt(breaker, clock, seconds=0)
    attempt(breaker, clock, seconds=0, fails=False)


def test_a_stall_of_the_one_that_finds_out_starts_the_pause_again() -> None:
    clock = Clock()
    breaker = Breaker(at_a_time=2, clock=clock)
    attempt(breaker, clock, seconds=STALL)
    clock.now += PAUSE

    attempt(breaker, clock, seconds=STALL)

    with pytest.raises(StateUnavailable):
        attempt(breaker, clock, seconds=0)


def test_failures_that_come_at_once_and_slow_successes_make_nobody_pause() -> None:
    clock = Clock()
    breaker = Breaker(at_a_time=2, clock=clock)
    attempt(breaker, clock, seconds=0)
    attempt(breaker, clock, seconds=10, fails=False)
    attempt(breaker, clock, seconds=0, fails=False)


def test_an_answer_that_comes_late_and_says_no_makes_nobody_pause() -> None:
    clock = Clock()
    breaker = Breaker(at_a_time=2, clock=clock)
    with pytest.raises(SessionNotFound), breaker.attempt():
        clock.now += STALL
        raise SessionNotFound()

    attempt(breaker, clock, seconds=0, fails=False)


def test_no_more_are_under_way_than_have_a_turn() -> None:
    breaker = Breaker(at_a_time=1, patience=0.01)
    with breaker.attempt(), pytest.raises(StateUnavailable):
        attempt(breaker, Clock(), seconds=0, fails=False)
    attempt(breaker, Clock(), seconds=0, fails=False)
