"""The baton: what the caller says while two agents listen is answered once, or dropped when it was answered."""

import asyncio
from contextlib import suppress

from graphs.entities import Message
from tests.scripted_llm import says
from tests.test_call_drafts import conversation
from worker.call.baton import Baton


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Listener:
    """A successor's baton, and a caller who speaks."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.baton = Baton(is_held=False, clock=self.clock)

    def after(self, seconds: float) -> None:
        self.clock.now += seconds

    async def hear(self, *, seconds: float = 1.0) -> "asyncio.Task[bool]":
        """A turn of the caller's that is over; the task tells whether it is answered."""
        self.baton.user_state_changed(True)
        self.after(seconds)
        self.baton.user_state_changed(False)
        self.after(0.4)
        parked = asyncio.create_task(self.baton.may_answer())
        await asyncio.sleep(0)
        return parked


async def test_a_turn_that_the_owner_has_made_its_own_is_dropped_at_once() -> None:
    listener = Listener()
    parked = await listener.hear()
    assert not parked.done()
    listener.after(0.1)
    listener.baton.owner_committed()
    assert await parked is False


async def test_the_wordless_end_of_a_turn_that_the_owner_has_answered_is_not_the_beginning_of_the_next_one() -> None:
    listener = Listener()
    # It came when the caller had almost said all: what it heard brought no words, and so no turn.
    listener.baton.user_state_changed(True)
    listener.after(0.3)
    listener.baton.user_state_changed(False)
    listener.after(0.6)
    listener.baton.owner_committed()
    listener.after(1.5)
    listener.baton.take(is_open=False)
    listener.after(0.5)
    assert await (await listener.hear()) is True


async def test_a_turn_in_whose_middle_the_baton_was_passed_is_answered() -> None:
    listener = Listener()
    listener.baton.owner_committed()
    listener.after(5)
    parked = await listener.hear()
    listener.baton.take(is_open=True)
    assert await parked is True


async def test_a_turn_that_the_owner_had_nothing_open_of_is_dropped_at_the_pass() -> None:
    listener = Listener()
    parked = await listener.hear()
    listener.after(0.1)
    listener.baton.take(is_open=False)
    assert await parked is False


async def test_a_turn_that_ends_after_a_pass_between_turns_is_answered() -> None:
    listener = Listener()
    listener.baton.user_state_changed(True)
    listener.after(0.1)
    listener.baton.take(is_open=False)
    listener.after(1)
    listener.baton.user_state_changed(False)
    listener.after(0.4)
    assert await listener.baton.may_answer() is True
    listener.after(3)
    assert await (await listener.hear()) is True


async def test_a_sentence_that_is_said_while_the_baton_is_being_taken_is_answered() -> None:
    listener = Listener()
    passed_at = listener.baton.now()
    listener.after(0.2)
    parked = await listener.hear()
    listener.after(0.5)
    assert not parked.done()
    listener.baton.take(is_open=False, passed_at=passed_at)
    assert await parked is True


async def test_a_turn_that_begins_after_the_owner_s_last_one_is_answered_also_when_that_is_read_late() -> None:
    listener = Listener()
    committed_at = listener.baton.now()
    listener.after(0.2)
    parked = await listener.hear()
    listener.baton.owner_committed(at=committed_at)
    listener.baton.take(is_open=True)
    assert await parked is True


async def test_who_answers_takes_no_stored_turn_for_the_last_owner_s() -> None:
    listener = Listener()
    listener.baton.take(is_open=True)
    listener.baton.user_state_changed(True)
    listener.after(1)
    # The turn before, which this agent has stored itself, is read back in the middle of the next one.
    listener.baton.owner_committed()
    listener.baton.user_state_changed(False)
    listener.after(0.4)
    assert await listener.baton.may_answer() is True


async def test_who_is_giving_the_baton_parks_what_it_hears_until_it_is_known_who_answers() -> None:
    baton = Baton(is_held=True)
    assert await baton.may_answer() is True
    for is_taken_back in (True, False):
        baton.give()
        parked = asyncio.create_task(baton.may_answer())
        await asyncio.sleep(0)
        assert not parked.done()
        if is_taken_back:
            baton.take_back()
        else:
            baton.lose()
        assert await parked is is_taken_back
    assert await baton.may_answer() is False


async def test_a_parked_turn_of_one_who_never_gets_the_baton_goes_with_it() -> None:
    listener = Listener()
    parked = await listener.hear()
    parked.cancel()
    with suppress(asyncio.CancelledError):
        await parked
    assert parked.cancelled()


