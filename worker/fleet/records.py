"""The session's record, commands and turns in Redis; every write of an owner carries its epoch.

Key space (one slot per session; all expire):
    muster:{s:<session id>}:record    HASH    the fields of `session.Session`
    muster:{s:<session id>}:commands  STREAM  what the owner is asked to do, `kind` and `id`
    muster:{s:<session id>}:turns     STREAM  committed turns, `turn` = JSON

and, written by `drafts.py`, `draft`; by `graphs/checkpointer.py`, `checkpoints` and `checkpoint_writes`, which live as
long as these.

An active record lives for the longest call and some minutes, an ended one for `KEPT_AFTER_END`.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from worker.fleet.errors import IllegalMove, RecordUnreadable, RecoveriesExhausted, SessionNotFound, StaleEpoch
from worker.fleet.redis_operations import NEVER, NOW, Operation, pairs, too_late
from worker.fleet.session import Reason, Session, State, states_before

logger = logging.getLogger(__name__)

#: What expires together.
_LASTING = ("record", "commands", "turns", "checkpoints", "checkpoint_writes")
#: Seconds an ended session can still be looked up.
KEPT_AFTER_END = 24 * 3600.0

# ARGV: lifetime in ms, last moment in ms, then fields and values.
_CREATE = f"""#!lua
{NOW}
if now > tonumber(ARGV[2]) then return 'late' end
if redis.call('EXISTS', KEYS[1]) == 1 then return 'exists' end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 'created'"""

# A key that is no hash is a damaged record, not a server that fails.
_READ = """#!lua flags=no-writes
local record = redis.pcall('HGETALL', KEYS[1])
if record.err then return {'error', record.err} end
return record"""

# ARGV: target state, states it may come from, epoch, owner ('*' = any), lifetime in ms, time stamp's field,
# then fields and values to set.
# In a full server sessions still go on to their end, and only their end makes room there.
_MOVE = f"""#!lua flags=allow-oom
{NOW}
local record = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'owner')
if not record[1] then return {{'missing'}} end
if record[2] ~= ARGV[3] then return {{'stale'}} end
if ARGV[4] ~= '*' and (record[3] or '') ~= ARGV[4] then return {{'stale'}} end
if not string.find(ARGV[2], ',' .. record[1] .. ',', 1, true) then return {{'illegal', record[1]}} end
redis.call('HSET', KEYS[1], 'state', ARGV[1], ARGV[6], now / 1000)
if #ARGV > 6 then redis.call('HSET', KEYS[1], unpack(ARGV, 7)) end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[5]) end
return {{'moved', redis.call('HGETALL', KEYS[1])}}"""

# A successor that was offered an epoch may be in the room already, so the one after it is the next.
# ARGV: epoch, owner, states it may come from, recoveries in a row at most, ms after its claim from which on an owner
# has been there long enough, ms until the next one must have claimed it, lifetime in ms, 1 if the owner was lost.
_RECOVER = f"""#!lua flags=allow-oom
{NOW}
local record = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'owner', 'claimed_at', 'recoveries', 'offered_epoch')
if not record[1] then return {{'missing'}} end
if record[2] ~= ARGV[1] or (record[3] or '') ~= ARGV[2] then return {{'stale'}} end
if not string.find(ARGV[3], ',' .. record[1] .. ',', 1, true) then return {{'illegal', record[1]}} end
local recoveries = tonumber(record[5] or 0)
if record[4] and now - record[4] * 1000 >= tonumber(ARGV[5]) then recoveries = 0 end
if ARGV[8] == '1' and recoveries >= tonumber(ARGV[4]) then return {{'exhausted'}} end
local epoch = math.max(tonumber(ARGV[1]), tonumber(record[6] or 0)) + 1
redis.call('HSET', KEYS[1], 'state', '{State.RECOVERING}', 'epoch', epoch, 'owner', '', 'standby', '',
  'recoveries', recoveries + ARGV[8], 'recovering_at', now / 1000, 'join_deadline', (now + ARGV[6]) / 1000)
redis.call('HDEL', KEYS[1], 'published_at')
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[7]) end
return {{'moved', redis.call('HGETALL', KEYS[1])}}"""

_STAMP = f"""#!lua
{NOW}
local record = redis.call('HMGET', KEYS[1], 'epoch', 'owner')
if not record[1] then return 'missing' end
if record[1] ~= ARGV[1] or (record[2] or '') ~= ARGV[2] then return 'stale' end
redis.call('HSETNX', KEYS[1], ARGV[3], now / 1000)
return 'stamped'"""

# ARGV: states that count as over, lifetime after the end, command id, lifetime. Without an owner it ends at once.
_LEAVE = f"""#!lua flags=allow-oom
{NOW}
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {{'missing'}} end
if string.find(ARGV[1], ',' .. state .. ',', 1, true) then return {{'over', redis.call('HGETALL', KEYS[1])}} end
local reason = ({{
  {State.QUEUED} = '{Reason.CANCELLED}', {State.RECOVERING} = '{Reason.LEFT}', {State.CHAT} = '{Reason.LEFT}'
}})[state]
if reason then
  redis.call('HSET', KEYS[1], 'state', '{State.ENDED}', 'reason', reason, 'ended_at', now / 1000)
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[2]) end
  return {{'cancelled', redis.call('HGETALL', KEYS[1])}}
