"""Several models behind one `LLMPort`."""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from graphs.entities import LLMEvent, Message, ToolSchema
from graphs.errors import LLMUnavailable
from graphs.ports import LLMPort

logger = logging.getLogger(__name__)


class FallbackLLM:
    """Asks the next model when one fails before its first event.

    Later it is too late: the caller has heard the beginning of an answer, and another model's answer
    would start over. Raises the last model's LLMUnavailable.
    """

    def __init__(self, first: LLMPort, *others: LLMPort) -> None:
        self._models = (first, *others)

    async def __call__(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema]
    ) -> AsyncGenerator[LLMEvent, None]:
        for remaining, model in zip(range(len(self._models) - 1, -1, -1), self._models, strict=True):
            begun = False
            try:
                async with aclosing(model(messages, tools)) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except LLMUnavailable as error:
                if begun or not remaining:
                    raise
                logger.warning("model failed, asking the next", extra={"error": type(error.cause).__name__})
