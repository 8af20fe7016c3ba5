"""How a live session goes to another worker without a gap: its owner's offer, a standby, the baton's pass.

These moves of the record belong to `records.py`'s; they live here because only a hand-over makes them. The fields
`offered_epoch` and `standby` say which epoch was offered last and which worker stands by to go on in it. An epoch that
was offered is never used again, whatever became of it: it may be in the name of an agent in the room.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from worker.fleet.errors import HandOverImpossible, IllegalMove, SessionNotFound, StaleEpoch
from worker.fleet.records import commands_key, record_key
from worker.fleet.redis_operations import NOW, Operation, pairs
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


# ARGV: command's id, target, lifetime in ms.
_ASK = f"""#!lua
local record = redis.call('HMGET', KEYS[1], 'state', 'epoch')
if not record[1] then return {{'missing'}} end
if record[1] ~= '{State.LIVE}' then return {{'illegal', record[1]}} end
redis.call('XADD', KEYS[2], '*', 'kind', '{Command.HAND_OVER}', 'id', ARGV[1], 'epoch', record[2], 'to', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {{'moved', redis.call('HGETALL', KEYS[1])}}"""

# ARGV: epoch, owner.
_OFFER = f"""#!lua
local record = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'owner', 'offered_epoch')
if not record[1] then return {{'missing'}} end
if record[2] ~= ARGV[1] or record[3] ~= ARGV[2] then return {{'stale'}} end
if record[1] ~= '{State.LIVE}' then return {{'illegal', record[1]}} end
local offered = math.max(tonumber(record[4] or 0), tonumber(ARGV[1])) + 1
redis.call('HSET', KEYS[1], 'offered_epoch', offered, 'standby', '')
return {{'moved', redis.call('HGETALL', KEYS[1])}}"""

# ARGV: offered epoch, worker.
_STAND_BY = f"""#!lua
local record = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'offered_epoch', 'standby')
if not record[1] then return {{'missing'}} end
if record[3] ~= ARGV[1] or tonumber(record[2]) >= tonumber(ARGV[1]) or (record[4] or '') ~= '' then
  return {{'stale'}}
end
if record[1] ~= '{State.LIVE}' then return {{'illegal', record[1]}} end
redis.call('HSET', KEYS[1], 'standby', ARGV[2])
return {{'moved', redis.call('HGETALL', KEYS[1])}}"""

# ARGV: offered epoch, worker, lifetime in ms.
_READY = f"""#!lua
local record = redis.call('HMGET', KEYS[1], 'state', 'offered_epoch', 'standby')
if not record[1] then return {{'missing'}} end
if record[2] ~= ARGV[1] or record[3] ~= ARGV[2] then return {{'stale'}} end
redis.call('XADD', KEYS[2], '*', 'kind', '{Command.READY}', 'epoch', ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {{'moved', redis.call('HGETALL', KEYS[1])}}"""

# ARGV: offered epoch, worker. Between this and a pass there is no third way.
_STEP_BACK = """#!lua flags=allow-oom
local record = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'offered_epoch', 'standby')
if not record[1] then return {'missing'} end
if record[3] == ARGV[1] and record[4] == ARGV[2] then
  redis.call('HSET', KEYS[1], 'offered_epoch', ARGV[1] + 1, 'standby', '')
end
return {'moved', redis.call('HGETALL', KEYS[1])}"""

# ARGV: epoch, owner, offered epoch, whether the caller is in the middle of a turn, lifetime in ms. May be repeated:
# nothing else moves the record to an offered epoch.
_PASS = f"""#!lua flags=allow-oom
{NOW}
local record = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'owner', 'offered_epoch', 'standby')
if not record[1] then return {{'missing'}} end
if record[2] == ARGV[3] then return {{'moved', redis.call('HGETALL', KEYS[1])}} end
if record[2] ~= ARGV[1] or record[3] ~= ARGV[2] then return {{'stale'}} end
if record[1] ~= '{State.LIVE}' then return {{'illegal', record[1]}} end
if record[4] ~= ARGV[3] or (record[5] or '') == '' then return {{'impossible'}} end
redis.call('HSET', KEYS[1], 'epoch', ARGV[3], 'owner', record[5], 'standby', '', 'claimed_at', now / 1000)
redis.call('XADD', KEYS[2], '*', 'kind', '{Command.PASSED}', 'epoch', ARGV[3], 'open', ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return {{'moved', redis.call('HGETALL', KEYS[1])}}"""

# The one move that lowers an epoch: whoever stood by in the offered one has renounced it unused, and it is never
# offered again. A pass that reaches the server after this finds its offer void.
# ARGV: epoch, owner, offered epoch.
_TAKE_BACK = f"""#!lua flags=allow-oom
local record = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'owner', 'offered_epoch')
if not record[1] then return {{'missing'}} end
local is_passed = record[2] == ARGV[3] and record[4] == ARGV[3]
if not is_passed and (record[2] ~= ARGV[1] or record[3] ~= ARGV[2]) then return {{'stale'}} end
if record[1] ~= '{State.LIVE}' then return {{'illegal', record[1]}} end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'owner', ARGV[2], 'standby', '',
  'offered_epoch', math.max(tonumber(record[4] or 0), ARGV[3] + 1))
