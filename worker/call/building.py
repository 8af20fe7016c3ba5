"""How the parts of a call are made and put together; what each needs at the end hangs on the stack at once."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from livekit import rtc
from livekit.agents import utils

from graphs import entities
from graphs.retrieval import Retrieval
from graphs.supervisor import SupervisorAgent
from graphs.tickets import RedisTickets
from worker.call import room as rooms
from worker.call.agent_llm import AgentLLM
from worker.call.agents import open_agent
from worker.call.agreeing import Agreement
from worker.call.dead_man import DeadMan
from worker.call.errors import SpeechNotRendered
from worker.call.fences import Fences
from worker.call.handing_over import Giver
from worker.call.knowledge import open_search
from worker.call.lifecycle import Call
from worker.call.lost_room import LostRoom
from worker.call.open_sound import OpenSound
from worker.call.open_turn import OpenTurn
from worker.call.phrases import Phrases, open_cache
from worker.call.presence import Presence
from worker.call.providers import Providers, open_providers
from worker.call.serving import Serving
from worker.call.settings import CallSettings
from worker.call.thinking import Thinking
from worker.call.timings import TurnClock
from worker.call.voice_agent import VoiceAgent
from worker.conversation.continuing import Conversation, open_conversation
from worker.conversation.transcript import Transcript, exchange_turn
from worker.fleet import handing_over, records, workers
from worker.fleet.app import create_producer
from worker.fleet.publishing import offerer
from worker.fleet.redis_operations import run_async
from worker.fleet.session import Session, State
from worker.fleet.task_states import LIVE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """The room, which is being joined, and what guards this agent in it."""

    room: rtc.Room
    presence: Presence
    agreement: Agreement
    fences: Fences
    dead_man: DeadMan
    connecting: asyncio.Task[None]


@dataclass(frozen=True)
class Speech:
    """The providers, the fixed phrases' audio by text as far as it is there, and the task that loads the first."""

    providers: Providers
    opening: asyncio.Task[None]
    spoken: Mapping[str, bytes] = field(repr=False)


def join(serving: Serving) -> Place:
    """Begin to join the room."""
    room, session = rtc.Room(), serving.session
    presence = Presence(room, session, ending=serving.ending, grace=serving.settings.caller_lost_grace)
    serving.stack.callback(presence.close)
    LostRoom(
        room,
        ending=serving.ending,
        answers=partial(rooms.answers, session, serving.settings),
        run=serving.keep,
        grace=serving.settings.caller_lost_grace,
    )
    fences = _raise_fences(serving, room)
    dead_man = DeadMan(
        serving.child,
        ask=lambda: run_async(serving.client, workers.may_renew()),
        witness=lambda: fences.is_witness,
    )
    serving.stack.callback(dead_man.stand_down)
    serving.keep(dead_man.keep())
    connecting = asyncio.create_task(_connect(serving, room))
    serving.stack.push_async_callback(_disconnect, room, connecting)
    return Place(room, presence, Agreement(room, session), fences, dead_man, connecting)


async def _connect(serving: Serving, room: rtc.Room) -> None:
    session, settings = serving.session, serving.settings
    was_there = session.connected_at is not None or session.recovered_at is not None
    # For whoever only stands by, the owner is still there.
    if was_there and serving.baton.is_held:
        await rooms.connect_again(room, session, settings, is_given_up=lambda: serving.ending.is_decided)
    else:
        await rooms.connect(room, session, settings)


def _raise_fences(serving: Serving, room: rtc.Room) -> Fences:
    session, settings = serving.session, serving.settings
    ghosts = rooms.open_ghosts(settings)

    async def is_ours() -> bool:
        if not serving.record.is_sure.is_set():
            return True
        record = await run_async(serving.client, records.read(session.session_id))
        # Without its record the session registers again.
        return record is None or handing_over.owns(record, session) or handing_over.is_standby(record, session)

    return Fences(
        room,
        session,
        ending=serving.ending,
        remove=partial(ghosts.remove_identity, session),
        is_ours=is_ours,
        is_holder=lambda: serving.baton.is_held,
        run=serving.keep,
    )


async def _disconnect(room: rtc.Room, connecting: asyncio.Task[None]) -> None:
    """Leave the room, also one that is only being joined."""
    await asyncio.gather(connecting, return_exceptions=True)
    await room.disconnect()


def prepare_speech(serving: Serving) -> Speech:
    """Open the providers and begin to fetch the fixed phrases; a call cannot begin without its greeting."""
    settings, stack = serving.settings, serving.stack
    providers = open_providers(settings)
    stack.push_async_callback(providers.aclose)
    cache = open_cache(settings)
    stack.push_async_callback(cache.aclose)
    phrases = Phrases(providers.voices, cache=cache, timeout=settings.provider_timeout)
    spoken: dict[str, bytes] = {}

    is_begun = serving.session.first_audio_at is not None
    opening = asyncio.create_task(
        _load_others(phrases, spoken, (settings.resumption,)) if is_begun else _load(phrases, spoken, settings.greeting)
    )
    stack.push_async_callback(utils.aio.cancel_and_wait, opening)
    # What is said when the voice itself may be broken must be there before.
    serving.keep(_load_others(phrases, spoken, (settings.apology, settings.farewell)))
    return Speech(providers, opening, spoken)


