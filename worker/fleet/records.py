"""The session's record, commands and turns in Redis; every write of an owner carries its epoch.

Key space (one slot per session; all expire):
    muster:{s:<session id>}:record    HASH    the fields of `session.Session`
    muster:{s:<session id>}:commands  STREAM  what the owner is asked to do, `kind` and `id`
    muster:{s:<session id>}:turns     STREAM  committed turns, `turn` = JSON

and, written by `drafts.py`, `draft` and `draft_audio`; by `graphs/checkpointer.py`, `checkpoints` and
`checkpoint_writes`, which live as long as these.

Every owner reads the commands from the first one on, and applies each at most once, because each says itself to whom
it belongs (`tests/test_fleet_commands.py`):

    leave             to whoever owns the session; it ends once, so that the wish to end it comes true once
    think             to whoever takes the text first: a text is taken once (`chats.py`), and one whose answer broke off
                      is not answered by the next owner; its outcome is unknown until it is sent again
    handover          to the owner of the epoch that it names: one that was lost meanwhile has not handed over
    successor_ready   to the owner that has offered the epoch it names; no epoch is offered twice
    passed            to the successor of the epoch it names; no other one has it

An active record lives for the longest call and some minutes, an ended one for `KEPT_AFTER_END`.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from worker.fleet.errors import (
    HandOverImpossible,
    IllegalMove,
    RecordUnreadable,
    RecoveriesExhausted,
    SessionNotFound,
    StaleEpoch,
)
from worker.fleet.redis_operations import NOW, Operation, pairs
from worker.fleet.session import Session

logger = logging.getLogger(__name__)

#: What expires together.
_LASTING = ("record", "commands", "turns", "checkpoints", "checkpoint_writes")
#: Seconds an ended session can still be looked up.
KEPT_AFTER_END = 24 * 3600.0
#: More turns than a call has for as long as a packet of a closed connection may still be under way.
TURNS_COMPARED = 64

# A key that is no hash is a damaged record, not a server that fails.
_READ = """#!lua flags=no-writes
local record = redis.pcall('HGETALL', KEYS[1])
if record.err then return {'error', record.err} end
return record"""

_STAMP = f"""#!lua
{NOW}
local record = redis.call('HMGET', KEYS[1], 'epoch', 'owner')
if not record[1] then return 'missing' end
if record[1] ~= ARGV[1] or (record[2] or '') ~= ARGV[2] then return 'stale' end
redis.call('HSETNX', KEYS[1], ARGV[3], now / 1000)
return 'stamped'"""

_APPEND_TURN = """#!lua
local record = redis.call('HMGET', KEYS[1], 'epoch', 'owner')
if not record[1] then return {'missing'} end
if record[1] ~= ARGV[1] or (record[2] or '') ~= ARGV[2] then return {'stale'} end
for _, stored in ipairs(redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', ARGV[6])) do
  if stored[2][2] == ARGV[4] then return {'added', stored[1]} end
end
local id = redis.call('XADD', KEYS[2], '*', 'turn', ARGV[4])
if ARGV[5] == '1' then redis.call('DEL', KEYS[3], KEYS[4]) end
if redis.call('PTTL', KEYS[2]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[2], ARGV[3]) end
return {'added', id}"""

_TURNS_AFTER = """#!lua flags=no-writes
return redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])"""


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


def draft_audio_key(session_id: str) -> str:
    """The key of how that sounds (see `drafts.py`)."""
    return _key(session_id, "draft_audio")


def lasting_keys(session_id: str) -> list[str]:
    """The keys of the session that expire together, the record's first."""
    return [_key(session_id, name) for name in _LASTING]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


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


def stamp(session: Session, field: str) -> Operation[None]:
    """Set a time field, whose name ends with `_at`, once, from the server's clock, as the owner."""
    if not field.endswith("_at"):
        raise ValueError(f"{field} is not a time")
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


def append_turn(session: Session, turn: Mapping[str, Any], *, lifetime: float) -> Operation[str]:
    """Add one committed turn as the owner, a user's in the place of its drafts; answers its stream id.

    Repeating one of the last `TURNS_COMPARED` adds nothing: this is how an unknown outcome is retried, and the first
    attempt may reach the server after the repetition and what followed it. Turns are told apart by their `item_id`.
    """
    return Operation(
        script=_APPEND_TURN,
        keys=[_key(session.session_id, name) for name in ("record", "turns", "draft", "draft_audio")],
        arguments=[
            session.epoch,
            session.owner,
            _milliseconds(lifetime),
            json.dumps(turn),
            int(turn.get("role") == "user"),
            TURNS_COMPARED,
        ],
        parse=lambda raw: str(accepted(raw, "added")[1]),
    )


def turns_after(session_id: str, cursor: str, *, count: int = 200) -> Operation[list[tuple[str, dict[str, Any]]]]:
    """Up to `count` turns after the stream id `cursor` ("0-0" = from the start), each with its own id."""
    return Operation(
        script=_TURNS_AFTER,
        keys=[_key(session_id, "turns")],
        arguments=[cursor, count],
        parse=lambda raw: [(entry, json.loads(pairs(fields)["turn"])) for entry, fields in raw],
    )


def accepted(raw: Sequence[Any], expected: str) -> Sequence[Any]:
    """A script's answer that begins with `expected`; raises what stands in its way otherwise."""
    if raw[0] == expected:
        return raw
    if raw[0] == "stale":
        raise StaleEpoch()
    if raw[0] == "exhausted":
        raise RecoveriesExhausted()
    if raw[0] == "illegal":
        raise IllegalMove(f"a session that is {raw[1]} cannot make this move")
    if raw[0] == "impossible":
        raise HandOverImpossible("Nobody stands by any more.")
    raise SessionNotFound()


def _refuse_unless(expected: str) -> Any:
    def parse(raw: str) -> None:
        accepted([raw], expected)

    return parse
