"""The kinds of fault, each a function that breaks something, waits and mends it."""

import asyncio
import resource
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import psutil

from bench.faults.ground import Ground
from bench.faults.media import CutMedia
from bench.faults.processes import Child, send
from local.link import Link
from local.parts import AGENT_SERVICE, LIVEKIT, REDIS
from worker.fleet.app import create_producer
from worker.fleet.publishing import RECOVERY_QUEUE, TASK_NAME

#: Bytes a child may grow after its memory was limited.
_BALLAST = 2 * 1024 * 1024
#: Seconds between two looks for sockets that were opened since; a new one must not get as far as a connection.
_LOOK = 0.005


@dataclass(frozen=True)
class Aim:
    """What a fault is aimed at: the session, who runs it at that moment, and how long it takes, in seconds."""

    session_id: str
    epoch: int
    child: Child
    seconds: float


Act = Callable[[Ground, Aim], Awaitable[None]]


@dataclass(frozen=True)
class Kind:
    """A kind of fault and what it may do to a call, as far as the records do not tell."""

    name: str
    act: Act
    #: The owner of the call it is aimed at may not hear the caller while it lasts.
    deafens: bool = False
    #: No agent hears or is heard while it lasts.
    deafens_all: bool = False
    #: LiveKit's client must connect anew after it, which it tries every few seconds.
    cuts_signal: bool = False
    #: LiveKit's client must find out by itself that its media is gone.
    cuts_media: bool = False
    #: Redis may forget everything.
    empties: bool = False
    #: Ends that the call may have instead of going on.
    may_end: tuple[str, ...] = ()
    #: Its process may hang in leaving the call, until its keeper kills it.
    hangs: bool = False
    #: It may cost the call its owner.
    loses_owner: bool = False
    #: It touches no other call of its worker.
    is_of_one_call: bool = False
    #: It may cost every call its room, and so its owner.
    may_lose_room: bool = False
    #: A caller may wait for an answer because of it; the rest of the fleet's business is nothing that a caller notices.
    disturbs: bool = True
    #: Seeds draw it. What came later is played by itself: a seed's scenario stays what it was.
    is_drawn: bool = True


KINDS: dict[str, Kind] = {}


def kind(**traits: Any) -> Callable[[Act], Act]:
    """Enter a function as a kind of fault with its own name."""

    def enter(act: Act) -> Act:
        name = getattr(act, "__name__", "")
        KINDS[name] = Kind(name, act, **traits)
        return act

    return enter


@kind(loses_owner=True, is_of_one_call=True)
async def kill_child(ground: Ground, aim: Aim) -> None:
    """The process that runs the call dies."""
    send([aim.child.pid], signal.SIGKILL)


@kind(disturbs=False)
async def kill_keeper(ground: Ground, aim: Aim) -> None:
    """The keeper beside it dies."""
    send([ground.workers.keeper(aim.child.worker)], signal.SIGKILL)


@kind(loses_owner=True)
async def kill_parent(ground: Ground, aim: Aim) -> None:
    """The parent of its worker dies, and what it leaves behind must go by itself."""
    await ground.kill(aim.child.worker, with_orphans=False)
    await asyncio.sleep(aim.seconds)
    await ground.start(aim.child.worker)


@kind(loses_owner=True)
async def lose_worker(ground: Ground, aim: Aim) -> None:
    """Every process of its worker dies at once, as when a machine is lost."""
    everything = ground.workers.everything(aim.child.worker)
    # None of them does anything between the first death and the last.
    send(everything, signal.SIGSTOP)
    await ground.kill(aim.child.worker)
    send(everything, signal.SIGKILL)
    await asyncio.sleep(aim.seconds)
    await ground.start(aim.child.worker)


@kind(disturbs=False)
async def kill_api(ground: Ground, aim: Aim) -> None:
    """The agent service dies."""
    await ground.kill(AGENT_SERVICE)
    await ground.start(AGENT_SERVICE)


@kind(deafens_all=True, may_lose_room=True)
async def kill_livekit(ground: Ground, aim: Aim) -> None:
    """The LiveKit server dies and is back soon."""
    await ground.kill(LIVEKIT)
    await asyncio.sleep(min(aim.seconds, 5))
    await ground.start(LIVEKIT)