async def _load(phrases: Phrases, spoken: dict[str, bytes], text: str) -> None:
    spoken[text] = await phrases.load(text)


async def _load_others(phrases: Phrases, spoken: dict[str, bytes], texts: Sequence[str]) -> None:
    """Phrases that the voice can say by itself when they are not there."""
    for text in texts:
        try:
            await _load(phrases, spoken, text)
        except SpeechNotRendered:
            logger.warning("a phrase could not be rendered ahead")


async def remember(serving: Serving) -> Conversation:
    """Open what was said before."""
    opened = open_conversation(
        serving.session,
        client=serving.client,
        redis_url=serving.settings.redis_url,
        lifetime=serving.settings.session_hold,
        on_lost=serving.ending.supersede,
    )
    return await serving.stack.enter_async_context(opened)


def open_transcript(serving: Serving) -> Transcript:
    """What is said from here on."""
    return Transcript(
        serving.session,
        client=serving.client,
        lifetime=serving.settings.session_hold,
        on_lost=serving.ending.supersede,
        is_sure=serving.record.is_sure,
        writing=serving.record.writing,
    )


def build_agent(
    serving: Serving, providers: Providers, transcript: Transcript, begun: entities.Session
) -> SupervisorAgent:
    """The conversation's agent, which goes on from what has `begun`."""
    return open_agent(
        serving.session,
        begun,
        serving.settings,
        client=providers.openai,
        open_ticket=RedisTickets(serving.client, tenant=serving.session.tenant),
        retrieval=_open_retrieval(serving),
        on_exchange=lambda exchange: transcript.add(exchange_turn(exchange)),
    )


def _open_retrieval(serving: Serving) -> Retrieval | None:
    settings = serving.settings
    if settings.knowledge_index is None:
        return None
    search = open_search(settings, settings.knowledge_index)
    serving.stack.push_async_callback(search.aclose)
    serving.keep(search.warm())
    return Retrieval(search, budget=settings.retrieval_budget)


@dataclass(frozen=True)
class Line:
    """The voice side of the call, and what answers on it."""

    call: Call
    agent_llm: AgentLLM
    open_turn: OpenTurn


def build_line(serving: Serving, place: Place, speech: Speech, agent: SupervisorAgent, transcript: Transcript) -> Line:
    """The pipeline of the call, which is not started."""
    clock, baton = TurnClock(), serving.baton
    open_turn = _open_turn(serving)
    voice_agent = VoiceAgent(agent, transcript=transcript, clock=clock, baton=baton, open_turn=open_turn)
    warm = speech.providers.openai.models.list
    agent_llm = AgentLLM(agent, observe=voice_agent.observe, warm=warm, baton=baton)
    call = Call(
        serving.session,
        settings=serving.settings,
        room=place.room,
        ending=serving.ending,
        providers=speech.providers,
        agent_llm=agent_llm,
        voice_agent=voice_agent,
        clock=clock,
        baton=baton,
        open_turn=open_turn,
        spoken=speech.spoken,
        on_first_audio=lambda: _went_live(serving),
        time_left=_time_left(serving.session, serving.settings),
    )
    return Line(call, agent_llm, open_turn)


def _open_turn(serving: Serving) -> OpenTurn:
    sound = None
    if serving.settings.draft_audio:
        sound = OpenSound(serving.session, client=serving.client, is_owner=lambda: serving.baton.is_held)
        serving.keep(sound.keep())
    open_turn = OpenTurn(serving.session, client=serving.client, sound=sound)
    serving.keep(open_turn.keep())
    return open_turn


def _went_live(serving: Serving) -> None:
    if not serving.record.is_live:
        serving.record.is_live = True
        stamp = "first_audio_at" if serving.session.first_audio_at is None else "recovered_at"
        serving.keep(serving.record.move(State.LIVE, stamp=stamp, patient=True))
        serving.announce(LIVE)


def _time_left(session: Session, settings: CallSettings) -> float:
    """Seconds until the call has lasted long enough, whoever has served it so far."""
    if session.epoch == 1 or session.admitted_at is None:
        return settings.max_duration
    return max(session.admitted_at + settings.max_duration - time.time(), 0.0)


def build_thinking(serving: Serving, line: Line, transcript: Transcript) -> Thinking:
    """What answers the texts that are written to the session meanwhile."""
    return Thinking(
        serving.session,
        client=serving.client,
        agent_llm=line.agent_llm,
        transcript=transcript,
        is_quiet=lambda: line.call.is_quiet,
    )


def build_giver(serving: Serving, place: Place, line: Line, thinking: Thinking, transcript: Transcript) -> Giver:
    """What hands the call over when that is wished."""
    settings = serving.settings

    def accept(epoch: int) -> None:
        serving.record.offered = epoch
        place.fences.accept(epoch)

    def publish(offered: Session, queue: str) -> None:
        offerer(create_producer(settings.broker_url), expires=settings.join_ttl)(offered, queue)

    return Giver(
        serving.session,
        client=serving.client,
        baton=serving.baton,
        ending=serving.ending,
        call=line.call,
        is_writing=lambda: thinking.is_busy,
        messages=serving.messages,
        wish=serving.wish,
        accept=accept,
        refuse=place.fences.refuse,
        publish=publish,
        is_stored=lambda: transcript.is_stored,
        ask=place.agreement.ask,
        record=serving.record,
        place=lambda: serving.child.place,
        lifetime=settings.session_hold,
    )
