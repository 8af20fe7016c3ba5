"""The model of a worker's parent and keeper, of the leading keeper's duties, and of `/join`.

`Observation` and `Lasting` are the code's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.model.agent import Agent
from tests.model.processes import Ask, Machine, Process, Program, Status, Until, ask, sleep
from tests.model.steps import models
from tests.model.stored import Message
from tests.model.switches import Switch
from worker.fleet import workers
from worker.fleet.errors import (
    FleetError,
    FleetFull,
    FleetNotReady,
    MoveRefused,
    RecoveriesExhausted,
    RoomChanging,
    SessionNotFound,
    StateUnavailable,
)
from worker.fleet.joining import ABANDONED
from worker.fleet.lasting import Lasting, Observation
from worker.fleet.publishing import RECOVERY_QUEUE, SESSIONS_QUEUE, worker_queue
from worker.fleet.recovery import MOST_IN_A_ROW
from worker.fleet.session import Reason, Session, State, worker_of
from worker.fleet.times import (
    BEAT,
    CLOSED,
    HUNG,
    LEASE,
    LEAVING,
    SETTLED,
    UNCLAIMED,
    UNHELD,
    UNOWNED,
    UNOWNED_SEEN,
    UNOWNED_UNSEEN,
    UNPUBLISHED,
    UNRECORDED,
)
from worker.fleet.workers import WorkerStatus

if TYPE_CHECKING:
    from tests.model.processes import Task
    from tests.model.world import World


@dataclass(frozen=True)
class Holding:
    """What a slot says: whose process runs which session in which epoch; None for one that has left it."""

    agent: Agent | None
    session_id: str
    epoch: int
    stamp: float


class Slot:
    """One process's place in the liveness table."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.holding: Holding | None = None

    @models("worker.fleet.table:Slot.hold")
    def hold(self, session_id: str, epoch: int, agent: Agent) -> None:
        """Say what runs here."""
        self.holding = Holding(agent, session_id, epoch, self._world.now)

    @models("worker.fleet.table:Slot.stamp")
    def stamp(self) -> None:
        """Give a sign of life."""
        if self.holding is not None:
            self.holding = replace(self.holding, stamp=self._world.now)

    @models("worker.fleet.table:Slot.clear")
    def clear(self) -> None:
        """Nothing runs here."""
        self.holding = None

    @models("worker.fleet.table:Slot.abandon")
    def abandon(self) -> None:
        """Leave it to the keeper."""
        if self.holding is not None:
            self.holding = replace(self.holding, agent=None)


class Worker(Process):
    """A worker's parent: it takes messages while it has a free process."""

    def __init__(self, world: "World", name: str, *, slots: int) -> None:
        super().__init__(name, world, Machine(name))
        self.worker_id = f"{name}#0"
        self.slots = [Slot(world) for _ in range(slots)]
        self.agents: dict[Slot, Agent] = {}
        self.draining = False
        #: The liveness table's header: when the last renewal was sent, and how often Redis was found emptied.
        self.renewed_at = 0.0
        self.emptied = 0
        self.spawn(self.consume(), "consume")
        self.keeper = Keeper(self)

    @property
    def status_told(self) -> WorkerStatus:
        """What its keeper tells of it."""
        busy = sum(1 for slot in self.slots if slot.holding is not None)
        return WorkerStatus(
            worker_id=self.worker_id,
            name=self.name,
            slots=len(self.slots),
            busy=busy,
            draining=self.draining,
            started_at=0.0,
            holdings=sorted(
                workers.holding(slot.holding.session_id, slot.holding.epoch)
                for slot in self.slots
                if slot.holding and slot.holding.agent
            ),
        )

    def consume(self) -> Program:
        """Each free process takes a message."""
        queues = (RECOVERY_QUEUE, worker_queue(self.name), SESSIONS_QUEUE)
        while True:
            yield sleep(self.world.tick)
            for slot in self.slots:
                if self.draining or slot in self.agents or slot.holding is not None or not self.renewed_at:
                    continue
                try:
                    message: Message | None = yield ask("take", queues=queues)
                except StateUnavailable:
                    break
                if message is not None:
                    self.agents[slot] = Agent(self, slot, message.session_id, message.epoch)

    def agent_is_gone(self, agent: Agent) -> None:
        """The pool has another process in its place."""
        self.agents = {slot: each for slot, each in self.agents.items() if each is not agent}

    def drain(self) -> None:
        """SIGTERM."""
        self.draining = True
        for agent in self.agents.values():
            agent.wish.drain()

    def crash(self) -> None:
        """Keeper and children die with their parent."""
        super().crash()
        self.keeper.crash()
        for agent in list(self.agents.values()):
            agent.crash()


