"""The keeper: a process beside each worker that renews its lease, watches its children and tries to lead the fleet.

The worker's parent starts `python -m worker.fleet.keeper <file number of the table> <JSON of the worker's status>`. It
says "leased" on its output after the first renewal and gives the lease back on SIGTERM. When its parent is gone it
kills the children, gives their sessions to other workers, gives the lease back and ends.
"""

import asyncio
import ctypes
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import psutil
import redis.asyncio

from worker.fleet import record_moves, records, workers
from worker.fleet.actions import Action, Actions
from worker.fleet.app import create_producer
from worker.fleet.endings import Endings
from worker.fleet.errors import RecordUnreadable, SessionNotFound, StateUnavailable
from worker.fleet.ghosts import Ghosts, RoomServerSettings
from worker.fleet.health import HealthFile
from worker.fleet.lasting import Observation
from worker.fleet.orphans import Orphans
from worker.fleet.publishing import publisher
from worker.fleet.reaper import Reaper
from worker.fleet.recovery import Recovery
from worker.fleet.redis_operations import REQUEST_TIMEOUT, connect_async, run_async
from worker.fleet.session import Reason, Session, State, worker_of
from worker.fleet.settings import FleetSettings
from worker.fleet.table import ABANDONED, Holding, Table
from worker.fleet.task_states import show_end
from worker.fleet.times import BEAT, HUNG, LOOK, SWEEP
from worker.fleet.workers import WorkerStatus

logger = logging.getLogger(__name__)

#: Lost sessions that wait for Redis to come back; more than any worker has slots.
_MOST_LOST = 1000
_PR_SET_PDEATHSIG = 1
#: Seconds in which a worker without its parent clears up; the leading keeper comes when its lease has ended.
_LAST_DUTY = 4.0


class Children:
    """The pool's processes that run sessions, as the liveness table shows them."""

    def __init__(self, table: Table, actions: Actions) -> None:
        self._table = table
        self._actions = actions
        self._processes: dict[int, psutil.Process | None] = {}
        self._last_look = 0.0
        self._looking_since = 0.0

    def look(self) -> list[Holding]:
        """What children have left behind, dead or not; also kills the hung, which are dead at one of the next looks."""
        self._note_time()
        holdings = [(slot, holding) for slot in self._table.slots if (holding := slot.read())]
        pids = {holding.pid for _, holding in holdings} - {ABANDONED}
        self._processes = {pid: self._processes.get(pid) or _process(pid) for pid in pids}
        lost = []
        for slot, holding in holdings:
            if holding.pid == ABANDONED or self._is_dead(holding.pid):
                # The next session of this slot, in whichever process, waits for this.
                slot.clear()
                lost.append(holding)
            elif self._is_hung(holding):
                logger.error("session %s: its process hangs and is killed", holding.session_id)
                self._actions.count(Action.HUNG_KILLED)
                _kill(holding.pid)
        return lost

    def running(self) -> set[tuple[str, int]]:
        """The sessions that processes say they run, each in an epoch."""
        held = (slot.read() for slot in self._table.slots)
        return {(holding.session_id, holding.epoch) for holding in held if holding and holding.pid != ABANDONED}

    def kill(self) -> None:
        """Kill whoever runs a session."""
        for slot in self._table.slots:
            holding = slot.read()
            if holding and holding.pid != ABANDONED:
                _kill(holding.pid)

    def _note_time(self) -> None:
        now = time.monotonic()
        if now - self._last_look > 1.0:
            self._looking_since = now
        self._last_look = now

    def _is_dead(self, pid: int) -> bool:
        process = self._processes[pid]
        try:
            return process is None or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def _is_hung(self, holding: Holding) -> bool:
        # After a suspended machine resumes every stamp is old, so each child has the time to give a new one.
        last_sign = max(holding.stamp / 1e9, self._looking_since)
        return time.monotonic() - last_sign > HUNG


