"""The model of a child: `worker/call/service.py`'s flow with both sides of a hand-over, around the real fences.

`Fences`, `DeadMan`, `Baton`, `Ending`, `Presence`, `Messages` and `Wish` are the code's own objects.
"""

from collections import deque
from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from livekit import rtc

from tests.model.processes import Ask, Process, Program, Status, Task, Until, ask, sleep
from tests.model.room import Room
from tests.model.steps import models
from tests.model.stored import Message, Turn
from tests.model.switches import Switch
from worker.call.agreeing import Verdict
from worker.call.baton import Baton
from worker.call.dead_man import DeadMan
from worker.call.ending import Ending
from worker.call.fences import Fences
from worker.call.handing_over import Messages, Wish
from worker.call.own_record import _ROOM_CHECK, _TAKEN_BACK_WITHIN
from worker.call.presence import Presence
from worker.call.talking import _FLUSH_LIMIT
from worker.fleet import handing_over
from worker.fleet.errors import (
    FleetError,
    HandOverImpossible,
    MoveRefused,
    SessionNotFound,
    StaleEpoch,
    StateUnavailable,
)
from worker.fleet.publishing import RECOVERY_QUEUE, worker_queue
from worker.fleet.recovery import MOST_IN_A_ROW
from worker.fleet.session import Reason, Session, State
from worker.fleet.times import LEFT, LINGER, OUTLIVED, READY_WITHIN, SETTLED, STAMP, TAKEN_UP_WITHIN, UNOWNED, WITNESS

if TYPE_CHECKING:
    from tests.model.fleet import Slot, Worker

_RETRY = 0.5
#: Seconds the question for a baton in doubt takes.
_ASKED = 1.0


class _NotTakenError(FleetError):
    """Nobody will answer in the offered epoch, whether or not the record says that it was passed."""


class Child:
    """What `DeadMan` sees of its process: the kernel's timer, and when the lease was last renewed."""

    def __init__(self, agent: "Agent") -> None:
        self._agent = agent

    @property
    def renewed_at(self) -> int:
        """In nanoseconds of the machine's clock."""
        return round(self._agent.worker.renewed_at * 1e9)

    def arm(self, seconds: float) -> None:
        """Set the timer."""
        self._agent.alarm_at = self._agent.world.now + seconds

    def disarm(self) -> None:
        """Unset it."""
        self._agent.alarm_at = float("inf")


class SwitchedDeadMan(DeadMan):
    """The code's switch, of which the model may switch off that a witness counts for so long only."""

    agent: "Agent"

    @property
    def _age(self) -> float:
        bound = float("inf") if self.agent.world.has(Switch.WITNESS_BOUND) else WITNESS - 1.0
        return min(super()._age, bound)


class SwitchedFences(Fences):
    """The code's fences, of which the model may switch off each part."""

    agent: "Agent"

    @property
    def is_witness(self) -> bool:
        """As the code's, or without one of its two conditions."""
        if not self.agent.world.has(Switch.WITNESS_ALONE):
            return self._room.isconnected()
        if not self.agent.world.has(Switch.WITNESS_CONNECTED):
            return not self._is_younger_there
        return super().is_witness

    def refuse(self, epoch: int) -> None:
        if self.agent.world.has(Switch.REFUSE):
            super().refuse(epoch)

    def _participant_connected(self, participant: rtc.RemoteParticipant) -> None:
        epoch = self._session.epoch_of(participant.identity)
        is_older = epoch is not None and epoch < self._session.epoch
        if self.agent.world.has(Switch.HOLDER_REMOVES if is_older else Switch.YIELD):
            super()._participant_connected(participant)

    def _reconnecting(self) -> None:
        if self.agent.world.has(Switch.MUTE):
            super()._reconnecting()
        else:
            self._run(self._check())

    async def _check(self) -> None:
        if self.agent.world.has(Switch.CHECK):
            await super()._check()

    def _reconnected(self) -> None:
        if self.agent.world.has(Switch.LOOK_BACK):
            super()._reconnected()
        elif not self._ending.is_decided:
            for track in self._tracks():
                track.unmute()


