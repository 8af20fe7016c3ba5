"""The agent service: sends agents into rooms, calls them back and lists what they do."""

from flask import Flask, Response, request
from kombu.exceptions import OperationalError

from api.models import (
    JoinAnswer,
    JoinHeaders,
    JoinRequest,
    LeaveAnswer,
    LeaveRequest,
    SessionAnswer,
    SessionsAnswer,
    SessionsQuery,
    TurnsAnswer,
    TurnsQuery,
)
from api.service import create_service, health, read_body, read_strings, respond
from worker.fleet.control import SessionControl
from worker.fleet.publishing import publisher
from worker.fleet.redis_operations import connect
from worker.fleet.settings import FleetSettings


class SessionViews:
    """HTTP's words for what `SessionControl` does."""

    def __init__(self, *, control: SessionControl) -> None:
        self._control = control

    def join(self) -> Response:
        """202 with a new session, or 200 with the one that is in the room."""
        asked = read_body(JoinRequest)
        key = request.headers.get("Idempotency-Key")
        headers = read_strings(JoinHeaders, {} if key is None else {"idempotency_key": key})
        joined = self._control.join(
            room=asked.room,
            user_id=asked.user_id,
            metadata=asked.metadata,
            idempotency_key=headers.idempotency_key,
        )
        return respond(JoinAnswer.of(joined), status=202 if joined.created else 200)

    def leave(self) -> Response:
        """202 when the session will end, 200 when it had ended before."""
        left = self._control.leave(read_body(LeaveRequest).session_id)
        answer = LeaveAnswer(session_id=left.session.session_id, status=left.session.state)
        return respond(answer, status=200 if left.outcome == "over" else 202)

    def sessions(self) -> Response:
        """The newest sessions, of one state when `?state=` names it."""
        asked = read_strings(SessionsQuery, request.args.to_dict())
        listed = self._control.list(state=asked.state)
        return respond(SessionsAnswer(sessions=[SessionAnswer.of(session) for session in listed]))

    def session(self, session_id: str) -> Response:
        """One session."""
        return respond(SessionAnswer.of(self._control.get(session_id)))

    def turns(self, session_id: str) -> Response:
        """The turns after `?after=`."""
        after = read_strings(TurnsQuery, request.args.to_dict()).after
        turns = self._control.turns(session_id, after=after)
        return respond(
            TurnsAnswer(
                turns=[{"cursor": cursor, **turn} for cursor, turn in turns],
                cursor=turns[-1][0] if turns else after,
            )
        )


def create_app(*, settings: FleetSettings | None = None, control: SessionControl | None = None) -> Flask:
    """The WSGI application; what is not given is made from the environment."""
    views = SessionViews(control=control or _connect_control(settings or FleetSettings.from_env()))
    service = create_service(__name__)
    service.add_url_rule("/join", view_func=views.join, methods=["POST"])
    service.add_url_rule("/leave", view_func=views.leave, methods=["POST"])
    service.add_url_rule("/sessions", view_func=views.sessions)
    service.add_url_rule("/sessions/<session_id>", view_func=views.session)
    service.add_url_rule("/sessions/<session_id>/turns", view_func=views.turns)
    service.add_url_rule("/health", view_func=health)
    return service


def _connect_control(settings: FleetSettings) -> SessionControl:
    from worker.fleet.app import create_producer

    return SessionControl(
        settings=settings,
        client=connect(settings.redis_url),
        publish=publisher(create_producer(settings.broker_url), join_ttl=settings.join_ttl),
        # Kombu's one name for a broker that refuses, stalls or hangs up.
        publish_errors=(OperationalError,),
    )
