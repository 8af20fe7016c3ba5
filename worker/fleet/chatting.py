"""What the outside may ask of text turns: write one, and follow its answer; from any process, through Redis."""

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import redis
from redis.exceptions import RedisError

from worker.fleet import chats, record_moves, records
from worker.fleet.breaker import Breaker
from worker.fleet.chats import Progress, Reply, ReplyKind, TurnState
from worker.fleet.control import ANSWERED_WITHIN
from worker.fleet.errors import ChatTurnNotFound, SessionNotFound, StateUnavailable
from worker.fleet.patience import Patience
from worker.fleet.redis_operations import AT_A_TIME, Answer, Operation, run, unavailable
from worker.fleet.session import Session, State
from worker.fleet.settings import FleetSettings

#: Answers that one process follows at a time, each on a connection of its own.
FOLLOWED = 128
#: Seconds a client for following waits for an answer, and a read blocks.
FOLLOW_TIMEOUT = 3.0
_BLOCK = 1.0
#: Seconds for which an answer is looked for again while Redis is away, and seconds between two looks.
_REDIS_RETURNS = 5.0
_RETRY = 0.5
BEGINNING = "0-0"


@dataclass(frozen=True)
class ChatTurn:
    """A text that was written, or found again; `status` is its session's state."""

    session_id: str
    turn_id: str
    status: State


