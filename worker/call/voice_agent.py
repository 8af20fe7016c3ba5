"""The LiveKit agent of a call: it carries audio and text between the room and the conversation, and remembers."""

import logging
import time
from collections.abc import AsyncIterable, AsyncIterator

from livekit import rtc
from livekit.agents import Agent, ConversationItemAddedEvent, ModelSettings, llm, stt

from graphs.entities import (
    AgentEvent,
    Message,
    PassagesMissed,
    PassagesOffered,
    TextDelta,
    ToolCalled,
    Transferred,
)
from graphs.ports import AgentPort
from worker.call.timings import TurnClock
from worker.call.transcript import Citation, Transcript, Turn, event_turn

logger = logging.getLogger(__name__)

#: Seconds a turn may wait for its words to be stored before the reply begins.
_STORE_LIMIT = 0.3


class VoiceAgent(Agent):
    """Taps the audio for the clock, and commits to the conversation what was said and what was heard."""

    def __init__(self, agent: AgentPort, *, transcript: Transcript, clock: TurnClock) -> None:
        super().__init__(instructions="")
        self._agent = agent
        self._transcript = transcript
        self._clock = clock
        self._turn_id: str | None = None
        self._specialist = agent.active
        self._offered: tuple[Citation, ...] = ()

    async def stt_node(
        self, audio: AsyncIterable[rtc.AudioFrame], model_settings: ModelSettings
    ) -> AsyncIterator[stt.SpeechEvent | str]:
        """Recognition, with the clock listening."""

        async def tapped() -> AsyncIterator[rtc.AudioFrame]:
            async for frame in audio:
                self._clock.heard(frame)
                yield frame

        async for event in Agent.default.stt_node(self, tapped(), model_settings):
            yield event

    async def tts_node(self, text: AsyncIterable[str], model_settings: ModelSettings) -> AsyncIterator[rtc.AudioFrame]:
        """The voice, with the clock listening."""
        self._clock.voice_started()
        async for frame in Agent.default.tts_node(self, text, model_settings):
            self._clock.spoken(frame)
            yield frame

    async def on_user_turn_completed(self, turn_ctx: llm.ChatContext, new_message: llm.ChatMessage) -> None:
        """Store the caller's words before the reply begins; a slow Redis costs `_STORE_LIMIT` at most."""
        self._clock.turn_completed()
        self._turn_id = new_message.id
        self._offered = ()
        text = new_message.text_content or ""
        self._agent.commit_user(Message(id=new_message.id, role="user", content=text, specialist=self._agent.active))
        self._transcript.add(
            Turn(
                item_id=new_message.id,
                role="user",
                at=time.time(),
                text=text,
                specialist=self._agent.active,
            )
        )
        await self._transcript.flush(timeout=_STORE_LIMIT)

    def observe(self, turn_id: str, event: AgentEvent, at: float) -> None:
        """Note who speaks and what happens in a turn of the conversation."""
        if isinstance(event, TextDelta):
            self._specialist = event.specialist
        elif isinstance(event, PassagesOffered):
            self._offer(event)
        elif isinstance(event, PassagesMissed):
            self._transcript.add(event_turn(turn_id, {"kind": "passages_missed", "name": event.reason}))
        elif isinstance(event, Transferred):
            self._transcript.add(event_turn(turn_id, {"kind": "transfer", "from": event.source, "to": event.target}))
        elif isinstance(event, ToolCalled):
            self._transcript.add(event_turn(turn_id, {"kind": "tool", "name": event.name}))

    def _offer(self, event: PassagesOffered) -> None:
        citations = [Citation(passage.source, passage.title, passage.id) for passage in event.passages]
        self._offered += tuple(citation for citation in citations if citation not in self._offered)

    def item_added(self, event: ConversationItemAddedEvent) -> None:
        """Commit a reply with the words that were heard."""
        item = event.item
        if not isinstance(item, llm.ChatMessage) or item.role != "assistant":
            return
        text = item.text_content or ""
        self._agent.commit_assistant(self._turn_id or item.id, text, interrupted=item.interrupted, item_id=item.id)
        timings = self._clock.answered(item.metrics)
        self._transcript.add(
            Turn(
                item_id=item.id,
                role="assistant",
                at=time.time(),
                text=text,
                specialist=self._specialist,
                interrupted=item.interrupted,
                timings=timings.to_json() if timings else None,
                # An apology in the place of a failed reply is no model's answer.
                citations=self._offered if "llm_node_ttft" in item.metrics else (),
            )
        )
