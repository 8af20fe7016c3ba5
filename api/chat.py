"""Text turns over HTTP: a text goes in, its answer comes back as server-sent events."""

import logging
from collections.abc import Iterable, Iterator, Sequence

from flask import Response
from pydantic import ValidationError

from api.chat_models import (
    EVENTS,
    ChatEvents,
    ChatHeaders,
    ChatPath,
    ChatRequest,
    ChatStarted,
    FollowHeaders,
)
from api.models import Answer
from api.routes import EVENT_STREAM, Route
from worker.fleet.chats import Reply
from worker.fleet.chatting import BEGINNING, ChatControl, ChatTurn
from worker.fleet.errors import (
    ChatTurnNotFound,
    IdempotencyKeyReused,
    RecordUnreadable,
    SessionChanging,
    SessionNotFound,
    StateUnavailable,
    TurnInProgress,
)

logger = logging.getLogger(__name__)

#: A comment, which no client sees: it shows the server, and what is in between, that the connection lives.
_STILL_HERE = ": still here\n\n"


class ChatViews:
    """HTTP's words for what `ChatControl` does."""

    def __init__(self, *, control: ChatControl) -> None:
        self._control = control

    def write(self, *, body: ChatRequest, headers: ChatHeaders) -> Response:
        """The answer's events. A client that goes away does not end the turn."""
        turn = self._control.write(
            user_id=body.user_id,
            text=body.text,
            session_id=body.session_id,
            metadata=body.metadata,
            idempotency_key=headers.idempotency_key,
        )
        return self._stream(turn, after=BEGINNING)

    def follow(self, *, path: ChatPath, headers: FollowHeaders) -> Response:
        """The same events again, those behind `Last-Event-ID` if it is given."""
        turn = self._control.find(path.session_id, path.turn_id)
        return self._stream(turn, after=headers.last_event_id or BEGINNING)

    def _stream(self, turn: ChatTurn, *, after: str) -> Response:
        events = _events(turn, self._control.follow(turn, after=after))
        # A proxy that collects an answer before it passes it on would make one piece of it.
        return Response(events, content_type=EVENT_STREAM, headers={"X-Accel-Buffering": "no"})


def chat_routes(views: ChatViews) -> Sequence[Route]:
    """Everything about text turns."""
    return [
        Route(
            method="POST",
            address="/chat",
            view=views.write,
            summary="Have a text answered",
            headers=ChatHeaders,
            body=ChatRequest,
            answers={200: ChatEvents},
            answers_media_type=EVENT_STREAM,
            refusals=(
                SessionNotFound,
                TurnInProgress,
                SessionChanging,
                IdempotencyKeyReused,
                RecordUnreadable,
                StateUnavailable,
            ),
        ),
        Route(
            method="GET",
            address="/chat/<session_id>/<turn_id>",
            view=views.follow,
            summary="The answer to a text once more",
            path=ChatPath,
            headers=FollowHeaders,
            answers={200: ChatEvents},
            answers_media_type=EVENT_STREAM,
            refusals=(SessionNotFound, ChatTurnNotFound, RecordUnreadable, StateUnavailable),
        ),
    ]


def _events(turn: ChatTurn, replies: Iterable[Reply | None]) -> Iterator[str]:
    started = ChatStarted(session_id=turn.session_id, turn_id=turn.turn_id, status=turn.status)
    yield _event("session", started)
    for reply in replies:
        yield _STILL_HERE if reply is None else _shown(turn, reply)


def _shown(turn: ChatTurn, reply: Reply) -> str:
    """The event; what a newer worker wrote in a way not known here is passed over."""
    try:
        return _event(reply.kind, EVENTS[reply.kind].model_validate(reply.data), cursor=reply.cursor)
    except ValidationError:
        logger.warning("an event of turn %s is not shown: it is not readable", turn.turn_id)
        return _STILL_HERE


def _event(name: str, data: Answer, *, cursor: str = "") -> str:
    place = f"id: {cursor}\n" if cursor else ""
    return f"{place}event: {name}\ndata: {data.model_dump_json(by_alias=True)}\n\n"
