"""How an answer is cut for the voice while it is written."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
from livekit.agents.voice.transcription.filters import filter_markdown

from worker.call.clauses import ClauseTokenizer

PRICE = "The premium plan costs forty nine dollars a month, and it includes a router. You can cancel at any time."


async def tokens(text: str, *, piece: str = r"\S+\s*") -> list[str]:
    """The tokens of a text that arrives piece by piece."""
    stream = ClauseTokenizer().stream()
    for part in re.findall(piece, text, re.DOTALL):
        stream.push_text(part)
    stream.end_input()
    return [token.token async for token in stream]


@pytest.mark.parametrize("piece", [r".", r"\S+\s*", r".+"], ids=["characters", "words", "at once"])
async def test_the_first_clause_comes_first_and_then_sentences(piece: str) -> None:
    assert await tokens(PRICE, piece=piece) == [
        "The premium plan costs forty nine dollars a month,",
        "and it includes a router.",
        "You can cancel at any time.",
    ]


async def test_the_first_clause_is_there_before_its_sentence_is_written() -> None:
    stream = ClauseTokenizer().stream()
    stream.push_text("The premium plan costs forty nine dollars, ")
    assert (await anext(stream)).token == "The premium plan costs forty nine dollars,"
    await stream.aclose()


async def test_a_sentence_does_not_wait_for_the_next_one() -> None:
    """As LiveKit passes an answer on, with its Markdown taken out."""
    bridge, answer = "One moment, please. I will get a colleague. ", "The premium plan costs forty nine dollars. "
    stream, spoken = ClauseTokenizer().stream(), asyncio.Event()

    async def written() -> AsyncIterator[str]:
        yield bridge
        await spoken.wait()
        yield answer

    async def push() -> None:
        async for text in filter_markdown(written()):
            stream.push_text(text)
        stream.end_input()

    pushing = asyncio.create_task(push())
    assert (await anext(stream)).token == bridge.strip()
    spoken.set()
    assert [token.token async for token in stream] == [answer.strip()]
    await pushing


@pytest.mark.parametrize(
    "text", ["Your appointment is with Dr. Smith from our office.", "That makes a sum of 49.90 dollars a month."]
)
async def test_a_full_stop_that_ends_no_sentence_waits_for_what_it_belongs_to(text: str) -> None:
    assert await tokens(text, piece=".") == await tokens(text) == [text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes, we do. There is a free trial, for a month.", ["Yes, we do. There is a free trial, for a month."]),
        ("It costs 1,500 dollars in a year.", ["It costs 1,500 dollars in a year."]),
        ("We are open every day: from nine to five.", ["We are open every day:", "from nine to five."]),
        ("We open at nine every day - and close at five.", ["We open at nine every day -", "and close at five."]),
        ("It is a well-known problem of routers.", ["It is a well-known problem of routers."]),
        ("One moment please", ["One moment please"]),
        ("", []),
    ],
)
async def test_a_clause_is_cut_only_where_the_voice_may_pause(text: str, expected: list[str]) -> None:
    assert await tokens(text) == expected


async def test_no_word_is_lost_or_doubled() -> None:
    text = "Well, let me see, I have found\nyour order, from Monday. It is here; it is yours! Is that, all? 3,5 is: no"
    for piece in (r".", r"\S+\s*", r".{7}|.+"):
        assert " ".join(await tokens(text, piece=piece)).split() == text.split()


async def test_a_flush_gives_what_is_there() -> None:
    stream = ClauseTokenizer().stream()
    stream.push_text("One moment")
    stream.flush()
    stream.push_text("Here it is")
    stream.end_input()
    assert [token.token async for token in stream] == ["One moment", "Here it is"]


async def test_a_whole_text_is_cut_into_sentences_only() -> None:
    assert (
        ClauseTokenizer().tokenize(PRICE)[0]
        == "The premium plan costs forty nine dollars a month, and it includes a router."
    )
