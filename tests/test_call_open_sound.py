"""How an open turn sounds survives its owner: kept in a real Redis, and recognised by the next one."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest
import redis
from livekit import rtc
from livekit.agents import APIConnectionError, inference

from local.audio import SAMPLE_RATE, Samples, frames_of
from tests.fleet_sessions import new_session
from tests.recorded_speech import line, recorded_pieces
from tests.scripted_llm import says
from tests.scripted_stt import Answer, ScriptedSTT
from tests.test_call_drafts import conversation
from tests.test_early_stt import ONCE, holds
from worker.call.early_stt import EarlySTT
from worker.call.open_sound import OpenSound, cut_off_words
from worker.call.open_turn import OpenTurn
from worker.fleet import drafts, record_moves, records
from worker.fleet.drafts import Sound
from worker.fleet.errors import SessionNotFound, StaleEpoch
from worker.fleet.redis_operations import connect, connect_async, run
from worker.fleet.session import Session

RATE = 24_000

pieces = pytest.fixture(scope="module")(recorded_pieces)


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis"]:
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def session(client: "redis.Redis") -> Session:
    """A session that has an owner."""
    session = new_session()
    run(client, record_moves.create(session, lifetime=60))
    return run(client, record_moves.claim(session.session_id, epoch=1, owner="owner@test#0", lifetime=60))


def sound(value: int, *, seconds: float = 0.1) -> Sound:
    return Sound(RATE, np.full(round(seconds * RATE), value, np.int16).tobytes())


def frame(value: int) -> rtc.AudioFrame:
    return rtc.AudioFrame(sound(value).samples, RATE, 1, RATE // 10)


def values(kept: Sequence[Sound]) -> list[int]:
    """The different samples of what was kept, in order."""
    samples = np.frombuffer(b"".join(piece.samples for piece in kept), np.int16)
    return [int(value) for index, value in enumerate(samples) if not index or value != samples[index - 1]]


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(3):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def keeping(redis_url: str, session: Session, *, is_owner: bool = True) -> AsyncIterator[OpenTurn]:
    async with connect_async(redis_url) as client:
        kept = OpenSound(session, client=client, is_owner=lambda: is_owner)
        task = asyncio.create_task(kept.keep())
        try:
            yield OpenTurn(session, client=client, sound=kept)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def test_the_sound_is_the_owner_s_alone(client: "redis.Redis", session: Session) -> None:
    assert run(client, drafts.append_sound(session, sound(1)))
    for stranger in (replace(session, epoch=2), replace(session, owner="stranger@test#0")):
        for step in (drafts.append_sound(stranger, sound(9)), drafts.forget_sound(stranger)):
            with pytest.raises(StaleEpoch):
                run(client, step)
    with pytest.raises(SessionNotFound):
        run(client, drafts.append_sound(new_session(), sound(9)))
    assert run(client, drafts.append_sound(session, sound(2)))
    assert run(client, drafts.read_sound(session.session_id)) == [sound(1), sound(2)]
    run(client, drafts.forget_sound(session))
    assert run(client, drafts.read_sound(session.session_id)) == []


def test_no_write_makes_the_sound_stay_longer(client: "redis.Redis", session: Session) -> None:
    key = records.draft_audio_key(session.session_id)
    run(client, drafts.append_sound(session, sound(1)))
    assert 0 < client.pttl(key) <= 1000 * drafts.KEPT
    client.pexpire(key, 5000)
    run(client, drafts.append_sound(session, sound(2)))
    assert 0 < client.pttl(key) <= 5000


def test_of_a_speech_only_the_first_seconds_are_kept(client: "redis.Redis", session: Session) -> None:
    kept = [run(client, drafts.append_sound(session, sound(1, seconds=1))) for _ in range(20)]
    whole = run(client, drafts.read_sound(session.session_id))
    assert kept == sorted(kept, reverse=True)
    assert drafts.LONGEST_SOUND - 1 <= sum(each.seconds for each in whole) <= drafts.LONGEST_SOUND


def test_the_turn_that_is_stored_takes_the_place_of_its_sound(client: "redis.Redis", session: Session) -> None:
    run(client, drafts.append_sound(session, sound(1)))
    run(client, records.append_turn(session, {"role": "assistant", "text": "Yes?"}, lifetime=60))
    with pytest.raises(StaleEpoch):
        run(client, records.append_turn(replace(session, epoch=0), {"role": "user", "text": "Tea."}, lifetime=60))
    assert run(client, drafts.read_sound(session.session_id)) == [sound(1)]
    run(client, records.append_turn(session, {"role": "user", "text": "Tea."}, lifetime=60))
    assert run(client, drafts.read_sound(session.session_id)) == []


async def test_what_is_heard_of_a_turn_is_kept_in_order_and_is_in_no_log(
    redis_url: str, client: "redis.Redis", session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with keeping(redis_url, session) as open_turn:
        open_turn.sounds([frame(1)])
        await until(lambda: values(run(client, drafts.read_sound(session.session_id))) == [1])
        open_turn.sounds(map(frame, [2, 3]))
        await until(lambda: values(run(client, drafts.read_sound(session.session_id))) == [1, 2, 3])
        run(client, records.append_turn(session, {"role": "user", "text": "Tea."}, lifetime=60))
        open_turn.sounds([frame(5)])
        open_turn.close("Tea.")
        open_turn.sounds([frame(6)])
        await until(lambda: values(run(client, drafts.read_sound(session.session_id))) == [6])
    assert [record for record in caplog.records if record.name.startswith("worker")] == []


async def test_who_stands_by_keeps_no_sound(redis_url: str, client: "redis.Redis", session: Session) -> None:
    async with keeping(redis_url, session, is_owner=False) as open_turn:
        open_turn.sounds([frame(1)])
        await asyncio.sleep(0.3)
    assert run(client, drafts.read_sound(session.session_id)) == []


async def test_what_was_no_speech_is_not_kept_and_what_had_words_before_is(
    redis_url: str, client: "redis.Redis", session: Session
) -> None:
    async with keeping(redis_url, session) as open_turn:
        open_turn.sounds([frame(1)])
        await until(lambda: bool(run(client, drafts.read_sound(session.session_id))))
        open_turn.was_wordless()
        await until(lambda: not run(client, drafts.read_sound(session.session_id)))
        open_turn.cut_off = "I would"
        open_turn.sounds([frame(2)])
        open_turn.was_wordless()
        await until(lambda: values(run(client, drafts.read_sound(session.session_id))) == [2])


class Listener:
    """Collects what it is told."""

    def __init__(self) -> None:
        self.frames: list[rtc.AudioFrame] = []
        self.wordless = 0

    def sounds(self, frames: Iterable[rtc.AudioFrame]) -> None:
        self.frames.extend(frames)

    def was_wordless(self) -> None:
        self.wordless += 1


async def follow(samples: Samples, recogniser: ScriptedSTT) -> Listener:
    """What a listener is told of a recording by LiveKit's own voice activity detection."""
    listener = Listener()
    early_stt = EarlySTT(recogniser, vad=inference.VAD(), early=0, listener=listener)
    async with asyncio.timeout(30), early_stt.stream(conn_options=ONCE) as stream:
        for each in frames_of(samples):
            stream.push_frame(rtc.AudioFrame(each.tobytes(), SAMPLE_RATE, 1, len(each)))
        stream.end_input()
        async for _ in stream:
            pass
    await early_stt.aclose()
    return listener


