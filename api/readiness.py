"""Whether a replica can serve: what load balancers are told, and what the fleet looks like from there."""

from typing import Self

import redis
from flask import Response

from api.models import Readiness, Ready
from api.routes import Route
from api.service import respond
from worker.fleet import workers
from worker.fleet.breaker import Breaker
from worker.fleet.errors import StateMisconfigured, StateUnavailable
from worker.fleet.redis_operations import AT_A_TIME, connect, run
from worker.fleet.redis_server import LOOK_TIMEOUT, ServerCheck, try_writing
from worker.fleet.settings import FleetSettings

#: Seconds a question waits for its turn.
_PATIENCE = 0.2


class ReadinessViews:
    """Answers load balancers, within a second and whatever the requests to the other addresses wait for."""

    def __init__(self, *, client: "redis.Redis", server_check: ServerCheck) -> None:
        self._client = client
        self._server_check = server_check
        self._breaker = Breaker(at_a_time=AT_A_TIME, patience=_PATIENCE)

    @classmethod
    def connect(cls, settings: FleetSettings, *, server_check: ServerCheck) -> Self:
        """With a client of its own, which no join keeps busy."""
        return cls(client=connect(settings.redis_url, timeout=LOOK_TIMEOUT), server_check=server_check)

    def ready(self) -> Response:
        """200, also when the fleet is full or away: `/leave` must be reached all the same; 503 without Redis."""
        try:
            fleet = self._look()
        except StateMisconfigured as error:
            return respond(Readiness.not_ready("redis_misconfigured", detail=str(error)), status=503)
        except StateUnavailable as error:
            return respond(Readiness.not_ready("redis_unavailable", detail=str(error)), status=503)
        return respond(Readiness.of(fleet, detail=self._server_check.warnings))

    def _look(self) -> workers.Fleet:
        with self._breaker.attempt():
            self._server_check.require()
            run(self._client, try_writing())
            return run(self._client, workers.fleet())


def readiness_route(views: ReadinessViews) -> Route:
    """The address at which a load balancer asks."""
    return Route(
        method="GET",
        address="/ready",
        view=views.ready,
        summary="Whether this replica can use Redis, and how full the fleet is",
        answers={200: Readiness, 503: Readiness},
        is_open=True,
    )


def settled_route(address: str) -> Route:
    """The address of a service whose settings are all it needs: it would not have started without them."""
    return Route(
        method="GET",
        address=address,
        view=lambda: respond(Ready()),
        summary="Whether this replica can serve",
        answers={200: Ready},
        is_open=True,
    )
