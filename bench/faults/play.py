"""One scenario on a running stack: calls, faults, the end of the calls, and what was seen of it all."""

import asyncio
import itertools
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psutil
from kombu.exceptions import OperationalError
from livekit import api
from redis.exceptions import RedisError

from bench.faults import invariants
from bench.faults.conversation import Conversation
from bench.faults.ground import Ground
from bench.faults.invariants import Heard, Struck
from bench.faults.kinds import KINDS, Aim
from bench.faults.ledger import Sheet
from bench.faults.scenario import Planned, Scenario
from bench.marked_call import MarkedCall, count_words, marked_call
from bench.service import ServiceError, Turn
from local.audio import SAMPLE_RATE
from local.marks import find_marks, full_scale
from worker.fleet import admission
from worker.fleet.errors import StateUnavailable
from worker.fleet.redis_operations import connect, run
from worker.fleet.session import OVER, State
from worker.fleet.times import BEAT, LEASE, LEAVING

#: Seconds after the last fault in which the call must go on, from an utterance to its answer.
GOES_ON_WITHIN = 40.0
#: Seconds a phase is waited for, and a fault's target.
_PHASE = 25.0
_TARGET = 10.0
#: Seconds from the word that ends a call to the end of its record.
_ENDED_WITHIN = 10.0
#: Seconds after the last end in which nothing of it is left: a lease, a round of the reaper, and its patience.
CLEAN_WITHIN = LEASE + LEAVING + 3 * BEAT
#: Seconds LiveKit keeps a participant whose process is gone, when nobody could remove it.
_GHOST = 30.0
#: Seconds after which a process that hangs in leaving a call is killed.
_HANGS = 45.0
_TENANT = "default"


@dataclass
class CallResult:
    """What became of one call."""

    session_id: str
    state: str = ""
    reason: str = ""
    epoch: int = 0
    said: int = 0
    lost_excused: int = 0
    unanswered: int = 0
    overlap: float = 0.0
    #: Seconds from a lost owner's replacement to its first word, each.
    recoveries: list[float] = field(default_factory=list)
    longest_unowned: float = 0.0


@dataclass
class Result:
    """What became of a scenario; `violations` are the product's, `trouble` is the suite's own."""

    scenario: Scenario
    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    calls: list[CallResult] = field(default_factory=list)
    struck: list[Struck] = field(default_factory=list)
    #: Faults that did not come: what they are aimed at was not there.
    missed: list[str] = field(default_factory=list)
    trouble: str = ""
    seconds: float = 0.0
    #: Where the stack's logs are kept; empty when it held.
    logs: str = ""

    @property
    def problems(self) -> list[str]:
        """Everything that must not have been."""
        return [*self.violations, *([self.trouble] if self.trouble else [])]

    @property
    def outcome(self) -> str:
        """In one word."""
        if self.trouble:
            return "broken"
        if self.violations:
            return "violated"
        return "held" if any(each.came for each in self.struck) else "missed"


