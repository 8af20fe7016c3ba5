"""An agent of Muster as the LLM service of a Pipecat pipeline: Pipecat hears and speaks, the agent converses."""

from collections import deque
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from graphs.entities import AgentEvent, Message, PassagesMissed, PassagesOffered, TextDelta, UsageReported, UserTurn
from graphs.errors import LLMUnavailable
from graphs.ports import AgentPort

try:
    from loguru import logger
    from pipecat.frames.frames import (
        DataFrame,
        Frame,
        InterruptionFrame,
        LLMContextAssistantTurnFrame,
        LLMContextFrame,
        LLMContextUserTurnFrame,
        LLMFullResponseEndFrame,
        LLMFullResponseStartFrame,
        UserStoppedSpeakingFrame,
    )
    from pipecat.metrics.metrics import LLMTokenUsage
    from pipecat.processors.aggregators.llm_context import LLMContextMessage, standard_message_text
    from pipecat.processors.frame_processor import FrameCallback, FrameDirection
    from pipecat.services.llm_service import LLMService
    from pipecat.services.settings import LLMSettings
    from pipecat.utils.errors import ErrorCategory, classify_http_exception
    from pipecat.utils.time import time_now_iso8601
except ImportError as missing:
    raise ImportError("muster.pipecat needs Pipecat 1.14 or newer: pip install 'muster[pipecat]'") from missing

#: How many answers may wait to be heard: speech lags behind the model, but not by more turns than this.
_WAITING = 4
#: Characters by which one answer is told from another.
_TELLING = 12


@dataclass
class AgentEventFrame(DataFrame):
    """What the agent did besides speaking: a hand-over, a tool call, passages; in order between its text frames."""

    event: AgentEvent
    turn_id: str


@dataclass(eq=False)
class _Answer:
    """What was generated for one turn, and what is still unknown about it."""

    turn: UserTurn
    #: Nothing of the words it answers is remembered: a prompt of the application, or words that may still change.
    is_draft: bool
    #: The words it answers may still change, and it is not given before they are certain.
    is_tentative: bool
    #: It was begun before the end of the user's turn; `final_words` are then what was recognised in the end.
    was_foreseen: bool
    item_id: str
    begun_at: str
    final_words: str = ""
    text: str = ""
    is_complete: bool = False
    interrupted_at: str | None = None
    committed: tuple[str, bool] | None = None

    def was_being_given(self, at: str) -> bool:
        is_over = self.interrupted_at is not None and self.interrupted_at < at
        return self.begun_at <= at and not is_over and not self.is_tentative


