"""Turns of text in Redis: what a user wrote, whose turn it is to answer it, and the answer as it is given.

Key space (the session's slot; all expire):
    muster:{s:<session id>}:chat                    STRING  the turn under way; whoever answers it keeps it alive
    muster:{s:<session id>}:chat:<turn id>          HASH    `state` of the turn, `digest` of its text, and `text` until
                                                            somebody takes it
    muster:{s:<session id>}:replies:<turn id>       STREAM  events of the answer, `kind` and `data` = JSON
    muster:{t:<tenant>}:chats                       ZSET    session of text -> when it was made (ms), trimmed to a day

A turn is taken once. Whoever takes it on a session without a live owner claims the session for as long as the turn
lasts: the epoch grows by one, state and end reason stay as they are. One that stops keeping its turn alive blocks the
session for `LEASE` seconds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from worker.fleet.errors import (
    ChatTurnNotFound,
    IdempotencyKeyReused,
    SessionChanging,
    SessionNotFound,
    StaleEpoch,
    TurnInProgress,
)
from worker.fleet.record_moves import CLAIM_FOR_A_TURN
from worker.fleet.records import KEPT_AFTER_END, commands_key, lasting_keys, record_key
from worker.fleet.redis_operations import NOW, Operation, pairs
from worker.fleet.session import Session, State

#: Seconds a turn stays under way when nobody keeps it alive, and seconds between two times of keeping it.
LEASE = 5.0
BEAT = 1.0
#: Seconds an answer can be read again, and a turn's id is known, after the last event.
KEPT = 600.0
#: Seconds a session of text lives that was never answered in; with each turn it lives for `KEPT_AFTER_END` again.
UNANSWERED = 300.0
_LISTED = 24 * 3600 * 1000
_LISTED_MOST = 1000

#: The kind of the command by which a session's live owner is asked to answer a text.
THINK = "think"


class TurnState(StrEnum):
    """How far a turn of text has come."""

    #: Nobody has taken it.
    WAITING = "waiting"
    #: It is being answered, or whoever did has died.
    TAKEN = "taken"
    #: It is answered.
    DONE = "done"
    #: It could not be answered and may be asked again.
    FAILED = "failed"


class ReplyKind(StrEnum):
    """What an event of an answer tells."""

    #: An answer begins; what came before it was an attempt that broke off.
    BEGUN = "begun"
    TEXT = "text"
    TRANSFER = "transfer"
    TOOL = "tool"
    #: The last event of an answer.
    DONE = "done"
    #: The last event of an attempt that broke off.
    ERROR = "error"

    @property
    def is_last(self) -> bool:
        """Whether nothing comes behind it."""
        return self in (ReplyKind.DONE, ReplyKind.ERROR)


@dataclass(frozen=True)
class Reply:
    """One event of an answer; `cursor` is its stream id."""

    kind: ReplyKind
    data: Mapping[str, Any]
    cursor: str = ""


@dataclass(frozen=True)
class Written:
    """A text that was written to a session, and how it will be answered.

    "chat" = by whoever takes it from the queue, "think" = by the session's live owner, who has been asked; "known" = it
    is being answered or was.
    """

    way: Literal["chat", "think", "known"]
    session: Session


@dataclass(frozen=True)
class Taken:
    """A text to answer, and its session as its owner has it."""

    text: str
    session: Session


@dataclass(frozen=True)
class Progress:
    """How far a turn has come; `is_kept` tells whether somebody who answers it, or may still take it, is there."""

    state: TurnState
    is_kept: bool


def _key(session_id: str, name: str) -> str:
    return f"muster:{{s:{session_id}}}:{name}"


def replies_key(session_id: str, turn_id: str) -> str:
    """The key of the events of a turn's answer."""
    return _key(session_id, f"replies:{turn_id}")


def _turn_keys(session_id: str, turn_id: str) -> list[str]:
    return [record_key(session_id), _key(session_id, "chat"), _key(session_id, f"chat:{turn_id}")]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


