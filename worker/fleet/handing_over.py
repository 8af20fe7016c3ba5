"""What is known of a hand-over outside of the call: its commands, whose the session is, and who may take it next.

Its moves of the record are among `record_moves.py`'s.
"""

from enum import StrEnum

from worker.fleet.session import Session, State
from worker.fleet.workers import Fleet, WorkerStatus


class Command(StrEnum):
    """What is said about a hand-over in the session's command stream, each with the `epoch` it is meant for."""

    #: To the owner: hand over, `to` a worker or to whoever is free.
    HAND_OVER = "handover"
    #: To the owner, with the offered epoch: the successor is in the room and hears the caller.
    READY = "successor_ready"
    #: To the successor, with its own epoch: the baton is its own; `open` is 1 when the caller is in the middle of it.
    PASSED = "passed"


def owns(record: Session | None, session: Session) -> bool:
    """Whether the record says that the session is this owner's."""
    return record is not None and (record.epoch, record.owner) == (session.epoch, session.owner)


def is_standby(record: Session | None, successor: Session) -> bool:
    """Whether the record says that this successor stands by for a call that goes on."""
    return (
        record is not None
        and record.state is State.LIVE
        and (record.offered_epoch, record.standby) == (successor.epoch, successor.owner)
    )


def choose(fleet: Fleet, *, worker_id: str, name: str = "", place: int = 0) -> WorkerStatus | None:
    """The emptiest worker that takes sessions and is not this one, or the one of this name; None when it is full.

    Sessions of one worker that leave it together, each with a `place` of its own from 0 on, are spread over the free
    slots: the emptiest worker comes first, and a second time only when it is still as empty as the others.
    """
    free = [
        worker
        for worker in fleet.open_workers
        if worker.worker_id != worker_id and worker.busy < worker.slots and name in ("", worker.name)
    ]
    slots = [(left, worker) for worker in free for left in range(worker.slots - worker.busy, 0, -1)]
    slots.sort(key=lambda slot: slot[0], reverse=True)
    return slots[place % len(slots)][1] if slots else None
