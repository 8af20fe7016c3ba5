"""What a measurement asks of the agent service, and the answers as far as it needs them.

Not `muster.client`: measurements do not import the command's room, and they tell a refusal by its bare status and code.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
from pydantic import TypeAdapter

#: Seconds; the service answers within a few even when its Redis is frozen.
_TIMEOUT = 10.0
_OVER = frozenset({"ended", "failed"})

Answer = TypeVar("Answer")


class ServiceError(Exception):
    """No answer, or a refusal."""


class ServiceUnreachable(ServiceError):
    """Nobody answers."""


class RequestRefused(ServiceError):
    """The service says no; `retry_after` is in seconds, None when it says nothing of it."""

    def __init__(self, *, status: int, code: str, retry_after: int | None) -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code
        self.retry_after = retry_after


class SessionNotFound(RequestRefused):
    """There is no such session."""


class HandOverImpossible(RequestRefused):
    """The session is not live, or no worker is free."""


@dataclass(frozen=True)
class Joined:
    """A session that was asked for; `created` is false when the room had one already."""

    session_id: str
    created: bool


@dataclass(frozen=True)
class Timings:
    """When a session reached its milestones, Unix seconds; None for those still ahead."""

    admitted_at: float | None = None
    claimed_at: float | None = None
    connected_at: float | None = None
    first_audio_at: float | None = None
    recovering_at: float | None = None
    recovered_at: float | None = None
    ending_at: float | None = None
    ended_at: float | None = None


@dataclass(frozen=True)
class Session:
    """A session's state; `worker` is the id of its owner."""

    session_id: str
    room: str
    status: str
    epoch: int
    reason: str | None = None
    worker: str | None = None
    timings: Timings = Timings()

    @property
    def over(self) -> bool:
        """Whether it has ended or failed."""
        return self.status in _OVER


@dataclass(frozen=True)
class Turn:
    """One committed item of a conversation; `at` in Unix seconds."""

    cursor: str
    role: Literal["user", "assistant", "event"]
    item_id: str | None = None
    text: str | None = None
    interrupted: bool = False
    at: float | None = None


@dataclass(frozen=True)
class TurnPage:
    """Turns behind a cursor, oldest first, and the cursor to go on with."""

    turns: tuple[Turn, ...]
    cursor: str


class AgentService:
    """The agent service at a URL; usable from several threads. Raises `ServiceError`s."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def join(self, *, room: str, user_id: str, idempotency_key: str | None = None) -> Joined:
        """Send an agent into the room."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        return self._ask(Joined, "POST", "/join", json={"room": room, "user_id": user_id}, headers=headers)

    def leave(self, session_id: str) -> None:
        """Ask the agent to leave."""
        self._ask(object, "POST", "/leave", json={"session_id": session_id})

    def hand_over(self, session_id: str, *, to: str | None = None) -> None:
        """Ask the session's worker to hand it over to the worker named `to`, or to the emptiest other one."""
        self._ask(object, "POST", f"/sessions/{session_id}/handover", json={"worker": to} if to else {})

    def session(self, session_id: str) -> Session:
        """One session, live or over."""
        return self._ask(Session, "GET", f"/sessions/{session_id}")

    def turns(self, session_id: str, *, after: str | None = None) -> TurnPage:
        """What was said behind the cursor `after`, or from the beginning."""
        return self._ask(TurnPage, "GET", f"/sessions/{session_id}/turns", params={"after": after} if after else {})

    def _ask(self, kind: type[Answer], method: str, url: str, **request: Any) -> Answer:
        try:
            response = self._http.request(method, url, **request)
        except httpx.TransportError as error:
            raise ServiceUnreachable(f"{url} does not answer: {error}") from error
        if response.is_error:
            raise _refusal(response)
        return TypeAdapter(kind).validate_json(response.content)


def _refusal(response: httpx.Response) -> RequestRefused:
    code = str(response.json()["code"])
    kinds = {"session_not_found": SessionNotFound, "handover_impossible": HandOverImpossible}
    retry_after = response.headers.get("Retry-After")
    return kinds.get(code, RequestRefused)(
        status=response.status_code, code=code, retry_after=None if retry_after is None else int(retry_after)
    )
