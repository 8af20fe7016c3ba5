"""Several models behind one `LLMPort`."""

import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from graphs.entities import LLMEvent, Message, ToolSchema
from graphs.errors import LLMUnavailable
from graphs.ports import LLMPort

logger = logging.getLogger(__name__)


class FallbackLLM:
    """Asks the next model when one fails before its first event.

    Later it is too late: the caller has heard the beginning of an answer, and another model's answer
    would start over. Raises the last model's LLMUnavailable.

    Who failed rests: for `rest` seconds it is asked only when all others have failed too, because every caller would
    wait for its time-out again. The rest doubles with each failure in a row, up to `longest_rest`.
    """

    def __init__(
        self,
        first: LLMPort,
        *others: LLMPort,
        rest: float = 30.0,
        longest_rest: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models = [_Model(llm, rest=rest, longest_rest=longest_rest) for llm in (first, *others)]
        self._clock = clock

    async def __call__(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema]
    ) -> AsyncGenerator[LLMEvent, None]:
        *before_last, last = self._by_turn()
        for model in (*before_last, last):
            begun = False
            try:
                async with aclosing(model.llm(messages, tools)) as events:
                    async for event in events:
                        if not begun:
                            begun = True
                            model.worked()
                        yield event
                return
            except LLMUnavailable as error:
                model.failed(self._clock())
                if begun or model is last:
                    raise
                logger.warning("model failed, asking the next", extra={"error": type(error.cause).__name__})

    def _by_turn(self) -> Sequence["_Model"]:
        now = self._clock()
        return sorted(self._models, key=lambda model: model.rests_until > now)


class _Model:
    """One of the models, and until when it rests."""

    def __init__(self, llm: LLMPort, *, rest: float, longest_rest: float) -> None:
        self.llm = llm
        self.rests_until = float("-inf")
        self._first_rest = self._rest = rest
        self._longest_rest = longest_rest

    def failed(self, now: float) -> None:
        self.rests_until = now + self._rest
        self._rest = min(2 * self._rest, self._longest_rest)

    def worked(self) -> None:
        self.rests_until = float("-inf")
        self._rest = self._first_rest
