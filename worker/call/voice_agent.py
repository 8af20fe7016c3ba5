"""The LiveKit agent of a call: it carries audio and text between the room and the conversation, and remembers."""

import logging
import time
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field

from livekit import rtc
from livekit.agents import Agent, ConversationItemAddedEvent, ModelSettings, StopResponse, llm, stt

from graphs.entities import AgentEvent, Message, PassagesMissed, PassagesOffered, TextDelta
from graphs.ports import AgentPort
from worker.call.baton import Baton
from worker.call.open_turn import OpenTurn
from worker.call.timings import TurnClock
from worker.conversation.transcript import Citation, Transcript, Turn, event_turn

logger = logging.getLogger(__name__)

#: Seconds a turn may wait for its words to be stored before the reply begins.
_STORE_LIMIT = 0.3


@dataclass
class _Answer:
    """What is known of an answer while it is given, also of one that is only a draft."""

    specialist: str
    citations: dict[Citation, None] = field(default_factory=dict)
    missed: list[PassagesMissed] = field(default_factory=list)


class VoiceAgent(Agent):
    """Taps the audio for the clock, and commits to the conversation what was said and what was heard.

    LiveKit drafts an answer under an id of its own. When it adopts the draft, the draft's id is the user item's that it
    adds to the conversation; the caller's words were stored under another one before.
    """

    def __init__(
        self,
        agent: AgentPort,
        *,
        transcript: Transcript,
        clock: TurnClock,
        baton: Baton | None = None,
        open_turn: OpenTurn | None = None,
    ) -> None:
        super().__init__(instructions="")
        self._open_turn = open_turn
        self._baton = baton or Baton(is_held=True)
        self._agent = agent
        self._transcript = transcript
        self._clock = clock
        self._turn_id: str | None = None
        #: The words of the newest turn, until LiveKit says which answer it gives to them.
        self._unanswered: str | None = None
        self._answer_id: str | None = None
        self._answers: dict[str, _Answer] = {}
        #: Whether the caller has said something to this agent.
        self.was_spoken_to = False

    async def stt_node(
        self, audio: AsyncIterable[rtc.AudioFrame], model_settings: ModelSettings
    ) -> AsyncIterator[stt.SpeechEvent | str]:
        """Recognition, with the clock listening."""

        async def tapped() -> AsyncIterator[rtc.AudioFrame]:
            async for frame in audio:
                self._clock.heard(frame)
                self._baton.ear.frame_arrived()
                yield frame

        async for event in Agent.default.stt_node(self, tapped(), model_settings):
            if self._open_turn is not None and isinstance(event, stt.SpeechEvent):
                self._open_turn.heard(event)
            yield event

    async def tts_node(self, text: AsyncIterable[str], model_settings: ModelSettings) -> AsyncIterator[rtc.AudioFrame]:
        """The voice, with the clock listening."""
        voice = self._clock.voice_started()
        async for frame in Agent.default.tts_node(self, text, model_settings):
            voice.spoken(frame)
            yield frame

    async def on_user_turn_completed(self, turn_ctx: llm.ChatContext, new_message: llm.ChatMessage) -> None:
        """Store the caller's words before the reply begins; a slow Redis costs `_STORE_LIMIT` at most.

        Without the baton they wait until it is known who answers them.
        """
        if not await self._baton.may_answer():
            if self._open_turn is not None:
                self._open_turn.close("")
            raise StopResponse
        self._clock.turn_completed()
        if self._open_turn is not None:
            await self._open_turn.settle()
            self._complete(new_message, self._open_turn)
        self._commit_user(new_message)
        self._unanswered = new_message.text_content
        await self._transcript.flush(timeout=_STORE_LIMIT)

    def _complete(self, message: llm.ChatMessage, open_turn: OpenTurn) -> None:
        words = message.text_content or ""
        whole = open_turn.close(words)
        # An answer that was drafted to other words is none: so only what was cut off costs one.
        if whole != words:
            message.content = [whole]

    async def say_for_caller(self, message: llm.ChatMessage) -> None:
        """Store words of the caller's that no turn of this process has brought, and be ready to answer them."""
        self._commit_user(message)
        self._unanswered = message.text_content
        await self._transcript.flush(timeout=_STORE_LIMIT)

    def take_up(self, message: Message) -> None:
        """Be ready to answer words that were stored before."""
        self._turn_id = self._answer_id = message.id
        self._unanswered = message.content

    def observe(self, answer_id: str, event: AgentEvent, at: float) -> None:
        """Note who speaks in an answer, and on which passages."""
        answer = self._answers.setdefault(answer_id, _Answer(self._agent.active))
        if isinstance(event, TextDelta):
            answer.specialist = event.specialist
        elif isinstance(event, PassagesOffered):
            for passage in event.passages:
                answer.citations[Citation(passage.source, passage.title, passage.id)] = None
        elif isinstance(event, PassagesMissed):
            answer.missed.append(event)
            if answer_id == self._answer_id:
                self._tell_missed(answer)

    def item_added(self, event: ConversationItemAddedEvent) -> None:
        """Confirm the answer that is given to the caller's words, or commit a reply with the words that were heard."""
        item = event.item
        if not isinstance(item, llm.ChatMessage) or not self._baton.is_held:
            return
        if item.role == "user":
            self.was_spoken_to = True
            self._adopt(item)
        elif item.role == "assistant":
            self._commit_reply(item)

    def _commit_user(self, message: llm.ChatMessage) -> None:
        self._turn_id = self._answer_id = message.id
        text, specialist = message.text_content or "", self._agent.active
        self._agent.commit_user(Message(id=message.id, role="user", content=text, specialist=specialist))
        self._transcript.add(
            Turn(
                item_id=message.id,
                role="user",
                at=time.time(),
                turn_id=message.id,
                text=text,
                specialist=specialist,
            )
        )

    def _adopt(self, message: llm.ChatMessage) -> None:
        words, self._unanswered = self._unanswered, None
        if message.text_content != words or self._turn_id is None:
            # Words that LiveKit keeps without wanting an answer to them.
            self._commit_user(message)
            return
        self._agent.confirm(message.id, turn_id=self._turn_id)
        self._answer_id = message.id
        self._answers = {one: answer for one, answer in self._answers.items() if one == message.id}
        for answer in self._answers.values():
            self._tell_missed(answer)

    def _tell_missed(self, answer: _Answer) -> None:
        for missed in answer.missed:
            event = {"kind": "passages_missed", "name": missed.reason}
            self._transcript.add(event_turn(self._turn_id or "", event))
        answer.missed.clear()

    def _commit_reply(self, message: llm.ChatMessage) -> None:
        text = message.text_content or ""
        self._agent.commit_assistant(
            self._turn_id or message.id, text, interrupted=message.interrupted, item_id=message.id
        )
        timings = self._clock.answered(message.metrics)
        # An apology in the place of a failed reply is no model's answer.
        answer = self._answers.get(self._answer_id or "") if "llm_node_ttft" in message.metrics else None
        self._transcript.add(
            Turn(
                item_id=message.id,
                role="assistant",
                at=time.time(),
                turn_id=self._turn_id,
                text=text,
                specialist=answer.specialist if answer else self._agent.active,
                interrupted=message.interrupted,
                timings=timings.to_json() if timings else None,
                citations=tuple(answer.citations) if answer else (),
            )
        )
