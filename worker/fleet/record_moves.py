"""The record's moves: every step that changes the state, the epoch, the owner, an offer or a standby of a session.

Which of them is legal in which state says the table of `session.py`; here each is one script, so that it is taken
whole or refused, and whoever acts by a stale epoch or in another's place changes nothing. What is said about a
hand-over in the session's command stream is said in the same step. `records.py` owns the keys.

The fields `offered_epoch` and `standby` say which epoch was offered last and who stands by to go on in it. An
epoch that was offered is never used again, whatever became of it: it may be in the name of an agent in the room.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from worker.fleet.errors import HandOverImpossible, SessionNotFound
from worker.fleet.handing_over import Command
from worker.fleet.records import KEPT_AFTER_END, accepted, commands_key, lasting_keys, record_key
from worker.fleet.redis_operations import NEVER, NOW, Operation, pairs, too_late
from worker.fleet.session import ANSWERED_IN, LEFT_UNOWNED, OVER, PASSED_IN, Reason, Session, State, states_before


def _listed(states: Iterable[State]) -> str:
    return "," + ",".join(sorted(states)) + ","


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


# Whether a list of states, as `_listed` makes it, has the state.
_ALLOWS = "local function allows(states, state) return string.find(states, ',' .. state .. ',', 1, true) ~= nil end"

# ARGV: lifetime in ms, last moment in ms, then fields and values.
_CREATE = f"""#!lua
{NOW}
if now > tonumber(ARGV[2]) then return 'late' end
if redis.call('EXISTS', KEYS[1]) == 1 then return 'exists' end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 'created'"""

# ARGV: target state, states it may come from, epoch, owner ('*' = any), lifetime in ms, time stamp's field,
# then fields and values to set.
# In a full server sessions still go on to their end, and only their end makes room there.
_MOVE = f"""#!lua flags=allow-oom
{NOW}
{_ALLOWS}
local record = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'owner')
if not record[1] then return {{'missing'}} end
if record[2] ~= ARGV[3] then return {{'stale'}} end
if ARGV[4] ~= '*' and (record[3] or '') ~= ARGV[4] then return {{'stale'}} end
if not allows(ARGV[2], record[1]) then return {{'illegal', record[1]}} end
redis.call('HSET', KEYS[1], 'state', ARGV[1], ARGV[6], now / 1000)
if #ARGV > 6 then redis.call('HSET', KEYS[1], unpack(ARGV, 7)) end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[5]) end
return {{'moved', redis.call('HGETALL', KEYS[1])}}"""

# A successor that was offered an epoch may be in the room already, so the one after it is the next.
# ARGV: epoch, owner, states it may come from, recoveries in a row at most, ms after its claim from which on an owner
# has been there long enough, ms until the next one must have claimed it, lifetime in ms, 1 if the owner was lost.
_RECOVER = f"""#!lua flags=allow-oom
{NOW}
{_ALLOWS}
local record = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'owner', 'claimed_at', 'recoveries', 'offered_epoch')
if not record[1] then return {{'missing'}} end
if record[2] ~= ARGV[1] or (record[3] or '') ~= ARGV[2] then return {{'stale'}} end
if not allows(ARGV[3], record[1]) then return {{'illegal', record[1]}} end
local recoveries = tonumber(record[5] or 0)
if record[4] and now - record[4] * 1000 >= tonumber(ARGV[5]) then recoveries = 0 end
if ARGV[8] == '1' and recoveries >= tonumber(ARGV[4]) then return {{'exhausted'}} end
local epoch = math.max(tonumber(ARGV[1]), tonumber(record[6] or 0)) + 1
redis.call('HSET', KEYS[1], 'state', '{State.RECOVERING}', 'epoch', epoch, 'owner', '', 'standby', '',
  'recoveries', recoveries + ARGV[8], 'recovering_at', now / 1000, 'join_deadline', (now + ARGV[6]) / 1000)
redis.call('HDEL', KEYS[1], 'published_at')
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[7]) end
return {{'moved', redis.call('HGETALL', KEYS[1])}}"""

_LEFT_UNOWNED = ", ".join(f"{state} = '{reason}'" for state, reason in LEFT_UNOWNED.items())

# ARGV: states that count as over, lifetime after the end, command id, lifetime. Without an owner it ends at once.
_LEAVE = f"""#!lua flags=allow-oom
{NOW}
{_ALLOWS}
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {{'missing'}} end
if allows(ARGV[1], state) then return {{'over', redis.call('HGETALL', KEYS[1])}} end
local reason = ({{ {_LEFT_UNOWNED} }})[state]
if reason then
  redis.call('HSET', KEYS[1], 'state', '{State.ENDED}', 'reason', reason, 'ended_at', now / 1000)
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[2]) end
  return {{'cancelled', redis.call('HGETALL', KEYS[1])}}
