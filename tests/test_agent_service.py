"""The agent service's routes on a real Redis."""

import logging
from dataclasses import asdict
from typing import Any

import pytest
from flask.testing import FlaskClient

from api.agent_service import create_app
from api.errors import KeyNameInvalid
from api.keys import NewKey, generate
from api.settings import AccessSettings
from tests.open_fleet import WORKER, agent_service, claim, client_of, lease_worker, open_joins
from worker.conversation.transcript import Turn
from worker.fleet import record_moves, records
from worker.fleet.control import SessionControl
from worker.fleet.errors import SettingsInvalid
from worker.fleet.publishing import SESSIONS_QUEUE
from worker.fleet.redis_operations import run
from worker.fleet.session import Reason, Session, State
from worker.fleet.settings import FleetSettings

TURNS = [
    Turn(item_id="1", role="user", at=1.0, text="Hello"),
    Turn(item_id="2", role="event", at=2.0, event={"kind": "transfer", "from": "front_desk", "to": "sales"}),
    Turn(item_id="3", role="assistant", at=3.0, text="Yes.", specialist="sales", interrupted=True),
]
JOIN = {"room": "kitchen", "user_id": "ada", "metadata": {"name": "Ada", "age": 36, "vip": True, "note": None}}


@pytest.fixture
def service(redis_url: str) -> FlaskClient:
    """A replica of a fleet that takes sessions."""
    open_joins(redis_url)
    return agent_service(redis_url).test_client()


def joined(service: FlaskClient, **fields: Any) -> str:
    """The id of a new session."""
    answer = service.post("/join", json={**JOIN, **fields})
    assert answer.status_code == 202, answer.text
    return str(answer.get_json()["session_id"])


def test_a_join_makes_a_session_and_a_message_that_carries_ids_only(service: FlaskClient, redis_url: str) -> None:
    answer = service.post("/join", json=JOIN)

    assert answer.status_code == 202
    session_id = answer.get_json()["session_id"]
    assert answer.get_json() == {
        "session_id": session_id,
        "room": "kitchen",
        "status": "queued",
        "created": True,
    }
    with client_of(redis_url) as client:
        messages = client.lrange(SESSIONS_QUEUE, 0, -1)
        record = run(client, records.read(session_id))
    assert len(messages) == 1
    assert session_id in messages[0]
    assert "Ada" not in messages[0]
    assert record is not None
    assert record.metadata == JOIN["metadata"]
    assert record.published_at is not None


def test_a_session_is_shown_without_its_metadata(service: FlaskClient, redis_url: str) -> None:
    session_id = joined(service)
    queued = service.get(f"/sessions/{session_id}").get_json()
    claim(redis_url, session_id)
    claimed = service.get(f"/sessions/{session_id}").get_json()

    admitted_at = queued["created_at"]
    assert queued == {
        "session_id": session_id,
        "room": "kitchen",
        "user_id": "ada",
        "status": "queued",
        "reason": None,
        "epoch": 1,
        "worker": None,
        "continues": None,
        "created_at": admitted_at,
        "timings": {
            "admitted_at": admitted_at,
            "claimed_at": None,
            "connected_at": None,
            "first_audio_at": None,
            "ended_at": None,
        },
    }
    assert (claimed["status"], claimed["worker"]) == ("connecting", WORKER)
    assert claimed["timings"]["claimed_at"] == pytest.approx(admitted_at, abs=5)


def test_a_second_join_for_a_room_answers_with_the_session_that_is_there(service: FlaskClient) -> None:
    session_id = joined(service)

    answer = service.post("/join", json={"room": "kitchen", "user_id": "grace"})

    assert answer.status_code == 200
    assert answer.get_json() == {
        "session_id": session_id,
        "room": "kitchen",
        "status": "queued",
        "created": False,
    }


def test_a_repeated_idempotency_key_makes_no_second_session(service: FlaskClient) -> None:
    headers = {"Idempotency-Key": "order-7"}

    first = service.post("/join", json=JOIN, headers=headers)
    second = service.post("/join", json=JOIN, headers=headers)

    assert (first.status_code, second.status_code) == (202, 200)
    assert first.get_json()["session_id"] == second.get_json()["session_id"]