end
redis.call('XADD', KEYS[2], '*', 'kind', 'leave', 'id', ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return {{'asked', redis.call('HGETALL', KEYS[1])}}"""

_APPEND_TURN = """#!lua
local record = redis.call('HMGET', KEYS[1], 'epoch', 'owner')
if not record[1] then return {'missing'} end
if record[1] ~= ARGV[1] or (record[2] or '') ~= ARGV[2] then return {'stale'} end
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if newest and newest[2][2] == ARGV[4] then return {'added', newest[1]} end
local id = redis.call('XADD', KEYS[2], '*', 'turn', ARGV[4])
if ARGV[5] == '1' then redis.call('DEL', KEYS[3]) end
if redis.call('PTTL', KEYS[2]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[2], ARGV[3]) end
return {'added', id}"""

_TURNS_AFTER = """#!lua flags=no-writes
return redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])"""


@dataclass(frozen=True)
class LeaveAnswer:
    """What became of a request to leave."""

    outcome: Literal["over", "cancelled", "asked"]
    session: Session


def _key(session_id: str, name: str) -> str:
    return f"muster:{{s:{session_id}}}:{name}"


def record_key(session_id: str) -> str:
    """The key of the session's record."""
    return _key(session_id, "record")


def commands_key(session_id: str) -> str:
    """The key of the session's command stream."""
    return _key(session_id, "commands")


def turns_key(session_id: str) -> str:
    """The key of the session's turn stream."""
    return _key(session_id, "turns")


def draft_key(session_id: str) -> str:
    """The key of what the caller has begun to say (see `drafts.py`)."""
    return _key(session_id, "draft")


def lasting_keys(session_id: str) -> list[str]:
    """The keys of the session that expire together, the record's first."""
    return [_key(session_id, name) for name in _LASTING]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _listed(states: Sequence[State] | frozenset[State]) -> str:
    return "," + ",".join(sorted(states)) + ","


def create(session: Session, *, lifetime: float, not_after: float = NEVER) -> Operation[bool]:
    """Write a new record that lives `lifetime` seconds; False when it exists.

    Raises `StateUnavailable` when the server's clock is past `not_after`, in Unix seconds; nothing is done then.
    """
    flat = [part for item in session.to_fields().items() for part in item]
    return Operation(
        script=_CREATE,
        keys=[record_key(session.session_id)],
        arguments=[_milliseconds(lifetime), _milliseconds(not_after), *flat],
        parse=_parse_create,
    )


def _parse_create(raw: str) -> bool:
    if raw == "late":
        raise too_late()
    return raw == "created"


def read(session_id: str) -> Operation[Session | None]:
    """The session, or None when there is no such record; raises `RecordUnreadable`."""
    return Operation(
        script=_READ,
        keys=[record_key(session_id)],
        parse=lambda raw: Session.from_fields(pairs(raw)) if raw else None,
    )


def read_any(session_id: str) -> Operation[Session | None]:
    """The same for a listing, which one record that is not readable does not spoil: None for it, too."""

    def parse(raw: Sequence[str]) -> Session | None:
        try:
            return Session.from_fields(pairs(raw)) if raw else None
        except RecordUnreadable:
            logger.warning("session %s is not listed: its record is not readable", session_id)
            return None

    return replace(read(session_id), parse=parse)


def move(
    session_id: str,
    target: State,
    *,
    epoch: int,
    lifetime: float,
    owner: str | None = None,
    stamp: str,
    fields: Mapping[str, str] | None = None,
) -> Operation[Session]:
    """Move the record to `target` if epoch, owner (None = whoever) and `states_before` allow it.

    `stamp` names the time field set from the server's clock. Raises `StaleEpoch`, `IllegalMove` or
    `SessionNotFound`.
    """
    flat = [part for item in (fields or {}).items() for part in item]
    return Operation(
        script=_MOVE,
        keys=lasting_keys(session_id),
        arguments=[
            target,
            _listed(states_before(target)),
            epoch,
            "*" if owner is None else owner,
            _milliseconds(lifetime),
            stamp,
            *flat,
        ],
        parse=_parse_move,
    )