end
redis.call('XADD', KEYS[2], '*', 'kind', 'leave', 'id', ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return {{'asked', redis.call('HGETALL', KEYS[1])}}"""

_PASSED_IN = _listed(PASSED_IN)

# ARGV: command's id, target, lifetime in ms.
_ASK = f"""#!lua
{_ALLOWS}
local record = redis.call('HMGET', KEYS[1], 'state', 'epoch')
if not record[1] then return {{'missing'}} end
if not allows('{_PASSED_IN}', record[1]) then return {{'illegal', record[1]}} end
redis.call('XADD', KEYS[2], '*', 'kind', '{Command.HAND_OVER}', 'id', ARGV[1], 'epoch', record[2], 'to', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {{'moved', redis.call('HGETALL', KEYS[1])}}"""

# ARGV: epoch, owner.
_OFFER = f"""#!lua
{_ALLOWS}
local record = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'owner', 'offered_epoch')
if not record[1] then return {{'missing'}} end
if record[2] ~= ARGV[1] or record[3] ~= ARGV[2] then return {{'stale'}} end
if not allows('{_PASSED_IN}', record[1]) then return {{'illegal', record[1]}} end
local offered = math.max(tonumber(record[4] or 0), tonumber(ARGV[1])) + 1
redis.call('HSET', KEYS[1], 'offered_epoch', offered, 'standby', '')
return {{'moved', redis.call('HGETALL', KEYS[1])}}"""

# ARGV: offered epoch, owner.
_STAND_BY = f"""#!lua
{_ALLOWS}
local record = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'offered_epoch', 'standby')
if not record[1] then return {{'missing'}} end
if record[3] ~= ARGV[1] or tonumber(record[2]) >= tonumber(ARGV[1]) or (record[4] or '') ~= '' then
  return {{'stale'}}
