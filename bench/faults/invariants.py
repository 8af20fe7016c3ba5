"""The invariants: pure functions of what was seen, each of which names its violations."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.faults.kinds import KINDS, Kind
from bench.faults.ledger import Entry, Sheet, Stored
from bench.marked_call import Said, WordCount
from local.marks import HeardMark, Mark, marks_in
from worker.fleet.session import OVER, State
from worker.fleet.times import BEAT, LEADER_LOCK, LEASE, UNCLAIMED

Span = tuple[float, float]

#: Seconds two agents may be audible at once.
MOST_OVERLAP = 0.1
#: Seconds within which a lost lease or a dead process is noticed, even if the leading keeper is lost with it; and
#: seconds a claim may take on a busy machine.
NOTICED = LEADER_LOCK + 2 * BEAT
CLAIMED = 2.0
#: Seconds in which a keeper notices that a process beside it is dead, on a busy machine; and seconds before it in which
#: nothing else may have happened to the call.
SEEN = 2.5
ALONE = 20.0
#: Seconds from the end of an utterance to its turn's, if nobody disturbs it.
TURN_ENDS = 1.5
#: Seconds an agent may need to hear again when what kept it from it is over, and when LiveKit could not be reached: its
#: client waits up to five seconds between two tries.
HEARS_AGAIN = 1.0
REJOINED = 6.0
#: Seconds until it has its media again, of which no signal tells that it was gone.
HAS_MEDIA_AGAIN = 30.0
#: Seconds more after a join that was broken off in the middle: its second attempt may bring no sound, which no signal
#: tells either. The agent finds out and asks for another one.
FOUND_DEAF = 9.0
#: Seconds between two hearings of one mark that are one, with a gap in the sound between them: an answer that is given
#: again begins with its number.
_SAME = 0.6
#: Seconds for which the caller's jitter buffer still plays what a lost owner said.
_TAIL = 0.5
#: Seconds in which an answer must begin when nothing is broken.
_ANSWERED = 6.0
_ANSWER = re.compile(r"^Number (\d+), ")


@dataclass(frozen=True)
class Struck:
    """A fault that was tried: its kind, the session and worker it was aimed at, and its span in Unix seconds."""

    kind: str
    session_id: str
    worker: str
    began: float
    ended: float
    #: Whether it came to its end. One that did not may have broken something all the same.
    came: bool = True

    @property
    def span(self) -> Span:
        """From its beginning to its end."""
        return self.began, self.ended


@dataclass(frozen=True)
class Heard:
    """A mark of an utterance as the caller heard it from an agent."""

    number: int
    mark: Mark
    at: float
    identity: str


def overlap_violations(seconds: float) -> list[str]:
    """Two agents are never heard together, but for a jitter buffer's length."""
    return [f"two agents were audible for {seconds:.2f} s"] if seconds > MOST_OVERLAP else []


def unowned_violations(spans: Iterable[Span], *, away: Sequence[Span], struck: Sequence[Struck]) -> list[str]:
    """No session is without an owner for longer than the fleet's constants say, and Redis was away."""
    violations = []
    for start, end in spans:
        bound = unowned_bound((start, end), away=away, struck=struck)
        if end - start > bound:
            violations.append(f"without an owner for {end - start:.1f} s, {bound:.1f} s at most")
    return violations


def unowned_bound(span: Span, *, away: Sequence[Span], struck: Sequence[Struck]) -> float:
    """How long a session may be without an owner in this span.

    A message that a worker has fetched which cannot run it is published again after `UNCLAIMED`; this may happen once
    with each worker that was struck. After an outage the reaper looks for a whole lease before it judges.
    """
    near = (span[0] - LEASE - NOTICED, span[1])
    workers = {each.worker for each in struck if _meets(each.span, near)}
    bound = NOTICED + CLAIMED + (UNCLAIMED + BEAT) * max(1, len(workers))
    outages = [each for each in away if _meets(each, near)]
    if outages:
        bound += sum(min(end, span[1]) - max(start, span[0]) for start, end in outages if end > span[0])
        bound += (LEASE + BEAT) * len(outages)
    return bound + _all_struck(span, struck)


def _all_struck(span: Span, struck: Sequence[Struck]) -> float:
    """Seconds of the span in which more than one worker was broken."""
    total = 0.0
    for index, first in enumerate(struck):
        for second in struck[index + 1 :]:
            if first.worker != second.worker:
                start = max(span[0], first.began, second.began)
                total += max(0.0, min(span[1], first.ended, second.ended) - start)
    return total


