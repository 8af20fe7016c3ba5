"""Text turns through a real agent service, a real chat worker and a real Redis; the model is the stand-in's."""

import io
import threading
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import httpx
import pytest
from rich.console import Console

from muster.chatting import run_chat
from muster.client import ChatEvent
from muster.errors import ChatTurnNotFound, IdempotencyKeyReused, SessionBusy, SessionNotFound
from tests.chat_fleet import ChatFleet, ChatWorker, kinds, open_chat_fleet, text_of
from tests.fleet_workers import keys_without_expiry, wait_until
from worker.conversation.transcript import Turn
from worker.fleet.session import Reason, State

PRICE = "How much is the premium plan?"
HOURS = "When do you open?"


@pytest.fixture(scope="module")
def fleet(redis_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatFleet]:
    directory = tmp_path_factory.mktemp("chat")
    with open_chat_fleet(redis_database, number=9, directory=directory, MUSTER_CHAT_PATIENCE="3") as fleet:
        yield fleet


@pytest.fixture(scope="module", autouse=True)
def worker(fleet: ChatFleet) -> Iterator[ChatWorker]:
    with fleet.worker() as worker:
        yield worker


@pytest.fixture(autouse=True)
def _open_gate(fleet: ChatFleet) -> Iterator[None]:
    yield
    fleet.model.gate.set()


def session_of(events: list[ChatEvent]) -> str:
    assert events[0].session_id is not None
    return events[0].session_id


class Writing:
    """A text that is written while the test goes on."""

    def __init__(self, fleet: ChatFleet, text: str, session_id: str | None = None) -> None:
        self.events: list[ChatEvent] = []
        self._thread = threading.Thread(target=self._write, args=(fleet, text, session_id))
        self._thread.start()

    def _write(self, fleet: ChatFleet, text: str, session_id: str | None) -> None:
        for event in fleet.client.chat(text, user_id="caller", session_id=session_id):
            self.events.append(event)

    def wait_for(self, kind: str) -> None:
        wait_until(lambda: any(event.kind == kind for event in self.events), within=10, what=lambda: self.events)

    def finish(self) -> list[ChatEvent]:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.events


def test_a_text_makes_a_session_and_is_answered_as_it_is_thought(fleet: ChatFleet) -> None:
    events = fleet.say(PRICE, metadata={"name": "Sam"})

    assert kinds(events) == ["session", "begun", "text", "transfer", "tool", "text", "done"]
    session_id, done = session_of(events), events[-1]
    assert sum(event.kind == "text" for event in events) > 5
    assert done.text == text_of(events)
    assert "forty nine dollars" in done.text
    assert (done.specialist, done.interrupted) == ("sales", False)
    assert done.usage is not None
    assert done.usage.completion_tokens > 0
    session = fleet.client.session(session_id)
    assert (session.status, session.room, session.reason, session.epoch) == ("chat", None, None, 1)
    assert session_id in [listed.session_id for listed in fleet.client.sessions(state="chat")]
    turns = fleet.client.turns(session_id).turns
    spoken = [(turn.role, turn.channel, turn.text) for turn in turns if turn.role != "event"]
    assert spoken == [("user", "chat", PRICE), ("assistant", "chat", done.text)]
    assert [turn.event.kind for turn in turns if turn.event] == ["transfer", "tool"]
    assert turns[-1].cursor == done.cursor


def test_a_session_of_text_remembers_and_stays_with_its_specialist(fleet: ChatFleet) -> None:
    session_id = session_of(fleet.say(PRICE))

    events = fleet.say("And the family plan?", session_id)

    assert events[1].specialist == "sales"
    assert "transfer" not in kinds(events)
    said = [message["content"] for message in fleet.model.requests[-1] if message["role"] == "user"]
    assert said == [PRICE, "And the family plan?"]
    assert [role for role, _ in fleet.words(session_id)] == ["user", "assistant"] * 2


def test_an_ended_call_is_continued_and_its_end_left_alone(fleet: ChatFleet) -> None:
    said = [
        Turn(item_id="item_1", role="user", at=1.0, turn_id="item_1", text=PRICE, specialist="sales"),
        Turn(item_id="item_2", role="assistant", at=2.0, turn_id="item_1", text="It costs", specialist="sales",
             interrupted=True),
    ]  # fmt: skip
    call = fleet.ended_call(*map(asdict, said))

    events = fleet.say("And the family plan?", call.session_id)

    assert (events[0].status, events[1].specialist, events[-1].kind) == ("ended", "sales", "done")
    asked = [(message["role"], message["content"]) for message in fleet.model.requests[-1]]
    assert ("user", PRICE) in asked
    assert "Sam" in asked[0][1]
    after = fleet.read(call.session_id)
    assert (after.state, after.reason, after.ended_at) == (State.ENDED, Reason.CALLER_LEFT, call.ended_at)
    assert after.epoch == call.epoch + 1
    turns = fleet.client.turns(call.session_id).turns
    assert [(turn.role, turn.channel) for turn in turns if turn.role != "event"] == [
        ("user", "voice"),
        ("assistant", "voice"),
        ("user", "chat"),
        ("assistant", "chat"),
    ]