class AgentLLMService(LLMService):
    """Answers the newest message of each `LLMContextFrame` with the agent, streaming.

    The agent has its own instructions, tools and memory: of the context nothing else is read. A user's message becomes
    a turn; a developer's or system's is answered without being remembered. How much of an answer was heard is what the
    assistant aggregator writes to the context; without aggregators it is what was pushed.

    `model` is the name in metrics; `options` are those of any Pipecat LLM service.
    """

    def __init__(self, agent: AgentPort, *, model: str = "muster", **options: Any) -> None:
        super().__init__(settings=_settings(model), **options)
        self._agent = agent
        self._answers: deque[_Answer] = deque(maxlen=_WAITING)
        self._message: LLMContextMessage | None = None
        self._place = 0
        self._turn: UserTurn | None = None
        self._has_aggregators = False

    def can_generate_metrics(self) -> bool:
        """Whether there are metrics of its answers: always."""
        return True

    async def queue_frame(
        self,
        frame: Frame,
        direction: FrameDirection = FrameDirection.DOWNSTREAM,
        callback: FrameCallback | None = None,
    ) -> None:
        """Take a frame for processing.

        What an aggregator says of the last answer counts at once: in the queue it would wait for the next answer, and
        an interruption would drop it.
        """
        if isinstance(frame, LLMContextAssistantTurnFrame):
            self._has_aggregators = True
            self._note_heard(frame)
        elif isinstance(frame, LLMContextUserTurnFrame):
            self._has_aggregators = True
            self._note_final_words(frame.text)
        await super().queue_frame(frame, direction, callback)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Answer a context; an interruption closes the answer that is being given."""
        if isinstance(frame, InterruptionFrame):
            self._note_interruption()
        elif isinstance(frame, UserStoppedSpeakingFrame):
            self._confirm()
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMContextFrame):
            await self._respond(frame)
        else:
            await self.push_frame(frame, direction)

    async def _respond(self, frame: LLMContextFrame) -> None:
        self._assume_heard()
        message = frame.context.messages[-1] if frame.context.messages else None
        role, text = _read(message)
        if role not in ("user", "developer", "system") or not text:
            logger.warning(f"{self}: the context does not end with words to answer")
            return
        is_prompt = role != "user"
        # The gate has also seen whether the user's turn has ended meanwhile.
        is_tentative = bool(self._speculation_gate.is_speculating)
        turn = UserTurn(uuid4().hex, text) if is_prompt else self._turn_of(frame, text)
        self._has_aggregators |= frame.speculation
        answer = _Answer(
            turn,
            is_draft=is_prompt or is_tentative,
            is_tentative=is_tentative,
            was_foreseen=frame.speculation,
            item_id=uuid4().hex,
            begun_at=time_now_iso8601(),
        )
        self._answers.append(answer)
        await self._give(answer)

    async def _give(self, answer: _Answer) -> None:
        await self.push_frame(LLMFullResponseStartFrame())
        await self.start_processing_metrics()
        await self.start_ttfb_metrics()
        try:
            async with aclosing(self._agent.respond(answer.turn, draft=answer.is_draft)) as events:
                async for event in events:
                    await self._push_event(answer, event)
            answer.is_complete = True
        except LLMUnavailable as error:
            await self.push_error(str(error), exception=error)
        finally:
            if not self._has_aggregators:
                self._commit(answer, answer.text, interrupted=not answer.is_complete)
            if not answer.text:
                self._forget(answer)
            await self.stop_processing_metrics()
            await self.push_frame(LLMFullResponseEndFrame())

    async def _push_event(self, answer: _Answer, event: AgentEvent) -> None:
        if not isinstance(event, PassagesOffered | PassagesMissed):
            await self.stop_ttfb_metrics()
        if isinstance(event, TextDelta):
            answer.text += event.text
            await self._push_llm_text(event.text)
        elif isinstance(event, UsageReported):
            await self.start_llm_usage_metrics(
                LLMTokenUsage(
                    prompt_tokens=event.prompt_tokens,
                    completion_tokens=event.completion_tokens,
                    total_tokens=event.prompt_tokens + event.completion_tokens,
                )
            )
        else:
            await self.push_frame(AgentEventFrame(event=event, turn_id=answer.turn.turn_id))

    def _classify_error(self, exception: Exception) -> ErrorCategory | None:
        """As Pipecat classifies what the model's client reported."""
        return classify_http_exception(exception.cause) if isinstance(exception, LLMUnavailable) else None

    def _turn_of(self, frame: LLMContextFrame, text: str) -> UserTurn:
        """The turn of the newest message, and the same one when that message is answered again.

        A message has no id. One of a speculation comes into the context as another object with the same place.
        """
        messages = frame.context.messages
        is_known = messages[-1] is self._message if self._message is not None else len(messages) == self._place
        if self._turn is None or text != self._turn.text or not is_known:
            self._turn = UserTurn(uuid4().hex, text)
        self._message = None if frame.speculation else messages[-1]
        self._place = len(messages)
        return self._turn

    def _confirm(self) -> None:
        """The user's turn has ended, so that the answer given to words that might change is the answer."""
        answer = self._answers[-1] if self._answers else None
        if answer is not None and answer.is_tentative and self._speculation_gate.is_speculating:
            answer.is_tentative = False
            self._commit_user(answer, answer.final_words or answer.turn.text)

    def _note_final_words(self, text: str) -> None:
        """The words of a turn whose end was foreseen, as they were recognised in the end."""
        answer = self._answers[-1] if self._answers else None
        if answer is None or answer.final_words or not answer.was_foreseen:
            return
        answer.final_words = text
        # Else what ends the turn, or withdraws the answer, is still on its way.
        if not answer.is_tentative:
            self._commit_user(answer, text)

    def _commit_user(self, answer: _Answer, text: str) -> None:
        self._turn = UserTurn(answer.turn.turn_id, text)
        self._agent.commit_user(Message(id=self._turn.turn_id, role="user", content=text))

    def _forget(self, answer: _Answer) -> None:
        if answer in self._answers:
            self._answers.remove(answer)

    def _note_interruption(self) -> None:
        for answer in self._answers:
            answer.interrupted_at = answer.interrupted_at or time_now_iso8601()

    def _note_heard(self, frame: LLMContextAssistantTurnFrame) -> None:
        """Commit what was heard of an answer, or of words that the application had spoken without the agent."""
        given = [each for each in self._answers if each.was_being_given(frame.timestamp)]
        # The oldest, unless the words are another one's: of an answer that failed to be spoken nothing is told.
        answer = min(given, key=lambda each: not each.text.lstrip().startswith(frame.text[:_TELLING]), default=None)
        if answer is None:
            spoken_id = uuid4().hex
            self._agent.commit_assistant(spoken_id, frame.text, interrupted=False, item_id=spoken_id)
        else:
            self._forget(answer)
            self._commit(answer, frame.text, interrupted=answer.interrupted_at is not None or not answer.is_complete)

    def _assume_heard(self) -> None:
        """A whole answer that nobody interrupted counts as heard by the next one; what is noted later replaces it."""
        for answer in self._answers:
            if answer.is_complete and answer.interrupted_at is None and not answer.is_tentative:
                self._commit(answer, answer.text, interrupted=False)

    def _commit(self, answer: _Answer, text: str, *, interrupted: bool) -> None:
        heard = (text.strip(), interrupted)
        if heard[0] and heard != answer.committed:
            answer.committed = heard
            self._agent.commit_assistant(answer.turn.turn_id, heard[0], interrupted=interrupted, item_id=answer.item_id)


def _settings(model: str) -> LLMSettings:
    """The model is the agent's business: Pipecat's own settings of one stay empty."""
    return LLMSettings(
        model=model,
        system_instruction=None,
        temperature=None,
        max_tokens=None,
        top_p=None,
        top_k=None,
        frequency_penalty=None,
        presence_penalty=None,
        seed=None,
        filter_incomplete_user_turns=False,
        user_turn_completion_config=None,
    )


def _read(message: LLMContextMessage | None) -> tuple[str, str]:
    """Role and text; both empty for a message in the form of one provider."""
    if not isinstance(message, Mapping):
        return "", ""
    return str(message["role"]), standard_message_text(message).strip()