def test_the_baton_is_passed_between_turns_or_in_one_that_the_successor_has_heard_whole() -> None:
    clock = Clock()
    baton = Baton(is_held=True, clock=clock)
    assert baton.is_between_turns(heard_since=clock.now)
    baton.user_state_changed(True)
    clock.now += 1
    assert not baton.is_between_turns(heard_since=clock.now), "the successor has missed its beginning"
    assert baton.is_between_turns(heard_since=clock.now - 2)
    assert baton.is_open


async def test_between_a_turn_and_its_reply_the_baton_stays() -> None:
    clock = Clock()
    baton = Baton(is_held=True, clock=clock)
    assert await baton.may_answer()
    clock.now += 1
    assert not baton.is_between_turns(heard_since=0)
    baton.agent_listens()
    assert baton.is_between_turns(heard_since=0)


def test_a_sound_without_words_keeps_the_baton_for_three_seconds() -> None:
    clock = Clock()
    baton = Baton(is_held=True, clock=clock)
    baton.user_state_changed(True)
    clock.now += 0.2
    baton.user_state_changed(False)
    heard_since = clock.now
    assert not baton.is_between_turns(heard_since=heard_since)
    clock.now += 3.1
    assert baton.is_between_turns(heard_since=heard_since)


async def test_a_turn_whose_words_come_late_keeps_the_baton_until_it_is_answered() -> None:
    clock = Clock()
    baton = Baton(is_held=True, clock=clock)
    heard_since = clock.now
    baton.user_state_changed(True)
    clock.now += 1
    baton.user_state_changed(False)
    baton.recognition.asked()
    clock.now += 5.5
    assert not baton.is_between_turns(heard_since=heard_since), "the words are still to come"
    assert baton.is_open
    baton.recognition.told()
    clock.now += 0.5
    assert not baton.is_between_turns(heard_since=heard_since), "the turn is just ending"
    assert await baton.may_answer()


def test_a_sound_of_which_recognition_brought_no_words_keeps_the_baton_for_three_seconds_more() -> None:
    clock = Clock()
    baton = Baton(is_held=True, clock=clock)
    baton.user_state_changed(True)
    baton.user_state_changed(False)
    baton.recognition.asked()
    clock.now += 5
    baton.recognition.told()
    clock.now += 3.1
    assert baton.is_between_turns(heard_since=0)
    assert not baton.is_open


def test_audio_flows_after_six_frames_without_a_gap() -> None:
    baton, clock = Baton(is_held=False), Clock()
    baton.ear._clock = clock
    for gap in (0.05, 0.4, 0.05, 0.05, 0.05, 0.05):
        clock.now += gap
        baton.ear.frame_arrived()
    assert not baton.ear.hears.is_set()
    clock.now += 0.05
    baton.ear.frame_arrived()
    assert baton.ear.hears.is_set()


async def test_a_parked_draft_is_answered_with_what_the_last_owner_has_said(redis_url: str) -> None:
    baton = Baton(is_held=False)
    history = [
        Message(id="1", role="user", content="Hello."),
        Message(id="2", role="assistant", content="Good evening.", specialist="sales"),
    ]
    async with conversation(redis_url, says("It is nine."), baton=baton) as talk:
        talk.hear_draft("And what time is it?")
        hearing = asyncio.create_task(talk.hear("And what time is it?"))
        await asyncio.sleep(0.2)
        assert talk.model.requests == []
        assert await talk.turns() == []
        talk.agent.restore(history, active="sales")
        baton.take(is_open=True)
        await hearing
        assert await talk.turns() == [("user", "And what time is it?"), ("assistant", "It is nine.")]
        assert len(talk.model.requests) == 1
        assert "Good evening." in str(talk.model.requests[0])
    assert talk.agent.active == "sales"


async def test_a_parked_turn_that_the_owner_has_answered_leaves_no_trace(redis_url: str) -> None:
    baton = Baton(is_held=False)
    async with conversation(redis_url, says("Never said."), baton=baton) as talk:
        talk.hear_draft("What time is it?")
        hearing = asyncio.create_task(talk.hear("What time is it?"))
        await asyncio.sleep(0.2)
        baton.owner_committed()
        await asyncio.sleep(0.1)
        assert not talk.answered.is_set()
        hearing.cancel()
        with suppress(asyncio.CancelledError):
            await hearing
        assert await talk.turns() == []
        assert talk.model.requests == []