def needless_violations(
    entries: Sequence[Entry], struck: Sequence[Struck], *, session_id: str, away: Sequence[Span]
) -> list[str]:
    """No owner is given up unless a fault may have cost it its session."""
    violations = []
    for index, entry in enumerate(entries):
        if entry.state is State.RECOVERING and not any(
            _may_cost(each, entries[: index + 1], session_id=session_id, away=away) for each in struck
        ):
            violations.append(f"the owner of epoch {entry.epoch - 1} was given up although nothing had happened to it")
    return violations


def _may_cost(fault: Struck, entries: Sequence[Entry], *, session_id: str, away: Sequence[Span]) -> bool:
    """Whether this fault may be why the owner was given up with the last of these entries."""
    kind, at = KINDS[fault.kind], entries[-1].at
    if not (kind.loses_owner or kind.may_lose_room) or at < fault.began:
        return False
    # A process that is short of memory may fail at any time.
    latest = float("inf") if kind.hangs else fault.ended + LEASE + NOTICED
    latest += sum(end - start + LEASE + BEAT for start, end in away if _meets((start, end), (fault.began, latest)))
    if at > latest:
        return False
    if kind.is_of_one_call:
        return fault.session_id == session_id
    return kind.may_lose_room or fault.worker in _workers_in(entries, (fault.began, at))


def _workers_in(entries: Sequence[Entry], span: Span) -> set[str]:
    """The workers that owned the session in this span."""
    ends = [*(entry.at for entry in entries[1:]), span[1]]
    return {
        # A worker's id is its name, its host and what is random.
        entry.owner.partition("@")[0]
        for entry, end in zip(entries, ends, strict=True)
        if entry.owner and _meets((entry.at, end), span)
    }


def unnoticed_violations(
    entries: Sequence[Entry], struck: Sequence[Struck], *, session_id: str, away: Sequence[Span]
) -> list[str]:
    """A killed process is noticed at once by the keeper beside it, if nothing else happens meanwhile."""
    violations = []
    for each in struck:
        if each.kind not in ("kill_child", "lose_message") or each.session_id != session_id:
            continue
        around = (each.began - ALONE, each.ended + SEEN)
        others = [other.span for other in struck if other is not each]
        if any(_meets(span, around) for span in [*others, *away]):
            continue
        noticed = [entry.at for entry in entries if entry.at > each.began and entry.state is State.RECOVERING]
        if not noticed or noticed[0] > each.ended + SEEN:
            violations.append(f"a killed process was not noticed within {SEEN:g} s")
    return violations


def deaf_spans(entries: Sequence[Entry], struck: Sequence[Struck]) -> list[Span]:
    """When the caller may have been unheard: a fault kept the owner from it, or a lost owner had no successor yet."""
    spans = []
    for each in struck:
        kind = KINDS[each.kind]
        if kind.deafens_all:
            spans.append((each.began, each.ended + REJOINED))
        elif kind.deafens and each.worker in _workers_in(entries, each.span):
            spans.append((each.began, each.ended + _hears_again(kind, entries, each.span)))
    for index, entry in enumerate(entries):
        if entry.state is State.RECOVERING:
            spans.append((_cause(entry.at, struck), _live_after(entries[index:]) + HEARS_AGAIN))
        elif entry.state is State.ENDING or entry.state in OVER:
            # Whoever is asked to leave does not hear the sentence out.
            spans.append((entry.at, float("inf")))
    return spans


def _hears_again(kind: Kind, entries: Sequence[Entry], span: Span) -> float:
    if kind.cuts_media:
        return HAS_MEDIA_AGAIN
    if not kind.cuts_signal:
        return HEARS_AGAIN
    ends = [*(entry.at for entry in entries[1:]), float("inf")]
    is_joining = any(
        entry.state is State.CONNECTING and _meets((entry.at, end), span)
        for entry, end in zip(entries, ends, strict=True)
    )
    return REJOINED + FOUND_DEAF if is_joining else REJOINED


def _cause(moment: float, struck: Sequence[Struck]) -> float:
    """When the fault began that may have cost the owner which was given up at this moment."""
    causes = [each.began for each in struck if each.began <= moment <= each.ended + LEASE + NOTICED]
    return min(causes, default=moment)


def _live_after(entries: Sequence[Entry]) -> float:
    return next((entry.at for entry in entries if entry.state is State.LIVE), float("inf"))