class Keeper:
    """Everything a keeper does, until `stop`; an outage of Redis interrupts only what needs Redis."""

    def __init__(
        self,
        *,
        table: Table,
        status: WorkerStatus,
        client: "redis.asyncio.Redis",
        actions: Actions,
        endings: Endings,
        recovery: Recovery,
        reaper: Reaper,
        orphans: Orphans,
        health: HealthFile,
        on_first_lease: Callable[[], None],
    ) -> None:
        self._table = table
        self._status = status
        self._client = client
        self._actions = actions
        self._endings = endings
        self._recovery = recovery
        self._reaper = reaper
        self._orphans = orphans
        self._health = health
        self._on_first_lease = on_first_lease
        self._children = Children(table, actions)
        self._observation = Observation()
        self._lost: list[Holding] = []
        self._judges = False
        self._has_told_to_drain = False
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Have `run` give the lease back and return."""
        self._stopping.set()

    async def run(self) -> None:
        """Keep until stopped; or until the parent is gone, clear up after it and raise `SystemExit`."""
        async with asyncio.TaskGroup() as group:
            duties = [
                group.create_task(_every(LOOK, self._watch)),
                group.create_task(_every(LOOK, self._end_lost)),
                group.create_task(_every(BEAT, self._renew)),
                group.create_task(_every(BEAT, self._lead)),
                group.create_task(_every(SWEEP, self._sweep)),
            ]
            await self._stopping.wait()
            for duty in duties:
                duty.cancel()
        if self._is_orphaned:
            await self._leave_without_parent()
            raise SystemExit(os.EX_UNAVAILABLE)
        await self._resign()
        await self._endings.close()

    @property
    def _is_orphaned(self) -> bool:
        return os.getppid() != self._table.parent_pid

    async def _leave_without_parent(self) -> None:
        """What is not done in time the leading keeper does when the lease has ended."""
        logger.error("the parent is gone, its processes end and their sessions go to other workers")
        # Whatever hangs here must not outlive the worker.
        signal.setitimer(signal.ITIMER_REAL, _LAST_DUTY + 2 * REQUEST_TIMEOUT)
        try:
            async with asyncio.timeout(_LAST_DUTY):
                await self._clear_up()
                await self._resign()
                await self._endings.close()
        except TimeoutError:
            logger.warning("not everything was cleared up, the rest is left to the leading keeper")

    async def _clear_up(self) -> None:
        """Until no process runs a session and each is with the next owner."""
        self._table.draining = True
        while self._lost or any(slot.read() for slot in self._table.slots):
            self._children.kill()
            await asyncio.sleep(LOOK)
            self._lost.extend(self._children.look())
            await self._end_lost()

    async def _watch(self) -> None:
        if self._is_orphaned:
            # Where the kernel does not tell.
            self.stop()
            return
        self._lost.extend(self._children.look())
        if len(self._lost) > _MOST_LOST:
            logger.error("%d lost sessions are left to the leading keeper", len(self._lost) - _MOST_LOST)
            del self._lost[:-_MOST_LOST]

    async def _end_lost(self) -> None:
        # Of two processes with messages of the same session and epoch one has found nothing to claim. Which of them
        # is dead shows when the other one has gone on or given up.
        running = self._children.running()
        ended = [each for each in self._lost if (each.session_id, each.epoch) not in running]
        # Who gave up may have been a double of the owner, whose death decides, however late it came.
        for lost in sorted(ended, key=lambda each: each.pid == ABANDONED):
            try:
                await self._end(lost)
            except StateUnavailable:
                return
            if lost in self._lost:
                self._lost.remove(lost)

    async def _end(self, lost: Holding) -> None:
        try:
            session = await self._read_lost(lost)
        except RecordUnreadable:
            logger.error("session %s is lost and its record not readable", lost.session_id)
            return
        if session is None or session.is_over:
            return
        if (session.worker_id, session.epoch) == (self._status.worker_id, lost.epoch):
            # Whoever gave up before it had entered the room has missed Redis' answer.
            if lost.pid == ABANDONED and session.state is not State.CONNECTING:
                await self._endings.end(session, Reason.INTERNAL_ERROR)
            else:
                await self._recovery.recover(session)

    async def _read_lost(self, lost: Holding) -> Session | None:
        session = await run_async(self._client, records.read(lost.session_id))
        me, standby = self._status.worker_id, session.standby if session else ""
        if session is None or (worker_of(standby), session.offered_epoch) != (me, lost.epoch):
            return session
        step = record_moves.step_back(lost.session_id, offered=lost.epoch, owner=standby)
        try:
            # The answer tells whether the owner was faster and has passed the session to the dead.
            session = await run_async(self._client, step)
        except SessionNotFound:
            return None
        if session.epoch != lost.epoch:
            logger.warning("session %s has lost its successor, not its owner", lost.session_id)
            successor = replace(session, epoch=lost.epoch, owner=standby)
            self._endings.clear_up(successor, Reason.WORKER_LOST)
        return session

    async def _renew(self) -> None:
        sent_at = time.monotonic_ns()
        try:
            renewal = await run_async(self._client, workers.renew(self._current_status()))
        except StateUnavailable:
            self._lose_sight()
            return
        if not self._table.renewed_at:
            logger.info("%s has its lease", self._status.worker_id)
        elif renewal.is_new:
            logger.warning("%s: Redis has lost its lease, sessions register again", self._status.worker_id)
            self._table.emptied += 1
        self._table.renewed_at = sent_at
        self._observation.saw()
        self._health.touch()
        self._on_first_lease()
        self._on_first_lease = _nothing
        if renewal.is_to_drain:
            self._tell_to_drain()
        await self._send_actions()

    def _tell_to_drain(self) -> None:
        """Once, and not after somebody else has: to a worker that drains it means something else."""
        if not (self._table.draining or self._has_told_to_drain):
            self._has_told_to_drain = True
            logger.info("%s is asked to drain", self._status.worker_id)
            os.kill(self._table.parent_pid, signal.SIGTERM)

    async def _send_actions(self) -> None:
        try:
            await self._actions.send(self._client)
        except StateUnavailable:
            logger.warning("what this keeper has done is not counted in Redis")

    async def _lead(self) -> None:
        try:
            leading = await run_async(self._client, workers.lead(self._status.worker_id))
            if leading:
                await self._reaper.open_joins()
            else:
                self._reaper.forget_joins()
            self._judges = leading and self._observation.suffices
            if self._judges:
                await self._reaper.judge()
            else:
                self._forget()
        except StateUnavailable:
            self._lose_sight()

    async def _sweep(self) -> None:
        if not self._judges:
            return
        try:
            await self._reaper.sweep()
            await self._orphans.remove()
        except StateUnavailable:
            self._lose_sight()

    def _lose_sight(self) -> None:
        self._judges = False
        self._observation.broke()
        self._forget()
        self._reaper.forget_joins()

    def _forget(self) -> None:
        self._reaper.forget_sessions()
        self._orphans.forget()

    def _current_status(self) -> WorkerStatus:
        busy = sum(1 for slot in self._table.slots if slot.read() is not None)
        holdings = sorted(workers.holding(*running) for running in self._children.running())
        return replace(self._status, busy=busy, draining=self._table.draining, holdings=holdings)

    async def _resign(self) -> None:
        self._health.remove()
        try:
            await run_async(self._client, workers.resign(self._status.worker_id))
        except StateUnavailable:
            logger.warning("lease not given back, it ends by itself")


async def _every(seconds: float, duty: Callable[[], Awaitable[None]]) -> None:
    this = asyncio.current_task()
    # Up to Python 3.11 `asyncio.wait_for`, with which the Redis client sends, may swallow a cancellation.
    while this is not None and not this.cancelling():
        started = time.monotonic()
        await duty()
        await asyncio.sleep(max(0.0, seconds - (time.monotonic() - started)))


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        logger.info("process %d was gone already", pid)


def _nothing() -> None:
    pass


def _say_leased() -> None:
    sys.stdout.write("leased\n")
    sys.stdout.flush()


def _hear_of_death(parent_pid: int) -> None:
    """Have the kernel stop this process when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:
        # It died before the kernel was asked.
        raise SystemExit(os.EX_UNAVAILABLE)


