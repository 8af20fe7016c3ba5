"""Serves one session in a worker's child: claim, join, talk, record the end, release the room."""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from livekit import rtc
from livekit.agents import utils

from graphs import entities
from graphs.entities import Message
from graphs.errors import MemoryUnavailable, StaleWriter
from graphs.retrieval import Retrieval
from graphs.supervisor import SupervisorAgent
from graphs.tickets import RedisTickets
from worker.call import room as rooms
from worker.call.agent_llm import AgentLLM
from worker.call.agents import open_agent, settings_of
from worker.call.baton import Baton
from worker.call.commands import SOCKET_TIMEOUT, commands
from worker.call.dead_man import DeadMan
from worker.call.ending import Ending
from worker.call.errors import ConnectFailed, SpeechNotRendered
from worker.call.fences import Fences
from worker.call.handing_over import Giver, Messages, Successor, Wish
from worker.call.knowledge import open_search
from worker.call.lifecycle import Call
from worker.call.phrases import Phrases, open_cache
from worker.call.presence import Presence
from worker.call.providers import Providers, open_providers
from worker.call.settings import CallSettings
from worker.call.thinking import Thinking
from worker.call.timings import TurnClock
from worker.call.voice_agent import VoiceAgent
from worker.conversation.continuing import BEGINNING, TOOL_LIMIT, Conversation, open_conversation, store_rest
from worker.conversation.text_turns import is_written
from worker.conversation.transcript import Transcript, exchange_turn
from worker.fleet import admission, handing_over, record_moves, records, workers
from worker.fleet.app import create_producer
from worker.fleet.chats import THINK
from worker.fleet.child import Child
from worker.fleet.errors import MoveRefused, RecordUnreadable, SessionNotFound, StaleEpoch, StateUnavailable
from worker.fleet.ghosts import Ghosts, RoomServerSettings
from worker.fleet.publishing import offerer
from worker.fleet.redis_operations import Operation, connect_async, run_async
from worker.fleet.session import Reason, Session, State
from worker.fleet.task_states import DRAINING, HANDED_OVER, LIVE
from worker.fleet.times import LEFT, LINGER, STAMP

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

#: Seconds between two attempts, and seconds all of them may take, to record an end while Redis is away.
_END_RETRY = 0.5
_END_LIMIT = 120.0
#: Seconds between two attempts, and seconds all of them may take, to read what was said before.
_LOAD_RETRY = 0.5
_LOAD_LIMIT = 20.0
#: Seconds the last turns may take to reach Redis.
_FLUSH_LIMIT = 2.0
#: Seconds for which the end of a call is not recorded because a tool is still at work, for instance a ticket's.
_TOOL_LIMIT = 3.0


def serve(session_id: str, epoch: int, *, child: Child, announce: Callable[[str], None]) -> Reason | str | None:
    """Serve the session until it is over or handed over, if this child may claim it or stand by for its owner.

    Returns why the session is over, or `HANDED_OVER`; None when it is not this child's to say or the message was void.
    `announce` tells operators about a state of the task and does not block.
    """
    settings = CallSettings.from_env()
    return asyncio.run(_Service(session_id, epoch, settings=settings, child=child, announce=announce).run())