def claim(session_id: str, *, epoch: int, owner: str, lifetime: float) -> Operation[Session]:
    """Make `owner` the owner of a session that waits for one."""
    return move(
        session_id,
        State.CONNECTING,
        epoch=epoch,
        owner="",
        lifetime=lifetime,
        stamp="claimed_at",
        fields={"owner": owner},
    )


def recover(
    session: Session, *, most: int, settled: float, patience: float, lifetime: float, is_lost: bool = True
) -> Operation[Session]:
    """Take the session from its lost owner, and let whoever claims it within `patience` seconds go on with it.

    An owner that is not lost gives it away itself. Raises `RecoveriesExhausted` when `most` owners in a row were lost
    within `settled` seconds of their claim, and what `move` does.
    """
    return Operation(
        script=_RECOVER,
        keys=[_key(session.session_id, name) for name in _LASTING],
        arguments=[
            session.epoch,
            session.owner,
            _listed(states_before(State.RECOVERING)),
            most,
            _milliseconds(settled),
            _milliseconds(patience),
            _milliseconds(lifetime),
            int(is_lost),
        ],
        parse=_parse_move,
    )


def end(session: Session, reason: Reason) -> Operation[Session]:
    """Record the session's end as `session.epoch`'s owner, or as reaper of that very owner."""
    return move(
        session.session_id,
        reason.final_state,
        epoch=session.epoch,
        owner=session.owner,
        lifetime=KEPT_AFTER_END,
        stamp="ended_at",
        fields={"reason": reason},
    )


def stamp(session: Session, field: str) -> Operation[None]:
    """Set a time field once, from the server's clock, as the owner."""
    return Operation(
        script=_STAMP,
        keys=[record_key(session.session_id)],
        arguments=[session.epoch, session.owner, field],
        parse=_refuse_unless("stamped"),
    )


def stamp_published(session_id: str, *, epoch: int) -> Operation[None]:
    """Note that the queued session's message was put on its queue."""
    return Operation(
        script=_STAMP,
        keys=[record_key(session_id)],
        arguments=[epoch, "", "published_at"],
        parse=lambda raw: None,
    )


def leave(session_id: str, *, command_id: str, lifetime: float) -> Operation[LeaveAnswer]:
    """End a session without an owner, or ask the owner of a running one to leave; raises `SessionNotFound`."""
    return Operation(
        script=_LEAVE,
        keys=lasting_keys(session_id),
        arguments=[
            _listed([State.ENDED, State.FAILED]),
            _milliseconds(KEPT_AFTER_END),
            command_id,
            _milliseconds(lifetime),
        ],
        parse=_parse_leave,
    )


def append_turn(session: Session, turn: Mapping[str, Any], *, lifetime: float) -> Operation[str]:
    """Add one committed turn as the owner, a user's in the place of its draft; answers its stream id.

    Repeating the newest turn adds nothing: this is how an unknown outcome is retried.
    """
    return Operation(
        script=_APPEND_TURN,
        keys=[_key(session.session_id, name) for name in ("record", "turns", "draft")],
        arguments=[
            session.epoch,
            session.owner,
            _milliseconds(lifetime),
            json.dumps(turn),
            int(turn.get("role") == "user"),
        ],
        parse=lambda raw: str(_accepted(raw, "added")[1]),
    )


def turns_after(session_id: str, cursor: str, *, count: int = 200) -> Operation[list[tuple[str, dict[str, Any]]]]:
    """Up to `count` turns after the stream id `cursor` ("0-0" = from the start), each with its own id."""
    return Operation(
        script=_TURNS_AFTER,
        keys=[_key(session_id, "turns")],
        arguments=[cursor, count],
        parse=lambda raw: [(entry, json.loads(pairs(fields)["turn"])) for entry, fields in raw],
    )


def _accepted(raw: Sequence[Any], expected: str) -> Sequence[Any]:
    if raw[0] == expected:
        return raw
    if raw[0] == "stale":
        raise StaleEpoch()
    if raw[0] == "exhausted":
        raise RecoveriesExhausted()
    if raw[0] == "illegal":
        raise IllegalMove(f"a session that is {raw[1]} cannot make this move")
    raise SessionNotFound()


def _refuse_unless(expected: str) -> Any:
    def parse(raw: str) -> None:
        _accepted([raw], expected)

    return parse


def _parse_move(raw: Sequence[Any]) -> Session:
    return Session.from_fields(pairs(_accepted(raw, "moved")[1]))


def _parse_leave(raw: Sequence[Any]) -> LeaveAnswer:
    if raw[0] == "missing":
        raise SessionNotFound()
    return LeaveAnswer(raw[0], Session.from_fields(pairs(raw[1])))