async def keep(table: Table, status: WorkerStatus) -> None:
    """Build a keeper from the environment's settings and run it until SIGTERM."""
    settings = FleetSettings.from_env()
    client = connect_async(settings.redis_url)
    ghosts = Ghosts(RoomServerSettings.from_env())
    producer = create_producer(settings.broker_url)
    actions = Actions()
    endings = Endings(
        client=client,
        actions=actions,
        remove_ghost=ghosts.remove,
        tell_room=ghosts.tell_failed,
        show=partial(show_end, producer, hostname=status.worker_id.rpartition("#")[0]),
    )
    recovery = Recovery(
        client=client,
        actions=actions,
        endings=endings,
        publish=publisher(producer, join_ttl=settings.join_ttl),
        lifetime=settings.session_hold,
    )
    keeper = Keeper(
        table=table,
        status=status,
        client=client,
        actions=actions,
        endings=endings,
        recovery=recovery,
        reaper=Reaper(
            client=client,
            tenant=settings.tenant,
            worker_id=status.worker_id,
            actions=actions,
            endings=endings,
            recovery=recovery,
            agents=ghosts.agents,
        ),
        orphans=Orphans(client=client, actions=actions, agents=ghosts.agents, take_out=ghosts.take_out),
        health=HealthFile(settings.health_file),
        on_first_lease=_say_leased,
    )
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, keeper.stop)
    # The parent decides what Ctrl-C means.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    warming_up = asyncio.create_task(ghosts.warm_up())
    async with client:
        await keeper.run()
    await warming_up


def main() -> None:
    """Run the keeper that the parent described on the command line."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s: %(levelname)s/Keeper] %(message)s")
    table = Table(int(sys.argv[1]))
    _hear_of_death(table.parent_pid)
    asyncio.run(keep(table, WorkerStatus(**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
