"""Answers one text after the other in a worker's process: claim the session, load it, answer, store."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from functools import partial

from openai import AsyncOpenAI

from graphs import entities
from graphs.errors import MemoryUnavailable, StaleWriter
from graphs.retrieval import Retrieval
from graphs.supervisor import SupervisorAgent
from graphs.tickets import RedisTickets
from worker.call.agents import open_agent, settings_of
from worker.call.knowledge import open_search
from worker.call.settings import OPENAI_URL
from worker.chat.settings import ChatSettings
from worker.conversation.continuing import open_conversation
from worker.conversation.text_turns import Correspondent, TextTurn
from worker.conversation.transcript import Transcript, exchange_turn
from worker.fleet import chats
from worker.fleet.chats import Taken
from worker.fleet.errors import StaleEpoch, StateUnavailable
from worker.fleet.records import KEPT_AFTER_END
from worker.fleet.redis_operations import connect_async, run_async
from worker.fleet.session import Session

logger = logging.getLogger(__name__)


class Outcome(StrEnum):
    """How a turn went, as Flower shows it."""

    #: Whoever wrote was told an answer, or why there is none.
    TOLD = "told"
    #: Nothing waited to be answered: it was, or nobody waits for it any more.
    VOID = "void"
    #: Another owner has the session.
    LOST = "lost"


class ChatService:
    """Belongs to one event loop, in which the connections to Redis and the model outlive a turn."""

    def __init__(self, settings: ChatSettings) -> None:
        self._settings = settings
        self._client = connect_async(settings.redis_url)
        self._openai = AsyncOpenAI(
            api_key=settings.openai_api_key,
            base_url=settings.openai_base_url or OPENAI_URL,
            max_retries=0,
            timeout=settings.provider_timeout,
        )
        self._search = open_search(settings, settings.knowledge_index) if settings.knowledge_index else None
        self._warming: asyncio.Task[None] | None = None

    async def answer(self, session_id: str, turn_id: str, *, owner: str) -> Outcome:
        """Answer the text, if this is who takes it; raises `StateUnavailable` when that cannot be known."""
        if self._search is not None and self._warming is None:
            self._warming = asyncio.create_task(self._search.warm())
        taken = await self._claim(session_id, turn_id, owner=owner)
        if taken is None:
            logger.info("nothing to answer", extra={"session": session_id})
            return Outcome.VOID
        correspondent = Correspondent(taken.session, turn_id, client=self._client)
        answering = asyncio.ensure_future(self._answer(turn_id, taken, correspondent))
        try:
            async with correspondent.waiting(on_lost=answering.cancel):
                return await answering
        except (StaleEpoch, StaleWriter, asyncio.CancelledError):
            logger.warning("another owner holds the session", extra={"session": session_id})
            return Outcome.LOST
        except (StateUnavailable, MemoryUnavailable) as error:
            await correspondent.tell_error("redis_unavailable", str(error))
        except Exception:
            await correspondent.tell_error("internal_error", "Something broke; the worker's log says what.")
            raise
        return Outcome.TOLD

    async def _claim(self, session_id: str, turn_id: str, *, owner: str) -> Taken | None:
        """Twice if need be: Redis may have hung up since the last turn, and what was taken is taken once."""
        step = chats.claim(session_id, turn_id, owner=owner)
        try:
            return await run_async(self._client, step)
        except StateUnavailable:
            return await run_async(self._client, step)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._search is not None:
            await self._search.aclose()
        await self._openai.close()
        await self._client.aclose()

    async def _answer(self, turn_id: str, taken: Taken, correspondent: Correspondent) -> Outcome:
        this = asyncio.current_task()
        assert this is not None
        lose = partial(_cancel, this)
        session = taken.session
        opened = open_conversation(
            session,
            client=self._client,
            redis_url=self._settings.redis_url,
            lifetime=KEPT_AFTER_END,
            on_lost=lose,
        )
        async with opened as conversation:
            begun = await conversation.load()
            async with self._writing(session, on_lost=lose) as transcript:
                # An answer that was stored before is told with this.
                transcript.cursor = begun.cursor
                agent = self._build_agent(session, begun, transcript)
                turn = TextTurn(
                    turn_id,
                    taken,
                    agent=agent,
                    transcript=transcript,
                    correspondent=correspondent,
                    settle=partial(conversation.compact, agent, transcript),
                )
                await turn.give()
        return Outcome.TOLD

    @asynccontextmanager
    async def _writing(self, session: Session, *, on_lost: Callable[[], None]) -> AsyncIterator[Transcript]:
        transcript = Transcript(session, client=self._client, lifetime=KEPT_AFTER_END, on_lost=on_lost)
        writing = asyncio.create_task(transcript.write())
        try:
            yield transcript
        finally:
            writing.cancel()
            with suppress(asyncio.CancelledError):
                await writing

    def _build_agent(self, session: Session, begun: entities.Session, transcript: Transcript) -> SupervisorAgent:
        return open_agent(
            session,
            begun,
            settings_of(session, self._settings),
            client=self._openai,
            open_ticket=RedisTickets(self._client, tenant=session.tenant),
            retrieval=Retrieval(self._search, budget=self._settings.retrieval_budget) if self._search else None,
            on_exchange=lambda exchange: transcript.add(exchange_turn(exchange)),
        )


def _cancel(task: "asyncio.Task[Outcome]") -> None:
    task.cancel()