def test_a_text_to_a_call_is_answered_by_the_agent_that_was_configured_for_it(fleet: ChatFleet) -> None:
    call = fleet.ended_call(configuration={"specialists": ["tech_support"], "model": "another-model"})

    events = fleet.say("My router is broken.", call.session_id)

    assert (events[1].specialist, events[-1].kind, events[-1].specialist) == ("tech_support", "done", "tech_support")


def test_a_second_text_is_refused_while_one_is_answered(fleet: ChatFleet) -> None:
    session_id = session_of(fleet.say(HOURS))
    fleet.model.gate.clear()
    first = Writing(fleet, PRICE, session_id)
    first.wait_for("begun")

    with pytest.raises(SessionBusy) as refused:
        fleet.say("And the family plan?", session_id)

    assert (refused.value.code, refused.value.status) == ("turn_in_progress", 409)
    assert refused.value.retry_after is not None
    assert 1 <= refused.value.retry_after <= 5
    fleet.model.gate.set()
    assert first.finish()[-1].kind == "done"
    assert fleet.say("And the family plan?", session_id)[-1].kind == "done"


def test_of_many_texts_at_once_each_is_answered_alone_or_refused(fleet: ChatFleet) -> None:
    session_id = session_of(fleet.say(HOURS))
    answered: list[str] = []
    refused: list[str] = []

    def write(number: int) -> None:
        try:
            events = fleet.say(f"How much is plan number {number}?", session_id)
        except SessionBusy as error:
            refused.append(error.code)
        else:
            answered.append(events[-1].kind)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(answered) + len(refused) == 8
    assert set(answered) == {"done"}
    assert set(refused) <= {"turn_in_progress"}
    words = fleet.words(session_id)
    assert [role for role, _ in words] == ["user", "assistant"] * (1 + len(answered))
    assert len({text for role, text in words if role == "user"}) == 1 + len(answered)


def test_the_same_key_writes_one_text_and_tells_its_answer_again(fleet: ChatFleet) -> None:
    first = fleet.say(PRICE, idempotency_key="once")
    again = fleet.say(PRICE, idempotency_key="once")

    assert again[1:] == first[1:]
    assert session_of(again) == session_of(first)
    assert [role for role, _ in fleet.words(session_of(first))] == ["user", "assistant"]
    with pytest.raises(IdempotencyKeyReused):
        fleet.say(HOURS, idempotency_key="once")
    # Another user's key is another key.
    other = list(fleet.client.chat(HOURS, user_id="grace", idempotency_key="once"))
    assert session_of(other) != session_of(first)


def test_an_answer_can_be_read_again_from_any_of_its_events(fleet: ChatFleet) -> None:
    events = fleet.say(PRICE)
    session_id, turn_id = session_of(events), events[0].turn_id
    assert turn_id is not None

    again = list(fleet.client.follow(session_id, turn_id))
    rest = list(fleet.client.follow(session_id, turn_id, after=events[4].event_id))

    assert again[1:] == events[1:]
    assert rest[1:] == events[5:]
    with pytest.raises(ChatTurnNotFound):
        list(fleet.client.follow(session_id, uuid.uuid4().hex))
    with pytest.raises(SessionNotFound):
        list(fleet.client.follow(uuid.uuid4().hex, turn_id))


def test_a_client_that_goes_away_does_not_end_the_turn(fleet: ChatFleet) -> None:
    events = fleet.client.chat(PRICE, user_id="caller")
    session_id = next(events).session_id
    assert session_id is not None
    while next(events).kind != "text":
        pass
    events.close()  # type: ignore[attr-defined]

    wait_until(lambda: len(fleet.words(session_id)) == 2, within=10)
    assert "forty nine dollars" in fleet.words(session_id)[1][1]


def test_another_users_session_is_not_found(fleet: ChatFleet) -> None:
    session_id = session_of(fleet.say(HOURS))

    for user_id, asked in (("grace", session_id), ("caller", "unknown")):
        with pytest.raises(SessionNotFound):
            list(fleet.client.chat(HOURS, user_id=user_id, session_id=asked))


def test_a_call_that_begins_takes_no_text_yet(fleet: ChatFleet) -> None:
    call = fleet.call(state=State.CONNECTING)

    with pytest.raises(SessionBusy) as refused:
        fleet.say(HOURS, call.session_id)

    assert (refused.value.code, refused.value.retry_after) == ("session_changing", 1)