def word_violations(
    said: Sequence[Said], count: WordCount, stored: Sequence[Stored], *, deaf: Sequence[Span]
) -> tuple[list[str], int]:
    """Nothing is doubled or foreign, and nothing lost that was said undisturbed; also the words lost excusably."""
    violations = [f"{mark} was stored twice" for mark in count.doubled]
    violations += [f"{mark} was stored and never said" for mark in count.foreign]
    excused = 0
    for each in said:
        lost = [mark for mark in each.marks if mark in count.lost]
        if not lost:
            continue
        open_until = max((turn.at for turn in stored if _has(turn, each.marks)), default=each.ended_at + TURN_ENDS)
        if any(_meets((each.started_at, open_until), span) for span in deaf):
            excused += len(lost)
        else:
            violations.append(f"{' '.join(map(str, lost))} of an undisturbed utterance lost")
    return violations, excused


def _has(turn: Stored, marks: Sequence[Mark]) -> bool:
    return turn.turn.get("role") == "user" and bool({*marks_in(turn.turn.get("text", ""))}.intersection(marks))


def answer_violations(heard: Sequence[Heard], entries: Sequence[Entry]) -> list[str]:
    """No word is answered twice, unless the first to answer was lost and another one answers again."""
    violations = []
    for index, first in enumerate(heard):
        for second in heard[index + 1 :]:
            if (first.number, first.mark) != (second.number, second.mark) or second.at - first.at < _SAME:
                continue
            recovered = [entry.at for entry in entries if entry.state is State.RECOVERING]
            if not any(first.at - _TAIL < at < second.at for at in recovered):
                seconds = second.at - first.at
                violations.append(f"{first.mark} was answered again after {seconds:.1f} s by {second.identity}")
            break
    return violations


def unanswered(said: Sequence[Said], heard: Sequence[Heard]) -> list[Said]:
    """The utterances of which nothing was heard again."""
    answered = {each.number for each in heard}
    return [each for each in said if each.number not in answered]


def unanswered_violations(said: Sequence[Said], heard: Sequence[Heard], *, disturbed: Sequence[Span]) -> list[str]:
    """Whatever was said while nothing was broken is answered."""
    return [
        f"{each.marks[0]} and what followed was not answered"
        for each in unanswered(said, heard)
        if not any(_meets((each.started_at, each.ended_at + _ANSWERED), span) for span in disturbed)
    ]


def history_violations(turns: Sequence[tuple[str, str]]) -> list[str]:
    """Each answer counts the caller's turns that the model was shown: all that were stored before it; (role, text)."""
    violations, count = [], 0
    for role, text in turns:
        if role == "user":
            count += 1
        elif role == "assistant" and (found := _ANSWER.match(text)) and int(found.group(1)) != count:
            violations.append(f"an answer counts {found.group(1)} turns of the caller, {count} are stored")
    return violations


def end_violations(sheet: Sheet, *, wanted: str, allowed: Iterable[str]) -> list[str]:
    """The session is over, for the reason that the caller gave or one that the faults explain."""
    record = sheet.record
    if record is None:
        return [] if "vanished" in allowed else ["the session is gone without an end"]
    if record["state"] not in (State.ENDED, State.FAILED):
        return [f"is still {record['state']} in epoch {record['epoch']}"]
    reason = record.get("reason", "")
    return [] if reason and reason in {wanted, *allowed} else [f"ended as {reason}, not {wanted or 'by anybody'}"]


def heard_marks(marks: Iterable[HeardMark], said: Sequence[Said], *, started_at: float, identity: str) -> list[Heard]:
    """What a track brought, by utterance; marks that were not said before are left to the count of words."""
    heard = []
    for each in marks:
        at = started_at + each.at
        numbers = [one.number for one in said if each.mark in one.marks and one.started_at < at]
        if numbers:
            heard.append(Heard(numbers[-1], each.mark, at, identity))
    return heard


def gone_violations(stored: Sequence[Stored], item_ids: Iterable[str | None]) -> list[str]:
    """What was stored stays stored; `item_ids` are those that can be read at the end."""
    there = set(item_ids)
    return [f"a stored turn is gone: {each.turn.get('text')}" for each in stored if each.turn["item_id"] not in there]


def may_vanish(struck: Sequence[Struck]) -> bool:
    """Whether a call may be forgotten: its owner was lost while Redis had forgotten its session, too."""
    emptied = [each.span for each in struck if KINDS[each.kind].empties]
    lost = [each.span for each in struck if KINDS[each.kind].loses_owner]
    # From before it is noticed that the owner is lost to after the owners have registered again.
    around = [(start - LEASE - NOTICED, end + LEASE + NOTICED) for start, end in emptied]
    return any(_meets(first, second) for first in around for second in lost)


def forgotten(struck: Sequence[Struck]) -> list[Span]:
    """From when on nobody answers in a call that was forgotten."""
    return [(each.began, float("inf")) for each in struck if KINDS[each.kind].loses_owner]


def _meets(first: Span, second: Span) -> bool:
    return first[0] <= second[1] and second[0] <= first[1]
