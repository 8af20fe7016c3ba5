"""The fleet's workers in Redis: one lease each, one leader among their keepers, and whether joins are open.

Key space (one slot):
    muster:{workers}:leases  ZSET    worker id -> when its lease ends (ms of the server's clock)
    muster:{workers}:status  HASH    worker id -> JSON of `WorkerStatus`
    muster:{workers}:drain:<worker id>  STRING  the worker is asked to drain, expires after `DRAIN_KEPT`
    muster:{workers}:leader  STRING  the worker whose keeper leads, expires after `LEADER_LOCK`
    muster:{workers}:ready   STRING  set by the leader when it opens joins (see `reaper.py`)

`muster:{workers}:actions` is `actions.py`'s.

A worker's id is `<name>#<random>`: a restarted worker is another one, so that its old sessions do not look alive.
Leases that ended more than a minute ago are forgotten.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

from worker.fleet.redis_operations import NOW, Operation
from worker.fleet.times import LEADER_LOCK, LEASE

#: Seconds in which a worker must hear that it is to drain; it asks with each renewal of its lease.
DRAIN_KEPT = 3600.0
_FORGOTTEN_AFTER = 60_000

# What a worker writes takes the place of what it wrote before, so a full server takes it: running calls go on there.
_RENEW = f"""#!lua flags=allow-oom
{NOW}
local new = redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
local old = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - {_FORGOTTEN_AFTER})
if #old > 0 then
  redis.call('ZREM', KEYS[1], unpack(old))
  redis.call('HDEL', KEYS[2], unpack(old))
end
return {{new, redis.call('EXISTS', KEYS[3])}}"""

_RESIGN = """#!lua flags=allow-oom
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[4])
if redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
return 1"""

_LEAD = """#!lua flags=allow-oom
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1"""

# Redis judges a script by what it declares, and this one declares what a renewal does.
_MAY_RENEW = """#!lua flags=allow-oom
return 1"""

_FLEET = f"""#!lua flags=no-writes
{NOW}
local live = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')
local status = {{}}
if #live > 0 then status = redis.call('HMGET', KEYS[2], unpack(live)) end
return {{redis.call('EXISTS', KEYS[3]), status, now}}"""

# KEYS: leases, then the requests, one for each of ARGV after the first. ARGV: lifetime in ms, workers.
_ASK_TO_DRAIN = """#!lua flags=allow-oom
local asked = {}
for i = 2, #KEYS do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('SET', KEYS[i], 1, 'PX', ARGV[1])
    asked[#asked + 1] = ARGV[i]
  end
end
return asked"""

_SWEEP = """#!lua flags=allow-oom
local swept = {}
for _, worker in ipairs(redis.call('HKEYS', KEYS[2])) do
  if not redis.call('ZSCORE', KEYS[1], worker) then
    redis.call('HDEL', KEYS[2], worker)
    swept[#swept + 1] = worker
  end
end
return swept"""

_OPEN = """#!lua flags=allow-oom
redis.call('SET', KEYS[1], ARGV[1])
return 1"""


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """What a keeper tells about its worker with each renewal."""

    worker_id: str
    name: str
    #: How many sessions it can run at once.
    slots: int
    #: How many it runs.
    busy: int
    #: A draining worker takes no new session.
    draining: bool
    #: Unix seconds.
    started_at: float
    #: What its processes run, each as `holding` writes it.
    holdings: Sequence[str] = ()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What another keeper wrote: a newer one's unknown fields are ignored, an older one's missing have defaults."""
        fields = json.loads(text)
        return cls(**{name: fields[name] for name in cls.__dataclass_fields__ if name in fields})


@dataclass(frozen=True)
class Renewal:
    """What Redis says to a renewal: whether it did not know the worker, and whether the worker is asked to drain."""

    is_new: bool
    is_to_drain: bool


@dataclass(frozen=True)
class Fleet:
    """The workers whose lease holds, and whether joins are open."""

    ready: bool
    workers: Sequence[WorkerStatus]
    #: When this was so: Unix seconds of the server's clock.
    at: float

    @property
    def open_workers(self) -> Sequence[WorkerStatus]:
        """Those that take new sessions."""
        return [worker for worker in self.workers if not worker.draining]

    @property
    def slots(self) -> int:
        """How many sessions the fleet can run at once, draining workers left out."""
        return sum(worker.slots for worker in self.open_workers)

    @property
    def free(self) -> int:
        """How many of these slots are empty."""
        return sum(max(worker.slots - worker.busy, 0) for worker in self.open_workers)


def _key(name: str) -> str:
    return f"muster:{{workers}}:{name}"


def _drain_key(worker_id: str) -> str:
    return _key(f"drain:{worker_id}")


def holding(session_id: str, epoch: int) -> str:
    """A session in an epoch, as a worker says that it runs it."""
    return f"{session_id}.{epoch}"


def renew(status: WorkerStatus) -> Operation[Renewal]:
    """Extend the worker's lease by `LEASE` from the server's now."""
    return Operation(
        script=_RENEW,
        keys=[_key("leases"), _key("status"), _drain_key(status.worker_id)],
        arguments=[status.worker_id, round(LEASE * 1000), json.dumps(asdict(status))],
        parse=lambda raw: Renewal(is_new=bool(raw[0]), is_to_drain=bool(raw[1])),
    )


def resign(worker_id: str) -> Operation[None]:
    """Give lease and leadership back at a clean exit."""
    return Operation(
        script=_RESIGN,
        keys=[_key("leases"), _key("status"), _key("leader"), _drain_key(worker_id)],
        arguments=[worker_id],
        parse=lambda raw: None,
    )


def lead(worker_id: str) -> Operation[bool]:
    """Become or stay the leading keeper; False when another one leads."""
    return Operation(
        script=_LEAD,
        keys=[_key("leader")],
        arguments=[worker_id, round(LEADER_LOCK * 1000)],
        parse=bool,
    )


def may_renew() -> Operation[None]:
    """A step that writes nothing, and that a server takes whenever it takes a renewal."""
    return Operation(script=_MAY_RENEW, keys=[], parse=lambda raw: None)


def fleet() -> Operation[Fleet]:
    """All workers whose lease holds."""
    return Operation(
        script=_FLEET,
        keys=[_key("leases"), _key("status"), _key("ready")],
        parse=lambda raw: Fleet(
            bool(raw[0]), [WorkerStatus.from_json(text) for text in raw[1] if text], at=raw[2] / 1000
        ),
    )


def ask_to_drain(worker_ids: Sequence[str]) -> Operation[Sequence[str]]:
    """Have these workers drain, each when it next renews its lease; the answer tells which of them have one."""
    return Operation(
        script=_ASK_TO_DRAIN,
        keys=[_key("leases"), *map(_drain_key, worker_ids)],
        arguments=[round(DRAIN_KEPT * 1000), *worker_ids],
        parse=list,
    )


def sweep() -> Operation[Sequence[str]]:
    """Forget the status of workers that have no lease, not even one that has just ended; the answer names them."""
    return Operation(script=_SWEEP, keys=[_key("leases"), _key("status")], parse=list)


def open_joins(worker_id: str) -> Operation[None]:
    """Let `/join` admit sessions."""
    return Operation(script=_OPEN, keys=[_key("ready")], arguments=[worker_id], parse=lambda raw: None)
