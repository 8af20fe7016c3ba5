"""What a caller has begun to say, as far as it is recognised, for whoever goes on when its owner dies in mid-sentence.

Key space (the session's slot):
    muster:{s:<session id>}:draft  STRING  the words of the open turn, expires after `KEPT`; the turn that is stored of
                                           them deletes it in the same step (see `records.append_turn`)
"""

from worker.fleet.errors import SessionNotFound, StaleEpoch
from worker.fleet.records import draft_key, record_key
from worker.fleet.redis_operations import Operation
from worker.fleet.session import Session

#: Seconds a draft outlives its last word: longer than a session may be without an owner.
KEPT = 60.0

# ARGV: epoch, owner, words (none: the turn was given up), lifetime in ms.
_WRITE = """#!lua
local record = redis.call('HMGET', KEYS[1], 'epoch', 'owner')
if not record[1] then return 'missing' end
if record[1] ~= ARGV[1] or (record[2] or '') ~= ARGV[2] then return 'stale' end
if ARGV[3] == '' then
  redis.call('DEL', KEYS[2])
else
  redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
end
return 'written'"""

_READ = """#!lua flags=no-writes
return redis.call('GET', KEYS[1]) or ''"""


def write(session: Session, words: str) -> Operation[None]:
    """Keep the words of the open turn as the owner, or none; raises `StaleEpoch` or `SessionNotFound`."""
    return Operation(
        script=_WRITE,
        keys=[record_key(session.session_id), draft_key(session.session_id)],
        arguments=[session.epoch, session.owner, words, round(KEPT * 1000)],
        parse=_parse,
    )


def read(session_id: str) -> Operation[str]:
    """The words that the last owner had recognised of a turn that it has not stored; empty when there are none."""
    return Operation(script=_READ, keys=[draft_key(session_id)], parse=str)


def _parse(raw: str) -> None:
    if raw == "stale":
        raise StaleEpoch()
    if raw == "missing":
        raise SessionNotFound()