def test_a_join_goes_on_with_a_session_that_is_over_and_what_it_knew(service: FlaskClient, redis_url: str) -> None:
    old = joined(service, configuration={"greeting": "Good morning."})
    service.post("/leave", json={"session_id": old})

    session_id = joined(service, room="hall", metadata={"name": "Ada Lovelace"}, continue_session=old)

    assert service.get(f"/sessions/{session_id}").get_json()["continues"] == old
    with client_of(redis_url) as client:
        record = run(client, records.read(session_id))
    assert record is not None
    known: Any = JOIN["metadata"]
    assert record.metadata == {**known, "name": "Ada Lovelace"}
    assert (record.continues, record.configuration) == (old, {"greeting": "Good morning."})


def test_a_join_does_not_go_on_with_a_session_that_is_not_over_or_not_there(service: FlaskClient) -> None:
    old = joined(service)

    live = service.post("/join", json={**JOIN, "room": "hall", "continue_session": old})
    unknown = service.post("/join", json={**JOIN, "room": "hall", "continue_session": "unknown"})

    assert (live.status_code, live.get_json()["code"]) == (409, "session_not_over")
    assert (unknown.status_code, unknown.get_json()["code"]) == (404, "session_not_found")
    # The room is as free as it was.
    joined(service, room="hall")


def test_leaving_a_queued_session_ends_it_and_frees_its_room(service: FlaskClient) -> None:
    session_id = joined(service)

    left = service.post("/leave", json={"session_id": session_id})
    again = service.post("/leave", json={"session_id": session_id})

    assert (left.status_code, again.status_code) == (202, 200)
    assert left.get_json() == again.get_json() == {"session_id": session_id, "status": "ended"}
    assert service.get(f"/sessions/{session_id}").get_json()["reason"] == "cancelled"
    assert joined(service) != session_id


def test_leaving_a_running_session_asks_its_owner(service: FlaskClient, redis_url: str) -> None:
    session_id = joined(service)
    claim(redis_url, session_id)

    left = service.post("/leave", json={"session_id": session_id})

    assert (left.status_code, left.get_json()["status"]) == (202, "connecting")
    with client_of(redis_url) as client:
        commands: Any = client.xrange(records.commands_key(session_id))
    assert [fields["kind"] for _, fields in commands] == ["leave"]


def test_a_live_session_is_handed_over_when_another_worker_is_free(service: FlaskClient, redis_url: str) -> None:
    session_id = joined(service)
    claimed = claim(redis_url, session_id)
    address = f"/sessions/{session_id}/handover"
    early = service.post(address, json={})
    with client_of(redis_url) as client:
        run(client, record_moves.move(session_id, State.LIVE, epoch=1, lifetime=60, stamp="first_audio_at"))
        alone = service.post(address, json={})
        lease_worker(redis_url, worker_id="worker-2#1")

        asked = service.post(address, json={"worker": "worker-2"})
        elsewhere = service.post(address, json={"worker": "worker-3"})

        commands: Any = client.xrange(records.commands_key(session_id))
    for refused in (early, alone):
        assert (refused.status_code, refused.get_json()["code"]) == (409, "handover_impossible")
    assert asked.status_code == 202, asked.get_json()
    assert asked.get_json() == {"session_id": session_id, "epoch": 1, "worker": claimed.owner}
    assert (elsewhere.status_code, elsewhere.get_json()["code"]) == (409, "handover_impossible")
    [command] = [fields for _, fields in commands]
    assert (command["kind"], command["epoch"], command["to"]) == ("handover", "1", "worker-2")


def test_a_session_is_left_and_listed_on_another_replica_than_it_was_joined_on(
    service: FlaskClient, redis_url: str
) -> None:
    other = agent_service(redis_url).test_client()
    session_id = joined(service)

    for replica in (service, other):
        [listed] = replica.get("/sessions").get_json()["sessions"]
        assert listed["session_id"] == session_id
    assert other.post("/leave", json={"session_id": session_id}).status_code == 202
    assert service.get(f"/sessions/{session_id}").get_json()["status"] == "ended"


def test_sessions_are_listed_newest_first_and_by_state(service: FlaskClient, redis_url: str) -> None:
    first = joined(service, room="attic")
    second = joined(service, room="cellar")
    claim(redis_url, first)

    def ids(path: str) -> set[str]:
        return {session["session_id"] for session in service.get(path).get_json()["sessions"]}

    assert ids("/sessions") == {first, second}
    assert ids("/sessions?state=queued") == {second}
    assert ids("/sessions?state=live") == set()


def test_a_session_that_broke_stays_failed_when_somebody_leaves_it(service: FlaskClient, redis_url: str) -> None:
    session_id = joined(service)
    owned = claim(redis_url, session_id)
    with client_of(redis_url) as client:
        run(client, record_moves.end(owned, Reason.WORKER_LOST))

    left = service.post("/leave", json={"session_id": session_id})

    assert (left.status_code, left.get_json()["status"]) == (200, "failed")
    assert service.get(f"/sessions/{session_id}").get_json()["reason"] == "worker_lost"