return {{'moved', redis.call('HGETALL', KEYS[1])}}"""


def ask(session_id: str, *, to: str, command_id: str, lifetime: float) -> Operation[Session]:
    """Ask the owner of a live session to hand it over to the worker named `to`, or to any when that is empty.

    Raises `HandOverImpossible` for a session that is not live, and `SessionNotFound`.
    """
    return _operation(_ASK, session_id, [command_id, to, _milliseconds(lifetime)], parse=_parse_asked)


def offer(session: Session) -> Operation[Session]:
    """Offer the next epoch of an owner's session; its `offered_epoch` is in the answer, offers before it are void.

    An offer that nobody is told of takes the last one back. Raises `IllegalMove`, `StaleEpoch` or `SessionNotFound`.
    """
    return _operation(_OFFER, session.session_id, [session.epoch, session.owner])


def stand_by(session_id: str, *, offered: int, worker_id: str) -> Operation[Session]:
    """Be the one who goes on in the offered epoch.

    Raises what `offer` does, also when the offer is void or another one stands by.
    """
    return _operation(_STAND_BY, session_id, [offered, worker_id])


def ready(successor: Session, *, lifetime: float) -> Operation[Session]:
    """Tell the owner that the successor hears the caller; raises what `offer` does."""
    return _operation(_READY, successor.session_id, [successor.epoch, successor.owner, _milliseconds(lifetime)])


def step_back(session_id: str, *, offered: int, worker_id: str) -> Operation[Session]:
    """Stand by no longer: from here on the baton cannot be passed to this worker in this epoch.

    The answer tells whether it was before. Raises `SessionNotFound`.
    """
    return _operation(_STEP_BACK, session_id, [offered, worker_id])


def give(session: Session, *, offered: int, is_open: bool, lifetime: float) -> Operation[Session]:
    """Pass the session to whoever stands by, in one step with the word to the successor.

    Raises `HandOverImpossible` when nobody stands by any more, and what `offer` does.
    """
    return _operation(
        _PASS,
        session.session_id,
        [session.epoch, session.owner, offered, int(is_open), _milliseconds(lifetime)],
    )


def take_back(session: Session, *, offered: int) -> Operation[Session]:
    """Keep a session of which it is not known whether it was passed; only after the successor has renounced it.

    Raises what `offer` does, for instance when another worker has recovered it from the successor. May be repeated.
    """
    return _operation(_TAKE_BACK, session.session_id, [session.epoch, session.owner, offered])


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


def choose(fleet: Fleet, *, owner: str, name: str = "", place: int = 0) -> WorkerStatus | None:
    """The emptiest worker that takes sessions and is not the owner, or the one of this name; None when it is full.

    Sessions of one owner that leave it together, each with a `place` of its own from 0 on, are spread over the free
    slots: the emptiest worker comes first, and a second time only when it is still as empty as the others.
    """
    free = [
        worker
        for worker in fleet.open_workers
        if worker.worker_id != owner and worker.busy < worker.slots and name in ("", worker.name)
    ]
    slots = [(left, worker) for worker in free for left in range(worker.slots - worker.busy, 0, -1)]
    slots.sort(key=lambda slot: slot[0], reverse=True)
    return slots[place % len(slots)][1] if slots else None


def _operation(
    script: str, session_id: str, arguments: Sequence[str | int | float], *, parse: Any = None
) -> Operation[Session]:
    return Operation(
        script=script,
        keys=[record_key(session_id), commands_key(session_id)],
        arguments=arguments,
        parse=parse or _parse,
    )


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _parse_asked(raw: Sequence[Any]) -> Session:
    if raw[0] == "illegal":
        raise HandOverImpossible(f"The session is {raw[1]}, not live.")
    return _parse(raw)


def _parse(raw: Sequence[Any]) -> Session:
    if raw[0] == "moved":
        return Session.from_fields(pairs(raw[1]))
    if raw[0] == "stale":
        raise StaleEpoch()
    if raw[0] == "illegal":
        raise IllegalMove(f"a session that is {raw[1]} cannot make this move")
    if raw[0] == "impossible":
        raise HandOverImpossible("Nobody stands by any more.")
    raise SessionNotFound()
