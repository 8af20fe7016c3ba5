"""Which of several providers serves: the first that works, and again the first one when it has recovered."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

from livekit.agents import APIError, utils

logger = logging.getLogger(__name__)

#: Seconds before each probe of a provider that failed; the last one repeats.
PROBE_PAUSES = (2.0, 4.0, 8.0, 15.0)
#: Seconds before the only provider is asked again.
_ONCE_MORE = 0.2


class Provider(Protocol):
    """What LiveKit's STTs and TTSs have in common."""

    @property
    def label(self) -> str:
        """The name for the log."""
        ...

    async def aclose(self) -> None:
        """Close it."""
        ...


AnyProvider = TypeVar("AnyProvider", bound=Provider)
Answer = TypeVar("Answer")


class Failover(Generic[AnyProvider]):
    """Providers of one kind in the order of preference, for one call.

    One that failed is asked last, and `probe` asks it beside the call until it answers: nobody waits for that. A
    single provider is asked twice instead.
    """

    def __init__(
        self,
        providers: Sequence[AnyProvider],
        *,
        probe: Callable[[AnyProvider], Awaitable[None]],
        pauses: Sequence[float] = PROBE_PAUSES,
    ) -> None:
        if not providers:
            raise ValueError("at least one provider is needed")
        self._providers = tuple(providers)
        self._probe = probe
        self._pauses = tuple(pauses)
        #: Of those that failed.
        self._probes: dict[AnyProvider, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        #: The one that served last.
        self.current = self._providers[0]

    @property
    def order(self) -> tuple[AnyProvider, ...]:
        """Those that work, then those that failed."""
        return tuple(sorted(self._providers, key=lambda provider: provider in self._probes))

    async def serve(self, ask: Callable[[AnyProvider], Awaitable[Answer]]) -> Answer:
        """The answer of the first provider that gives one; raises the `APIError` of the last when none does."""
        if len(self._providers) == 1:
            return await self._ask_twice(ask)
        *others, last = self.order
        for provider in others:
            try:
                return await self._ask(provider, ask)
            except APIError as error:
                logger.warning(
                    "a provider failed, the next one is asked",
                    extra={"provider": provider.label, "error": type(error).__name__},
                )
        return await self._ask(last, ask)

    async def aclose(self) -> None:
        """End the probes and close the providers."""
        self._closed = True
        await utils.aio.cancel_and_wait(*self._tasks)
        for provider in self._providers:
            await provider.aclose()

    async def _ask_twice(self, ask: Callable[[AnyProvider], Awaitable[Answer]]) -> Answer:
        [provider] = self._providers
        try:
            return await ask(provider)
        except APIError as error:
            if not error.retryable:
                raise
            logger.warning("a provider failed", extra={"provider": provider.label, "error": type(error).__name__})
        await asyncio.sleep(_ONCE_MORE)
        return await ask(provider)

    async def _ask(self, provider: AnyProvider, ask: Callable[[AnyProvider], Awaitable[Answer]]) -> Answer:
        try:
            answer = await ask(provider)
        except APIError:
            if provider not in self._probes and not self._closed:
                self._probes[provider] = watch = asyncio.create_task(self._watch(provider))
                self._tasks.add(watch)
                watch.add_done_callback(self._tasks.discard)
            raise
        self.current = provider
        if provider in self._probes:
            self._probes.pop(provider).cancel()
        return answer

    async def _watch(self, provider: AnyProvider) -> None:
        for pause in itertools.chain(self._pauses, itertools.repeat(self._pauses[-1])):
            await asyncio.sleep(pause)
            try:
                await self._probe(provider)
            except APIError as error:
                logger.info(
                    "a provider does not answer yet", extra={"provider": provider.label, "error": type(error).__name__}
                )
            except Exception:
                logger.exception("a probe broke", extra={"provider": provider.label})
            else:
                del self._probes[provider]
                logger.info("a provider answers again", extra={"provider": provider.label})
                return
