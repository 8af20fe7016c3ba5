"""The ledger: what became of each session's record, step by step, and which steps were not legal."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.faults.monitor import Command, Step, digest
from worker.fleet import record_moves, records
from worker.fleet.session import ANSWERED_IN, Session, State, states_before, worker_of

_KEY = re.compile(r"^muster:\{s:([^}]+)\}:(record|turns)$")
_LEASES = "muster:{workers}:leases"
#: Between two owners; nobody serves the session then.
WAITING_FOR_OWNER = (State.QUEUED, State.RECOVERING)


@dataclass(frozen=True, slots=True)
class Entry:
    """A record after a step that changed its state, epoch, owner or standby; `at` in Unix seconds."""

    at: float
    state: State
    epoch: int
    owner: str
    #: Whether the server had lost what it knew, and this is what was found or registered again.
    is_found: bool = False


@dataclass(frozen=True, slots=True)
class Stored:
    """A turn that was added to a session's stream, and by the owner of which epoch."""

    at: float
    epoch: int
    turn: Mapping[str, Any]


@dataclass
class Sheet:
    """Everything of one session."""

    entries: list[Entry] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    #: The record as it is; None while the server has none.
    record: dict[str, str] | None = None
    #: The highest epoch ever seen.
    highest: int = 0

    @property
    def last(self) -> Entry | None:
        """How it stands."""
        return self.entries[-1] if self.entries else None


class Ledger:
    """Follows the steps of a Redis server; `violations` says what must not have happened."""

    def __init__(self) -> None:
        self.sheets: dict[str, Sheet] = defaultdict(Sheet)
        #: Worker's id -> what its lease was set to: when it was, and when it ends (Unix seconds; 0 when given back).
        self.leases: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.violations: list[str] = []
        #: When the server was found emptied or started again.
        self.notes: list[str] = []
        self._append = digest(_append_script())
        self._take_back = digest(_take_back_script())

    def apply(self, step: Step) -> None:
        """Take note of one step."""
        touched: dict[str, dict[str, str] | None] = {}
        for command in step.commands:
            self._note_leases(command)
            for session_id, name in _sessions_in(command):
                if name == "record":
                    before = touched.get(session_id, self.sheets[session_id].record)
                    touched[session_id] = _written(before, command)
                elif command.name == "XADD":
                    self._note_turn(session_id, command, step)
        for session_id, record in touched.items():
            self._change(session_id, record, at=step.at, script=step.script)

    def find(self, found: Mapping[str, Mapping[str, str]], *, at: float) -> None:
        """Take what a server holds that was not watched for a moment: session id -> record."""
        for session_id in {*self.sheets, *found}:
            sheet, record = self.sheets[session_id], found.get(session_id)
            if record is None:
                if sheet.record is not None:
                    self.notes.append(f"{session_id}: the record was gone")
                sheet.record = None
                continue
            old, new = sheet.last, _entry(record, at, is_found=True)
            sheet.record = dict(record)
            if old is None or (old.state, old.epoch, old.owner) != (new.state, new.epoch, new.owner):
                if old is not None and new.epoch < old.epoch:
                    self.notes.append(f"{session_id}: the server went back from epoch {old.epoch} to {new.epoch}")
                elif old is not None and not _reaches(old.state, new.state):
                    self._blame(session_id, f"was {old.state} and is found {new.state}")
                sheet.entries.append(new)
            sheet.highest = max(sheet.highest, new.epoch)

    def _change(self, session_id: str, record: dict[str, str] | None, *, at: float, script: str = "") -> None:
        sheet = self.sheets[session_id]
        before, sheet.record = sheet.record, record
        if record is None:
            if before is not None:
                self._blame(session_id, "the record was deleted")
            return
        if not {"state", "epoch"} <= record.keys():
            self._blame(session_id, f"the record has only {sorted(record)}")
            return
        new = _entry(record, at, is_found=before is None and sheet.highest > 0)
        if before is None:
            self._check_creation(session_id, new, sheet)
        elif script != self._take_back:
            self._check_move(session_id, _entry(before, at), new, before)
        elif new.state != before["state"] or new.epoch > int(before["epoch"]):
            self._blame(session_id, f"is taken back as {new.state} in epoch {new.epoch}")
        if sheet.last is None or (sheet.last.state, sheet.last.epoch, sheet.last.owner) != (
            new.state,
            new.epoch,
            new.owner,
        ):
            sheet.entries.append(new)
        sheet.highest = max(sheet.highest, new.epoch)

    def _check_creation(self, session_id: str, new: Entry, sheet: Sheet) -> None:
        if not sheet.highest:
            if new.state is not State.CHAT and (new.state, new.epoch, new.owner) != (State.QUEUED, 1, ""):
                self._blame(session_id, f"begins as {new.state} in epoch {new.epoch}, owned by {new.owner!r}")
        elif new.epoch < sheet.highest:
            self._blame(session_id, f"registers again in epoch {new.epoch} after {sheet.highest}")

    def _check_move(self, session_id: str, old: Entry, new: Entry, before: Mapping[str, str]) -> None:
        if old.state is not new.state and old.state not in states_before(new.state):
            self._blame(session_id, f"moves from {old.state} to {new.state}")
        if new.epoch < old.epoch:
            self._blame(session_id, f"goes back from epoch {old.epoch} to {new.epoch}")
        if new.epoch == old.epoch and old.owner != new.owner and (old.owner or old.state not in WAITING_FOR_OWNER):
            self._blame(session_id, f"changes its owner from {old.owner!r} to {new.owner!r} in epoch {new.epoch}")
        if new.epoch > old.epoch and new.state not in ANSWERED_IN:
            is_recovered = new.state is State.RECOVERING and not new.owner
            is_passed = new.state is State.LIVE and new.owner == before.get("standby") != ""
            if not (is_recovered or is_passed):
                self._blame(session_id, f"comes to epoch {new.epoch} as {new.state}, owned by {new.owner!r}")

    def _note_turn(self, session_id: str, command: Command, step: Step) -> None:
        record = self.sheets[session_id].record or {}
        turn = json.loads(dict(zip(command.words[3::2], command.words[4::2], strict=False)).get("turn", "{}"))
        epoch = int(record.get("epoch", 0))
        if step.script == self._append:
            writer = step.arguments[0], step.arguments[1]
            if writer != (record.get("epoch"), record.get("owner", "")):
                self._blame(session_id, f"{writer} writes a turn in epoch {epoch} of {record.get('owner')!r}")
        self.sheets[session_id].stored.append(Stored(step.at, epoch, turn))

    def _note_leases(self, command: Command) -> None:
        if len(command.words) < 3 or command.words[1] != _LEASES:
            return
        if command.name == "ZADD":
            for ends, worker in zip(command.words[2::2], command.words[3::2], strict=False):
                self.leases[worker].append((command.at, float(ends) / 1000))
        elif command.name == "ZREM":
            for worker in command.words[2:]:
                self.leases[worker].append((command.at, 0.0))

    def _blame(self, session_id: str, what: str) -> None:
        self.violations.append(f"{session_id}: {what}")

    def unowned(self, session_id: str, *, until: float) -> list[tuple[float, float]]:
        """When nobody served the session, from its first entry to `until`: it had no owner, or one without a lease."""
        spans: list[tuple[float, float]] = []
        entries = self.sheets[session_id].entries
        ends = [*(entry.at for entry in entries[1:]), until]
        for entry, end in zip(entries, ends, strict=True):
            if entry.state in ANSWERED_IN:
                continue
            if entry.state in WAITING_FOR_OWNER:
                spans.append((entry.at, end))
            else:
                spans.extend(self._without_lease(worker_of(entry.owner), entry.at, end))
        return _joined(spans)

    def _without_lease(self, worker: str, start: float, end: float) -> Iterator[tuple[float, float]]:
        """The parts of a span in which the worker had no lease."""
        held_until = max((ends for at, ends in self.leases[worker] if at <= start), default=start)
        for at, ends in [*((at, ends) for at, ends in self.leases[worker] if start < at < end), (end, end)]:
            if at > held_until:
                yield max(held_until, start), at
            held_until = ends


