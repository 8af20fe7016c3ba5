"""The agent service: sends agents into rooms, calls them back and lists what they do."""

from collections.abc import Sequence
from functools import partial

from flask import Flask, Response
from kombu.exceptions import OperationalError

from api.chat import ChatViews, chat_routes
from api.errors import InvalidRequest
from api.models import (
    DrainAnswer,
    HandOverAnswer,
    HandOverRequest,
    JoinAnswer,
    JoinHeaders,
    JoinRequest,
    LeaveAnswer,
    LeaveRequest,
    SessionAnswer,
    SessionPath,
    SessionsAnswer,
    SessionsQuery,
    TurnsAnswer,
    TurnsQuery,
    WorkerAnswer,
    WorkerPath,
    WorkersAnswer,
)
from api.readiness import ReadinessViews, readiness_route
from api.routes import Route
from api.service import create_service, health_route, respond
from api.settings import AccessSettings, WebhookSettings
from api.webhooks import webhook_route
from worker.fleet.chatting import FOLLOW_TIMEOUT, FOLLOWED, ChatControl
from worker.fleet.control import SessionControl
from worker.fleet.departures import Departures
from worker.fleet.errors import (
    FleetFull,
    FleetNotReady,
    HandOverImpossible,
    IdempotencyKeyReused,
    NoWorker,
    RecordUnreadable,
    RoomChanging,
    SessionNotFound,
    SessionNotOver,
    StateMisconfigured,
    StateUnavailable,
    WorkerNotFound,
)
from worker.fleet.publishing import chat_publisher, publisher
from worker.fleet.redis_operations import connect
from worker.fleet.redis_server import ServerCheck
from worker.fleet.settings import FleetSettings
from worker.fleet.task_states import show_end


class SessionViews:
    """HTTP's words for what `SessionControl` does."""

    def __init__(self, *, control: SessionControl, tool_hosts: frozenset[str]) -> None:
        self._control = control
        self._tool_hosts = tool_hosts

    def join(self, *, body: JoinRequest, headers: JoinHeaders) -> Response:
        """202 with a new session, or 200 with the one that is in the room."""
        if unlisted := list(body.configuration.unlisted_urls(self._tool_hosts)):
            raise InvalidRequest("; ".join(f"configuration.{place}: its host is not listed" for place in unlisted[:5]))
        joined = self._control.join(
            room=body.room,
            user_id=body.user_id,
            metadata=body.metadata,
            continue_session=body.continue_session,
            configuration=body.configuration.record(),
            idempotency_key=headers.idempotency_key,
        )
        return respond(JoinAnswer.of(joined), status=202 if joined.created else 200)

    def leave(self, *, body: LeaveRequest) -> Response:
        """202 when the session will end, 200 when it had ended before."""
        left = self._control.leave(body.session_id)
        answer = LeaveAnswer(session_id=left.session.session_id, status=left.session.state)
        return respond(answer, status=200 if left.outcome == "over" else 202)

    def hand_over(self, *, path: SessionPath, body: HandOverRequest) -> Response:
        """202 when the owner was asked; whether and when it comes to it shows in the session's epoch."""
        session = self._control.hand_over(path.session_id, to=body.worker or "")
        answer = HandOverAnswer(session_id=session.session_id, epoch=session.epoch, worker=session.worker_id)
        return respond(answer, status=202)

    def drain(self, *, path: WorkerPath) -> Response:
        """202 when the worker was asked; the list of workers shows how far it is, and that it has gone."""
        asked = self._control.drain(path.worker)
        return respond(DrainAnswer(workers=[WorkerAnswer.of(worker) for worker in asked]), status=202)

    def workers(self) -> Response:
        """The workers whose lease holds, and what was done in others' place."""
        fleet, actions = self._control.fleet(), self._control.actions()
        listed = [WorkerAnswer.of(worker) for worker in sorted(fleet.workers, key=lambda worker: worker.worker_id)]
        return respond(WorkersAnswer(workers=listed, joins_open=fleet.ready, actions=dict(sorted(actions.items()))))

    def sessions(self, *, query: SessionsQuery) -> Response:
        """The newest sessions, of one state when `?state=` names it."""
        listed = self._control.list(state=query.state)
        return respond(SessionsAnswer(sessions=[SessionAnswer.of(session) for session in listed]))

    def session(self, *, path: SessionPath) -> Response:
        """One session."""
        return respond(SessionAnswer.of(self._control.get(path.session_id)))

    def turns(self, *, path: SessionPath, query: TurnsQuery) -> Response:
        """The turns after `?after=`."""
        return respond(TurnsAnswer.of(self._control.turns(path.session_id, after=query.after), after=query.after))


