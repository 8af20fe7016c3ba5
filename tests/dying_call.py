"""A call without audio in a process that tests kill: LiveKit's pipeline, the graph and the turn stream are real.

`python -m tests.dying_call SESSION` claims the queued session, hears each line of standard input as a caller's turn,
drafts included, and prints `completed` when the turn's words are stored and `answered` when its reply is.
"""

import asyncio
import sys
from functools import partial

from livekit.agents import AgentSession, ConversationItemAddedEvent, TurnHandlingOptions, llm
from livekit.agents.voice.audio_recognition import _EndOfTurnInfo, _EndOfTurnMetrics, _PreemptiveGenerationInfo
from openai import AsyncOpenAI

from graphs.llm.openai import OpenAILLM
from graphs.supervisor import build_supervisor
from graphs.tickets import RedisTickets
from worker.call.agent_llm import AgentLLM
from worker.call.settings import AgentSettings
from worker.call.timings import TurnClock
from worker.call.voice_agent import VoiceAgent
from worker.conversation.continuing import open_conversation
from worker.conversation.transcript import Transcript, exchange_turn
from worker.fleet import record_moves
from worker.fleet.redis_operations import connect_async, run_async

OWNER = "dying@test#1"
#: Seconds between a draft and the end of the turn.
_DRAFT_AHEAD = 0.1


class _Told(VoiceAgent):
    async def on_user_turn_completed(self, turn_ctx: llm.ChatContext, new_message: llm.ChatMessage) -> None:
        await super().on_user_turn_completed(turn_ctx, new_message)
        print("completed", flush=True)


def _lost() -> None:
    raise SystemExit("another owner holds the session")


async def _hear(voice: "AgentSession[None]", text: str) -> None:
    activity = voice._activity
    assert activity is not None
    draft = text.rpartition(" ")[0]
    activity.on_preemptive_generation(
        _PreemptiveGenerationInfo(new_transcript=draft, transcript_confidence=1.0, started_speaking_at=None)
    )
    await asyncio.sleep(_DRAFT_AHEAD)
    metrics = _EndOfTurnMetrics(
        started_speaking_at=None, stopped_speaking_at=None, transcription_delay=None, end_of_turn_delay=None
    )
    info = _EndOfTurnInfo(skip_reply=False, new_transcript=text, transcript_confidence=1.0, metrics=metrics)
    activity._user_turn_completed_atask = asyncio.create_task(activity._user_turn_completed_task(None, info))
    await activity._user_turn_completed_atask


async def main(session_id: str) -> None:
    settings = AgentSettings.from_env()
    async with connect_async(settings.redis_url) as client:
        session = await run_async(client, record_moves.claim(session_id, epoch=1, owner=OWNER, lifetime=600))
        opened = open_conversation(session, client=client, redis_url=settings.redis_url, lifetime=600, on_lost=_lost)
        async with opened as conversation:
            transcript = Transcript(session, client=client, lifetime=600, on_lost=_lost)
            openai = AsyncOpenAI(api_key=settings.openai_api_key, base_url=settings.openai_base_url, max_retries=0)
            agent = build_supervisor(
                llm=OpenAILLM(openai, model=settings.llm_model, timeout=settings.provider_timeout),
                open_ticket=RedisTickets(client, tenant=session.tenant),
                slots=session.metadata,
                on_exchange=lambda exchange: transcript.add(exchange_turn(exchange)),
            )
            writing = asyncio.create_task(transcript.write(then=partial(conversation.compact, agent, transcript)))
            voice_agent = _Told(agent, transcript=transcript, clock=TurnClock())
            voice: AgentSession[None] = AgentSession(
                llm=AgentLLM(agent, observe=voice_agent.observe, warm=openai.models.list),
                vad=None,
                turn_handling=TurnHandlingOptions(turn_detection="manual", preemptive_generation={"enabled": True}),
            )
            answered = asyncio.Event()

            def item_added(event: ConversationItemAddedEvent) -> None:
                voice_agent.item_added(event)
                if isinstance(event.item, llm.ChatMessage) and event.item.role == "assistant":
                    answered.set()

            voice.on("conversation_item_added", item_added)
            await voice.start(voice_agent)
            while line := await asyncio.to_thread(sys.stdin.readline):
                answered.clear()
                await _hear(voice, line.strip())
                await answered.wait()
                assert await transcript.flush(timeout=5)
                print("answered", flush=True)
            await voice.aclose()
            writing.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