class Keeper(Process):
    """`worker/fleet/keeper.py`, with recovery, endings and, while it leads, the reaper."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(f"keeper of {worker.name}", worker.world, worker.machine)
        self.worker = worker
        self._observation = Observation(clock=lambda: self.world.now)
        self._lasting = Lasting(clock=lambda: self.world.now)
        self._lost: list[Holding] = []
        self._last_look = self._looking_since = self.world.now
        self._closed_since: float | None = None
        self._unfinished: frozenset[str] | None = None
        for name, duty, seconds in (
            ("_renew", self._renew, BEAT),
            ("_lead", self._lead, BEAT),
            ("_watch", self._watch, self.world.tick),
            ("_end_lost", self._end_lost, self.world.tick),
        ):
            self.spawn(_every(self.world, seconds, duty), name)

    @models("worker.fleet.keeper:Keeper._watch", "worker.fleet.keeper:Children.look")
    def _watch(self) -> Program:
        now = self.world.now
        if now - self._last_look > 1.0:
            self._looking_since = now
        self._last_look = now
        for slot in self.worker.slots:
            holding = slot.holding
            if holding is None:
                continue
            if holding.agent is None or holding.agent.status is Status.DEAD:
                slot.clear()
                self._lost.append(holding)
            elif now - max(holding.stamp, self._looking_since) > HUNG:
                holding.agent.crash()
        yield Until(lambda: True)

    @models("worker.fleet.keeper:Keeper._end_lost")
    def _end_lost(self) -> Program:
        for lost in [each for each in self._lost if not self._is_held(each.session_id, each.epoch)]:
            try:
                yield from self._end(lost)
            except StateUnavailable:
                return
            self._lost.remove(lost)

    @models("worker.fleet.keeper:Keeper._end")
    def _end(self, lost: Holding) -> Program:
        session: Session | None = yield from self._read_lost(lost)
        if session is None or session.is_over:
            return
        if (session.worker_id, session.epoch) == (self.worker.worker_id, lost.epoch):
            if lost.agent is None:
                yield from self._end_session(session, Reason.INTERNAL_ERROR)
            else:
                yield from self._recover(session)

    @models("worker.fleet.keeper:Keeper._read_lost")
    def _read_lost(self, lost: Holding) -> Program:
        session: Session | None = yield ask("read", session_id=lost.session_id)
        me = self.worker.worker_id
        if session is None or (worker_of(session.standby), session.offered_epoch) != (me, lost.epoch):
            return session
        standby = session.standby
        try:
            session = yield ask("step_back", session_id=lost.session_id, offered=lost.epoch, owner=standby)
        except SessionNotFound:
            return None
        if session is not None and session.epoch != lost.epoch:
            self._clear_up(replace(session, epoch=lost.epoch, owner=standby))
        return session

    @models("worker.fleet.keeper:Keeper._renew")
    def _renew(self) -> Program:
        sent_at = self.world.now
        try:
            is_new = (yield ask("renew", status=self.worker.status_told)).is_new
        except StateUnavailable:
            self._lose_sight()
            return
        if self.worker.renewed_at and is_new:
            self.worker.emptied += 1
        self.worker.renewed_at = sent_at
        self._observation.saw()

    @models("worker.fleet.keeper:Keeper._lead")
    def _lead(self) -> Program:
        try:
            leading = yield ask("lead", worker_id=self.worker.worker_id)
            if leading:
                yield from self._open_joins()
            else:
                self._closed_since = None
            if leading and (self._observation.suffices or not self.world.has(Switch.WHOLE_LEASE)):
                yield from self.judge()
            else:
                self._forget_sessions()
        except StateUnavailable:
            self._lose_sight()

    @models("worker.fleet.keeper:Children.running")
    def _is_held(self, session_id: str, epoch: int) -> bool:
        holdings = [slot.holding for slot in self.worker.slots if slot.holding and slot.holding.agent]
        return any((holding.session_id, holding.epoch) == (session_id, epoch) for holding in holdings)

    @models("worker.fleet.keeper:Keeper._lose_sight")
    def _lose_sight(self) -> None:
        self._observation.broke()
        self._forget_sessions()
        self._closed_since = None

    @models("worker.fleet.reaper:Reaper.forget_sessions")
    def _forget_sessions(self) -> None:
        self._unfinished = None
        self._lasting = Lasting(clock=lambda: self.world.now)

    # --- worker/fleet/recovery.py and worker/fleet/endings.py ---

    @models("worker.fleet.recovery:Recovery.recover")
    def _recover(self, session: Session) -> Program:
        if session.reason is not None or session.state is State.ENDING:
            yield from self._end_session(session, Reason.WORKER_LOST)
            return
        try:
            recovering: Session = yield ask(
                "recover",
                session=session,
                most=MOST_IN_A_ROW,
                settled=SETTLED,
                patience=UNOWNED,
            )
        except RecoveriesExhausted:
            yield from self._end_session(session, Reason.WORKER_LOST)
            return
        except (MoveRefused, SessionNotFound):
            return
        self._clear_up(session)
        yield from self._publish(recovering)

    @models("worker.fleet.recovery:Recovery.publish")
    def _publish(self, session: Session) -> Program:
        queue = SESSIONS_QUEUE if session.epoch == 1 else RECOVERY_QUEUE
        message = Message(session.session_id, session.epoch, self.world.now + self.world.join_ttl)
        yield ask("publish", message=message, queue=queue)
        yield ask("stamp_published", session_id=session.session_id, epoch=session.epoch)

    @models("worker.fleet.endings:Endings.end", "worker.fleet.endings:Endings.release")
    def _end_session(self, session: Session, reason: Reason) -> Program:
        try:
            yield ask("end", session=session, reason=session.reason or reason)
        except (MoveRefused, SessionNotFound):
            return
        yield ask("release", room=session.room, session_id=session.session_id)
        self._clear_up(session)

    @models("worker.fleet.endings:Endings.clear_up", "worker.fleet.ghosts:Ghosts.remove")
    def _clear_up(self, session: Session) -> None:
        # Nobody waits for it: what it does comes too late to be counted on.
        if session.owner and self.world.has(Switch.KEEPER_REMOVES):
            self.spawn(self._remove_ghost(session), "clear_up")

    def _remove_ghost(self, session: Session) -> Program:
        yield sleep(self.world.ghosts_stay)
        if self.machine.has_rooms:
            self.world.rooms.remove(session.room, session.agent_identity)

    # --- worker/fleet/reaper.py ---

    @models("worker.fleet.reaper:Reaper.open_joins")
    def _open_joins(self) -> Program:
        if (yield ask("fleet")).ready and (yield ask("is_open")):
            self._closed_since = None
            return
        if self._closed_since is None:
            self._closed_since = self.world.now
        closed_for = self.world.now - self._closed_since
        if closed_for >= CLOSED or (closed_for >= LEASE and (yield from self._is_every_agent_registered())):
            yield ask("open_rooms")
            yield ask("open_joins")

    @models("worker.fleet.reaper:Reaper._is_every_agent_registered", "worker.fleet.ghosts:Ghosts.agents")
    def _is_every_agent_registered(self) -> Program:
        if not self.world.has(Switch.ROOMS_ASKED):
            return True
        if not self.machine.has_rooms:
            return False
        for room in sorted(self.world.rooms.with_agents()):
            if (yield ask("holder", room=room)) is None:
                return False
        return True

    @models("worker.fleet.reaper:Reaper.judge")
    def judge(self) -> Program:
        """One round."""
        holders: frozenset[str] = yield ask("holders")
        if self._unfinished is None:
            self._unfinished = yield ask("recent")
        sessions: dict[str, Session | None] = {}
        for session_id in sorted(self._unfinished | holders):
            sessions[session_id] = yield ask("read", session_id=session_id)
        fleet: workers.Fleet = yield ask("fleet")
        alive = {worker.worker_id for worker in fleet.workers}
        for session_id, session in sessions.items():
            if session is None:
                yield from self._release_unrecorded(session_id, holding=session_id in holders)
            elif session.is_over:
                yield from self._release_over(session, alive, holding=session_id in holders)
            elif session.state in (State.QUEUED, State.RECOVERING):
                yield from self._judge_unclaimed(session)
            elif session.worker_id not in alive or self._is_unheld(session, fleet):
                yield from self._recover(session)
        self._unfinished = frozenset(key for key, session in sessions.items() if session and not session.is_over)
        self._lasting.next_round()

    @models("worker.fleet.reaper:Reaper._is_unheld")
    def _is_unheld(self, session: Session, fleet: workers.Fleet) -> bool:
        holding = workers.holding(session.session_id, session.epoch)
        if any(holding in each.holdings for each in fleet.workers if each.worker_id == session.worker_id):
            return False
        lasting = self._lasting.seconds(f"unheld {holding} {session.owner}")
        return lasting >= UNHELD and self.world.has(Switch.HOLDINGS)

    @models("worker.fleet.reaper:Reaper._release_unrecorded")
    def _release_unrecorded(self, session_id: str, *, holding: bool) -> Program:
        if holding and self._lasting.seconds(f"unrecorded {session_id}") >= UNRECORDED:
            yield ask("release", room="", session_id=session_id)

    @models("worker.fleet.reaper:Reaper._release_over")
    def _release_over(self, session: Session, alive: set[str], *, holding: bool) -> Program:
        if not holding:
            return
        lasting = self._lasting.seconds(f"leaving {session.session_id}")
        if session.worker_id not in alive or lasting >= LEAVING:
            yield ask("release", room=session.room, session_id=session.session_id)

    @models(
        "worker.fleet.reaper:Reaper._judge_unclaimed",
        "worker.fleet.reaper:Reaper._is_given_up",
        "worker.fleet.reaper:Reaper._publish_again",
    )
    def _judge_unclaimed(self, session: Session) -> Program:
        seen = self._lasting.seconds(f"waiting {session.session_id} {session.epoch}")
        late = self.world.now - session.join_deadline
        is_given_up = late > UNOWNED_UNSEEN or (late > 0 and seen >= UNOWNED_SEEN)
        if session.state is State.QUEUED and late > 0:
            yield from self._end_session(session, Reason.JOIN_EXPIRED)
            return
        if session.state is State.RECOVERING and is_given_up:
            yield from self._end_session(session, Reason.WORKER_LOST)
            return
        waiting = f"unclaimed {session.session_id} {session.epoch}"
        patience = UNPUBLISHED if session.published_at is None else UNCLAIMED
        if self._lasting.seconds(waiting) >= patience:
            self._lasting.restart(waiting)
            yield from self._publish(session)


class Api(Process):
    """The agent service's process: one task per `/join`."""

    def __init__(self, world: "World") -> None:
        super().__init__("api", world, Machine("api"))
        #: The ids that were answered with 202.
        self.accepted: list[str] = []

    def failed(self, task: "Task", failure: FleetError) -> None:
        """The join is answered with 503 or 409."""

    def join(self, session_id: str, room: str) -> "Task":
        """A request, with its own idempotency: the model's callers never repeat one."""
        return self.spawn(self.make(session_id, room), f"join {session_id}")

    @models("worker.fleet.joining:Join.make", "worker.fleet.joining:Join._create", "worker.fleet.joining:Join._settle")
    def make(self, session_id: str, room: str) -> Program:
        """Admission, then the record, then the message."""
        started = self.world.now
        fleet = yield ask("fleet")
        if not fleet.ready:
            raise FleetNotReady()
        try:
            limits = {"hold": self.world.join_ttl, "limit": fleet.slots * 2, "only_if_open": True}
            admitted = yield from self._insist(ask("admit", room=room, session_id=session_id, **limits))
        except StateUnavailable:
            yield from self._take_back(session_id, room)
            raise
        if admitted == "closed":
            raise FleetNotReady()
        if admitted == "full":
            raise FleetFull()
        if admitted == "room_taken":
            raise RoomChanging()
        session = self.world.new_session(session_id, room)
        if self.world.now - started > ABANDONED:
            raise StateUnavailable()
        try:
            yield from self._insist(ask("create", session=session))
        except StateUnavailable:
            yield from self._take_back(session_id, room)
            raise
        self.accepted.append(session_id)
        try:
            message = Message(session_id, 1, self.world.now + self.world.join_ttl)
            yield ask("publish", message=message, queue=SESSIONS_QUEUE)
            yield ask("stamp_published", session_id=session_id, epoch=1)
        except StateUnavailable:
            return

    @models("worker.fleet.joining:Join._insist")
    def _insist(self, step: Ask) -> Program:
        try:
            return (yield step)
        except StateUnavailable:
            return (yield step)

    @models("worker.fleet.joining:Join._take_back")
    def _take_back(self, session_id: str, room: str) -> Program:
        try:
            yield ask("release", room=room, session_id=session_id)
            yield ask("leave", session_id=session_id, command_id="taken back")
        except (StateUnavailable, SessionNotFound):
            return


@models("worker.fleet.keeper:_every")
def _every(world: "World", seconds: float, duty: Callable[[], Program]) -> Program:
    while True:
        started = world.now
        yield from duty()
        yield sleep(max(world.tick, seconds - (world.now - started)))