class _Service:
    """One session in one event loop."""

    def __init__(
        self,
        session_id: str,
        epoch: int,
        *,
        settings: CallSettings,
        child: Child,
        announce: Callable[[str], None],
    ) -> None:
        self._session_id = session_id
        self._epoch = epoch
        self._settings = settings
        self._child = child
        self._announce = announce
        self._ending = Ending(session_id)
        self._emptied = child.emptied
        self._baton = Baton(is_held=True)
        self._wish = Wish()
        self._messages = Messages.none()
        self._offered = 0
        self._has_stepped_back = False
        #: The turns of what is written to the session while it is on the phone.
        self._written: asyncio.Queue[str] = asyncio.Queue()
        self._is_live = False
        #: The record as it was last seen, for a server that has lost it; and what else is stored again then.
        self._record: Session | None = None
        self._store_again: Callable[[], None] = _nothing
        self._ghosts = Ghosts(
            RoomServerSettings(
                LIVEKIT_URL=settings.livekit_url,
                LIVEKIT_API_KEY=settings.livekit_api_key,
                LIVEKIT_API_SECRET=settings.livekit_api_secret,
            )
        )
        self._is_recorded = False
        self._is_recorded_by_another = False

    async def run(self) -> Reason | str | None:
        """Claim, serve, record the end and release the room; why the session is over."""
        async with connect_async(self._settings.redis_url) as client:
            self._client = client
            # From before the claim to after the end: whatever happens in between, the keeper sees whose it is.
            self._child.slot.hold(self._session_id, self._epoch)
            session = await self._claim()
            if session is not None:
                with self._watching_signals():
                    await self._serve(session)
            self._child.slot.clear()
            return await self._outcome()

    async def _outcome(self) -> Reason | str | None:
        """Why the session is over; None when there was nothing to claim or it goes on with another owner."""
        if self._ending.handed_over:
            return HANDED_OVER
        if not (self._ending.superseded or self._is_recorded_by_another):
            return self._ending.reason
        try:
            session = await run_async(self._client, records.read(self._session_id))
        except (StateUnavailable, RecordUnreadable):
            logger.warning("how the session ended is not known here", extra={"session": self._session_id})
            return None
        return session.reason if session else None

    async def _claim(self) -> Session | None:
        claim = record_moves.claim(
            self._session_id,
            epoch=self._epoch,
            owner=self._child.worker_id,
            lifetime=self._settings.session_hold,
        )
        try:
            session = await run_async(self._client, claim)
        except (MoveRefused, SessionNotFound):
            return await self._stand_by()
        hold = self._settings.session_hold
        confirm = admission.confirm(session.tenant, session.room, session.session_id, hold=hold)
        if await run_async(self._client, confirm):
            return session
        self._ending.decide(Reason.JOIN_EXPIRED if session.epoch == 1 else Reason.WORKER_LOST)
        await self._record_end(session)
        return None

    async def _stand_by(self) -> Session | None:
        """The session as this child will own it once its owner passes it on, if it was offered in this epoch."""
        step = record_moves.stand_by(self._session_id, offered=self._epoch, worker_id=self._child.worker_id)
        try:
            session = await run_async(self._client, step)
        except (MoveRefused, SessionNotFound):
            logger.info("nothing to claim", extra={"session": self._session_id})
            return None
        self._baton = Baton(is_held=False)
        return replace(session, epoch=self._epoch, owner=self._child.worker_id, standby="")

    @contextmanager
    def _watching_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            loop.call_soon_threadsafe(self._ending.decide, Reason.MAX_DURATION)

        def tell() -> None:
            loop.call_soon_threadsafe(self._announce, DRAINING)
            loop.call_soon_threadsafe(self._wish.drain)

        if self._child.draining:
            self._wish.drain()
        with self._child.watch(on_soft_limit=stop, on_drain=tell):
            yield

    async def _serve(self, session: Session) -> None:
        try:
            async with AsyncExitStack() as stack:
                self._keep(stack, self._stamp())
                self._keep(stack, self._stay_registered(session))
                self._keep(stack, self._obey(session))
                await stack.enter_async_context(utils.http_context.open())
                try:
                    await self._talk(session, stack)
                except ConnectFailed:
                    self._ending.decide(Reason.CONNECT_FAILED)
                except SpeechNotRendered:
                    self._ending.decide(Reason.PROVIDER_FAILED)
                except Exception:
                    logger.exception("the call broke", extra={"session": session.session_id})
                    self._ending.decide(Reason.INTERNAL_ERROR)
        finally:
            await self._record_end(session)

    async def _talk(self, session: Session, stack: AsyncExitStack) -> None:
        # Whatever the call does from here on, it does as this session wants it.
        self._settings = settings_of(session, self._settings)
        room = rtc.Room()
        presence = Presence(room, session, ending=self._ending, grace=self._settings.caller_lost_grace)
        stack.callback(presence.close)
        fences, dead_man = self._raise_fences(room, session, stack)
        connecting = asyncio.create_task(rooms.connect(room, session, self._settings))
        stack.push_async_callback(self._disconnect, room, connecting)
        providers = open_providers(self._settings)
        stack.push_async_callback(providers.aclose)
        spoken: dict[str, bytes] = {}
        greeting = self._render(providers, spoken, stack)
        conversation = await self._open_conversation(session, stack)
        begun = await self._load(session, conversation)
        if begun is None:
            return
        transcript = self._open_transcript(session)
        agent = self._build_agent(session, providers, transcript, begun, stack)
        self._keep(stack, transcript.write(then=partial(conversation.compact, agent, transcript)))
        self._store_again = partial(_store_again, conversation, transcript)
        clock = TurnClock()
        voice_agent = VoiceAgent(agent, transcript=transcript, clock=clock, baton=self._baton)
        warm = providers.openai.models.list
        agent_llm = AgentLLM(agent, observe=voice_agent.observe, warm=warm, baton=self._baton)
        call = self._build_call(session, room, providers, agent_llm, voice_agent, clock, spoken, stack)
        stack.push_async_callback(self._leave, session, call, agent, transcript, connecting, dead_man)
        thinking = self._build_thinking(session, agent_llm, transcript, call)
        self._keep(stack, self._think(thinking))
        giver = self._build_giver(session, call, thinking, transcript, fences)
        if not await self._ending.unless_decided(_enter(connecting, call, fences)):
            return
        if not self._baton.is_held:
            if await call.wait_for_caller() and await self._take_over(session, call, conversation, agent, stack):
                self._keep(stack, _clear_up(fences))
                self._keep(stack, giver.run())
                await self._ending.wait()
            return
        await self._move(session, State.WAITING, stamp="connected_at" if session.epoch == 1 else "recovered_at")
        if await call.wait_for_caller() and await self._ending.unless_decided(_until(greeting)):
            # Not what was said in the session that this one continues: there the caller has heard no greeting yet.
            if begun.cursor != BEGINNING or (begun.messages and session.first_audio_at is not None):
                call.resume(await self._unanswered(session, begun.messages))
            else:
                call.greet()
            self._keep(stack, giver.run())
            await self._ending.wait()

    async def _take_over(
        self,
        session: Session,
        call: Call,
        conversation: Conversation,
        agent: SupervisorAgent,
        stack: AsyncExitStack,
    ) -> bool:
        """Stand by until the baton was passed, and take it; False when the end was decided before."""
        successor = Successor(
            session,
            client=self._client,
            listener=await stack.enter_async_context(connect_async(self._settings.redis_url, timeout=SOCKET_TIMEOUT)),
            baton=self._baton,
            ending=self._ending,
            messages=self._messages,
            lifetime=self._settings.session_hold,
        )
        self._keep(stack, successor.watch())
        self._keep(stack, successor.listen())
        if not await self._ending.unless_decided(successor.stand_by()):
            return False
        begun = await self._load(session, conversation)
        if begun is None:
            return False
        await self._insist(successor.notes())
        agent.restore(begun.messages, active=begun.active or None)
        self._baton.take(is_open=self._messages.is_open)
        self._is_live = True
        self._announce(LIVE)
        call.take_over(await self._unanswered(session, begun.messages))
        return True

    def _build_giver(
        self, session: Session, call: Call, thinking: Thinking, transcript: Transcript, fences: Fences
    ) -> Giver:
        settings = self._settings

        def accept(epoch: int) -> None:
            self._offered = epoch
            fences.accept(epoch)

        def publish(offered: Session, queue: str) -> None:
            offerer(create_producer(settings.broker_url), expires=settings.join_ttl)(offered, queue)

        return Giver(
            session,
            client=self._client,
            baton=self._baton,
            ending=self._ending,
            call=call,
            is_writing=lambda: thinking.is_busy,
            messages=self._messages,
            wish=self._wish,
            accept=accept,
            publish=publish,
            flush=lambda seconds: transcript.flush(timeout=seconds),
            insist=self._insist,
            lifetime=settings.session_hold,
        )

    def _raise_fences(self, room: rtc.Room, session: Session, stack: AsyncExitStack) -> tuple[Fences, DeadMan]:
        async def is_ours() -> bool:
            record = await run_async(self._client, records.read(session.session_id))
            # Without its record the session registers again.
            return record is None or handing_over.owns(record, session) or handing_over.is_standby(record, session)

        fences = Fences(
            room,
            session,
            ending=self._ending,
            remove=partial(self._ghosts.remove_identity, session),
            is_ours=is_ours,
            is_holder=lambda: self._baton.is_held,
            run=partial(self._keep, stack),
        )
        dead_man = DeadMan(
            self._child, ask=lambda: run_async(self._client, workers.fleet()), witness=lambda: fences.is_witness
        )
        stack.callback(dead_man.stand_down)
        self._keep(stack, dead_man.keep())
        return fences, dead_man

    def _render(self, providers: Providers, spoken: dict[str, bytes], stack: AsyncExitStack) -> asyncio.Task[None]:
        """Fetch the fixed phrases' audio into `spoken`; the greeting's task, which the call cannot do without."""
        settings = self._settings
        cache = open_cache(settings)
        stack.push_async_callback(cache.aclose)
        phrases = Phrases(providers.voices, cache=cache, timeout=settings.provider_timeout)

        async def load_greeting() -> None:
            spoken[settings.greeting] = await phrases.load(settings.greeting)

        greeting = asyncio.create_task(load_greeting())
        stack.push_async_callback(utils.aio.cancel_and_wait, greeting)
        self._keep(stack, _load_apologies(phrases, spoken, settings))
        return greeting

    async def _open_conversation(self, session: Session, stack: AsyncExitStack) -> Conversation:
        opened = open_conversation(
            session,
            client=self._client,
            redis_url=self._settings.redis_url,
            lifetime=self._settings.session_hold,
            on_lost=self._ending.supersede,
        )
        return await stack.enter_async_context(opened)

    async def _load(self, session: Session, conversation: Conversation) -> entities.Session | None:
        """What was said before; None when the call ends before that is known."""
        if session.epoch == 1 and not session.continues:
            # Nobody can have said anything yet, and the caller waits.
            return entities.Session(session.session_id, session.metadata, (), active="", cursor=BEGINNING)
        async with asyncio.timeout(_LOAD_LIMIT):
            while not self._ending.is_decided:
                try:
                    return await conversation.load()
                except (StateUnavailable, MemoryUnavailable):
                    logger.warning("what was said before is not readable", extra={"session": session.session_id})
                    await asyncio.sleep(_LOAD_RETRY)
                except StaleWriter:
                    self._ending.supersede()
            return None

    def _build_agent(
        self,
        session: Session,
        providers: Providers,
        transcript: Transcript,
        begun: entities.Session,
        stack: AsyncExitStack,
    ) -> SupervisorAgent:
        return open_agent(
            session,
            begun,
            self._settings,
            client=providers.openai,
            open_ticket=RedisTickets(self._client, tenant=session.tenant),
            retrieval=self._open_retrieval(stack),
            on_exchange=lambda exchange: transcript.add(exchange_turn(exchange)),
        )

    def _build_call(
        self,
        session: Session,
        room: rtc.Room,
        providers: Providers,
        agent_llm: AgentLLM,
        voice_agent: VoiceAgent,
        clock: TurnClock,
        spoken: Mapping[str, bytes],
        stack: AsyncExitStack,
    ) -> Call:
        return Call(
            session,
            settings=self._settings,
            room=room,
            ending=self._ending,
            providers=providers,
            agent_llm=agent_llm,
            voice_agent=voice_agent,
            clock=clock,
            baton=self._baton,
            spoken=spoken,
            on_first_audio=lambda: self._went_live(session, stack),
            time_left=_time_left(session, self._settings),
        )

    def _open_retrieval(self, stack: AsyncExitStack) -> Retrieval | None:
        settings = self._settings
        if settings.knowledge_index is None:
            return None
        search = open_search(settings, settings.knowledge_index)
        stack.push_async_callback(search.aclose)
        self._keep(stack, search.warm())
        return Retrieval(search, budget=settings.retrieval_budget)

    async def _disconnect(self, room: rtc.Room, connecting: asyncio.Task[None]) -> None:
        """Leave the room, also one that is only being joined."""
        await asyncio.gather(connecting, return_exceptions=True)
        await room.disconnect()

    def _open_transcript(self, session: Session) -> Transcript:
        return Transcript(
            session,
            client=self._client,
            lifetime=self._settings.session_hold,
            on_lost=self._ending.supersede,
        )

    async def _leave(
        self,
        session: Session,
        call: Call,
        agent: SupervisorAgent,
        transcript: Transcript,
        connecting: asyncio.Task[None],
        dead_man: DeadMan,
    ) -> None:
        """Out of the room; the end is decided and recorded before, the slow parts come after."""
        await self._settle(session)
        if self._ending.handed_over:
            await asyncio.sleep(LINGER)
        if not self._ending.superseded:
            await self._move(session, State.ENDING, stamp="ending_at")
        await asyncio.gather(connecting, return_exceptions=True)
        await call.close()
        dead_man.stand_down()
        await self._store_rest(agent, transcript, tool_limit=_TOOL_LIMIT)
        await self._record_end(session)
        await call.close_pipeline()
        # What was cut off with the pipeline.
        await self._store_rest(agent, transcript, tool_limit=TOOL_LIMIT)

    async def _store_rest(self, agent: SupervisorAgent, transcript: Transcript, *, tool_limit: float) -> None:
        if not await store_rest(agent, transcript, tool_limit=tool_limit, store_limit=_FLUSH_LIMIT):
            logger.warning("the last of the conversation is not stored", extra={"session": self._session_id})

    def _went_live(self, session: Session, stack: AsyncExitStack) -> None:
        if not self._is_live:
            self._is_live = True
            stamp = "first_audio_at" if session.first_audio_at is None else "recovered_at"
            self._keep(stack, self._move(session, State.LIVE, stamp=stamp, patient=True))
            self._announce(LIVE)

    async def _move(self, session: Session, target: State, *, stamp: str, patient: bool = False) -> None:
        """Move the record on; the call goes on without it when Redis is away, unless it is patient."""
        reason = {"reason": self._ending.reason} if self._ending.reason else {}
        move = record_moves.move(
            session.session_id,
            target,
            epoch=session.epoch,
            owner=session.owner,
            lifetime=self._settings.session_hold,
            stamp=stamp,
            fields=reason,
        )
        try:
            self._record = await (self._insist(move) if patient else run_async(self._client, move))
        except (StateUnavailable, SessionNotFound, TimeoutError):
            logger.warning("state not recorded", extra={"session": session.session_id, "state": target})
        except MoveRefused:
            # Another owner holds the session, or a keeper has ended it.
            self._ending.supersede()

    async def _record_end(self, session: Session) -> None:
        """Record the end and release the room, once, as long as it takes while Redis is away."""
        await self._settle(session)
        if self._is_recorded or self._ending.superseded:
            return
        self._is_recorded = True
        reason = self._ending.reason or Reason.INTERNAL_ERROR
        try:
            await self._insist(record_moves.end(session, reason))
        except StaleEpoch:
            # Another owner goes on with it, and with the room.
            self._is_recorded_by_another = True
            return
        except (MoveRefused, SessionNotFound):
            self._is_recorded_by_another = True
            logger.warning("the end was recorded by another", extra={"session": session.session_id})
        await self._insist(admission.release(session.tenant, session.room, session.session_id))
        logger.info("session over", extra={"session": session.session_id, "reason": reason})

    async def _settle(self, session: Session) -> None:
        """Who stands by steps back, unless the baton was passed meanwhile: then the end is its own to record."""
        if self._baton.is_held or self._baton.is_given or self._has_stepped_back:
            return
        self._has_stepped_back = True
        step = record_moves.step_back(session.session_id, offered=session.epoch, worker_id=session.owner)
        try:
            record = await self._insist(step)
            self._ending.superseded = not handing_over.owns(record, session)
        except SessionNotFound:
            self._ending.superseded = True

    async def _insist(self, operation: Operation[Answer]) -> Answer:
        async with asyncio.timeout(_END_LIMIT):
            while True:
                try:
                    return await run_async(self._client, operation)
                except StateUnavailable:
                    self._child.slot.stamp()
                    await asyncio.sleep(_END_RETRY)

    async def _stamp(self) -> None:
        """Show the keeper that this event loop lives."""
        while True:
            self._child.slot.stamp()
            await asyncio.sleep(STAMP)

    async def _stay_registered(self, session: Session) -> None:
        """Take the room again in a Redis that has lost its data, before it opens for other joins."""
        while not self._ending.is_decided:
            if self._emptied != self._child.emptied and self._baton.is_held:
                self._emptied = self._child.emptied
                await self._register_again(session)
            await asyncio.sleep(STAMP)

    async def _register_again(self, session: Session) -> None:
        hold = self._settings.session_hold
        admit = admission.admit(session.tenant, session.room, session.session_id, join_ttl=hold, limit=sys.maxsize)
        if (await self._insist(admit)).outcome == "room_taken":
            logger.error("the room was given to another", extra={"session": session.session_id})
            self._ending.supersede()
            return
        state = State.LIVE if self._is_live else State.WAITING
        registered = replace(self._record or session, state=state, offered_epoch=self._offered)
        if self._is_live and registered.first_audio_at is None:
            registered = replace(registered, first_audio_at=time.time())
        if await self._insist(record_moves.create(registered, lifetime=hold)):
            self._store_again()
        logger.warning("registered again", extra={"session": session.session_id})

    async def _obey(self, session: Session) -> None:
        """Do what the session's commands say."""
        async with connect_async(self._settings.redis_url, timeout=SOCKET_TIMEOUT) as client:
            async for command in commands(session.session_id, client):
                if self._messages.hear(command, epoch=session.epoch, wish=self._wish):
                    continue
                if command.get("kind") == "leave":
                    self._ending.decide(Reason.LEFT)
                elif command.get("kind") == THINK:
                    # Who stands by answers later what the owner has not taken up; it is taken once.
                    if not self._baton.is_given:
                        self._written.put_nowait(command["id"])
                elif self._baton.is_held:
                    logger.warning("unknown command", extra={"session": session.session_id})

    async def _unanswered(self, session: Session, messages: Sequence[Message]) -> Message | None:
        """The caller's last words, if nothing was said after them; whoever wrote words sends them again instead."""
        spoken = [each for each in messages if each.role == "user" or (each.role == "assistant" and each.content)]
        if not spoken or spoken[-1].role != "user":
            return None
        try:
            written = await is_written(self._client, session.session_id, spoken[-1].id)
        except StateUnavailable:
            written = False
        return None if written else spoken[-1]

    async def _think(self, thinking: Thinking) -> None:
        """Answer what is written to the session, once it is this agent's."""
        await self._baton.wait()
        await thinking.answer_all(self._written)

    def _build_thinking(self, session: Session, agent_llm: AgentLLM, transcript: Transcript, call: Call) -> Thinking:
        return Thinking(
            session,
            client=self._client,
            agent_llm=agent_llm,
            transcript=transcript,
            is_quiet=lambda: call.is_quiet,
        )

    def _keep(self, stack: AsyncExitStack, work: Coroutine[Any, Any, Answer]) -> asyncio.Task[Answer]:
        """Run `work` beside the call, at most as long as it; what fails unseen ends the call."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._check)
        stack.push_async_callback(utils.aio.cancel_and_wait, task)
        return task

    def _check(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("a part of the call broke", exc_info=error, extra={"session": self._session_id})
            self._ending.decide(Reason.INTERNAL_ERROR)


def _store_again(conversation: Conversation, transcript: Transcript) -> None:
    conversation.lose()
    transcript.restart()


def _nothing() -> None:
    pass


async def _enter(connecting: asyncio.Task[None], call: Call, fences: Fences) -> None:
    await asyncio.shield(connecting)
    await asyncio.gather(call.start(), fences.remove_older())


async def _clear_up(fences: Fences) -> None:
    await asyncio.sleep(LEFT)
    await fences.remove_older()


def _time_left(session: Session, settings: CallSettings) -> float:
    """Seconds until the call has lasted long enough, whoever has served it so far."""
    if session.epoch == 1 or session.admitted_at is None:
        return settings.max_duration
    return max(session.admitted_at + settings.max_duration - time.time(), 0.0)


async def _until(task: asyncio.Task[None]) -> None:
    await asyncio.shield(task)


async def _load_apologies(phrases: Phrases, spoken: dict[str, bytes], settings: CallSettings) -> None:
    """What is said when the voice itself may be broken must be there before."""
    for text in (settings.apology, settings.farewell):
        try:
            spoken[text] = await phrases.load(text)
        except SpeechNotRendered:
            logger.warning("a phrase could not be rendered ahead")