def create_app(
    *,
    settings: FleetSettings | None = None,
    access: AccessSettings | None = None,
    webhooks: WebhookSettings | None = None,
    control: SessionControl | None = None,
    departures: Departures | None = None,
    chat: ChatControl | None = None,
) -> Flask:
    """The WSGI application; what is not given is made from the environment."""
    access = access or AccessSettings.from_env()
    settings = settings or FleetSettings.from_env()
    server_check = ServerCheck.connect(settings)
    views = SessionViews(control=control or _connect_control(settings, server_check), tool_hosts=settings.tool_hosts)
    readiness = ReadinessViews.connect(settings, server_check=server_check)
    routes = [
        *session_routes(views),
        *worker_routes(views),
        *chat_routes(ChatViews(control=chat or _connect_chat(settings))),
        webhook_route(webhooks or WebhookSettings.from_env(), departures or _connect_departures(settings)),
        health_route("/health"),
        readiness_route(readiness),
    ]
    return create_service(__name__, title="Muster's agent service", routes=routes, keys=access.api_keys)


def session_routes(views: SessionViews) -> Sequence[Route]:
    """Everything that joins, ends and shows sessions."""
    no_state = (StateUnavailable,)
    no_session = (SessionNotFound, RecordUnreadable, *no_state)
    no_room = (NoWorker, FleetFull, FleetNotReady, RoomChanging)
    no_join = (*no_room, IdempotencyKeyReused, SessionNotOver, StateMisconfigured, *no_session)
    return [
        Route(
            method="POST",
            address="/join",
            view=views.join,
            summary="Send an agent into a room",
            headers=JoinHeaders,
            body=JoinRequest,
            answers={202: JoinAnswer, 200: JoinAnswer},
            refusals=no_join,
        ),
        Route(
            method="POST",
            address="/leave",
            view=views.leave,
            summary="End a session",
            body=LeaveRequest,
            answers={202: LeaveAnswer, 200: LeaveAnswer},
            refusals=no_session,
        ),
        Route(
            method="GET",
            address="/sessions",
            view=views.sessions,
            summary="The newest sessions, with a room and of text, and all that hold a room",
            query=SessionsQuery,
            answers={200: SessionsAnswer},
            refusals=no_state,
        ),
        Route(
            method="GET",
            address="/sessions/<session_id>",
            view=views.session,
            summary="One session",
            path=SessionPath,
            answers={200: SessionAnswer},
            refusals=no_session,
        ),
        Route(
            method="POST",
            address="/sessions/<session_id>/handover",
            view=views.hand_over,
            summary="Ask a live session's worker to hand it over to another one",
            path=SessionPath,
            body=HandOverRequest,
            answers={202: HandOverAnswer},
            refusals=(HandOverImpossible, *no_session),
        ),
        Route(
            method="GET",
            address="/sessions/<session_id>/turns",
            view=views.turns,
            summary="What was said and what happened",
            path=SessionPath,
            query=TurnsQuery,
            answers={200: TurnsAnswer},
            refusals=no_session,
        ),
    ]


def worker_routes(views: SessionViews) -> Sequence[Route]:
    """Everything that is asked of workers."""
    return [
        Route(
            method="GET",
            address="/workers",
            view=views.workers,
            summary="The workers, their calls, and what their keepers have done",
            answers={200: WorkersAnswer},
            refusals=(StateUnavailable,),
        ),
        Route(
            method="POST",
            address="/workers/<worker>/drain",
            view=views.drain,
            summary="Have a worker take no new session, hand its calls over and exit",
            path=WorkerPath,
            answers={202: DrainAnswer},
            refusals=(WorkerNotFound, StateUnavailable),
        ),
    ]


def _connect_control(settings: FleetSettings, server_check: ServerCheck) -> SessionControl:
    from worker.fleet.app import create_producer

    return SessionControl(
        settings=settings,
        client=connect(settings.redis_url),
        publish=publisher(create_producer(settings.broker_url), join_ttl=settings.join_ttl),
        # Kombu's one name for a broker that refuses, stalls or hangs up.
        publish_errors=(OperationalError,),
        server_check=server_check,
    )


def _connect_chat(settings: FleetSettings) -> ChatControl:
    from worker.fleet.app import create_producer

    return ChatControl(
        settings=settings,
        client=connect(settings.redis_url),
        replies=connect(settings.redis_url, timeout=FOLLOW_TIMEOUT, connections=FOLLOWED),
        publish=chat_publisher(create_producer(settings.broker_url), patience=settings.chat_patience),
        publish_errors=(OperationalError,),
    )


def _connect_departures(settings: FleetSettings) -> Departures:
    from worker.fleet.app import create_producer

    return Departures(
        # Of their own: what LiveKit sends never waits in front of a `/join`.
        client=connect(settings.redis_url),
        tenant=settings.tenant,
        show=partial(show_end, create_producer(settings.broker_url), hostname="agent-service"),
    )