# KEYS: record, turn under way, turn, commands, replies. ARGV: tenant, user, turn id, digest, text, ms until nobody
# waits for an answer, ms the turn is known, lifetime of the commands in ms. Whoever repeats it because an answer was
# lost gets the same way again: a turn is taken once.
_WRITE = f"""#!lua
local record = redis.call('HMGET', KEYS[1], 'tenant', 'user_id', 'state')
if record[1] ~= ARGV[1] or record[2] ~= ARGV[2] then return {{'missing'}} end
local known = redis.call('HMGET', KEYS[3], 'digest', 'state')
if known[1] and known[1] ~= ARGV[4] then return {{'reused'}} end
local under_way = redis.call('GET', KEYS[2])
if known[2] == '{TurnState.DONE}' or (known[2] == '{TurnState.TAKEN}' and under_way == ARGV[3]) then
  return {{'known', redis.call('HGETALL', KEYS[1])}}
end
if under_way and under_way ~= ARGV[3] then return {{'busy', redis.call('PTTL', KEYS[2])}} end
local way = ({{ {State.CHAT} = 'chat', {State.ENDED} = 'chat', {State.FAILED} = 'chat',
  {State.WAITING} = '{THINK}', {State.LIVE} = '{THINK}' }})[record[3]]
if not way then return {{'changing'}} end
redis.call('DEL', KEYS[5])
redis.call('HSET', KEYS[3], 'state', '{TurnState.WAITING}', 'digest', ARGV[4], 'text', ARGV[5])
redis.call('PEXPIRE', KEYS[3], ARGV[7])
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[6])
if way == '{THINK}' then
  redis.call('XADD', KEYS[4], '*', 'kind', '{THINK}', 'id', ARGV[3])
  redis.call('PEXPIRE', KEYS[4], ARGV[8])
end
return {{way, redis.call('HGETALL', KEYS[1])}}"""

# KEYS: record, turn under way, turn, then what expires together. ARGV: turn id, owner, lease ms, lifetime in ms, epoch
# ('' = claim).
_TAKE = f"""#!lua
{CLAIM_FOR_A_TURN}
local record = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'owner')
if not record[1] then return {{'missing'}} end
if redis.call('HGET', KEYS[3], 'state') ~= '{TurnState.WAITING}' or redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return {{'void'}}
end
if ARGV[5] == '' then
  if not claim_for_a_turn(record[1], ARGV[2]) then return {{'void'}} end
  for i = 4, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[4]) end
elseif record[2] ~= ARGV[5] or record[3] ~= ARGV[2] then
  return {{'stale'}}
end
local text = redis.call('HGET', KEYS[3], 'text')
redis.call('HSET', KEYS[3], 'state', '{TurnState.TAKEN}')
redis.call('HDEL', KEYS[3], 'text')
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
return {{'taken', text, redis.call('HGETALL', KEYS[1])}}"""

# What every write of the one who answers begins with. KEYS: record, turn under way, turn. ARGV: epoch, owner, turn id.
_OWNED = """
local record = redis.call('HMGET', KEYS[1], 'epoch', 'owner')
if record[1] ~= ARGV[1] or record[2] ~= ARGV[2] then return 'stale' end
local under_way = redis.call('GET', KEYS[2])
if under_way and under_way ~= ARGV[3] then return 'stale' end
"""

# A turn that is over is not kept by what was sent before.
_KEEP = (
    "#!lua flags=allow-oom"
    + _OWNED
    + f"""if redis.call('HGET', KEYS[3], 'state') == '{TurnState.TAKEN}' then
  redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
end
return 'kept'"""
)

# KEYS from 4: replies. ARGV from 4: kind, data, ms an answer is kept, the turn's state after it ('' = not the last).
_REPLY = (
    "#!lua"
    + _OWNED
    + """redis.call('XADD', KEYS[4], '*', 'kind', ARGV[4], 'data', ARGV[5])
redis.call('PEXPIRE', KEYS[4], ARGV[6])
if ARGV[7] ~= '' then
  redis.call('HSET', KEYS[3], 'state', ARGV[7])
  if under_way then redis.call('DEL', KEYS[2]) end
end
redis.call('PEXPIRE', KEYS[3], ARGV[6])
return 'replied'"""
)

# KEYS: turn under way, turn. ARGV: turn id.
_LOOK = """#!lua flags=no-writes
return {redis.call('HGET', KEYS[2], 'state') or '', redis.call('GET', KEYS[1]) == ARGV[1] and 1 or 0}"""

_WITHDRAW = f"""#!lua flags=allow-oom
if redis.call('HGET', KEYS[2], 'state') ~= '{TurnState.WAITING}' then return 0 end
redis.call('DEL', KEYS[2])
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1"""

_LIST = f"""#!lua
{NOW}
redis.call('ZADD', KEYS[1], 'NX', now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - {_LISTED})
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -{_LISTED_MOST + 1})
redis.call('PEXPIRE', KEYS[1], {_LISTED})
return 1"""

_RECENT = """#!lua flags=no-writes
return redis.call('ZREVRANGE', KEYS[1], 0, ARGV[1] - 1)"""