class Agent(Process):
    """One pool process with one session."""

    def __init__(self, worker: "Worker", slot: "Slot", session_id: str, epoch: int) -> None:
        self.worker = worker
        self.number = number = worker.world.count(self)
        super().__init__(f"agent {session_id} {epoch} of {worker.name} ({number})", worker.world, worker.machine)
        self.session_id, self.epoch = session_id, epoch
        self.slot = slot
        self.alarm_at = float("inf")
        self.ending = Ending(session_id)
        self.baton = Baton(is_held=True, clock=self.world.moment)
        self.messages = Messages.none()
        self.wish = Wish()
        self.room: Room | None = None
        self.session: Session | None = None
        #: Whether it has begun to talk with the caller.
        self.is_talking = False
        self.is_deaf = False
        self._is_answering = 0
        self._offered = 0
        self._emptied = worker.emptied
        self._record: Session | None = None
        self._waiting: deque[tuple[str, str]] = deque()
        self._is_recorded = False
        self._has_stepped_back = self._has_stood_by = False
        self._doubt: Ask | None = None
        self._is_caught_up = False
        self._cursor = 0
        self._attempts = 0
        self._beside: list[Coroutine[Any, Any, None]] = []
        self.spawn(self.run(), "run")

    # --- what others see of it ---

    @property
    def is_audible(self) -> bool:
        """Whether the caller hears it, should it say something."""
        is_speaking = self.is_talking and self.baton.is_held and self.is_running
        return is_speaking and self.room is not None and self.room.is_heard

    @property
    def is_running(self) -> bool:
        """Whether the operating system lets it run."""
        return self.status is Status.RUNNING

    @property
    def hears(self) -> bool:
        """Whether the caller's words reach it."""
        is_listening = self.session is not None and not self.is_deaf and not self.ending.is_decided
        return is_listening and self.is_running and self.room is not None and self.room.isconnected()

    def failed(self, task: Task, failure: FleetError) -> None:
        """Celery's task ends with an exception: what the slot holds is the keeper's to end."""
        self._exit(is_abandoned=True)

    def crash(self) -> None:
        """Die at once, and leave a ghost in the room."""
        super().crash()
        self.world.living = [agent for agent in self.world.living if agent is not self]
        for work in self._beside:
            work.close()
        self.worker.agent_is_gone(self)

    def _exit(self, *, is_abandoned: bool = False) -> None:
        if is_abandoned:
            self.slot.abandon()
        if self.room is not None:
            self.room.disconnect()
        self.crash()

    # --- its life: worker/call/service.py ---

    @models("worker.call.service:_Service.run", "worker.fleet.tasks:RunSession.run")
    def run(self) -> Program:
        """From before the claim to after the end the slot tells the keeper whose it is."""
        self.slot.hold(self.session_id, self.epoch, self)
        self.spawn(self._stamp(), "_stamp")
        session = yield from self._claim()
        if session is not None:
            self.session = session
            yield from self._serve(session)
        self.slot.clear()
        self._exit()

    @models("worker.call.claiming:Claiming.claim")
    def _claim(self) -> Program:
        try:
            session: Session = yield self._write("claim", session_id=self.session_id, epoch=self.epoch, owner=self._me)
        except (MoveRefused, SessionNotFound):
            return (yield from self._stand_by())
        hold = self.world.session_hold
        if (yield ask("confirm", room=session.room, session_id=session.session_id, hold=hold)):
            return session
        self.ending.decide(Reason.JOIN_EXPIRED if session.epoch == 1 else Reason.WORKER_LOST)
        yield from self._record_end(session)
        return None

    @models("worker.call.claiming:Claiming._stand_by")
    def _stand_by(self) -> Program:
        try:
            session: Session = yield ask("stand_by", session_id=self.session_id, offered=self.epoch, owner=self._me)
        except (MoveRefused, SessionNotFound):
            return None
        self.baton = Baton(is_held=False, clock=self.world.moment)
        self._has_stood_by = True
        return replace(session, epoch=self.epoch, owner=self._me, standby="")

    @models("worker.call.service:_Service._serve")
    def _serve(self, session: Session) -> Program:
        if self.worker.draining:
            self.wish.drain()
        self.spawn(self._stay_registered(session), "_stay_registered")
        self.spawn(self._obey(session), "_obey")
        self.spawn(self._transcript(session), "_transcript")
        yield from self._talk(session)
        yield from self._leave(session)
        yield from self._record_end(session)

    @models("worker.call.service:_Service._talk", "worker.call.room:connect", "worker.call.talking:_enter")
    def _talk(self, session: Session) -> Program:
        room = self.room = Room(session.agent_identity, session.room, self.world.rooms)
        room.has_link = self.machine.has_rooms
        fences = self._raise_fences(room, session)
        begun: tuple[Turn, ...] = yield from self._load(session)
        yield sleep(self.world.tick)
        if self.ending.is_decided:
            return
        if not room.has_link:
            was_there = session.connected_at is not None and self.baton.is_held
            self.ending.decide(Reason.ROOM_CLOSED if was_there else Reason.CONNECT_FAILED)
            return
        room.connect()
        self.spawn(self._sdk(room), "sdk")
        yield from self._remove_older(fences)
        if self.ending.is_decided:
            return
        if not self.baton.is_held:
            if (yield from self._take_over(session)):
                self.spawn(self._clear_up(fences), "_clear_up")
                self.spawn(self._giver(session, fences), "Giver.run")
                yield Until(lambda: self.ending.is_decided)
            return
        yield from self._move(session, State.WAITING, stamp="connected_at" if session.epoch == 1 else "recovered_at")
        yield sleep(self.world.tick)
        if self.ending.is_decided:
            return
        self.is_talking = True
        self.spawn(self._went_live(session), "_went_live")
        if begun and begun[-1].role == "user":
            self.spawn(self._answer(begun[-1].text), "_answer")
        self.spawn(self._giver(session, fences), "Giver.run")
        yield Until(lambda: self.ending.is_decided)

    @models(
        "worker.call.building:_raise_fences",
        "worker.call.dead_man:DeadMan.keep",
        "worker.call.fences:Fences._participant_connected",
        "worker.call.fences:Fences._reconnecting",
        "worker.call.fences:Fences._reconnected",
    )
    def _raise_fences(self, room: Room, session: Session) -> Fences:
        async def is_ours() -> bool:
            record = self.world.answer(self, ask("read", session_id=session.session_id))
            return record is None or handing_over.owns(record, session) or handing_over.is_standby(record, session)

        async def remove(identity: str) -> None:
            if self.machine.has_rooms:
                self.world.rooms.remove(session.room, identity)

        seen: Any = room
        fences = SwitchedFences(
            seen,
            session,
            ending=self.ending,
            remove=remove,
            is_ours=is_ours,
            is_holder=lambda: self.baton.is_held,
            run=self._run_beside,
        )
        fences.agent = self
        Presence(seen, session, ending=self.ending, grace=1.0)
        if self.world.has(Switch.DEAD_MAN):
            self.spawn(self._dead_man(fences), "DeadMan.keep")
        return fences

    def _dead_man(self, fences: Fences) -> Program:
        async def any_question() -> None:
            self.world.answer(self, ask("fleet"))

        child: Any = Child(self)
        dead_man = SwitchedDeadMan(
            child,
            ask=any_question,
            witness=lambda: self.world.has(Switch.WITNESS) and fences.is_witness,
            clock=lambda: round(self.world.now * 1e9),
        )
        dead_man.agent = self
        while not (self.ending.is_decided and self.room is not None and not self.room.isconnected()):
            yield from self._do(dead_man._arm())
            yield sleep(self.world.tick)
        dead_man.stand_down()

    @models("worker.call.talking:load", "worker.conversation.continuing:Conversation.load")
    def _load(self, session: Session) -> Program:
        while not self.ending.is_decided:
            try:
                return (yield ask("turns_after", session_id=session.session_id, cursor=0))
            except StateUnavailable:
                yield sleep(_RETRY)
        return ()

    @models("worker.call.own_record:OwnRecord.move")
    def _move(self, session: Session, target: State, *, stamp: str, patient: bool = False) -> Program:
        fields = {"reason": self.ending.reason} if self.ending.reason else {}
        move = self._write(
            "move",
            session_id=session.session_id,
            target=target,
            epoch=session.epoch,
            owner=session.owner,
            stamp=stamp,
            fields=fields,
        )
        try:
            self._record = yield from self._insist(move) if patient else self._once(move)
        except (StateUnavailable, SessionNotFound):
            return
        except MoveRefused:
            self.ending.supersede()

    @models("worker.call.building:_went_live")
    def _went_live(self, session: Session) -> Program:
        stamp = "first_audio_at" if session.first_audio_at is None else "recovered_at"
        yield from self._move(session, State.LIVE, stamp=stamp, patient=True)

    @models("worker.call.talking:_leave", "worker.call.lifecycle:Call.close")
    def _leave(self, session: Session) -> Program:
        yield from self._settle(session)
        if not self.baton.is_held:
            self.baton.lose()
        if self.ending.handed_over:
            yield sleep(LINGER)
        if not (self.ending.superseded or self._goes_on):
            yield from self._move(session, State.ENDING, stamp="ending_at")
        if self.room is not None:
            self.room.disconnect()
        self.alarm_at = float("inf")
        yield Until(lambda: not self._waiting, _FLUSH_LIMIT)

    @models("worker.call.own_record:OwnRecord.end")
    def _record_end(self, session: Session) -> Program:
        if not self._is_recorded and self.ending.renounced:
            self._is_recorded = True
            yield from self._see_taken_back(session)
        yield from self._settle(session)
        if self._is_recorded or self.ending.superseded:
            return
        self._is_recorded = True
        if self._goes_on:
            yield from self._leave_to_the_next(session)
            return
        reason = self.ending.reason or Reason.INTERNAL_ERROR
        try:
            yield from self._insist(self._write("end", session=session, reason=reason))
        except StaleEpoch:
            return
        except (MoveRefused, SessionNotFound):
            pass
        yield from self._insist(ask("release", room=session.room, session_id=session.session_id))

    @models("worker.call.own_record:OwnRecord.settle")
    def _settle(self, session: Session) -> Program:
        yield from self._be_sure()
        if self.baton.is_held or self.baton.is_given or self._has_stepped_back or self.ending.renounced:
            return
        self._has_stepped_back = True
        step = ask("step_back", session_id=session.session_id, offered=session.epoch, owner=session.owner)
        try:
            record = yield from self._insist(step)
            self.ending.superseded = not handing_over.owns(record, session)
        except SessionNotFound:
            self.ending.superseded = True

    @models("worker.call.own_record:OwnRecord.stay_registered")
    def _stay_registered(self, session: Session) -> Program:
        look_at = self.world.now
        while not self.ending.is_decided:
            if self._emptied != self.worker.emptied and self.baton.is_held:
                self._emptied = self.worker.emptied
                yield from self._register_again(session)
            elif self.baton.is_held and self._doubt is None and self.world.now >= look_at:
                look_at = self.world.now + _ROOM_CHECK
                yield from self._hold_room(session)
            yield sleep(STAMP)

    @models("worker.call.own_record:OwnRecord._hold_room")
    def _hold_room(self, session: Session) -> Program:
        if not self.world.has(Switch.ROOM_CHECK):
            return
        hold = self.world.session_hold
        try:
            if (yield ask("confirm", room=session.room, session_id=session.session_id, hold=hold)):
                return
            record: Session | None = yield ask("read", session_id=session.session_id)
        except StateUnavailable:
            return
        if not self.baton.is_held or self._doubt is not None:
            return
        if record is None or (handing_over.owns(record, session) and not record.is_over):
            yield from self._register_again(session)
        else:
            self.ending.supersede()

    @models("worker.call.own_record:OwnRecord._register_again")
    def _register_again(self, session: Session) -> Program:
        hold = self.world.session_hold
        admit = ask("admit", room=session.room, session_id=session.session_id, hold=hold, limit=1000)
        if (yield from self._insist(admit)) == "room_taken":
            self.world.gave_room_away(self)
            self.ending.supersede()
            return
        state = State.LIVE if self.is_talking else State.WAITING
        registered = replace(self._record or session, state=state, offered_epoch=self._offered)
        if self.is_talking and registered.first_audio_at is None:
            registered = replace(registered, first_audio_at=self.world.now)
        yield from self._insist(ask("create", session=registered))

    @models("worker.call.obeying:obey", "worker.call.commands:commands")
    def _obey(self, session: Session) -> Program:
        cursor = 0
        while not self.ending.is_decided:
            try:
                heard = yield ask("commands_after", session_id=session.session_id, cursor=cursor)
            except StateUnavailable:
                continue
            cursor += len(heard)
            for command in heard:
                if not self.messages.hear(command, epoch=session.epoch, wish=self.wish):
                    self.ending.decide(Reason.LEFT)
            yield sleep(self.world.tick)

    @models("worker.call.service:_Service._stamp")
    def _stamp(self) -> Program:
        while True:
            self.slot.stamp()
            yield sleep(STAMP)

    @models("worker.call.own_record:OwnRecord.insist")
    def _insist(self, step: Ask) -> Program:
        while True:
            try:
                return (yield step)
            except StateUnavailable:
                self.slot.stamp()
                yield sleep(_RETRY)

    def _once(self, step: Ask) -> Program:
        return (yield step)

    # --- turns: worker/call/voice_agent.py, worker/conversation/transcript.py ---

    @models("worker.call.voice_agent:VoiceAgent.on_user_turn_completed", "worker.call.baton:Baton.may_answer")
    def on_user_turn_completed(self, text: str) -> Program:
        """The caller's turn is over: answer it, park it, or leave it to whoever has answered it."""
        deciding = self.world.loop.create_task(self.baton.may_answer())
        yield Until(lambda: self.world.is_done(deciding) or self.ending.is_decided)
        if not deciding.done():
            deciding.cancel()
        elif deciding.result():
            self._waiting.append((text, "user"))
            yield from self._answer(text)

    def _answer(self, text: str) -> Program:
        self._is_answering += 1
        yield sleep(self.world.tick)
        self._waiting.append((f"reply to {text}", "assistant"))
        self._is_answering -= 1
        self.baton.agent_listens()

    @models("worker.conversation.transcript:Transcript.write", "worker.conversation.transcript:Transcript.add")
    def _transcript(self, session: Session) -> Program:
        while True:
            yield Until(lambda: bool(self._waiting) and self._doubt is None)
            text, role = self._waiting[0]
            try:
                yield self._write("append_turn", session=session, text=text, role=role)
            except (StateUnavailable, SessionNotFound):
                yield sleep(_RETRY)
                continue
            except MoveRefused:
                self.ending.supersede()
            self._waiting.popleft()

    # --- a hand-over: worker/call/handing_over.py ---

    @models("worker.call.handing_over:Giver.run")
    def _giver(self, session: Session, fences: Fences) -> Program:
        while not self.ending.is_decided:
            yield Until(self.wish._wanted.is_set)
            try:
                yield from self._attempt(session, fences)
            except StateUnavailable:
                pass
            except (MoveRefused, SessionNotFound, HandOverImpossible, _NotTakenError):
                self.wish.give_up()
            if not self.ending.is_decided:
                yield sleep(1.0)

    @models("worker.call.handing_over:Giver._attempt", "worker.call.handing_over:Giver._choose")
    def _attempt(self, session: Session, fences: Fences) -> Program:
        worker = handing_over.choose((yield ask("fleet")), worker_id=session.worker_id, name=self.wish.to)
        if worker is None:
            raise HandOverImpossible("No other worker is free.")
        offered: int = (yield self._write("offer", session=session)).offered_epoch
        self._offered = offered
        fences.accept(offered)
        is_shared = self.wish.is_draining and not self.wish.to and self._attempts > 0
        self._attempts += 1
        queue = RECOVERY_QUEUE if is_shared else worker_queue(worker.name)
        message = Message(session.session_id, offered, self.world.now + self.world.join_ttl)
        yield ask("publish", message=message, queue=queue)
        if (yield from self._is_ready(session, offered, READY_WITHIN if is_shared else TAKEN_UP_WITHIN)):
            yield from self._pass(session, fences, offered)
        elif not self.ending.is_decided:
            yield self._write("offer", session=session)
            raise HandOverImpossible("No successor came in time.")

    @models("worker.call.handing_over:Giver._is_ready")
    def _is_ready(self, session: Session, offered: int, patience: float) -> Program:
        offered_at = self.world.now
        while offered not in self.messages.ready and not self.ending.is_decided:
            yield Until(lambda: offered in self.messages.ready or self.ending.is_decided, 1.0)
            if (yield from self._require(session, offered)):
                patience = READY_WITHIN
            if self.world.now - offered_at > patience:
                return False
        return not self.ending.is_decided

    @models("worker.call.handing_over:Giver._require")
    def _require(self, session: Session, offered: int) -> Program:
        record: Session | None = yield ask("read", session_id=session.session_id)
        if record is None or record.offered_epoch != offered:
            raise HandOverImpossible("Nobody stands by any more.")
        return bool(record.standby)

    @models("worker.call.handing_over:Giver._pass")
    def _pass(self, session: Session, fences: Fences, offered: int) -> Program:
        heard_since = self.baton.now()
        while not self._is_between_turns(heard_since):
            yield Until(lambda: self._is_between_turns(heard_since) or self.ending.is_decided, 1.0)
            if self.ending.is_decided:
                return
            yield from self._require(session, offered)
        is_open = self.baton.is_open
        self.baton.give()
        try:
            yield from self._give(session, fences, offered, is_open=is_open)
        except (_NotTakenError, HandOverImpossible):
            self.baton.take_back()
            yield from self._be_sure()
            raise
        except MoveRefused:
            self.ending.supersede()
            raise
        self.baton.lose()
        self.is_deaf = True
        self.ending.hand_over()

    @models("worker.call.handing_over:Giver._give")
    def _give(self, session: Session, fences: Fences, offered: int, *, is_open: bool) -> Program:
        while True:
            try:
                yield self._write("give", session=session, offered=offered, is_open=is_open)
                return
            except (StateUnavailable, SessionNotFound):
                yield sleep(_ASKED)
            verdict = self._ask_successor(session, offered)
            if verdict is Verdict.TAKEN:
                return
            if verdict is not Verdict.UNKNOWN:
                if verdict is Verdict.GONE:
                    fences.refuse(offered)
                self._doubt = self._write("take_back", session=session, offered=offered)
                raise _NotTakenError()
            yield sleep(self.world.tick)

    @models("worker.call.agreeing:Agreement.ask", "worker.call.agreeing:Agreement._is_gone")
    def _ask_successor(self, session: Session, epoch: int) -> Verdict:
        room, identity = self.room, replace(session, epoch=epoch).agent_identity
        assert room is not None
        for agent in self.world.living:
            is_there = agent.room is not None and agent.room.identity == identity and agent.room.is_reached
            if is_there and agent.is_running and room.is_reached:
                return agent.decide()
        return Verdict.GONE if room.isconnected() and identity not in room.remote_participants else Verdict.UNKNOWN

    @models("worker.call.handing_over:Successor.decide")
    def decide(self) -> Verdict:
        """What the owner may count on that does not know whether it has passed the baton."""
        if self.baton.is_held:
            return Verdict.TAKEN
        if self.ending.is_decided:
            return Verdict.RENOUNCED if self.ending.renounced else Verdict.UNKNOWN
        self.ending.renounce()
        return Verdict.RENOUNCED

    @models("worker.call.own_record:OwnRecord.be_sure", "worker.call.own_record:OwnRecord.doubt")
    def _be_sure(self) -> Program:
        if self._doubt is not None and not self.ending.superseded:
            try:
                yield from self._insist(self._doubt)
            except SessionNotFound:
                pass
            except MoveRefused:
                self.ending.supersede()
                self.ending.superseded = True
        self._doubt = None

    @models("worker.call.own_record:OwnRecord._see_taken_back")
    def _see_taken_back(self, session: Session) -> Program:
        step = ask("step_back", session_id=session.session_id, offered=session.epoch, owner=session.owner)
        until = float("inf")
        try:
            while handing_over.owns((yield from self._insist(step)), session):
                until = min(until, self.world.now + _TAKEN_BACK_WITHIN)
                if self.world.now > until:
                    yield from self._leave_to_the_next(session)
                    return
                yield sleep(STAMP)
        except SessionNotFound:
            return

    @models("worker.call.own_record:OwnRecord._leave_to_the_next")
    def _leave_to_the_next(self, session: Session) -> Program:
        step = ask("recover", session=session, most=MOST_IN_A_ROW, settled=SETTLED, patience=UNOWNED, by=self.name)
        try:
            recovering: Session = yield from self._insist(step)
        except (MoveRefused, SessionNotFound):
            # The reaper ends one that has lost too many owners.
            return
        message = Message(session.session_id, recovering.epoch, self.world.now + self.world.join_ttl)
        yield from self._insist(ask("publish", message=message, queue=RECOVERY_QUEUE))

    @property
    def _goes_on(self) -> bool:
        reason = self.ending.reason or Reason.INTERNAL_ERROR
        return self._has_stood_by and self.baton.taken_at is not None and reason.final_state is State.FAILED

    def _is_between_turns(self, heard_since: float) -> bool:
        return not self._is_answering and not self._waiting and self.baton.is_between_turns(heard_since=heard_since)

    @models("worker.call.talking:_Talk._take", "worker.call.lifecycle:Call.take_over")
    def _take_over(self, session: Session) -> Program:
        self.spawn(self._watch_offer(session), "Successor.watch")
        self.spawn(self._listen(session), "Successor.listen")
        yield sleep(self.world.tick)
        self.baton.ear.hears.set()
        yield from self._stand_by_in_room(session)
        if self.ending.is_decided:
            return False
        begun: tuple[Turn, ...] = yield from self._load(session)
        if self.ending.is_decided:
            return False
        behind = yield from self._insist(ask("turns_after", session_id=session.session_id, cursor=self._cursor))
        self._note(behind)
        self._is_caught_up = True
        if self.ending.is_decided:
            return False
        self.baton.take(is_open=self.messages.is_open)
        self.is_talking = True
        if begun and begun[-1].role == "user" and not self.baton.is_open:
            self.spawn(self._answer(begun[-1].text), "_answer")
        return True

    @models("worker.call.handing_over:Successor.stand_by")
    def _stand_by_in_room(self, session: Session) -> Program:
        while not self.ending.is_decided:
            try:
                yield ask("ready", successor=session)
                break
            except StateUnavailable:
                yield sleep(1.0)
            except (MoveRefused, SessionNotFound):
                self.ending.supersede()
        yield Until(lambda: self.messages.passed.is_set() or self.ending.is_decided)

    @models("worker.call.handing_over:Successor.watch")
    def _watch_offer(self, session: Session) -> Program:
        while not (self.baton.is_held or self.ending.is_decided):
            try:
                record: Session | None = yield ask("read", session_id=session.session_id)
                if not (handing_over.is_standby(record, session) or handing_over.owns(record, session)):
                    self.ending.supersede()
            except StateUnavailable:
                pass
            yield sleep(1.0)

    @models("worker.call.handing_over:Successor.listen", "worker.call.handing_over:Successor.notes")
    def _listen(self, session: Session) -> Program:
        newest: tuple[Turn, ...] = yield from self._load(session)
        self._cursor = len(newest)
        while not (self._is_caught_up or self.ending.is_decided):
            try:
                entries = yield ask("turns_after", session_id=session.session_id, cursor=self._cursor)
            except StateUnavailable:
                continue
            if not self._is_caught_up:
                self._note(entries)
            yield sleep(self.world.tick)

    def _note(self, turns: tuple[Turn, ...]) -> None:
        for turn in turns:
            self._cursor += 1
            if turn.role == "user":
                self.baton.owner_committed()

    @models("worker.call.fences:Fences.remove_older")
    def _remove_older(self, fences: Fences) -> Program:
        until = self.world.now + OUTLIVED
        while self.baton.is_held and fences._older and self.world.now < until:
            if self.world.has(Switch.REMOVE_FIRST):
                yield from self._do(fences._take_out_older())
            if not self.world.has(Switch.OUTLIVE):
                return
            yield Until(lambda: not fences._older, _RETRY)

    @models("worker.call.talking:_clear_up")
    def _clear_up(self, fences: Fences) -> Program:
        yield sleep(LEFT)
        yield from self._remove_older(fences)

    # --- what the SDK does by itself ---

    def _sdk(self, room: Room) -> Program:
        while True:
            yield Until(lambda: room.must_reconnect)
            room.begin_to_reconnect()
            yield Until(lambda: room.has_link)
            if room.connection_state != rtc.ConnectionState.CONN_RECONNECTING:
                continue
            room.resume()
            yield Until(lambda: True)
            if room.connection_state == rtc.ConnectionState.CONN_RECONNECTING:
                room.be_reconnected()

    # --- helpers ---

    @property
    def _me(self) -> str:
        """As `worker.fleet.session.owner_of` writes it."""
        name = self.worker.worker_id
        return f"{name}/{self.number}" if self.world.has(Switch.OWN_NAMES) else name

    def _write(self, step: str, **given: Any) -> Ask:
        """A step of an owner: the monitor learns whose it was."""
        return ask(step, by=self.name, **given)

    def _run_beside(self, work: Coroutine[Any, Any, None]) -> None:
        self._beside.append(work)
        self.spawn(self._do(work), "beside")

    def _do(self, work: Coroutine[Any, Any, Any]) -> Program:
        """Something of the code's own that waits for nothing, as one step."""
        self.world.loop.run_until_complete(work)
        yield Until(lambda: True)