def test_turns_are_read_on_from_a_cursor(service: FlaskClient, redis_url: str) -> None:
    session_id = joined(service)
    empty = service.get(f"/sessions/{session_id}/turns").get_json()
    cursors = say(redis_url, session_id, [asdict(turn) for turn in TURNS])

    everything = service.get(f"/sessions/{session_id}/turns").get_json()
    rest = service.get(f"/sessions/{session_id}/turns?after={cursors[0]}").get_json()
    nothing = service.get(f"/sessions/{session_id}/turns?after={cursors[2]}").get_json()

    assert empty == {"turns": [], "cursor": "0-0"}
    said, transferred, heard = everything["turns"]
    assert said == {
        "cursor": cursors[0], "item_id": "1", "at": 1.0, "role": "user", "text": "Hello", "specialist": None,
        "channel": "voice",
    }  # fmt: skip
    assert transferred == {
        "cursor": cursors[1], "item_id": "2", "at": 2.0, "role": "event",
        "event": {"kind": "transfer", "from": "front_desk", "to": "sales"},
    }  # fmt: skip
    assert heard == {
        "cursor": cursors[2], "item_id": "3", "at": 3.0, "role": "assistant", "text": "Yes.", "specialist": "sales",
        "channel": "voice", "interrupted": True, "timings": None, "citations": [],
    }  # fmt: skip
    assert rest["turns"] == [transferred, heard]
    assert nothing == {"turns": [], "cursor": cursors[2]}


def test_what_a_newer_worker_notes_does_not_hide_the_turns_around_it(service: FlaskClient, redis_url: str) -> None:
    session_id = joined(service)
    said = asdict(TURNS[0])
    newer = {**asdict(TURNS[1]), "event": {"kind": "hand-over"}}

    cursors = say(redis_url, session_id, [said, newer, {**said, "item_id": "3", "mood": "curious"}])
    answer = service.get(f"/sessions/{session_id}/turns").get_json()

    assert [turn["item_id"] for turn in answer["turns"]] == ["1", "3"]
    assert answer["cursor"] == cursors[2]


def say(redis_url: str, session_id: str, turns: list[dict[str, Any]]) -> list[str]:
    """Commit the turns as the session's owner; answers their cursors."""
    owned = claim(redis_url, session_id)
    with client_of(redis_url) as client:
        return [run(client, records.append_turn(owned, turn, lifetime=60)) for turn in turns]


def test_without_a_worker_a_join_is_refused(redis_url: str) -> None:
    answer = agent_service(redis_url).test_client().post("/join", json=JOIN)

    assert (answer.status_code, answer.get_json()["code"]) == (503, "no_worker")
    assert int(answer.headers["Retry-After"]) > 0


def test_until_the_leading_keeper_opens_joins_they_are_refused(redis_url: str) -> None:
    lease_worker(redis_url)

    answer = agent_service(redis_url).test_client().post("/join", json=JOIN)

    assert (answer.status_code, answer.get_json()["code"]) == (503, "fleet_not_ready")
    assert int(answer.headers["Retry-After"]) > 0


def test_a_join_beyond_slots_and_queue_is_refused_and_leaves_no_record(redis_url: str) -> None:
    open_joins(redis_url, slots=1)
    service = agent_service(redis_url).test_client()
    queued = [joined(service, room=room) for room in ("running", "waiting")]

    answer = service.post("/join", json={**JOIN, "room": "one too many"})

    assert (answer.status_code, answer.get_json()["code"]) == (503, "fleet_full")
    assert int(answer.headers["Retry-After"]) > 0
    assert len(service.get("/sessions").get_json()["sessions"]) == len(queued)


