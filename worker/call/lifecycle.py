"""One call from the joined room to its end: greeting, conversation, timers, and one way out with a reason."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from livekit import rtc
from livekit.agents import (
    AgentStateChangedEvent,
    CloseEvent,
    ConversationItemAddedEvent,
    ErrorEvent,
    SpeechCreatedEvent,
    UserStateChangedEvent,
    llm,
    stt,
    utils,
)
from livekit.agents.types import NOT_GIVEN
from livekit.agents.voice import SpeechHandle, io, room_io

from graphs.entities import Message
from worker.call import phrases
from worker.call.agent_llm import AgentLLM
from worker.call.baton import Baton
from worker.call.ending import Countdown, Ending
from worker.call.open_turn import OpenTurn
from worker.call.pipeline import AUDIO_INPUT, open_pipeline
from worker.call.providers import Providers
from worker.call.settings import CallSettings
from worker.call.timings import TurnClock
from worker.call.unheard import Unheard, patience
from worker.call.voice_agent import VoiceAgent
from worker.fleet.session import Reason, Session

logger = logging.getLogger(__name__)

#: Turns in a row that may fail before the call is given up.
_FAILURES_FORGIVEN = 1
#: Seconds the last words may take.
_FAREWELL_LIMIT = 12.0
#: Seconds of silence after which what the caller had begun to say before their agent was lost is all they will say, and
#: seconds between two looks.
_SILENT = 3.0
_LOOK = 0.1
#: Seconds the session and the room may take to close.
_CLOSE_LIMIT = 5.0


class Call:
    """The agent in one room; belongs to one event loop.

    `spoken` is the audio of the fixed phrases by text, as far as it is there yet. `on_first_audio` is called whenever
    the agent begins to speak. After `time_left` seconds the call has lasted long enough.
    """

    def __init__(
        self,
        session: Session,
        *,
        settings: CallSettings,
        room: rtc.Room,
        ending: Ending,
        providers: Providers,
        agent_llm: AgentLLM,
        voice_agent: VoiceAgent,
        clock: TurnClock,
        baton: Baton,
        open_turn: OpenTurn,
        spoken: Mapping[str, bytes],
        on_first_audio: Callable[[], None],
        time_left: float,
    ) -> None:
        self._session = session
        self._settings = settings
        self._room = room
        self._ending = ending
        self._voice_agent = voice_agent
        self._clock = clock
        self._baton = baton
        self._open_turn = open_turn
        self._spoken = spoken
        self._on_first_audio = on_first_audio
        self._failures = 0
        self._draft_failed = False
        self._farewell: asyncio.Task[None] | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._idle = Countdown(ending, Reason.IDLE, seconds=settings.idle_timeout)
        self._duration = Countdown(ending, Reason.MAX_DURATION, seconds=time_left)
        listener = open_turn if open_turn.keeps_sound else None
        self._voice = open_pipeline(settings, providers, agent_llm, listener=listener, recognition=baton.recognition)
        self._user_state, self._agent_state = "listening", "initializing"
        #: Whether this agent has begun to talk with the caller.
        self.has_begun = False
        self._unheard = Unheard(
            room,
            session_id=session.session_id,
            ending=ending,
            is_due=self._is_due,
            is_published=lambda: bool(room.local_participant.track_publications),
            published_within=patience(session.recoveries),
        )
        self._listen_to_voice(providers)

    @property
    def is_quiet(self) -> bool:
        """Whether neither side is speaking or about to."""
        return self._user_state != "speaking" and self._agent_state == "listening"

    async def start(self) -> None:
        """Start the pipeline on the joined room."""
        self._duration.start()
        await self._voice.start(
            self._voice_agent,
            room=self._room,
            record=False,
            session_host=False,
            room_options=room_io.RoomOptions(
                participant_identity=self._session.user_id,
                # A lost connection and a hang-up are told apart here, not by the framework.
                close_on_disconnect=False,
                delete_room_on_close=False,
                audio_input=AUDIO_INPUT,
                audio_output=room_io.AudioOutputOptions(track_name="agent"),
                text_input=False,
            ),
        )
        assert self._voice.output.audio is not None
        self._voice.output.audio.on("playback_started", self._ending.guard(self._playback_started))

    async def wait_for_caller(self) -> bool:
        """Until the caller is in the room and hears the agent; False when the call ends before."""
        timeout, reason = self._settings.caller_arrival_timeout, Reason.CALLER_NEVER_ARRIVED
        if self._session.first_audio_at is not None:
            # Another process has talked with them; they have left it or are coming back.
            timeout, reason = self._settings.caller_lost_grace, Reason.CALLER_LOST
        watching = asyncio.create_task(self._unheard.watch())
        try:
            arrived = await self._ending.unless_decided(self._voice.room_io.wait_for_ready(), timeout=timeout)
        finally:
            self._unheard.stop()
            await utils.aio.cancel_and_wait(watching)
        if not arrived:
            self._ending.decide(reason)
        return arrived

    def _is_due(self) -> bool:
        """Whether the caller should hear this agent."""
        is_connected = self._room.connection_state == rtc.ConnectionState.CONN_CONNECTED
        return is_connected and self._baton.is_held and self._session.user_id in self._room.remote_participants

    def greet(self) -> None:
        """Say the greeting."""
        self._begin()
        self._say(self._settings.greeting)

    def resume(self, unanswered: Message | None) -> None:
        """Go on with a call that another process has lost, and answer what it has left unanswered.

        What the caller had begun to say to that process begins their next turn; are they silent, it is their turn. Did
        they not wait, they have an answer already, which knew what was said before.
        """
        self._begin()
        if not self._voice_agent.was_spoken_to:
            self._say(self._settings.resumption)
        if unanswered is not None and not self._voice_agent.was_spoken_to:
            self._answer(unanswered)
        else:
            self._waiting = asyncio.create_task(self._answer_cut_off(self._open_turn))
            self._waiting.add_done_callback(self._ending.guard(_require))

    async def _answer_cut_off(self, open_turn: OpenTurn) -> None:
        await open_turn.settle()
        silent_for = 0.0
        while open_turn.cut_off and silent_for < _SILENT:
            await asyncio.sleep(_LOOK)
            is_silent = self.is_quiet and self._baton.is_between_turns(heard_since=self._baton.now())
            silent_for = silent_for + _LOOK if is_silent and self._baton.is_held else 0.0
        if open_turn.cut_off:
            message = llm.ChatMessage(role="user", content=[open_turn.close("")])
            await self._voice_agent.say_for_caller(message)
            self._voice.generate_reply(user_input=message)

    def take_over(self, unanswered: Message | None) -> None:
        """Go on with a call that another process has passed on, without a word unless one is due."""
        self._begin()
        if unanswered is not None and not self._baton.is_open:
            self._answer(unanswered)

    def _begin(self) -> None:
        self.has_begun = True
        self._idle.start()

    def _answer(self, unanswered: Message) -> None:
        self._voice_agent.take_up(unanswered)
        message = llm.ChatMessage(id=unanswered.id, role="user", content=[unanswered.content])
        self._voice.generate_reply(user_input=message)

    @property
    def says_nothing(self) -> bool:
        """Whether the agent neither speaks nor is about to."""
        return self._voice.agent_state == "listening" and self._voice.current_speech is None and self._farewell is None

    def fall_deaf(self) -> None:
        """Hear nothing any more, and forget what the caller has begun to say."""
        self._voice.input.set_audio_enabled(False)
        self._voice.clear_user_turn()

    async def close(self) -> None:
        """Fall silent, leave the room, then take the pipeline down."""
        for countdown in (self._idle, self._duration):
            countdown.stop()
        await utils.aio.cancel_and_wait(*(task for task in (self._farewell, self._waiting) if task is not None))
        self._voice.output.set_audio_enabled(False)
        await self._bounded("room", self._room.disconnect())

    async def close_pipeline(self) -> None:
        """What may take a moment after the room was left."""
        await self._bounded("pipeline", self._voice.aclose())

    async def _bounded(self, what: str, closing: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(_CLOSE_LIMIT):
                await closing
        except TimeoutError:
            logger.warning("%s did not close in time", what, extra={"session": self._session.session_id})

    def _say(self, text: str, *, interruptible: bool = True) -> SpeechHandle:
        audio = self._spoken.get(text)
        return self._voice.say(
            text,
            audio=NOT_GIVEN if audio is None else phrases.frames(audio),
            allow_interruptions=interruptible,
        )

    def _listen_to_voice(self, providers: Providers) -> None:
        providers.stt.on("metrics_collected", self._ending.guard(self._clock.recognised))
        self._voice.on("conversation_item_added", self._ending.guard(self._item_added))
        self._voice.on("user_state_changed", self._ending.guard(self._user_state_changed))
        self._voice.on("agent_state_changed", self._ending.guard(self._agent_state_changed))
        self._voice.on("speech_created", self._ending.guard(self._speech_created))
        self._voice.on("error", self._ending.guard(self._provider_failed))
        self._voice.on("close", self._ending.guard(self._voice_closed))

    def _item_added(self, event: ConversationItemAddedEvent) -> None:
        self._voice_agent.item_added(event)
        if not isinstance(event.item, llm.ChatMessage):
            return
        if "tts_node_ttfb" in event.item.metrics:
            self._failures = 0
        if event.item.role == "user" and self._draft_failed:
            self._draft_failed = False
            self._turn_failed()

    def _speech_created(self, _: SpeechCreatedEvent) -> None:
        # It takes the place of the draft before.
        self._draft_failed = False

    def _playback_started(self, event: io.PlaybackStartedEvent) -> None:
        self._clock.playback_started(event.created_at)
        self._on_first_audio()

    def _user_state_changed(self, event: UserStateChangedEvent) -> None:
        if self._user_state == "speaking":
            self._clock.speech_ended()
        self._user_state = event.new_state
        self._baton.user_state_changed(event.new_state == "speaking")
        self._watch_idleness()

    def _agent_state_changed(self, event: AgentStateChangedEvent) -> None:
        self._agent_state = event.new_state
        if event.new_state == "listening":
            self._baton.agent_listens()
        self._watch_idleness()

    def _watch_idleness(self) -> None:
        if not self._baton.is_held or self._user_state == "speaking" or self._agent_state in {"speaking", "thinking"}:
            self._idle.stop()
        elif self._agent_state == "listening":
            self._idle.start()

    def _provider_failed(self, event: ErrorEvent) -> None:
        if getattr(event.error, "recoverable", False) or self._farewell is not None:
            return
        if not self._baton.is_held:
            # Who stands by steps back and says nothing; who has passed the call on is just leaving.
            if not self._baton.is_given:
                self._ending.decide(Reason.PROVIDER_FAILED)
            return
        if self._agent_state == "listening" and not isinstance(event.source, stt.STT):
            # A draft, while the caller may still go on: it fails the turn when it becomes its answer.
            self._draft_failed = True
        else:
            self._turn_failed()

    def _turn_failed(self) -> None:
        self._failures += 1
        logger.warning("a provider failed", extra={"session": self._session.session_id, "count": self._failures})
        if self._failures <= _FAILURES_FORGIVEN:
            self._say(self._settings.apology)
        else:
            self._farewell = asyncio.create_task(self._say_farewell())
            self._farewell.add_done_callback(self._ending.guard(_require))

    async def _say_farewell(self) -> None:
        handle = self._say(self._settings.farewell, interruptible=False)
        try:
            async with asyncio.timeout(_FAREWELL_LIMIT):
                await handle.wait_for_playout()
        except TimeoutError:
            logger.warning("the farewell was cut", extra={"session": self._session.session_id})
        self._ending.is_told = True
        self._ending.decide(Reason.PROVIDER_FAILED)

    def _voice_closed(self, event: CloseEvent) -> None:
        self._ending.decide(Reason.PROVIDER_FAILED if event.error else Reason.INTERNAL_ERROR)


def _require(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.result()
