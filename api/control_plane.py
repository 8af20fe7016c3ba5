"""The control plane: gives a caller the token for a room into which it has sent an agent."""

import json
import logging
from datetime import timedelta

import httpx
from flask import Flask, Response
from livekit.api import AccessToken, VideoGrants
from pydantic import ValidationError

from api.errors import TEMPORARY, AgentServiceKeyRefused, AgentUnavailable, kind_of
from api.models import AgentError, JoinAnswer, JoinRequest, Problem, TokenAnswer, TokenRequest
from api.readiness import settled_route
from api.routes import Route
from api.service import REQUEST_ID, create_service, health_route, request_id, respond
from api.settings import ControlPlaneSettings

logger = logging.getLogger(__name__)

#: Seconds the agent service may take to connect, and again to answer.
AGENT_SERVICE_TIMEOUT = 3.0


class TokenViews:
    """A caller's way into a room."""

    def __init__(self, *, settings: ControlPlaneSettings, agent_service: httpx.Client) -> None:
        self._settings = settings
        self._agent_service = agent_service

    def token(self, *, body: TokenRequest) -> Response:
        """The caller's token and the session it started; no token when a required agent cannot join."""
        # Minted first: what fails here has not sent an agent into a room that nobody enters.
        token = self._mint(body)
        session, agent_error = None, None
        try:
            session = self._join(body)
        except AgentUnavailable as error:
            if body.agent == "required":
                raise
            agent_error = AgentError(code=error.code, detail=str(error))
        return respond(
            TokenAnswer(
                token=token,
                url=self._settings.callers_livekit_url,
                room=body.room,
                identity=body.identity,
                session=session,
                agent_error=agent_error,
            )
        )

    def _mint(self, asked: TokenRequest) -> str:
        grants = VideoGrants(
            room_join=True, room=asked.room, can_publish=True, can_subscribe=True, can_publish_data=True
        )
        return (
            AccessToken(self._settings.livekit_api_key, self._settings.livekit_api_secret)
            .with_identity(asked.identity)
            .with_kind("standard")
            .with_metadata(json.dumps(asked.metadata))
            .with_ttl(timedelta(seconds=asked.ttl))
            .with_grants(grants)
            .to_jwt()
        )

    def _join(self, asked: TokenRequest) -> JoinAnswer:
        join = JoinRequest(room=asked.room, user_id=asked.identity, metadata=asked.metadata)
        headers = {REQUEST_ID: request_id()}
        if self._settings.agent_service_api_key:
            headers["Authorization"] = f"Bearer {self._settings.agent_service_api_key}"
        try:
            response = self._agent_service.post("/join", json=join.model_dump(exclude_unset=True), headers=headers)
            if response.is_success:
                return JoinAnswer.model_validate_json(response.content)
            raise _refusal(response)
        except (httpx.HTTPError, ValidationError) as error:
            raise AgentUnavailable() from error


def create_app(*, settings: ControlPlaneSettings | None = None, agent_service: httpx.Client | None = None) -> Flask:
    """The WSGI application; what is not given is made from the environment."""
    settings = settings or ControlPlaneSettings.from_env()
    views = TokenViews(settings=settings, agent_service=agent_service or _connect(settings))
    routes = [token_route(views), health_route("/api/v1/health"), settled_route("/api/v1/ready")]
    return create_service(__name__, title="Muster's control plane", routes=routes, keys=settings.api_keys)


def token_route(views: TokenViews) -> Route:
    """A caller's way into a room."""
    return Route(
        method="POST",
        address="/api/v1/livekit/token",
        view=views.token,
        summary="A caller's token for a room with an agent in it",
        body=TokenRequest,
        answers={200: TokenAnswer},
        refusals=TEMPORARY,
    )


def _connect(settings: ControlPlaneSettings) -> httpx.Client:
    # A proxy for the world outside is no way to the service next door.
    return httpx.Client(base_url=settings.agent_service_url, timeout=AGENT_SERVICE_TIMEOUT, trust_env=False)


def _refusal(response: httpx.Response) -> AgentUnavailable:
    """Why no agent comes, in the agent service's words where a caller can do something with them."""
    problem = Problem.model_validate_json(response.content)
    if response.status_code in (401, 403):
        logger.error("the agent service answers %s; check AGENT_SERVICE_API_KEY", problem.code)
        return AgentServiceKeyRefused()
    if response.status_code != 503 or problem.code not in {kind_of(refusal).code for refusal in TEMPORARY}:
        return AgentUnavailable()
    retry_after = response.headers.get("Retry-After", "")
    if not retry_after.isdecimal():
        return AgentUnavailable(problem.detail, code=problem.code)
    return AgentUnavailable(problem.detail, code=problem.code, retry_after=int(retry_after))