@kind()
async def restart_redis(ground: Ground, aim: Aim) -> None:
    """Redis dies and comes back with its data."""
    await ground.kill(REDIS)
    await asyncio.sleep(min(aim.seconds, 8))
    await ground.start(REDIS)


@kind(empties=True)
async def empty_redis(ground: Ground, aim: Aim) -> None:
    """Redis dies and comes back without its data."""
    await ground.kill(REDIS)
    ground.forget_redis_data()
    await asyncio.sleep(min(aim.seconds, 5))
    await ground.start(REDIS)


@kind()
async def stall_redis(ground: Ground, aim: Aim) -> None:
    """Redis stands still with every connection open."""
    await ground.freeze([ground.stack.pid(REDIS)], min(aim.seconds, 10))


@kind()
async def hang_up_redis(ground: Ground, aim: Aim) -> None:
    """Redis closes every connection."""
    await asyncio.to_thread(ground.hang_up_redis)


@kind(loses_owner=True, deafens=True, is_of_one_call=True)
async def stop_child(ground: Ground, aim: Aim) -> None:
    """The process that runs the call stands still, and wakes up."""
    await ground.freeze([aim.child.pid], aim.seconds)


@kind(loses_owner=True)
async def stop_keeper(ground: Ground, aim: Aim) -> None:
    """The keeper stands still, and wakes up."""
    await ground.freeze([ground.workers.keeper(aim.child.worker)], aim.seconds)


@kind(disturbs=False)
async def stop_parent(ground: Ground, aim: Aim) -> None:
    """The parent of its worker stands still, and wakes up."""
    await ground.freeze([ground.workers.parent(aim.child.worker)], aim.seconds)


@kind(loses_owner=True, deafens=True)
async def stop_worker(ground: Ground, aim: Aim) -> None:
    """Every process of its worker stands still, and wakes up: a machine that was frozen."""
    await ground.freeze(ground.workers.everything(aim.child.worker), aim.seconds)


def _link(ground: Ground, aim: Aim, to: str) -> Link:
    return ground.stack.link(aim.child.worker, to)


@kind(loses_owner=True)
async def cut_redis_link(ground: Ground, aim: Aim) -> None:
    """Its worker cannot reach Redis."""
    link = _link(ground, aim, REDIS)
    await ground.over_link(link, link.cut, aim.seconds)


@kind(loses_owner=True)
async def stall_redis_link(ground: Ground, aim: Aim) -> None:
    """Nothing passes between its worker and Redis for a while."""
    link = _link(ground, aim, REDIS)
    await ground.over_link(link, link.stall, aim.seconds)


@kind(loses_owner=True)
async def deafen_redis_link(ground: Ground, aim: Aim) -> None:
    """Its worker reaches Redis, whose answers are lost."""
    link = _link(ground, aim, REDIS)
    try:
        await ground.over_link(link, link.deafen, aim.seconds)
    finally:
        # A stream of answers with a hole is of no use to anybody.
        await asyncio.to_thread(link.cut)
        await asyncio.to_thread(link.mend)


@kind(loses_owner=True, deafens=True, cuts_signal=True)
async def cut_livekit_link(ground: Ground, aim: Aim) -> None:
    """Its worker's signalling with LiveKit is cut; the media goes on."""
    link = _link(ground, aim, LIVEKIT)
    await ground.over_link(link, link.cut, aim.seconds)


@kind(loses_owner=True, deafens=True, cuts_signal=True)
async def stall_livekit_link(ground: Ground, aim: Aim) -> None:
    """Nothing passes on its worker's signalling with LiveKit for a while."""
    link = _link(ground, aim, LIVEKIT)
    await ground.over_link(link, link.stall, aim.seconds)


@kind(loses_owner=True, deafens=True, cuts_signal=True)
async def deafen_livekit_link(ground: Ground, aim: Aim) -> None:
    """What LiveKit says to its worker is lost."""
    link = _link(ground, aim, LIVEKIT)
    try:
        await ground.over_link(link, link.deafen, aim.seconds)
    finally:
        await asyncio.to_thread(link.cut)
        await asyncio.to_thread(link.mend)