async def test_a_listener_hears_every_utterance_from_its_beginning(pieces: Sequence[Samples]) -> None:
    listener = await follow(line(0.5, pieces[0], 1.5, pieces[1], 1.0), ScriptedSTT("One.", "Two."))
    heard = np.frombuffer(b"".join(bytes(each.data) for each in listener.frames), np.int16)
    assert holds(heard, pieces[0]) and holds(heard, pieces[1])
    assert listener.wordless == 0


async def test_a_listener_hears_a_sentence_that_breaks_off(pieces: Sequence[Samples]) -> None:
    half = pieces[0][: len(pieces[0]) // 2]
    listener = await follow(line(0.5, half), ScriptedSTT())
    heard = np.frombuffer(b"".join(bytes(each.data) for each in listener.frames), np.int16)
    # A detection sees whole windows only.
    assert holds(heard, half[: -SAMPLE_RATE // 10])


async def test_a_listener_is_told_that_there_were_no_words(pieces: Sequence[Samples]) -> None:
    assert (await follow(line(0.5, pieces[0], 1.0), ScriptedSTT(""))).wordless == 1


@pytest.mark.parametrize(
    ("draft", "by_sound", "whole"),
    [
        ("", "I would like", "I would like"),
        ("I would", "I would like tea.", "I would like tea."),
        ("I would like", "I would like", "I would like"),
        ("What was too long to be kept", "What was too long", "What was too long to be kept"),
        ("I would", APIConnectionError("broken"), "I would"),
        ("", "", ""),
    ],
)
async def test_the_next_owner_has_the_words_that_were_said_once(
    redis_url: str, client: "redis.Redis", session: Session, draft: str, by_sound: Answer, whole: str
) -> None:
    run(client, drafts.write(session, draft))
    run(client, drafts.append_sound(session, sound(1, seconds=0.2)))
    run(client, drafts.append_sound(session, sound(2, seconds=0.2)))
    recogniser = ScriptedSTT(by_sound)
    async with connect_async(redis_url) as connection:
        assert await cut_off_words(session, client=connection, recogniser=recogniser) == whole
    assert [len(samples) for samples in recogniser.heard] == [RATE * 4 // 10]
    assert list(recogniser.heard[0][:: RATE // 5]) == [1, 2]


async def test_without_sound_or_with_its_last_piece_only_nothing_is_recognised(
    redis_url: str, client: "redis.Redis", session: Session
) -> None:
    run(client, drafts.write(session, "I would"))
    async with connect_async(redis_url) as connection:
        assert await cut_off_words(session, client=connection, recogniser=ScriptedSTT()) == "I would"
        run(client, drafts.append_sound(session, sound(0, seconds=0.15)))
        assert await cut_off_words(session, client=connection, recogniser=ScriptedSTT()) == "I would"


async def test_a_turn_that_is_over_first_waits_for_what_was_cut_off(redis_url: str) -> None:
    async with conversation(redis_url, says("Forty nine.")) as talk:
        words: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        recovering = asyncio.create_task(talk.open_turn.recover(words))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.2, words.set_result, "How much is")
        await talk.hear("the premium plan?")
        await recovering
        assert await talk.turns() == [("user", "How much is the premium plan?"), ("assistant", "Forty nine.")]