class ChatControl:
    """Writes texts into sessions of one tenant and follows the answers; safe to use from many threads.

    `publish` puts a text's message on the broker and may raise anything of the broker's library named in
    `publish_errors`. `replies` is a client for `FOLLOWED` reads that block, with a timeout of `FOLLOW_TIMEOUT`.
    """

    def __init__(
        self,
        *,
        settings: FleetSettings,
        client: "redis.Redis",
        replies: "redis.Redis",
        publish: Callable[[str, str], None],
        publish_errors: tuple[type[Exception], ...] = (OSError,),
    ) -> None:
        self._settings = settings
        self._client = client
        self._replies = replies
        self._publish = publish
        self._unpublished: tuple[type[Exception], ...] = (StateUnavailable, *publish_errors)
        self._patience = Patience(seconds=ANSWERED_WITHIN, at_a_time=AT_A_TIME)
        self._state_breaker = Breaker(at_a_time=AT_A_TIME)
        self._broker_breaker = Breaker(at_a_time=AT_A_TIME)
        self._followed = threading.Semaphore(FOLLOWED)

    def write(
        self,
        *,
        user_id: str,
        text: str,
        session_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> ChatTurn:
        """Have a text answered in the session, or in one that is made for it and knows `metadata`.

        The same key again means the same text of the same session, whatever became of it. Raises `SessionNotFound`,
        `TurnInProgress`, `SessionChanging`, `IdempotencyKeyReused`, `RecordUnreadable` or `StateUnavailable`; after the
        last one the text may be answered all the same.
        """
        made_id = _id_from(self._settings.tenant, user_id, idempotency_key) if session_id is None else session_id
        turn_id = _id_from(made_id, "turn", idempotency_key)

        def work() -> ChatTurn:
            if session_id is None:
                self._create(made_id, user_id=user_id, metadata=metadata or {})
            return self._write(made_id, turn_id, user_id=user_id, text=text)

        return self._patience.wait_for(work)

    def find(self, session_id: str, turn_id: str) -> ChatTurn:
        """A text whose answer can still be read; raises `SessionNotFound` or `ChatTurnNotFound`."""

        def work() -> ChatTurn:
            session = self._run(records.read(session_id))
            if session is None or session.tenant != self._settings.tenant:
                raise SessionNotFound()
            self._run(chats.look(session_id, turn_id))
            return ChatTurn(session_id, turn_id, session.state)

        return self._patience.wait_for(work)

    def follow(self, turn: ChatTurn, *, after: str = BEGINNING) -> Iterator[Reply | None]:
        """The events of the answer behind a cursor, up to the last one; None whenever nothing happens for a second.

        It ends in any case, with an event of its own making when nobody answers. Raises nothing.
        """
        if not self._followed.acquire(timeout=_BLOCK):
            yield _broken("chat_full", "Too many answers are read at a time. The text is answered; read it later.")
            return
        try:
            yield from self._follow(turn, after)
        except ChatTurnNotFound as error:
            yield _broken("turn_not_found", str(error))
        except StateUnavailable as error:
            yield _broken("redis_unavailable", str(error))
        finally:
            self._followed.release()

    def _follow(self, turn: ChatTurn, cursor: str) -> Iterator[Reply | None]:
        started = seen_at = time.monotonic()
        block = min(_BLOCK, self._settings.chat_patience)
        while True:
            try:
                replies = self._read(turn, cursor, block=block)
                progress = None if replies else run(self._client, chats.look(turn.session_id, turn.turn_id))
                seen_at = time.monotonic()
            except StateUnavailable:
                if time.monotonic() - seen_at > _REDIS_RETURNS:
                    raise
                time.sleep(_RETRY)
                yield None
                continue
            for entry, reply in replies:
                cursor = entry
                yield reply
                if reply is not None and reply.kind.is_last:
                    return
            if progress is not None:
                # What was written between the two looks comes with the next one.
                broken = self._broken(turn, progress, waited=time.monotonic() - started)
                if broken is not None and not self._read(turn, cursor):
                    yield broken
                    return
                yield None

    def _broken(self, turn: ChatTurn, progress: Progress, *, waited: float) -> Reply | None:
        """The end of an answer that will not come any more, None when it may."""
        if progress.state in (TurnState.DONE, TurnState.FAILED):
            return _broken("turn_over", "The turn is over, and nothing comes behind this event.")
        if progress.state is TurnState.TAKEN and not progress.is_kept:
            return _broken("turn_lost", "Whoever answered has died. The text is remembered; send it again to go on.")
        is_late = progress.state is TurnState.WAITING and waited > self._settings.chat_patience
        if is_late and run(self._client, chats.withdraw(turn.session_id, turn.turn_id)):
            return _broken("nobody_answers", "Nobody has taken the text in time, and nobody will. Send it again.")
        return None

    def _read(self, turn: ChatTurn, cursor: str, *, block: float | None = None) -> list[tuple[str, Reply | None]]:
        """The events behind the cursor, each with its own; None for one of a kind that only a newer worker knows."""
        key = chats.replies_key(turn.session_id, turn.turn_id)
        try:
            # The library's type does not say which of its shapes this protocol version answers with.
            answer: Any = self._replies.xread({key: cursor}, block=round(block * 1000) if block else None)
        except RedisError as error:
            raise unavailable(error) from error
        return [(entry, _reply(entry, fields)) for _, entries in answer for entry, fields in entries]

    def _create(self, session_id: str, *, user_id: str, metadata: Mapping[str, Any]) -> None:
        session = Session(
            session_id=session_id,
            tenant=self._settings.tenant,
            room="",
            user_id=user_id,
            metadata=metadata,
            state=State.CHAT,
            epoch=0,
            admitted_at=time.time(),
        )
        if self._run(record_moves.create(session, lifetime=chats.UNANSWERED)):
            self._run(chats.enlist(session.tenant, session_id))

    def _write(self, session_id: str, turn_id: str, *, user_id: str, text: str) -> ChatTurn:
        written = self._run(
            chats.write(
                session_id,
                turn_id,
                tenant=self._settings.tenant,
                user_id=user_id,
                text=text,
                digest=hashlib.sha256(text.encode()).hexdigest(),
                patience=self._settings.chat_patience,
                command_lifetime=self._settings.session_hold,
            )
        )
        if written.way == "chat":
            self._send(session_id, turn_id)
        return ChatTurn(session_id, turn_id, written.session.state)

    def _send(self, session_id: str, turn_id: str) -> None:
        try:
            with self._broker_breaker.attempt():
                self._publish(session_id, turn_id)
        except self._unpublished as error:
            # Its message may have arrived all the same, and then finds nothing to answer.
            self._run(chats.withdraw(session_id, turn_id))
            raise StateUnavailable("The broker did not take the text.") from error

    def _run(self, operation: Operation[Answer], /) -> Answer:
        with self._state_breaker.attempt():
            return run(self._client, operation)


def _reply(cursor: str, fields: Mapping[str, str]) -> Reply | None:
    known = fields["kind"] in tuple(ReplyKind)
    return Reply(ReplyKind(fields["kind"]), json.loads(fields["data"]), cursor) if known else None


def _broken(code: str, detail: str) -> Reply:
    return Reply(ReplyKind.ERROR, {"code": code, "detail": detail})


def _id_from(scope: str, kind: str, key: str | None) -> str:
    """The same id for the same key, a fresh one without."""
    if key is None:
        return uuid.uuid4().hex
    return hashlib.sha256("\0".join((scope, kind, key)).encode()).hexdigest()[:32]