@kind(loses_owner=True, deafens=True, cuts_media=True, is_of_one_call=True, is_drawn=False)
async def cut_media(ground: Ground, aim: Aim) -> None:
    """No media reaches the process that runs the call; its signalling with LiveKit goes on."""
    clock = asyncio.get_running_loop()
    until = clock.time() + aim.seconds
    with CutMedia(aim.child.pid, ports=ground.livekit_ports()) as media:
        while clock.time() < until:
            media.cut()
            await asyncio.sleep(_LOOK)


@kind(disturbs=False)
async def deliver_again(ground: Ground, aim: Aim) -> None:
    """The messages of this epoch and of all before it are delivered again, twice."""
    producer = create_producer(ground.stack.settings["REDIS_URL"])

    def publish() -> None:
        for epoch in [*range(1, aim.epoch + 1)] * 2:
            producer.send_task(TASK_NAME, args=(aim.session_id, epoch), queue="sessions" if epoch == 1 else "recovery")

    try:
        await asyncio.to_thread(publish)
    finally:
        producer.close()


@kind(loses_owner=True, is_of_one_call=True)
async def lose_message(ground: Ground, aim: Aim) -> None:
    """The process that runs the call dies, and the message that calls for the next one is lost."""

    def steal() -> None:
        import redis

        # Redis serves who has waited longest, and a worker waits no longer than a second.
        with redis.Redis.from_url(ground.stack.urls[REDIS], socket_timeout=6) as thief:
            thief.brpop([RECOVERY_QUEUE], timeout=5)

    stealing = asyncio.create_task(asyncio.to_thread(steal))
    await asyncio.sleep(1.5)
    send([aim.child.pid], signal.SIGKILL)
    await stealing


@kind(loses_owner=True, may_end=("internal_error",), hangs=True, is_of_one_call=True)
async def exhaust_memory(ground: Ground, aim: Aim) -> None:
    """The process that runs the call gets no memory any more (RLIMIT_AS)."""
    process = psutil.Process(aim.child.pid)
    _, most = process.rlimit(resource.RLIMIT_AS)
    process.rlimit(resource.RLIMIT_AS, (process.memory_info().vms + _BALLAST, most))


@kind(may_end=("provider_failed",))
async def fail_model(ground: Ground, aim: Aim) -> None:
    """The language model answers nobody."""
    await _fail(ground, aim.seconds, llm="fail")


@kind(may_end=("provider_failed",))
async def hang_model(ground: Ground, aim: Aim) -> None:
    """The language model keeps everybody waiting."""
    await _fail(ground, aim.seconds, llm="hang")


@kind(may_end=("provider_failed",))
async def fail_voice(ground: Ground, aim: Aim) -> None:
    """No voice can be had from any provider."""
    await _fail(ground, aim.seconds, tts="fail")


@kind(may_end=("provider_failed",), deafens_all=True)
async def fail_recognition(ground: Ground, aim: Aim) -> None:
    """No recognition can be had from any provider."""
    await _fail(ground, aim.seconds, stt="fail")


async def _fail(ground: Ground, seconds: float, **modes: str) -> None:
    await ground.set_providers(**modes)
    try:
        await asyncio.sleep(min(seconds, 5))
    finally:
        await ground.set_providers(**dict.fromkeys(modes, "ok"))


@kind(may_end=("left",), is_of_one_call=True)
async def leave(ground: Ground, aim: Aim) -> None:
    """Somebody ends the session."""
    await asyncio.to_thread(ground.client.leave, aim.session_id)


@kind(disturbs=False)
async def hand_over(ground: Ground, aim: Aim) -> None:
    """An operator asks for a hand-over, which another fault may make impossible."""
    await asyncio.to_thread(ground.client.hand_over, aim.session_id)


@kind(disturbs=False)
async def drain(ground: Ground, aim: Aim) -> None:
    """Its worker is drained, as by a deploy, and started again."""
    worker = aim.child.worker
    if ground.stack.is_running(worker):
        await asyncio.wait_for(ground.kill(worker, signal.SIGTERM), 60)
    await ground.start(worker)
