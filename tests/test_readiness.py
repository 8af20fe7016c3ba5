"""Readiness, and a Redis of an old version or set up wrongly: told, refused for joins, healed by setting it right."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask.testing import FlaskClient

from api.control_plane import create_app
from api.settings import ControlPlaneSettings
from tests.open_fleet import agent_service, client_of, lease_worker, open_joins
from tests.redis_server import OldRedis, RedisServer
from worker.fleet import workers
from worker.fleet.errors import StateMisconfigured
from worker.fleet.redis_operations import run
from worker.fleet.redis_server import CHECKED_EVERY, ServerCheck, inspect, judge

JOIN = {"room": "kitchen", "user_id": "ada"}
NO_FLEET = {"workers": 0, "slots": 0, "free": 0, "draining": 0, "joins_open": False}


def ready(service: FlaskClient) -> tuple[int, dict[str, Any]]:
    answer = service.get("/ready")
    return answer.status_code, answer.get_json()


def lease(redis_url: str, name: str, *, slots: int, busy: int, draining: bool = False) -> None:
    status = workers.WorkerStatus(worker_id=name, name=name, slots=slots, busy=busy, draining=draining, started_at=0.0)
    with client_of(redis_url) as client:
        run(client, workers.renew(status))


def test_ready_tells_the_fleet(redis_url: str) -> None:
    open_joins(redis_url, slots=4)
    lease(redis_url, "busy", slots=3, busy=2)
    lease(redis_url, "leaving", slots=9, busy=1, draining=True)

    assert ready(agent_service(redis_url).test_client()) == (
        200,
        {
            "status": "ready",
            "detail": None,
            "workers": 3,
            "slots": 7,
            "free": 5,
            "draining": 1,
            "joins_open": True,
        },
    )


def test_a_full_fleet_and_an_empty_one_are_ready(redis_url: str) -> None:
    service = agent_service(redis_url).test_client()
    assert ready(service) == (200, {"status": "ready", "detail": None, **NO_FLEET})

    lease(redis_url, "busy", slots=1, busy=1)

    assert ready(service) == (
        200,
        {"status": "ready", "detail": None, **NO_FLEET, "workers": 1, "slots": 1},
    )


def test_a_replica_whose_redis_is_gone_is_not_ready(unused_tcp_port: int) -> None:
    status, body = ready(agent_service(f"redis://127.0.0.1:{unused_tcp_port}/0").test_client())

    assert (status, body.pop("status")) == (503, "redis_unavailable")
    assert body.pop("detail")
    assert body == NO_FLEET


def test_a_policy_that_drops_records_is_refused_until_it_is_set_right(own_redis: RedisServer) -> None:
    open_joins(own_redis.url)
    own_redis.configure(maxmemory_policy="allkeys-lru")
    service = agent_service(own_redis.url).test_client()

    refused = service.post("/join", json=JOIN)
    status, body = ready(service)
    listed = service.get("/sessions")
    own_redis.configure(maxmemory_policy="noeviction")
    told_at = time.monotonic()
    while (answer := service.post("/join", json=JOIN)).status_code != 202:
        assert time.monotonic() - told_at < CHECKED_EVERY + 2, answer.text
        lease_worker(own_redis.url)
        time.sleep(0.1)

    assert (refused.status_code, refused.get_json()["code"]) == (503, "redis_misconfigured")
    assert "CONFIG SET maxmemory-policy noeviction" in refused.get_json()["detail"]
    assert int(refused.headers["Retry-After"]) > 0
    assert (status, body["status"]) == (503, "redis_misconfigured")
    assert body["detail"] == refused.get_json()["detail"]
    assert listed.status_code == 200
    assert ready(service)[0] == 200


def test_no_join_passes_while_the_first_look_is_under_way(own_redis: RedisServer) -> None:
    open_joins(own_redis.url, slots=99)
    own_redis.configure(maxmemory_policy="allkeys-lru")
    service = agent_service(own_redis.url)

    def join(number: int) -> int:
        return service.test_client().post("/join", json={**JOIN, "room": f"room {number}"}).status_code

    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(join, range(10))) == {503}


def test_a_redis_of_an_old_version_is_refused_by_a_service_that_runs() -> None:
    with OldRedis().running() as old:
        service = agent_service(old.url).test_client()
        joined = service.post("/join", json=JOIN)
        status, body = ready(service)
        alive = service.get("/health")

    assert (joined.status_code, joined.get_json()["code"]) == (503, "redis_misconfigured")
    assert (status, body["status"]) == (503, "redis_misconfigured")
    assert "Redis 6.2.14 is too old" in body["detail"]
    assert alive.status_code == 200


def test_the_broker_is_checked_too_and_named(redis_url: str, own_redis: RedisServer) -> None:
    open_joins(redis_url)
    own_redis.configure(maxmemory_policy="volatile-ttl")

    answer = agent_service(redis_url, BROKER_URL=own_redis.url).test_client().post("/join", json=JOIN)

    assert answer.get_json()["code"] == "redis_misconfigured"
    assert answer.get_json()["detail"].startswith("BROKER_URL: maxmemory-policy is volatile-ttl")


def test_a_broker_that_is_away_is_no_reason_not_to_be_ready(redis_url: str, unused_tcp_port: int) -> None:
    service = agent_service(redis_url, BROKER_URL=f"redis://127.0.0.1:{unused_tcp_port}/0").test_client()

    assert ready(service)[0] == 200


def test_a_redis_that_forgets_at_a_restart_is_used_with_a_warning(own_redis: RedisServer) -> None:
    lease_worker(own_redis.url)
    own_redis.configure(appendonly="no")

    status, body = ready(agent_service(own_redis.url).test_client())

    assert (status, body["status"]) == (200, "ready")
    assert "CONFIG SET appendonly yes" in body["detail"]


def test_a_user_who_may_not_ask_for_the_settings_is_trusted_to_know_them(own_redis: RedisServer) -> None:
    open_joins(own_redis.url)
    with client_of(own_redis.url) as client:
        client.acl_setuser(
            "muster",
            enabled=True,
            passwords=["+secret"],
            keys=["*"],
            channels=["*"],
            categories=["+@all"],
            commands=["-info"],
        )
    url = own_redis.url.replace("redis://", "redis://muster:secret@")
    service = agent_service(url).test_client()

    assert service.post("/join", json=JOIN).status_code == 202
    status, body = ready(service)
    assert (status, body["status"]) == (200, "ready")
    assert "cannot be checked" in body["detail"]
    assert "secret" not in body["detail"]


GOOD = {"redis_version": "7.0.15", "cluster_enabled": 0, "maxmemory_policy": "noeviction", "aof_enabled": 1}


@pytest.mark.parametrize(
    ("differing", "problem", "refuses"),
    [
        ({"redis_version": "6.2.14"}, "Redis 6.2.14 is too old", True),
        ({"redis_version": 6}, "Redis 6 is too old", True),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.9"}, "Valkey 7.2.9 is too old", True),
        ({"cluster_enabled": 1}, "cluster", True),
        ({"maxmemory_policy": "allkeys-lru"}, "maxmemory-policy is allkeys-lru", True),
        ({"aof_enabled": 0}, "appendonly is no", False),
    ],
)
def test_what_an_info_answer_says_is_judged(differing: Mapping[str, Any], problem: str, refuses: bool) -> None:
    [finding] = judge({**GOOD, **differing})

    assert problem in finding.problem
    assert finding.refuses is refuses
    assert finding.remedy.endswith(".")


@pytest.mark.parametrize(
    "info",
    [
        GOOD,
        {**GOOD, "redis_version": "8.2.1"},
        {**GOOD, "redis_version": "7.2.4", "valkey_version": "9.1.2", "server_name": "valkey"},
        {"redis_version": "7.4.0"},
    ],
)
def test_a_server_that_is_as_it_should_be_is_not_spoken_of(info: Mapping[str, Any]) -> None:
    assert judge(info) == []


def test_the_server_of_the_local_stack_is_as_it_should_be(own_redis: RedisServer) -> None:
    with client_of(own_redis.url) as client:
        assert inspect(client) == []


def test_a_server_is_looked_at_again_only_every_few_seconds(own_redis: RedisServer) -> None:
    now = [0.0]
    with client_of(own_redis.url) as client:
        check = ServerCheck({"REDIS_URL": client}, clock=lambda: now[0])
        check.require()
        own_redis.configure(maxmemory_policy="allkeys-lru")
        check.require()
        now[0] = CHECKED_EVERY
        with pytest.raises(StateMisconfigured):
            check.require()


def test_the_control_plane_needs_nothing_but_its_settings() -> None:
    settings = ControlPlaneSettings.from_env(
        {"LIVEKIT_URL": "ws://127.0.0.1:1", "LIVEKIT_API_KEY": "key", "LIVEKIT_API_SECRET": "s" * 32}
    )

    answer = create_app(settings=settings).test_client().get("/api/v1/ready")

    assert (answer.status_code, answer.get_json()) == (200, {"status": "ready"})
