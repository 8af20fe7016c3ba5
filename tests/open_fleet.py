"""What the tests of the HTTP services need of a fleet: an open door, and sessions that somebody owns."""

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from flask import Flask

from api.agent_service import create_app
from api.settings import AccessSettings, WebhookSettings
from worker.fleet import admission, record_moves, workers
from worker.fleet.redis_operations import connect, run
from worker.fleet.session import Session
from worker.fleet.settings import FleetSettings

WORKER = "tester@here#1"


@contextmanager
def client_of(redis_url: str) -> Iterator["redis.Redis"]:
    """A client that is closed again."""
    client = connect(redis_url)
    try:
        yield client
    finally:
        client.close()


def lease_worker(redis_url: str, *, slots: int = 2, worker_id: str = WORKER) -> None:
    """One worker's lease, as its keeper renews it."""
    name = worker_id.partition("#")[0]
    status = workers.WorkerStatus(worker_id=worker_id, name=name, slots=slots, busy=0, draining=False, started_at=0.0)
    with client_of(redis_url) as client:
        run(client, workers.renew(status))


def open_joins(redis_url: str, *, slots: int = 2) -> None:
    """A leased worker and open joins: what the leading keeper has made of Redis one lease after it came up."""
    lease_worker(redis_url, slots=slots)
    with client_of(redis_url) as client:
        run(client, admission.open_joins("default"))
        run(client, workers.open_joins(WORKER))


def claim(redis_url: str, session_id: str) -> Session:
    """Make the worker the owner of the queued session."""
    with client_of(redis_url) as client:
        return run(client, record_moves.claim(session_id, epoch=1, owner=WORKER, lifetime=60))


def agent_service(redis_url: str, **environ: str) -> Flask:
    """A replica of the agent service with clients of its own."""
    return create_app(
        settings=FleetSettings.from_env({"REDIS_URL": redis_url, **environ}),
        access=AccessSettings.from_env(environ),
        webhooks=WebhookSettings.from_env(environ),
    )