def write(
    session_id: str,
    turn_id: str,
    *,
    tenant: str,
    user_id: str,
    text: str,
    digest: str,
    patience: float,
    command_lifetime: float,
) -> Operation[Written]:
    """Put a user's text where it will be answered from, for `patience` seconds; asks a live owner itself.

    Raises `SessionNotFound`, also for another user's session, `TurnInProgress`, `SessionChanging`, or
    `IdempotencyKeyReused` when the turn is known with another text.
    """
    return Operation(
        script=_WRITE,
        keys=[*_turn_keys(session_id, turn_id), commands_key(session_id), replies_key(session_id, turn_id)],
        arguments=[
            tenant,
            user_id,
            turn_id,
            digest,
            text,
            # Longer than whoever asked waits, who withdraws it.
            _milliseconds(patience + LEASE),
            _milliseconds(KEPT),
            _milliseconds(command_lifetime),
        ],
        parse=_parse_written,
    )


def _parse_written(raw: Sequence[Any]) -> Written:
    match raw[0]:
        case "missing":
            raise SessionNotFound()
        case "reused":
            raise IdempotencyKeyReused("The idempotency key belongs to another text.")
        case "busy":
            raise TurnInProgress(retry_after=max(1, -(-raw[1] // 1000)))
        case "changing":
            raise SessionChanging()
        case way:
            return Written(way, Session.from_fields(pairs(raw[1])))


def claim(session_id: str, turn_id: str, *, owner: str) -> Operation[Taken | None]:
    """Take the turn and become the owner of a session that has none; None when there is nothing to answer."""
    return _take(session_id, turn_id, owner=owner, epoch="")


def take(session: Session, turn_id: str) -> Operation[Taken | None]:
    """Take the turn as the session's live owner; None when there is nothing to answer. Raises `StaleEpoch`."""
    return _take(session.session_id, turn_id, owner=session.owner, epoch=str(session.epoch))


def _take(session_id: str, turn_id: str, *, owner: str, epoch: str) -> Operation[Taken | None]:
    return Operation(
        script=_TAKE,
        keys=[*_turn_keys(session_id, turn_id), *lasting_keys(session_id)],
        arguments=[turn_id, owner, _milliseconds(LEASE), _milliseconds(KEPT_AFTER_END), epoch],
        parse=_parse_taken,
    )


def _parse_taken(raw: Sequence[Any]) -> Taken | None:
    if raw[0] == "stale":
        raise StaleEpoch()
    return Taken(raw[1], Session.from_fields(pairs(raw[2]))) if raw[0] == "taken" else None


def keep(session: Session, turn_id: str) -> Operation[None]:
    """Go on answering for another `LEASE` seconds; raises `StaleEpoch` when another does."""
    return Operation(
        script=_KEEP,
        keys=_turn_keys(session.session_id, turn_id),
        arguments=[session.epoch, session.owner, turn_id, _milliseconds(LEASE)],
        parse=_refuse_stale,
    )


def reply(session: Session, turn_id: str, reply: Reply, *, after: TurnState | None = None) -> Operation[None]:
    """Add an event to the answer as the owner; with `after` it is the last one. Raises `StaleEpoch`."""
    return Operation(
        script=_REPLY,
        keys=[*_turn_keys(session.session_id, turn_id), replies_key(session.session_id, turn_id)],
        arguments=[
            session.epoch,
            session.owner,
            turn_id,
            reply.kind,
            json.dumps(dict(reply.data)),
            _milliseconds(KEPT),
            after or "",
        ],
        parse=_refuse_stale,
    )


def _refuse_stale(raw: str) -> None:
    if raw == "stale":
        raise StaleEpoch()


def look(session_id: str, turn_id: str) -> Operation[Progress]:
    """How far the turn has come; raises `ChatTurnNotFound`."""

    def parse(raw: Sequence[Any]) -> Progress:
        if not raw[0]:
            raise ChatTurnNotFound()
        return Progress(TurnState(raw[0]), bool(raw[1]))

    return Operation(
        script=_LOOK,
        keys=_turn_keys(session_id, turn_id)[1:],
        arguments=[turn_id],
        parse=parse,
    )


def withdraw(session_id: str, turn_id: str) -> Operation[bool]:
    """Take back a text that nobody has taken; False when somebody has."""
    return Operation(
        script=_WITHDRAW,
        keys=_turn_keys(session_id, turn_id)[1:],
        arguments=[turn_id],
        parse=bool,
    )


def enlist(tenant: str, session_id: str) -> Operation[None]:
    """Have a session of text listed."""
    return Operation(script=_LIST, keys=[_chats_key(tenant)], arguments=[session_id], parse=lambda raw: None)


def recent(tenant: str, *, count: int) -> Operation[Sequence[str]]:
    """The ids of the last `count` sessions of text, newest first."""
    return Operation(script=_RECENT, keys=[_chats_key(tenant)], arguments=[count], parse=list)


def _chats_key(tenant: str) -> str:
    return f"muster:{{t:{tenant}}}:chats"
