"""Admission: which session may have which room, decided in one atomic step per tenant.

Key space (one slot per tenant):
    muster:{t:<tenant>}:room:<room>        STRING  the session that holds the room
    muster:{t:<tenant>}:live               ZSET    session -> when its hold ends (ms of the server's clock)
    muster:{t:<tenant>}:idempotency:<key>  STRING  the session a /join with this key made
    muster:{t:<tenant>}:recent             ZSET    session -> when it was admitted (ms), trimmed to a day and 1,000
    muster:{t:<tenant>}:open               STRING  set when joins are opened; lost with the holds, if those are

A hold lasts the join TTL until the claim confirms it, then the longest call and 5 minutes: no beat extends it,
only `release` ends it earlier. A room lock whose session is not in `live` is void.

A `/join` names the time, on the server's clock, at which it stops waiting for an answer. What a server that was stuck
reads later than that is not done: whoever asked has been told that no agent comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from worker.fleet.redis_operations import NEVER, NOW, Operation, too_late

#: Seconds an idempotency key is remembered.
IDEMPOTENCY_KEPT = 24 * 3600.0
_RECENT_KEPT = 24 * 3600 * 1000
_RECENT_MOST = 1000

# KEYS: live, recent, room, idempotency (or room again), open. ARGV: session, hold ms, limit, idempotency ms (0 = no
# key), last moment ms, 1 = only while joins are open. A known key's own session passes: it repeats what it has done, or
# makes up for what it has not.
_ADMIT = f"""#!lua
{NOW}
if now > tonumber(ARGV[5]) then return {{'late', '', 0}} end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local function age(session) return now - (redis.call('ZSCORE', KEYS[2], session) or now) end
local holder = redis.call('GET', KEYS[3])
local known = tonumber(ARGV[4]) > 0 and redis.call('GET', KEYS[4])
if known and (known ~= ARGV[1] or (holder ~= known and redis.call('ZSCORE', KEYS[1], known))) then
  return {{'same', known, age(known)}}
end
if holder and redis.call('ZSCORE', KEYS[1], holder) then
  return {{holder == ARGV[1] and 'admitted' or 'room_taken', holder, age(holder)}}
end
if ARGV[6] == '1' and redis.call('EXISTS', KEYS[5]) == 0 then return {{'closed', '', 0}} end
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then return {{'full', '', 0}} end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - {_RECENT_KEPT})
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -{_RECENT_MOST + 1})
redis.call('PEXPIRE', KEYS[2], {_RECENT_KEPT})
if tonumber(ARGV[4]) > 0 then redis.call('SET', KEYS[4], ARGV[1], 'PX', ARGV[4]) end
return {{'admitted', ARGV[1], 0}}"""

_CONFIRM = f"""#!lua
{NOW}
local hold = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not hold or tonumber(hold) <= now or redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1"""

# What only takes away is done in a full server, too.
_RELEASE = """#!lua flags=allow-oom
redis.call('ZREM', KEYS[1], ARGV[1])
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
return 1"""

# KEYS: live, room.
_HOLDER = f"""#!lua flags=no-writes
{NOW}
local holder = redis.call('GET', KEYS[2])
local hold = holder and redis.call('ZSCORE', KEYS[1], holder)
if hold and tonumber(hold) > now then return holder end
return nil"""

_FORGET = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1"""

# ARGV: session, ms for which it may be listed without a record.
_DELIST = f"""#!lua flags=allow-oom
{NOW}
local admitted = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not admitted or now - admitted < tonumber(ARGV[2]) then return 0 end
return redis.call('ZREM', KEYS[1], ARGV[1])"""

_HOLDERS = f"""#!lua flags=allow-oom
{NOW}
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
return redis.call('ZRANGE', KEYS[1], 0, -1)"""

_OPEN = """#!lua flags=allow-oom
redis.call('SET', KEYS[1], 1)
return 1"""

_IS_OPEN = """#!lua flags=no-writes
return redis.call('EXISTS', KEYS[1])"""

_RECENT = """#!lua flags=no-writes
return redis.call('ZREVRANGE', KEYS[1], 0, ARGV[1] - 1)"""


