"""A bot of Pipecat whose answers come from a team of Muster's specialists; here you type instead of speaking.

    OPENAI_API_KEY=sk-… python examples/pipecat_bot.py

OPENAI_BASE_URL and MUSTER_LLM_MODEL choose another server and model. For a call, a transport and a recogniser stand
before the user aggregator, and a voice and the transport's output in the place of `Terminal`, as in any bot of Pipecat.
"""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from loguru import logger
from openai import AsyncOpenAI
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    LLMFullResponseEndFrame,
    LLMMessagesAppendFrame,
    LLMTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

from graphs.entities import Transferred
from graphs.llm.openai import OpenAILLM
from graphs.supervisor import SupervisorAgent, build_supervisor
from graphs.tickets import SQLiteTickets
from muster.pipecat import AgentEventFrame, AgentLLMService


class Terminal(FrameProcessor):
    """Stands where a voice would stand: shows the words as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.answered = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMTextFrame):
            print(frame.text, end="", flush=True)
        elif isinstance(frame, AgentEventFrame) and isinstance(frame.event, Transferred):
            print(f" [{frame.event.source} → {frame.event.target}]", end="", flush=True)
        elif isinstance(frame, LLMFullResponseEndFrame):
            print(flush=True)
            self.answered.set()
        await self.push_frame(frame, direction)


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="pipecat-bot-") as folder:
        async with AsyncOpenAI() as client:
            llm = OpenAILLM(client, model=os.environ.get("MUSTER_LLM_MODEL", "gpt-4.1-mini"))
            await hold(build_supervisor(llm=llm, open_ticket=SQLiteTickets(Path(folder) / "tickets.db"), slots={}))


async def hold(agent: SupervisorAgent) -> None:
    """A pipeline around the agent, with lines of the standard input for its user until the input ends."""
    user, assistant = LLMContextAggregatorPair(LLMContext())
    terminal = Terminal()
    worker = PipelineWorker(Pipeline([user, AgentLLMService(agent), terminal, assistant]), enable_rtvi=False)

    @worker.event_handler("on_pipeline_error")
    async def show_error(worker: PipelineWorker, frame: ErrorFrame) -> None:
        print(f"! {frame.error}", flush=True)

    runner = WorkerRunner()
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    while line := await asyncio.to_thread(sys.stdin.readline):
        terminal.answered.clear()
        message = {"role": "user", "content": line.strip()}
        await worker.queue_frame(LLMMessagesAppendFrame(messages=[message], run_llm=True))
        await terminal.answered.wait()
    await worker.queue_frame(EndFrame())
    await running


if __name__ == "__main__":
    logger.remove()
    asyncio.run(main())