def _joined(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans that meet are one."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return [(start, end) for start, end in joined if end > start]


def _append_script() -> str:
    session = Session(session_id="", tenant="", room="", user_id="", metadata={}, state=State.LIVE, epoch=1)
    return records.append_turn(session, {}, lifetime=1).script


def _take_back_script() -> str:
    """The one move that lowers an epoch: of an owner that has passed a session to an agent which has renounced it."""
    session = Session(session_id="", tenant="", room="", user_id="", metadata={}, state=State.LIVE, epoch=1)
    return record_moves.take_back(session, offered=2).script


def _sessions_in(command: Command) -> Iterator[tuple[str, str]]:
    for word in command.words[1:2]:
        if found := _KEY.match(word):
            yield found.group(1), found.group(2)


def _written(record: dict[str, str] | None, command: Command) -> dict[str, str] | None:
    """The record after a command on it."""
    fields, name = dict(record or {}), command.name
    if name in ("HSET", "HMSET"):
        fields.update(zip(command.words[2::2], command.words[3::2], strict=True))
    elif name == "HSETNX":
        fields.setdefault(command.words[2], command.words[3])
    elif name == "HDEL":
        for field_name in command.words[2:]:
            fields.pop(field_name, None)
    elif name == "HINCRBY":
        fields[command.words[2]] = str(int(fields.get(command.words[2], 0)) + int(command.words[3]))
    elif name in ("DEL", "UNLINK"):
        return None
    else:
        return record
    return fields


def _entry(record: Mapping[str, str], at: float, *, is_found: bool = False) -> Entry:
    return Entry(at, State(record["state"]), int(record["epoch"]), record.get("owner", ""), is_found)


def _reaches(start: State, target: State) -> bool:
    """Whether legal moves lead there."""
    reached = {target}
    while True:
        more = {state for state in State if any(state in states_before(each) for each in reached)} - reached
        if start in reached:
            return True
        if not more:
            return False
        reached |= more
