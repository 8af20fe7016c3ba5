"""Making a session's record for a test."""

import time
import uuid

from worker.fleet.session import Session, State


def new_session(*, room: str = "room", session_id: str | None = None, join_ttl: float = 30) -> Session:
    """A session as `/join` makes it."""
    now = time.time()
    return Session(
        session_id=session_id or uuid.uuid4().hex,
        tenant="default",
        room=room,
        user_id="caller",
        metadata={},
        state=State.QUEUED,
        epoch=1,
        join_deadline=now + join_ttl,
        admitted_at=now,
    )