def test_a_room_whose_agent_is_just_leaving_is_refused_for_a_second(service: FlaskClient, redis_url: str) -> None:
    session_id = joined(service)
    claim(redis_url, session_id)
    with client_of(redis_url) as client:
        run(client, record_moves.move(session_id, State.ENDING, epoch=1, lifetime=60, stamp="ending_at"))

    answer = service.post("/join", json=JOIN)

    assert (answer.status_code, answer.get_json()["code"]) == (503, "room_changing")
    assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"room": "kitchen"}, "user_id"),
        ({**JOIN, "slots": 3}, "slots"),
        ({**JOIN, "room": ""}, "room"),
        ({**JOIN, "room": "r" * 129}, "room"),
        ({**JOIN, "room": "kit\nchen"}, "room"),
        ({**JOIN, "room": 7}, "room"),
        ({**JOIN, "user_id": "u" * 129}, "user_id"),
        ({**JOIN, "user_id": "ada\x00"}, "user_id"),
        ({**JOIN, "metadata": {"deep": {"er": 1}}}, "metadata.deep"),
        ({**JOIN, "metadata": {"list": [1]}}, "metadata.list"),
        ({**JOIN, "metadata": {"big": "x" * 8192}}, "metadata"),
        ({**JOIN, "metadata": {"infinite": float("inf")}}, "metadata.infinite"),
        ([JOIN], "body"),
    ],
)
def test_a_join_that_is_not_as_agreed_is_refused_by_name(service: FlaskClient, body: Any, named: str) -> None:
    answer = service.post("/join", json=body)

    assert (answer.status_code, answer.get_json()["code"]) == (422, "invalid_request")
    assert named in answer.get_json()["detail"]
    assert service.get("/sessions").get_json() == {"sessions": []}


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("POST", "/join", {"data": "{", "content_type": "application/json"}, 400, "invalid_request"),
        ("POST", "/join", {"data": "", "content_type": "application/json"}, 400, "invalid_request"),
        ("POST", "/join", {"data": b"\xff", "content_type": "application/json"}, 400, "invalid_request"),
        ("POST", "/join", {"data": "[" * 9999, "content_type": "application/json"}, 400, "invalid_request"),
        ("POST", "/join", {"data": "room=kitchen"}, 415, "unsupported_media_type"),
        ("POST", "/join", {"json": JOIN, "headers": {"Idempotency-Key": "k" * 129}}, 422, "invalid_request"),
        ("POST", "/leave", {"json": {"session_id": "unknown"}}, 404, "session_not_found"),
        ("POST", "/sessions/unknown/handover", {"json": {}}, 404, "session_not_found"),
        ("POST", "/sessions/unknown/handover", {"json": {"worker": "a b"}}, 422, "invalid_request"),
        ("GET", "/sessions/unknown", {}, 404, "session_not_found"),
        ("GET", "/sessions/unknown/turns", {}, 404, "session_not_found"),
        ("GET", "/sessions/unknown/turns?after=yesterday", {}, 422, "invalid_request"),
        ("GET", f"/sessions/unknown/turns?after={10**19}-0", {}, 422, "invalid_request"),
        ("GET", "/sessions?state=happy", {}, 422, "invalid_request"),
        ("GET", "/sessions?page=2", {}, 422, "invalid_request"),
        ("GET", "/nowhere", {}, 404, "not_found"),
        ("GET", "/join", {}, 405, "method_not_allowed"),
        ("DELETE", "/sessions", {}, 405, "method_not_allowed"),
    ],
)
def test_every_error_is_a_problem_with_a_stable_code(
    service: FlaskClient, method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    answer = service.open(path, method=method, **options)

    assert answer.content_type == "application/problem+json"
    problem = answer.get_json()
    assert set(problem) == {"type", "title", "status", "detail", "code", "request_id"}
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["request_id"] == answer.headers["X-Request-Id"]
    assert ("Allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2_3", True), ("two words", False), ("x" * 65, False)])
def test_a_well_formed_request_id_is_kept_and_any_other_replaced(service: FlaskClient, given: str, kept: bool) -> None:
    echoed = service.get("/health", headers={"X-Request-Id": given}).headers["X-Request-Id"]

    assert (echoed == given) is kept
    assert echoed


