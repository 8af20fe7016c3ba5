"""A caller who asks again and again, and tells in which phase the conversation is."""

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Callable

from bench.faults.scenario import Phase
from bench.marked_call import MarkedCall

#: Words of one utterance after the other.
COUNTS = (3, 5, 2, 4)
#: Seconds between an answer and the next question.
_PAUSE = 0.4
#: Seconds an answer is waited for.
_PATIENCE = 8.0


class Conversation:
    """Goes on until `stop`, or until `is_over` says that there is nobody to talk to."""

    def __init__(self, call: MarkedCall, *, is_over: Callable[[], bool]) -> None:
        self.call = call
        self._is_over = is_over
        self._stopping = False
        self._waiting: dict[Phase, list[asyncio.Future[float]]] = defaultdict(list)
        #: Utterances after which something was heard, by number.
        self.heard_after: set[int] = set()

    def stop(self) -> None:
        """End after the exchange that is going on."""
        self._stopping = True

    async def entered(self, phase: Phase) -> float:
        """The moment at which the next phase of this kind begins."""
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting[phase].append(future)
        return await future

    async def hold(self) -> None:
        """Ask, hear the answer out, wait, ask again."""
        for count in itertools.cycle(COUNTS):
            if self._stopping or self._is_over() or self.call.caller.left.is_set():
                return
            await self._exchange(count)
            await asyncio.sleep(_PAUSE)

    async def _exchange(self, count: int) -> None:
        self._enter("caller_speaks")
        said = await self.call.say(count)
        self._enter("agent_thinks")
        try:
            await self._first_sound(said.ended_at)
            self.heard_after.add(said.number)
            self._enter("agent_speaks")
            await self.call.quiet()
        except TimeoutError:
            # It is counted what was not answered.
            return
        self._enter("both_listen")

    async def _first_sound(self, moment: float) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                await self.call.caller.heard.first_audible_after(moment, within=1.0)
                return
            except TimeoutError:
                if self._is_over() or time.monotonic() > deadline:
                    raise

    def _enter(self, phase: Phase) -> None:
        waiting, self._waiting[phase] = self._waiting[phase], []
        for future in waiting:
            if not future.done():
                future.set_result(time.time())
