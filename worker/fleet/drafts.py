"""What a caller has begun to say, as far as it is recognised, for whoever goes on when its owner dies in mid-sentence.

Key space (the session's slot):
    muster:{s:<session id>}:draft        STRING  the words of the open turn, expires after `KEPT`
    muster:{s:<session id>}:draft_audio  STRING  its sound, a line a piece: samples a second, a blank, the samples in
                                                 base64; of at most `LONGEST_SOUND`, expires `KEPT` after its first line

The turn that is stored of them deletes both in the same step (see `records.append_turn`). The sound is the caller's
voice: it is in no log, and no write makes it stay longer.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.fleet.errors import SessionNotFound, StaleEpoch
from worker.fleet.records import draft_audio_key, draft_key, record_key
from worker.fleet.redis_operations import Operation
from worker.fleet.session import Session

#: Seconds a draft outlives its last word: longer than a session may be without an owner.
KEPT = 60.0
#: Seconds of sound that are kept of a turn, at the rate of the room; at a lower one a little more.
LONGEST_SOUND = 15.0
_ROOM_RATE = 24_000
# Four characters for three bytes of 16-bit samples.
_MOST_CHARACTERS = round(LONGEST_SOUND * _ROOM_RATE * 2 * 4 / 3)

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

# ARGV: epoch, owner, line (none: the sound is given up), most characters, lifetime in ms.
_APPEND_SOUND = """#!lua
local record = redis.call('HMGET', KEYS[1], 'epoch', 'owner')
if not record[1] then return 'missing' end
if record[1] ~= ARGV[1] or (record[2] or '') ~= ARGV[2] then return 'stale' end
if ARGV[3] == '' then
  redis.call('DEL', KEYS[2])
  return 'written'
end
local length = redis.call('STRLEN', KEYS[2])
if length + #ARGV[3] > tonumber(ARGV[4]) then return 'full' end
redis.call('APPEND', KEYS[2], ARGV[3])
if length == 0 then redis.call('PEXPIRE', KEYS[2], ARGV[5]) end
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


@dataclass(frozen=True)
class Sound:
    """A piece of the caller's voice: 16-bit mono samples, `rate` of them a second."""

    rate: int
    samples: bytes = field(repr=False)

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / 2 / self.rate


def append_sound(session: Session, sound: Sound) -> Operation[bool]:
    """Add to the sound of the open turn as the owner; False when there is no room for it.

    Raises `StaleEpoch` or `SessionNotFound`. What became of one that failed is not known: it is not to be repeated.
    """
    line = f"{sound.rate} {base64.b64encode(sound.samples).decode()}\n"
    return _sound_operation(session, line)


def forget_sound(session: Session) -> Operation[bool]:
    """Keep nothing of the sound of the open turn, as the owner; raises `StaleEpoch` or `SessionNotFound`."""
    return _sound_operation(session, "")


def read_sound(session_id: str) -> Operation[Sequence[Sound]]:
    """What the owners so far have kept of the sound of a turn that is not stored, in the order in which it came."""
    return Operation(script=_READ, keys=[draft_audio_key(session_id)], parse=_parse_sound)


def _sound_operation(session: Session, line: str) -> Operation[bool]:
    return Operation(
        script=_APPEND_SOUND,
        keys=[record_key(session.session_id), draft_audio_key(session.session_id)],
        arguments=[session.epoch, session.owner, line, _MOST_CHARACTERS, round(KEPT * 1000)],
        parse=_parse_appended,
    )


def _parse(raw: str) -> None:
    if raw == "stale":
        raise StaleEpoch()
    if raw == "missing":
        raise SessionNotFound()


def _parse_appended(raw: str) -> bool:
    _parse(raw)
    return raw == "written"


def _parse_sound(raw: str) -> Sequence[Sound]:
    lines = (line.split(" ", 1) for line in raw.splitlines())
    return [Sound(int(rate), base64.b64decode(samples)) for rate, samples in lines]