def test_an_unexpected_error_is_logged_with_its_traceback_and_answered_without(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    def publish(session: Session) -> None:
        raise ZeroDivisionError("a defect of ours")

    open_joins(redis_url)
    settings = FleetSettings.from_env({"REDIS_URL": redis_url})
    with client_of(redis_url) as client, caplog.at_level(logging.ERROR):
        control = SessionControl(settings=settings, client=client, publish=publish)
        answer = create_app(settings=settings, control=control).test_client().post("/join", json=JOIN)

    assert (answer.status_code, answer.get_json()["code"]) == (500, "internal_error")
    assert "defect" not in answer.text
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    assert record.__dict__["request_id"] == answer.get_json()["request_id"]


def test_one_damaged_record_is_told_by_its_code_and_does_not_spoil_the_list(
    service: FlaskClient, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    damaged, whole = joined(service, room="attic"), joined(service, room="cellar")
    with client_of(redis_url) as client:
        client.hset(records.record_key(damaged), "epoch", "many")

    answers = [
        service.get(f"/sessions/{damaged}"),
        service.get(f"/sessions/{damaged}/turns"),
        service.post("/leave", json={"session_id": damaged}),
        service.post("/join", json={**JOIN, "room": "attic"}),
    ]
    listed = service.get("/sessions").get_json()["sessions"]

    assert {(answer.status_code, answer.get_json()["code"]) for answer in answers} == {(500, "record_unreadable")}
    assert [session["session_id"] for session in listed] == [whole]
    told = {record.__dict__.get("request_id") for record in caplog.records}
    assert {answer.get_json()["request_id"] for answer in answers} <= told
    assert [record for record in caplog.records if record.exc_info] == []


KEYS = [generate("ada"), generate("grace")]


def test_each_key_opens_the_service_and_a_removed_one_does_not(redis_url: str) -> None:
    def answers_to(*known: NewKey) -> list[int]:
        service = agent_service(redis_url, MUSTER_API_KEYS=",".join(key.entry for key in known)).test_client()
        shown = [{"Authorization": f"Bearer {key.key}"} for key in KEYS]
        return [service.get("/sessions", headers=headers).status_code for headers in shown]

    assert answers_to(*KEYS) == [200, 200]
    assert answers_to(KEYS[1]) == [401, 200]


@pytest.mark.parametrize("path", ["/health", "/openapi.json"])
def test_what_everybody_may_ask_needs_no_key(redis_url: str, path: str) -> None:
    service = agent_service(redis_url, MUSTER_API_KEYS=KEYS[0].entry).test_client()

    assert service.get(path).status_code == 200


@pytest.mark.parametrize(
    ("address", "status"),
    [("127.0.0.1", 200), ("127.8.9.1", 200), ("::1", 200), ("10.0.0.7", 403), ("::ffff:10.0.0.7", 403), ("x", 403)],
)
def test_without_keys_only_this_machine_is_served(service: FlaskClient, address: str, status: int) -> None:
    answer = service.get("/sessions", environ_base={"REMOTE_ADDR": address})

    assert answer.status_code == status
    assert answer.get_json().get("code") == (None if status == 200 else "keys_required")
    assert service.get("/health", environ_base={"REMOTE_ADDR": address}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("a.example", 403),
        ("127.0.0.1.a.example", 403),
    ],
)
def test_without_keys_no_page_in_a_browser_reaches_the_service_by_its_own_name(
    service: FlaskClient, host: str, status: int
) -> None:
    assert service.get("/sessions", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        (KEYS[0].key, "entry 1"),
        (f"{KEYS[0].entry},{KEYS[1].key}:ada", "entry 2"),
        (f"{KEYS[0].entry},", "entry 2"),
        (f"ada:{KEYS[0].key}", "entry 1"),
        (" ", "entry 1"),
    ],
    ids=["a key", "a key before a name", "a comma too many", "a key in place of its hash", "a space"],
)
def test_a_wrong_entry_is_named_by_its_position_and_never_shown(entries: str, named: str) -> None:
    with pytest.raises(SettingsInvalid) as refused:
        AccessSettings.from_env({"MUSTER_API_KEYS": entries})

    assert "MUSTER_API_KEYS" in str(refused.value) and named in str(refused.value)
    assert [key for key in KEYS if key.key in str(refused.value)] == []


def test_a_fresh_key_is_long_and_shows_only_its_name() -> None:
    key = generate("front-desk")

    assert key.key.startswith("muster_") and len(key.key) > 40
    assert key.entry.startswith("front-desk:") and key.key not in key.entry + repr(key)
    with pytest.raises(KeyNameInvalid):
        generate("front desk")


def test_neither_a_key_nor_what_is_known_of_a_caller_gets_into_a_log(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    open_joins(redis_url)
    service = agent_service(redis_url, MUSTER_API_KEYS=KEYS[0].entry).test_client()

    with caplog.at_level(logging.DEBUG):
        for key in KEYS:
            headers = {"Authorization": f"Bearer {key.key}", "Idempotency-Key": "order-7"}
            service.post("/join", json=JOIN, headers=headers)
            service.post("/join", json={**JOIN, "Ada": 36}, headers=headers)

    logged = "".join(str(vars(record)) for record in caplog.records)
    assert [said for said in (KEYS[0].key, KEYS[1].key, KEYS[0].entry, "Ada") if said in logged] == []


def test_health_asks_nobody() -> None:
    service = agent_service("redis://127.0.0.1:1/0").test_client()

    assert service.get("/health").get_json() == {"status": "ok"}
    assert service.get("/sessions").get_json()["code"] == "redis_unavailable"
