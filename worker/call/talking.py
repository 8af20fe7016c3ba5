"""One owner's part of a call, from joining its room to leaving it: begun anew, resumed, or taken over."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from graphs import entities
from graphs.entities import Message
from graphs.errors import MemoryUnavailable, StaleWriter
from graphs.supervisor import SupervisorAgent
from worker.call.agents import settings_of
from worker.call.building import (
    Line,
    Place,
    build_agent,
    build_giver,
    build_line,
    build_thinking,
    join,
    open_transcript,
    prepare_speech,
    remember,
)
from worker.call.commands import SOCKET_TIMEOUT
from worker.call.fences import Fences
from worker.call.handing_over import Giver, Successor
from worker.call.lifecycle import Call
from worker.call.open_sound import cut_off_words
from worker.call.providers import Providers
from worker.call.serving import Serving
from worker.call.subscribing import subscribe_until_heard
from worker.call.thinking import Thinking
from worker.conversation.continuing import BEGINNING, TOOL_LIMIT, Conversation, store_rest
from worker.conversation.text_turns import is_written
from worker.conversation.transcript import Transcript
from worker.fleet import handing_over, workers
from worker.fleet.errors import StateUnavailable
from worker.fleet.redis_operations import connect_async, run_async
from worker.fleet.session import State
from worker.fleet.task_states import LIVE
from worker.fleet.times import LEFT, LINGER

logger = logging.getLogger(__name__)

#: Seconds between two looks whether the call of a draining worker may move.
_DRAIN_LOOK = 0.25
#: Seconds between two attempts, and seconds all of them may take, to read what was said before.
_LOAD_RETRY = 0.5
_LOAD_LIMIT = 20.0
#: Seconds a successor reads what was said last; it has followed what was said before.
_CATCH_UP_LIMIT = 1.0
#: Seconds the last turns may take to reach Redis.
_FLUSH_LIMIT = 2.0
#: Seconds for which the end of a call is not recorded because a tool is still at work, for instance a ticket's.
_TOOL_LIMIT = 3.0


async def talk(serving: Serving) -> None:
    """Serve the call until its end is decided.

    Raises `ConnectFailed`, `RoomGone`, `SpeechNotRendered` and what is a defect.
    """
    # Whatever the call does from here on, it does as this session wants it.
    serving = replace(serving, settings=settings_of(serving.session, serving.settings))
    place = join(serving)
    speech = prepare_speech(serving)
    conversation = await remember(serving)
    begun = await load(serving, conversation)
    if begun is None:
        return
    transcript = open_transcript(serving)
    agent = build_agent(serving, speech.providers, transcript, begun)
    serving.keep(transcript.write(then=partial(conversation.compact, agent, transcript)))
    serving.record.store_again = partial(_store_again, conversation, transcript)
    line = build_line(serving, place, speech, agent, transcript)
    serving.stack.push_async_callback(_leave, serving, place, line.call, agent, transcript)
    if serving.session.epoch > 1 and serving.baton.is_held:
        serving.keep(line.open_turn.recover(_cut_off(serving, speech.providers, begun.messages)))
    thinking = build_thinking(serving, line, transcript)
    serving.keep(_think(serving, thinking))
    giver = build_giver(serving, place, line, thinking, transcript)
    serving.keep(_move_when_drained(serving, place, line.call))
    talk = _Talk(serving, place, line, giver, agent, conversation)
    if await serving.ending.unless_decided(_enter(place, line.call)):
        await (talk.begin(begun, speech.opening) if serving.baton.is_held else talk.take_over(begun))


@dataclass(frozen=True)
class _Talk:
    """The call once its room is joined and its pipeline started."""

    serving: Serving
    place: Place
    line: Line
    giver: Giver
    agent: SupervisorAgent
    conversation: Conversation

    async def begin(self, begun: entities.Session, opening: asyncio.Task[None]) -> None:
        """Greet the caller, or go on with a call that another process has lost; until the end is decided."""
        serving, call = self.serving, self.line.call
        session, ending = serving.session, serving.ending
        stamp = "connected_at" if session.epoch == 1 else "recovered_at"
        await serving.record.move(State.WAITING, stamp=stamp)
        if not (await call.wait_for_caller() and await ending.unless_decided(_until(opening))):
            return
        self._hear()
        # Not what was said in the session that this one continues: there the caller has heard no greeting yet.
        if begun.cursor != BEGINNING or (begun.messages and session.first_audio_at is not None):
            call.resume(await _unanswered(serving, begun.messages))
        else:
            call.greet()
        serving.keep(self.giver.run())
        await ending.wait()

    async def take_over(self, begun: entities.Session) -> None:
        """Stand by until the baton was passed, and go on without a word; until the end is decided."""
        serving = self.serving
        if not await self.line.call.wait_for_caller():
            return
        self._hear()
        if await self._take(begun):
            serving.keep(_clear_up(self.place.fences))
            serving.keep(self.giver.run())
            await serving.ending.wait()

    def _hear(self) -> None:
        session, baton = self.serving.session, self.serving.baton
        hearing = subscribe_until_heard(
            self.place.room.remote_participants,
            session.user_id,
            ear=baton.ear,
            session_id=session.session_id,
            move=self._move,
        )
        self.serving.keep(hearing)

    def _move(self) -> None:
        """Make way for an agent that hears; who only stands by steps back at once, so that another one is asked."""
        serving = self.serving
        # LiveKit's client may be broken for all rooms of this process.
        serving.child.retire()
        if serving.baton.is_held:
            serving.wish.ask("")
        elif not serving.baton.is_given:
            serving.ending.supersede()

    async def _take(self, begun: entities.Session) -> bool:
        """Take the baton once it was passed; False when the end was decided before."""
        serving = self.serving
        successor = await self._stand_by(begun)
        if not await serving.ending.unless_decided(successor.stand_by()):
            return False
        begun, unanswered = await self._catch_up(successor)
        # Without an await from here on. Renounced meanwhile, perhaps: then the last owner talks already.
        if serving.ending.is_decided:
            return False
        self.agent.restore(begun.messages, active=begun.active or None)
        serving.baton.take(is_open=serving.messages.is_open, passed_at=successor.passed_at)
        serving.record.is_live = True
        serving.announce(LIVE)
        self.line.call.take_over(unanswered)
        return True

    async def _catch_up(self, successor: Successor) -> tuple[entities.Session, Message | None]:
        """What was said until the baton was passed, and what of it is unanswered.

        The caller does not wait for a Redis that has gone away since.
        """
        serving = self.serving
        try:
            async with asyncio.timeout(_CATCH_UP_LIMIT):
                loaded = await load(serving, self.conversation)
                await serving.record.insist(successor.notes())
                begun = self._fuller(loaded, successor.followed())
                return begun, await _unanswered(serving, begun.messages)
        except TimeoutError:
            logger.warning("went on with what was followed", extra={"session": serving.session.session_id})
            successor.listen_no_longer()
            begun = successor.followed()
            return begun, _last_words(begun.messages)

    def _fuller(self, loaded: entities.Session | None, followed: entities.Session) -> entities.Session:
        """What is stored, unless more was followed: a Redis that has lost its data meanwhile is told of it again."""
        if loaded is not None and len(loaded.messages) >= len(followed.messages):
            return loaded
        self.conversation.lose()
        return followed

    async def _stand_by(self, begun: entities.Session) -> Successor:
        serving = self.serving
        listening = connect_async(serving.settings.redis_url, timeout=SOCKET_TIMEOUT)
        successor = Successor(
            serving.session,
            client=serving.client,
            listener=await serving.stack.enter_async_context(listening),
            baton=serving.baton,
            ending=serving.ending,
            messages=serving.messages,
            begun=begun,
            lifetime=serving.settings.session_hold,
        )
        self.place.agreement.answer(successor.decide)
        serving.keep(successor.watch())
        serving.keep(successor.listen())
        return successor


async def load(serving: Serving, conversation: Conversation) -> entities.Session | None:
    """What was said before; None when the call ends before that is known."""
    session = serving.session
    if session.epoch == 1 and not session.continues:
        # Nobody can have said anything yet, and the caller waits.
        return entities.Session(session.session_id, session.metadata, (), active="", cursor=BEGINNING)
    async with asyncio.timeout(_LOAD_LIMIT):
        while not serving.ending.is_decided:
            try:
                return await conversation.load()
            except (StateUnavailable, MemoryUnavailable):
                logger.warning("what was said before is not readable", extra={"session": session.session_id})
                await asyncio.sleep(_LOAD_RETRY)
            except StaleWriter:
                serving.ending.supersede()
        return None


async def _leave(serving: Serving, place: Place, call: Call, agent: SupervisorAgent, transcript: Transcript) -> None:
    """Out of the room; the end is decided and recorded before, the slow parts come after."""
    await serving.record.settle()
    if not serving.baton.is_held:
        # The pipeline waits for whom a parked turn keeps.
        serving.baton.lose()
    if serving.ending.handed_over:
        await asyncio.sleep(LINGER)
    if not (serving.ending.superseded or serving.record.goes_on):
        await serving.record.move(State.ENDING, stamp="ending_at")
    await asyncio.gather(place.connecting, return_exceptions=True)
    await call.close()
    place.dead_man.stand_down()
    await _store_rest(serving, agent, transcript, tool_limit=_TOOL_LIMIT)
    await serving.record.end()
    await call.close_pipeline()
    # What was cut off with the pipeline.
    await _store_rest(serving, agent, transcript, tool_limit=TOOL_LIMIT)


async def _move_when_drained(serving: Serving, place: Place, call: Call) -> None:
    """A draining worker's call in which nobody is talked with needs no hand-over: another worker begins with it.

    Who stands by steps back: the call would have to leave here at once.
    """
    await serving.wish.wait_for_drain()
    while not serving.ending.is_decided:
        if serving.baton.is_held:
            is_alone = not call.has_begun or place.presence.is_caller_lost
            if is_alone and await _is_another_free(serving):
                serving.ending.give_back()
        elif not serving.baton.is_given:
            serving.ending.supersede()
        await asyncio.sleep(_DRAIN_LOOK)


async def _is_another_free(serving: Serving) -> bool:
    try:
        fleet = await run_async(serving.client, workers.fleet())
    except StateUnavailable:
        return False
    return handing_over.choose(fleet, worker_id=serving.session.worker_id) is not None


async def _store_rest(serving: Serving, agent: SupervisorAgent, transcript: Transcript, *, tool_limit: float) -> None:
    if not await store_rest(agent, transcript, tool_limit=tool_limit, store_limit=_FLUSH_LIMIT):
        logger.warning("the last of the conversation is not stored", extra={"session": serving.session.session_id})


async def _unanswered(serving: Serving, messages: Sequence[Message]) -> Message | None:
    """The caller's last words, if nothing was said after them; whoever wrote words sends them again instead."""
    last = _last_words(messages)
    if last is None:
        return None
    try:
        written = await is_written(serving.client, serving.session.session_id, last.id)
    except StateUnavailable:
        written = False
    return None if written else last


def _last_words(messages: Sequence[Message]) -> Message | None:
    spoken = [each for each in messages if each.role == "user" or (each.role == "assistant" and each.content)]
    return spoken[-1] if spoken and spoken[-1].role == "user" else None


async def _cut_off(serving: Serving, providers: Providers, messages: Sequence[Message]) -> str:
    """What the caller had begun to say to the last owner, unless that has stored it."""
    words = await cut_off_words(serving.session, client=serving.client, recogniser=providers.stt)
    stored = next((each.content for each in reversed(messages) if each.role == "user"), "")
    return "" if words and words in stored else words


async def _think(serving: Serving, thinking: Thinking) -> None:
    """Answer what is written to the session, once it is this agent's."""
    await serving.baton.wait()
    await thinking.answer_all(serving.written)


def _store_again(conversation: Conversation, transcript: Transcript) -> None:
    conversation.lose()
    transcript.restart()


async def _enter(place: Place, call: Call) -> None:
    await asyncio.shield(place.connecting)
    await asyncio.gather(call.start(), place.fences.remove_older())


async def _clear_up(fences: Fences) -> None:
    await asyncio.sleep(LEFT)
    await fences.remove_older()


async def _until(task: asyncio.Task[None]) -> None:
    await asyncio.shield(task)