def test_a_text_for_a_live_call_goes_to_its_owner_and_to_nobody_else(fleet: ChatFleet) -> None:
    call = fleet.call()

    events = fleet.say("My secret number is 4711.", call.session_id)

    # Nobody is at the other end of this call.
    assert [(event.kind, event.code) for event in events] == [("session", None), ("error", "nobody_answers")]
    commands: Any = fleet.redis.xrange(f"muster:{{s:{call.session_id}}}:commands")
    assert [command for _, command in commands] == [{"kind": "think", "id": events[0].turn_id}]
    assert fleet.read(call.session_id) == call
    assert not any("4711" in str(fleet.redis.hgetall(key)) for key in fleet.redis.scan_iter("muster:*:chat:*"))


def test_a_model_that_fails_is_told_and_the_text_can_be_sent_again(fleet: ChatFleet) -> None:
    faults = f"{fleet.model.url.removesuffix('/v1')}/faults"
    httpx.post(faults, json={"llm": "fail"})
    failed = fleet.say(PRICE, idempotency_key="again")
    httpx.post(faults, json={"llm": "ok"})
    assert [(event.kind, event.code) for event in failed[1:]] == [("begun", None), ("error", "model_unavailable")]

    answered = fleet.say(PRICE, idempotency_key="again")

    assert (answered[1].kind, answered[-1].kind) == ("begun", "done")
    assert [role for role, _ in fleet.words(session_of(failed))] == ["user", "assistant"]


def test_a_session_of_text_can_be_ended_and_gone_on_with(fleet: ChatFleet) -> None:
    session_id = session_of(fleet.say(PRICE))

    assert fleet.client.leave(session_id).status == "ended"

    session = fleet.client.session(session_id)
    assert (session.status, session.reason) == ("ended", "left")
    assert fleet.say("And the family plan?", session_id)[-1].kind == "done"
    assert fleet.client.session(session_id).status == "ended"


def test_a_session_lives_for_another_day_with_each_text(fleet: ChatFleet) -> None:
    call = fleet.ended_call()
    keys = [f"muster:{{s:{call.session_id}}}:{name}" for name in ("record", "turns")]
    fleet.redis.expire(keys[0], 100)

    fleet.say(HOURS, call.session_id)

    assert all(fleet.redis.ttl(key) > 23 * 3600 for key in keys)


def test_everything_of_a_chat_expires(fleet: ChatFleet) -> None:
    assert fleet.say(HOURS)[-1].kind == "done"

    assert keys_without_expiry(fleet.redis) == set()


def test_no_log_and_no_message_has_a_word_of_it(fleet: ChatFleet, worker: ChatWorker) -> None:
    turn_id = fleet.say("Xylophone, how much is the premium plan?")[0].turn_id

    logged = "".join(worker.lines) + fleet.service.log.read_text()
    assert "xylophone" not in logged.lower()
    assert f"run_chat[{turn_id}]" in logged


def test_a_chat_in_the_terminal_shows_answers_and_goes_on_with_a_call(fleet: ChatFleet) -> None:
    call = fleet.ended_call()
    console = Console(record=True, file=io.StringIO(), width=200)

    code = run_chat(
        agent_service=fleet.service.url, session_id=call.session_id, texts=[PRICE, "Thank you."], console=console
    )

    shown = console.export_text()
    assert code == 0
    assert "forty nine dollars" in shown
    assert "front_desk → sales" in shown
    assert f"muster chat {call.session_id}" in shown
    assert run_chat(agent_service=fleet.service.url, session_id="unknown", texts=[PRICE], console=console) == 1
    assert "There is no session with this id" in console.export_text()


@pytest.mark.slow
def test_a_conversation_that_grows_is_condensed_and_goes_on(fleet: ChatFleet) -> None:
    session_id = session_of(fleet.say(PRICE))
    for _ in range(17):
        fleet.say("Thank you.", session_id)

    assert fleet.redis.exists(f"muster:{{s:{session_id}}}:checkpoints")
    assert fleet.say("And the family plan?", session_id)[1].specialist == "sales"
    said = [message["content"] for message in fleet.model.requests[-1] if message["role"] == "user"]
    assert said == [PRICE, *["Thank you."] * 17, "And the family plan?"]


@pytest.mark.parametrize(
    "body",
    [
        {"user_id": "caller"},
        {"user_id": "caller", "text": ""},
        {"user_id": "caller", "text": " \n\t"},
        {"user_id": "caller", "text": "null \0 byte"},
        {"user_id": "caller", "text": "x" * 4097},
        {"user_id": "caller", "text": "é" * 2049},
        {"user_id": "caller", "text": ["Hello"]},
        {"user_id": "caller", "text": "Hello", "room": "kitchen"},
        {"user_id": "caller", "text": "Hello", "session_id": "a b"},
        {"user_id": "caller", "text": "Hello", "session_id": "a", "metadata": {}},
        {"user_id": "\u202e", "text": "Hello"},
    ],
)
def test_what_is_no_text_is_refused(fleet: ChatFleet, body: dict[str, object]) -> None:
    answer = httpx.post(f"{fleet.service.url}/chat", json=body)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
