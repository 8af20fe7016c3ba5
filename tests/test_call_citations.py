"""The turn stream of a call names the passages that lay before the model, and no others."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from livekit.agents import ConversationItemAddedEvent, llm

from graphs.entities import Passage, PassagesMissed, PassagesOffered
from graphs.supervisor import build_supervisor
from graphs.tickets import SQLiteTickets
from muster.client import Citation, MusterClient, Turn
from tests.fleet_sessions import new_session
from tests.open_fleet import agent_service, claim, client_of
from tests.scripted_llm import ScriptedLLM
from worker.call.timings import TurnClock
from worker.call.voice_agent import VoiceAgent
from worker.conversation.transcript import Transcript
from worker.fleet import record_moves
from worker.fleet.redis_operations import connect_async, run
from worker.fleet.session import Session

PARKING = Passage("faq.md#1", "faq.md", "FAQ > Parking", "Behind the building.", 2.0)
HOURS = Passage("faq.md#2", "faq.md", "FAQ > Hours", "From nine to six.", 1.0)

Talk = Callable[[VoiceAgent], Awaitable[None]]


@pytest.fixture
def session(redis_url: str) -> Session:
    """A claimed session."""
    queued = new_session()
    with client_of(redis_url) as client:
        run(client, record_moves.create(queued, lifetime=60))
    return claim(redis_url, queued.session_id)


async def turns_of(talk: Talk, session: Session, *, redis_url: str, folder: Path) -> tuple[Turn, ...]:
    """What the agent service tells a client about `talk`."""
    async with connect_async(redis_url) as client:
        transcript = Transcript(session, client=client, lifetime=60, on_lost=pytest.fail)
        writing = asyncio.create_task(transcript.write())
        agent = build_supervisor(llm=ScriptedLLM(), open_ticket=SQLiteTickets(folder / "tickets.db"), slots={})
        await talk(VoiceAgent(agent, transcript=transcript, clock=TurnClock()))
        assert await transcript.flush(timeout=5)
        writing.cancel()
        with suppress(asyncio.CancelledError):
            await writing
    with MusterClient("http://localhost", transport=httpx.WSGITransport(app=agent_service(redis_url))) as muster:
        return muster.turns(session.session_id).turns


async def ask(agent: VoiceAgent, text: str) -> str:
    """The caller's turn is over; its id."""
    message = llm.ChatMessage(role="user", content=[text])
    await agent.on_user_turn_completed(llm.ChatContext(), message)
    return message.id


def hear(agent: VoiceAgent, text: str, *, by_model: bool = True) -> None:
    """The caller has heard a reply of the model, or a fixed phrase."""
    metrics: llm.MetricsReport = {"llm_node_ttft": 0.1} if by_model else {}
    message = llm.ChatMessage(role="assistant", content=[text], metrics=metrics)
    agent.item_added(ConversationItemAddedEvent(item=message))


def cited(turns: tuple[Turn, ...]) -> list[tuple[str | None, list[str]]]:
    return [(turn.text, [each.passage_id for each in turn.citations]) for turn in turns if turn.role != "event"]


async def test_an_answer_names_the_passages_of_its_own_turn(session: Session, redis_url: str, tmp_path: Path) -> None:
    async def talk(agent: VoiceAgent) -> None:
        hear(agent, "Hello.", by_model=False)
        turn_id = await ask(agent, "Is there parking?")
        agent.observe(turn_id, PassagesOffered((PARKING, HOURS)), 0.0)
        agent.observe(turn_id, PassagesOffered((PARKING,)), 0.0)
        hear(agent, "Behind the building.")
        await ask(agent, "Thank you.")
        hear(agent, "Gladly.")

    turns = await turns_of(talk, session, redis_url=redis_url, folder=tmp_path)
    assert cited(turns) == [
        ("Hello.", []),
        ("Is there parking?", []),
        ("Behind the building.", ["faq.md#1", "faq.md#2"]),
        ("Thank you.", []),
        ("Gladly.", []),
    ]
    assert turns[2].citations[0] == Citation(source="faq.md", title="FAQ > Parking", passage_id="faq.md#1")


async def test_an_apology_for_a_failed_answer_names_nothing(session: Session, redis_url: str, tmp_path: Path) -> None:
    async def talk(agent: VoiceAgent) -> None:
        turn_id = await ask(agent, "Is there parking?")
        agent.observe(turn_id, PassagesOffered((PARKING,)), 0.0)
        hear(agent, "Sorry, again please.", by_model=False)

    turns = await turns_of(talk, session, redis_url=redis_url, folder=tmp_path)
    assert cited(turns) == [("Is there parking?", []), ("Sorry, again please.", [])]


async def test_a_turn_that_went_on_without_passages_says_why(session: Session, redis_url: str, tmp_path: Path) -> None:
    async def talk(agent: VoiceAgent) -> None:
        turn_id = await ask(agent, "Is there parking?")
        agent.observe(turn_id, PassagesMissed("too_slow"), 0.0)
        hear(agent, "I do not know.")

    turns = await turns_of(talk, session, redis_url=redis_url, folder=tmp_path)
    (event,) = (turn.event for turn in turns if turn.event)
    assert (event.kind, event.name) == ("passages_missed", "too_slow")
    assert cited(turns)[-1] == ("I do not know.", [])