end
if not allows('{_PASSED_IN}', record[1]) then return {{'illegal', record[1]}} end
redis.call('HSET', KEYS[1], 'standby', ARGV[2])
return {{'moved', redis.call('HGETALL', KEYS[1])}}"""

# ARGV: offered epoch, owner, lifetime in ms.
_READY = f"""#!lua
local record = redis.call('HMGET', KEYS[1], 'state', 'offered_epoch', 'standby')
if not record[1] then return {{'missing'}} end
if record[2] ~= ARGV[1] or record[3] ~= ARGV[2] then return {{'stale'}} end
redis.call('XADD', KEYS[2], '*', 'kind', '{Command.READY}', 'epoch', ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {{'moved', redis.call('HGETALL', KEYS[1])}}"""

# ARGV: offered epoch, owner. Between this and a pass there is no third way.
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
{_ALLOWS}
local record = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'owner', 'offered_epoch', 'standby')
if not record[1] then return {{'missing'}} end
if record[2] == ARGV[3] then return {{'moved', redis.call('HGETALL', KEYS[1])}} end
if record[2] ~= ARGV[1] or record[3] ~= ARGV[2] then return {{'stale'}} end
if not allows('{_PASSED_IN}', record[1]) then return {{'illegal', record[1]}} end
if record[4] ~= ARGV[3] or (record[5] or '') == '' then return {{'impossible'}} end
redis.call('HSET', KEYS[1], 'epoch', ARGV[3], 'owner', record[5], 'standby', '', 'claimed_at', now / 1000)
redis.call('XADD', KEYS[2], '*', 'kind', '{Command.PASSED}', 'epoch', ARGV[3], 'open', ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return {{'moved', redis.call('HGETALL', KEYS[1])}}"""

# The one move that lowers an epoch: whoever stood by in the offered one has renounced it unused, and it is never
# offered again. A pass that reaches the server after this finds its offer void.
# ARGV: epoch, owner, offered epoch.
_TAKE_BACK = f"""#!lua flags=allow-oom
{_ALLOWS}
local record = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'owner', 'offered_epoch')
if not record[1] then return {{'missing'}} end
local is_passed = record[2] == ARGV[3] and record[4] == ARGV[3]
if not is_passed and (record[2] ~= ARGV[1] or record[3] ~= ARGV[2]) then return {{'stale'}} end
if not allows('{_PASSED_IN}', record[1]) then return {{'illegal', record[1]}} end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'owner', ARGV[2], 'standby', '',
  'offered_epoch', math.max(tonumber(record[4] or 0), ARGV[3] + 1))
return {{'moved', redis.call('HGETALL', KEYS[1])}}"""

#: A function for the scripts of text turns, which must take turn and record in one step: makes `owner` the owner of the
#: record in `KEYS[1]` for as long as the turn lasts, in an epoch of its own; false when that is not legal in `state`.
CLAIM_FOR_A_TURN = f"""
{_ALLOWS}
local function claim_for_a_turn(state, owner)
  if not allows('{_listed(ANSWERED_IN)}', state) then return false end
  redis.call('HINCRBY', KEYS[1], 'epoch', 1)
  redis.call('HSET', KEYS[1], 'owner', owner)
  return true
end
"""


@dataclass(frozen=True)
class LeaveAnswer:
    """What became of a request to leave."""

    outcome: Literal["over", "cancelled", "asked"]
    session: Session


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
        keys=lasting_keys(session.session_id),
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


def leave(session_id: str, *, command_id: str, lifetime: float) -> Operation[LeaveAnswer]:
    """End a session without an owner, or ask the owner of a running one to leave; raises `SessionNotFound`."""
    return Operation(
        script=_LEAVE,
        keys=lasting_keys(session_id),
        arguments=[
            _listed(OVER),
            _milliseconds(KEPT_AFTER_END),
            command_id,
            _milliseconds(lifetime),
        ],
        parse=_parse_leave,
    )


def ask(session_id: str, *, to: str, command_id: str, lifetime: float) -> Operation[Session]:
    """Ask the owner of a live session to hand it over to the worker named `to`, or to any when that is empty.

    Raises `HandOverImpossible` for a session that is not live, and `SessionNotFound`.
    """
    step = _on_record(_ASK, session_id, [command_id, to, _milliseconds(lifetime)])
    return replace(step, parse=_parse_asked)


def offer(session: Session) -> Operation[Session]:
    """Offer the next epoch of an owner's session; its `offered_epoch` is in the answer, offers before it are void.

    An offer that nobody is told of takes the last one back. Raises `IllegalMove`, `StaleEpoch` or `SessionNotFound`.
    """
    return _on_record(_OFFER, session.session_id, [session.epoch, session.owner])


def stand_by(session_id: str, *, offered: int, owner: str) -> Operation[Session]:
    """Be the one who goes on in the offered epoch.

    Raises what `offer` does, also when the offer is void or another one stands by.
    """
    return _on_record(_STAND_BY, session_id, [offered, owner])


def ready(successor: Session, *, lifetime: float) -> Operation[Session]:
    """Tell the owner that the successor hears the caller; raises what `offer` does."""
    return _on_record(_READY, successor.session_id, [successor.epoch, successor.owner, _milliseconds(lifetime)])


def step_back(session_id: str, *, offered: int, owner: str) -> Operation[Session]:
    """Stand by no longer: from here on the baton cannot be passed to this process in this epoch.

    The answer tells whether it was before. Raises `SessionNotFound`.
    """
    return _on_record(_STEP_BACK, session_id, [offered, owner])


def give(session: Session, *, offered: int, is_open: bool, lifetime: float) -> Operation[Session]:
    """Pass the session to whoever stands by, in one step with the word to the successor.

    Raises `HandOverImpossible` when nobody stands by any more, and what `offer` does.
    """
    return _on_record(
        _PASS,
        session.session_id,
        [session.epoch, session.owner, offered, int(is_open), _milliseconds(lifetime)],
    )


def take_back(session: Session, *, offered: int) -> Operation[Session]:
    """Keep a session of which it is not known whether it was passed; only after the successor has renounced it.

    Raises what `offer` does, for instance when another worker has recovered it from the successor. May be repeated.
    """
    return _on_record(_TAKE_BACK, session.session_id, [session.epoch, session.owner, offered])


def _on_record(script: str, session_id: str, arguments: Sequence[str | int | float]) -> Operation[Session]:
    return Operation(
        script=script,
        keys=[record_key(session_id), commands_key(session_id)],
        arguments=arguments,
        parse=_parse_move,
    )


def _parse_move(raw: Sequence[Any]) -> Session:
    return Session.from_fields(pairs(accepted(raw, "moved")[1]))


def _parse_asked(raw: Sequence[Any]) -> Session:
    if raw[0] == "illegal":
        raise HandOverImpossible(f"The session is {raw[1]}, not live.")
    return _parse_move(raw)


def _parse_leave(raw: Sequence[Any]) -> LeaveAnswer:
    if raw[0] == "missing":
        raise SessionNotFound()
    return LeaveAnswer(raw[0], Session.from_fields(pairs(raw[1])))