@dataclass(frozen=True)
class Admission:
    """What became of a request for a room; `session_id` is whose it is, empty when it is refused."""

    outcome: Literal["admitted", "same", "room_taken", "full", "closed"]
    session_id: str
    #: Seconds since that session was admitted, 0 when that is not known.
    age: float


def _key(tenant: str, name: str) -> str:
    return f"muster:{{t:{tenant}}}:{name}"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def admit(
    tenant: str,
    room: str,
    session_id: str,
    *,
    join_ttl: float,
    limit: int,
    idempotency_key: str | None = None,
    not_after: float = NEVER,
    only_if_open: bool = False,
) -> Operation[Admission]:
    """Reserve the room for `session_id` for `join_ttl` seconds, unless it is taken or `limit` sessions are held.

    `only_if_open` has it refused where joins are not open: in a server that has just lost its holds.

    Repeating it with the same session id is harmless: this is how an unknown outcome is retried. Raises
    `StateUnavailable` when the server's clock is past `not_after`, in Unix seconds; nothing is done then.
    """
    room_key = _key(tenant, f"room:{room}")
    return Operation(
        script=_ADMIT,
        keys=[
            _key(tenant, "live"),
            _key(tenant, "recent"),
            room_key,
            room_key if idempotency_key is None else _key(tenant, f"idempotency:{idempotency_key}"),
            _key(tenant, "open"),
        ],
        arguments=[
            session_id,
            _milliseconds(join_ttl),
            limit,
            0 if idempotency_key is None else _milliseconds(IDEMPOTENCY_KEPT),
            _milliseconds(not_after),
            int(only_if_open),
        ],
        parse=_parse_admission,
    )


def _parse_admission(raw: Sequence[Any]) -> Admission:
    outcome, session_id, age = raw
    if outcome == "late":
        raise too_late()
    return Admission(outcome, session_id, age / 1000)


def confirm(tenant: str, room: str, session_id: str, *, hold: float) -> Operation[bool]:
    """At the claim: hold the room for `hold` seconds; False when the reservation is gone."""
    return Operation(
        script=_CONFIRM,
        keys=[_key(tenant, "live"), _key(tenant, f"room:{room}")],
        arguments=[session_id, _milliseconds(hold)],
        parse=bool,
    )


def release(tenant: str, room: str, session_id: str) -> Operation[None]:
    """Give the room back, if it is still this session's."""
    return Operation(
        script=_RELEASE,
        keys=[_key(tenant, "live"), _key(tenant, f"room:{room}")],
        arguments=[session_id],
        parse=lambda raw: None,
    )


def forget(tenant: str, idempotency_key: str, session_id: str) -> Operation[None]:
    """Forget the idempotency key of a join that was refused after all."""
    return Operation(
        script=_FORGET,
        keys=[_key(tenant, f"idempotency:{idempotency_key}")],
        arguments=[session_id],
        parse=lambda raw: None,
    )


def holder(tenant: str, room: str) -> Operation[str | None]:
    """The id of the session that holds the room, or None when the room is free."""
    return Operation(
        script=_HOLDER,
        keys=[_key(tenant, "live"), _key(tenant, f"room:{room}")],
        parse=lambda raw: raw,
    )


def holders(tenant: str) -> Operation[Sequence[str]]:
    """The ids of all sessions that hold a room."""
    return Operation(script=_HOLDERS, keys=[_key(tenant, "live")], parse=list)


def open_joins(tenant: str) -> Operation[None]:
    """Let new sessions be admitted."""
    return Operation(script=_OPEN, keys=[_key(tenant, "open")], parse=lambda raw: None)


def is_open(tenant: str) -> Operation[bool]:
    """Whether new sessions are admitted."""
    return Operation(script=_IS_OPEN, keys=[_key(tenant, "open")], parse=bool)


def delist(tenant: str, session_id: str, *, after: float) -> Operation[bool]:
    """Take a session out of the last admitted ones; False when it was admitted less than `after` seconds ago."""
    return Operation(
        script=_DELIST,
        keys=[_key(tenant, "recent")],
        arguments=[session_id, _milliseconds(after)],
        parse=bool,
    )


def recent(tenant: str, *, count: int) -> Operation[Sequence[str]]:
    """The ids of the last `count` admitted sessions, newest first, ended ones included."""
    return Operation(script=_RECENT, keys=[_key(tenant, "recent")], arguments=[count], parse=list)
