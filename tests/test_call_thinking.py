"""Texts to a session that is on the phone: its owner answers them between what is spoken, in LiveKit's own pipeline."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from tests.open_fleet import client_of
from tests.scripted_llm import Step, says, transfers
from tests.test_call_drafts import Conversation, conversation
from worker.call.agent_llm import AgentLLM
from worker.call.thinking import Thinking
from worker.conversation.text_turns import is_written
from worker.fleet import chats, record_moves
from worker.fleet.chats import TurnState
from worker.fleet.redis_operations import run, run_async
from worker.fleet.session import State


class Line:
    """A call whose owner reads what is written to it, and whoever writes."""

    def __init__(self, redis_url: str, talk: Conversation, turn_ids: "asyncio.Queue[str]") -> None:
        self._redis_url = redis_url
        self.talk = talk
        self._turn_ids = turn_ids

    async def write(self, text: str) -> str:
        """Put a text into the session, and its command into the owner's hands; the turn's id."""
        turn_id = uuid.uuid4().hex
        session = self.talk.session
        written = await run_async(
            self.talk.client,
            chats.write(
                session.session_id,
                turn_id,
                tenant=session.tenant,
                user_id=session.user_id,
                text=text,
                digest=text,
                patience=5,
                command_lifetime=60,
            ),
        )
        assert written.way == "think"
        self._turn_ids.put_nowait(turn_id)
        return turn_id

    async def replies(self, turn_id: str, *, until: str) -> list[tuple[str, str]]:
        """The kind of each event and its text or code, up to one of the kind `until`."""
        key = chats.replies_key(self.talk.session.session_id, turn_id)
        async with asyncio.timeout(10):
            while True:
                entries: Any = await self.talk.client.xrange(key)
                told = [_told(fields) for _, fields in entries]
                if any(kind == until for kind, _ in told):
                    return told
                await asyncio.sleep(0.02)

    def state(self, turn_id: str) -> TurnState:
        with client_of(self._redis_url) as client:
            return run(client, chats.look(self.talk.session.session_id, turn_id)).state


def _told(fields: dict[str, str]) -> tuple[str, str]:
    data = json.loads(fields["data"])
    return fields["kind"], data.get("text") or data.get("code") or data.get("to") or ""


@asynccontextmanager
async def line(
    redis_url: str, *scripts: Sequence[Step], is_quiet: Callable[[], bool] = lambda: True
) -> AsyncIterator[Line]:
    async with conversation(redis_url, *scripts) as talk:
        live = record_moves.move(
            talk.session.session_id,
            State.LIVE,
            epoch=talk.session.epoch,
            owner=talk.session.owner,
            lifetime=60,
            stamp="first_audio_at",
        )
        await run_async(talk.client, live)
        assert isinstance(talk.voice.llm, AgentLLM)
        thinking = Thinking(
            talk.session, client=talk.client, agent_llm=talk.voice.llm, transcript=talk.transcript, is_quiet=is_quiet
        )
        turn_ids: asyncio.Queue[str] = asyncio.Queue()
        answering = asyncio.create_task(thinking.answer_all(turn_ids))
        try:
            yield Line(redis_url, talk, turn_ids)
        finally:
            answering.cancel()
            with suppress(asyncio.CancelledError):
                await answering


async def test_a_text_is_answered_in_text_and_the_voice_knows_of_it(redis_url: str) -> None:
    async with line(redis_url, says("Hello."), says("It is ", "written."), says("As I wrote.")) as open_line:
        talk = open_line.talk
        await talk.hear("Hi.")
        turn_id = await open_line.write("My number is 4711.")
        assert await open_line.replies(turn_id, until="done") == [
            ("begun", ""),
            ("text", "It is "),
            ("text", "written."),
            ("done", "It is written."),
        ]
        await talk.hear("What did I write?")

        assert [message.content for message in talk.model.requests[-1].messages[1:]] == [
            "Hi.",
            "Hello.",
            "My number is 4711.",
            "It is written.",
            "What did I write?",
        ]
        assert await talk.turns() == [
            ("user", "Hi."),
            ("assistant", "Hello."),
            ("user", "My number is 4711."),
            ("assistant", "It is written."),
            ("user", "What did I write?"),
            ("assistant", "As I wrote."),
        ]
        # Nothing of it was spoken.
        spoken = [item.text_content for item in talk.voice.history.items if item.type == "message"]
        assert spoken == ["Hi.", "Hello.", "What did I write?", "As I wrote."]


async def test_words_that_were_written_are_told_from_those_that_were_spoken(redis_url: str) -> None:
    async with line(redis_url, says("Hello."), says("It is written.")) as open_line:
        talk = open_line.talk
        await talk.hear("Hi.")
        turn_id = await open_line.write("My number is 4711.")
        await open_line.replies(turn_id, until="done")
        heard = [message.id for message in talk.agent.history if message.role == "user"]
        written = [await is_written(talk.client, talk.session.session_id, each) for each in heard]
        assert (heard[1], written) == (turn_id, [False, True])


async def test_a_hand_over_in_a_text_is_one_on_the_phone(redis_url: str) -> None:
    async with line(redis_url, transfers("sales"), says("Sales here."), says("Still sales.")) as open_line:
        turn_id = await open_line.write("A price, please.")
        await open_line.replies(turn_id, until="done")
        assert open_line.talk.agent.active == "sales"
        await open_line.talk.hear("And another?")
        assert "sales" in open_line.talk.model.requests[-1].system


async def test_a_voice_that_wants_an_answer_comes_first(redis_url: str) -> None:
    never = asyncio.Event()
    async with line(redis_url, [*says("Let me "), never, *says("see.")], says("Nine.")) as open_line:
        turn_id = await open_line.write("How many plans are there?")
        await open_line.replies(turn_id, until="text")
        async with asyncio.timeout(5):
            await open_line.talk.hear("When do you open?")

        assert (await open_line.replies(turn_id, until="done"))[-1] == ("done", "Let me ")
        assert open_line.state(turn_id) is TurnState.DONE
        assert sorted(await open_line.talk.turns()) == sorted(
            [
                ("user", "How many plans are there?"),
                ("assistant", "Let me "),
                ("user", "When do you open?"),
                ("assistant", "Nine."),
            ]
        )
        interrupted = {message.content: message.interrupted for message in open_line.talk.agent.history}
        assert interrupted["Let me "]
        assert not interrupted["Nine."]


async def test_a_text_whose_answer_has_not_begun_gives_way_and_is_remembered(redis_url: str) -> None:
    never = asyncio.Event()
    async with line(redis_url, [never, *says("See.")], says("Nine.")) as open_line:
        turn_id = await open_line.write("How many plans are there?")
        await open_line.replies(turn_id, until="begun")
        await asyncio.sleep(0.1)
        await open_line.talk.hear("When do you open?")

        assert (await open_line.replies(turn_id, until="error"))[-1] == ("error", "gave_way")
        asked = [message.content for message in open_line.talk.model.requests[-1].messages[1:]]
        assert asked == ["How many plans are there?", "When do you open?"]


async def test_a_text_waits_until_nobody_speaks(redis_url: str) -> None:
    speaking = True
    async with line(redis_url, says("Written."), is_quiet=lambda: not speaking) as open_line:
        turn_id = await open_line.write("Hello?")
        await asyncio.sleep(0.3)
        assert open_line.state(turn_id) is TurnState.TAKEN
        assert open_line.talk.model.requests == []
        speaking = False
        assert (await open_line.replies(turn_id, until="done"))[-1] == ("done", "Written.")


async def test_a_text_that_breaks_does_not_end_the_others(redis_url: str) -> None:
    async with line(redis_url, [RuntimeError("a defect")], says("Fine.")) as open_line:
        broken = await open_line.write("Hello?")
        assert (await open_line.replies(broken, until="error"))[-1] == ("error", "internal_error")
        whole = await open_line.write("Hello again?")
        assert (await open_line.replies(whole, until="done"))[-1] == ("done", "Fine.")