class Play:
    """Plays one scenario; `tell` is given what happens, for people."""

    def __init__(self, ground: Ground, scenario: Scenario, tell: Callable[[str], None]) -> None:
        self._ground = ground
        self._scenario = scenario
        self._tell = tell
        self._result = Result(scenario)
        self._struck: list[Struck] = []
        self._conversations: list[Conversation] = []
        self._wanted: dict[str, str] = {}

    async def run(self) -> Result:
        """Play it; the result has everything that was seen."""
        started = time.monotonic()
        self._seen_before = self._ground.watcher.look_into(lambda ledger: len(ledger.violations))
        self._noted_before = self._ground.watcher.look_into(lambda ledger: len(ledger.notes))
        try:
            self._ground.prepare()
            async with AsyncExitStack() as stack:
                await self._call_in(stack)
                holding = [asyncio.create_task(each.hold()) for each in self._conversations]
                stack.push_async_callback(_give_up, holding)
                await self._strike()
                await self._ground.mend()
                self._tell("everything is mended")
                await self._go_on()
                for conversation in self._conversations:
                    conversation.stop()
                for ended in await asyncio.gather(*holding, return_exceptions=True):
                    # A caller whose call ends in mid-word loses the connection; all else would be a silent caller.
                    if isinstance(ended, Exception) and not isinstance(ended, ConnectionError):
                        raise ended
                await self._end_calls()
            await self._judge()
        except Exception as error:
            # Whatever broke here is the suite's own: the scenario counts as broken, and the others are still played.
            self._result.trouble = f"{type(error).__name__}: {error}"
            self._tell(f"the suite broke: {self._result.trouble}")
        self._result.struck = self._struck
        self._result.seconds = time.monotonic() - started
        return self._result

    async def _call_in(self, stack: AsyncExitStack) -> None:
        for number in range(self._scenario.callers):
            room = f"faults-{self._scenario.seed}-{number}-{uuid.uuid4().hex[:6]}"
            call = await stack.enter_async_context(
                marked_call(self._ground.stack, client=self._ground.client, room=room)
            )
            self._conversations.append(Conversation(call, is_over=partial(self._is_over, call)))
            self._tell(f"caller {number} is greeted in session {call.session_id}")

    def _is_over(self, call: MarkedCall) -> bool:
        record = self._sheet(call).record
        return record is not None and record["state"] in OVER

    def _sheet(self, call: MarkedCall) -> Sheet:
        sheet: Sheet = self._ground.watcher.look_into(lambda ledger: ledger.sheets[call.session_id])
        return sheet

    async def _strike(self) -> None:
        """All faults, each begun at its moment; returns when the last one is over."""
        acting: list[asyncio.Task[None]] = []
        for planned in self._scenario.faults:
            await self._moment(planned)
            acting.append(asyncio.create_task(self._act(planned)))
            await asyncio.sleep(0)
        await asyncio.gather(*acting)

    async def _moment(self, planned: Planned) -> None:
        conversation = self._conversations[planned.caller]
        if planned.phase == "hand_over":
            await asyncio.wait_for(conversation.entered("both_listen"), _PHASE)
            await self._act(Planned("hand_over", planned.caller, None, 0, 0))
        elif planned.phase == "recovery":
            await asyncio.wait_for(conversation.entered("agent_speaks"), _PHASE)
            await self._act(Planned("kill_child", planned.caller, None, 0, 0))
        elif planned.phase is not None:
            await asyncio.wait_for(conversation.entered(planned.phase), _PHASE)
        await asyncio.sleep(planned.after)

    async def _act(self, planned: Planned) -> None:
        call, kind = self._conversations[planned.caller].call, KINDS[planned.fault]
        try:
            child = await asyncio.to_thread(self._ground.workers.child, call.session_id, within=_TARGET)
        except (TimeoutError, LookupError):
            self._note(f"{planned.fault}: nobody runs the call of caller {planned.caller}")
            self._result.missed.append(planned.fault)
            return
        record = self._sheet(call).record or {}
        aim = Aim(call.session_id, int(record.get("epoch", 1)), child, planned.seconds)
        began, came = time.time(), True
        self._tell(f"{planned.fault} of {child.worker}, process {child.pid}, epoch {aim.epoch}")
        try:
            await kind.act(self._ground, aim)
        except (LookupError, psutil.NoSuchProcess, ServiceError, RedisError, OperationalError) as error:
            # What it needs may be away for the sake of another one.
            self._note(f"{planned.fault}: {type(error).__name__}: {error}")
            self._result.missed.append(planned.fault)
            came = False
        self._struck.append(Struck(planned.fault, call.session_id, child.worker, began, time.time(), came))
        self._tell(f"{planned.fault} is over after {time.time() - began:.1f} s")

    async def _go_on(self) -> None:
        """Every call that is not over goes on: something that is said is answered."""
        calm_at = time.time()
        await asyncio.gather(*(self._goes_on(each, calm_at) for each in self._conversations))

    async def _goes_on(self, conversation: Conversation, calm_at: float) -> None:
        call = conversation.call

        async def is_answered() -> bool:
            if self._is_over(call) or self._is_vanished(call):
                return True
            asked = {each.number for each in call.said if each.started_at > calm_at}
            if not asked & conversation.heard_after:
                return False
            heard = await asyncio.to_thread(_heard, call)
            return any(each.number in asked for each in heard)

        try:
            waited = await self._ground.until(is_answered, within=GOES_ON_WITHIN, what="answer")
            self._tell(f"session {call.session_id} goes on, {waited:.1f} s after the mending")
        except TimeoutError:
            self._blame(call, f"does not go on within {GOES_ON_WITHIN:g} s")

    async def _end_calls(self) -> None:
        for number, conversation in enumerate(self._conversations):
            call = conversation.call
            if self._is_over(call) or self._sheet(call).record is None:
                # Only a fault can have ended it.
                self._wanted[call.session_id] = ""
            elif number == 0 and self._scenario.ending != "leave":
                self._wanted[call.session_id] = "caller_left"
                await call.caller.hang_up()
            else:
                self._wanted[call.session_id] = "left"
                await asyncio.to_thread(self._ground.client.leave, call.session_id)

        async def are_over() -> bool:
            return all(self._is_over(each.call) or not self._sheet(each.call).record for each in self._conversations)

        try:
            waited = await self._ground.until(are_over, within=_ENDED_WITHIN, what="end")
            self._tell(f"over after {waited:.1f} s")
        except TimeoutError:
            self._tell("not over")
        if self._scenario.ending == "return":
            await self._come_back(self._conversations[0].call.room)
        await self._check_leaks()

    async def _come_back(self, room: str) -> None:
        """The first caller calls again, into the same room, and is greeted by a session of its own."""
        before = {each.call.session_id for each in self._conversations}
        try:
            async with marked_call(self._ground.stack, client=self._ground.client, room=room) as call:
                if call.session_id in before:
                    self._blame(call, "is over and was joined again")
                await asyncio.to_thread(self._ground.client.leave, call.session_id)
        except (ServiceError, TimeoutError) as error:
            self._result.violations.append(f"the caller came back and was not greeted: {error}")

    async def _check_leaks(self) -> None:
        left: list[str] = []

        async def is_clean() -> bool:
            left[:] = await self._leftovers()
            return not left

        try:
            waited = await self._ground.until(is_clean, within=self._clean_within, what="clean stack")
            self._tell(f"clean after {waited:.1f} s")
        except TimeoutError:
            self._result.violations.extend(f"left behind: {each}" for each in left)

    @property
    def _clean_within(self) -> float:
        kinds = [KINDS[each.kind] for each in self._struck]
        if any(kind.hangs for kind in kinds):
            return CLEAN_WITHIN + _HANGS
        return _GHOST if any(kind.deafens or kind.deafens_all for kind in kinds) else CLEAN_WITHIN

    async def _leftovers(self) -> list[str]:
        """What of the calls is still there."""
        fleet = await self._ground.fleet()
        if fleet is None:
            return ["Redis does not answer"]
        left = [f"{worker.busy} busy in {worker.name}" for worker in fleet.workers if worker.busy]
        left += [f"room held by {each}" for each in await asyncio.to_thread(self._holders)]
        for conversation in self._conversations:
            left += [f"{identity} in the room" for identity in await self._agents_in(conversation.call.room)]
        left += await asyncio.to_thread(self._ground.orphans)
        return left or await asyncio.to_thread(self._ground.active_tasks, fleet)

    def _holders(self) -> Sequence[str]:
        with connect(self._ground.stack.settings["REDIS_URL"]) as client:
            try:
                return run(client, admission.holders(_TENANT))
            except StateUnavailable:
                return ["unknown"]

    async def _agents_in(self, room: str) -> list[str]:
        settings = self._ground.stack.settings
        async with api.LiveKitAPI(
            settings["LIVEKIT_URL"], settings["LIVEKIT_API_KEY"], settings["LIVEKIT_API_SECRET"]
        ) as livekit:
            answer = await livekit.room.list_participants(api.ListParticipantsRequest(room=room))
        return [each.identity for each in answer.participants if each.identity.startswith("agent-")]

    async def _judge(self) -> None:
        watcher = self._ground.watcher
        await asyncio.to_thread(watcher.catch_up)
        until = time.time()
        for conversation in self._conversations:
            call = conversation.call
            turns = await self._turns(call)
            result = await asyncio.to_thread(self._judge_call, call, turns, until)
            self._result.calls.append(result)
        self._result.violations += watcher.look_into(lambda ledger: ledger.violations[self._seen_before :])
        self._result.violations += await asyncio.to_thread(self._ground.unseen_errors)
        notes = watcher.look_into(lambda ledger: ledger.notes[self._noted_before :])
        sessions = tuple(each.call.session_id for each in self._conversations)
        self._result.notes += [note for note in notes if note.startswith(sessions)]
        for violation in self._result.violations:
            self._tell(f"VIOLATED: {violation}")

    async def _turns(self, call: MarkedCall) -> tuple[Turn, ...]:
        try:
            return await call.turns()
        except ServiceError:
            return ()

    def _judge_call(self, call: MarkedCall, turns: Sequence[Turn], until: float) -> CallResult:
        sheet = self._sheet(call)
        struck = self._struck
        unowned = self._ground.watcher.look_into(lambda ledger: ledger.unowned(call.session_id, until=until))
        away = self._ground.watcher.away
        deaf = invariants.deaf_spans(sheet.entries, struck)
        # Also what a server that was emptied has forgotten: whoever talks must not.
        stored = _turns(sheet)
        heard, count = _heard(call), count_words(call.said, stored)
        disturbing = [(each.began, each.ended + LEASE) for each in struck if KINDS[each.kind].disturbs]
        allowed = self._allowed(call)
        is_vanished = self._is_vanished(call)
        disturbed = [*deaf, *disturbing, *away, *(invariants.forgotten(struck) if is_vanished else ())]
        words, excused = (
            ([], len(count.lost))
            if is_vanished
            else invariants.word_violations(call.said, count, sheet.stored, deaf=deaf)
        )
        spoken = [(turn.role, turn.text or "") for turn in stored if turn.role != "event"]
        is_emptied = any(KINDS[each.kind].empties for each in struck)
        violations = [
            *invariants.overlap_violations(call.overlap()),
            *invariants.unowned_violations(unowned, away=away, struck=struck),
            *invariants.needless_violations(sheet.entries, struck, session_id=call.session_id, away=away),
            *invariants.unnoticed_violations(sheet.entries, struck, session_id=call.session_id, away=away),
            *words,
            *invariants.answer_violations(heard, sheet.entries),
            *invariants.unanswered_violations(call.said, heard, disturbed=disturbed),
            *invariants.history_violations(spoken),
            *([] if is_emptied else invariants.gone_violations(sheet.stored, (turn.item_id for turn in turns))),
            *invariants.end_violations(sheet, wanted=self._wanted[call.session_id], allowed=allowed),
        ]
        if count.cut:
            self._note(
                f"{call.session_id}: cut in two by a late frame of the caller's: {' '.join(map(str, count.cut))}"
            )
        for violation in violations:
            self._blame(call, violation)
        for role, text in spoken:
            self._tell(f"    {role}: {text}")
        record = sheet.record or {}
        return CallResult(
            call.session_id,
            state=record.get("state", "vanished"),
            reason=record.get("reason", ""),
            epoch=int(record.get("epoch", 0)),
            said=count.sent,
            lost_excused=excused,
            unanswered=len(invariants.unanswered(call.said, heard)),
            overlap=round(call.overlap(), 3),
            recoveries=_recoveries(sheet),
            longest_unowned=round(max((end - start for start, end in unowned), default=0.0), 2),
        )

    def _allowed(self, call: MarkedCall) -> set[str]:
        """Ends of this call that the faults explain."""
        allowed: set[str] = {"vanished"} if invariants.may_vanish(self._struck) else set()
        for each in self._struck:
            kind = KINDS[each.kind]
            if each.session_id == call.session_id or not kind.is_of_one_call:
                allowed.update(kind.may_end)
        return allowed

    def _is_vanished(self, call: MarkedCall) -> bool:
        return self._sheet(call).record is None and "vanished" in self._allowed(call)

    def _blame(self, call: MarkedCall, what: str) -> None:
        self._result.violations.append(f"{call.session_id}: {what}")

    def _note(self, what: str) -> None:
        self._result.notes.append(what)
        self._tell(what)


async def _give_up(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _turns(sheet: Sheet) -> list[Turn]:
    """Everything that was ever stored of a conversation, each turn once."""
    stored = {each.turn["item_id"]: each.turn for each in reversed(sheet.stored)}
    return [
        Turn(cursor="", role=turn["role"], item_id=turn["item_id"], text=turn["text"], at=turn["at"])
        for turn in reversed(stored.values())
    ]


def _heard(call: MarkedCall) -> list[Heard]:
    """Every mark that the caller heard from an agent, in order."""
    heard = [
        invariants.heard_marks(
            find_marks(full_scale(track.sound.samples), rate=SAMPLE_RATE),
            call.said,
            started_at=track.started_at,
            identity=track.identity,
        )
        for track in call.caller.tracks
    ]
    return sorted(itertools.chain.from_iterable(heard), key=lambda each: each.at)


def _recoveries(sheet: Sheet) -> list[float]:
    """Seconds from each lost owner's replacement being sought to its being live."""
    found = []
    for index, entry in enumerate(sheet.entries):
        if entry.state is State.RECOVERING:
            live = next((each.at for each in sheet.entries[index:] if each.state is State.LIVE), None)
            if live is not None:
                found.append(round(live - entry.at, 2))
    return found
