"""The model's record is the code's: the same moves, put to the Lua scripts and to the model, end in the same record."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fleet_sessions import new_session
from tests.model.stored import Redis
from tests.model.switches import Switch
from worker.fleet import record_moves as code
from worker.fleet import records
from worker.fleet.errors import FleetError
from worker.fleet.redis_operations import connect, run
from worker.fleet.session import Reason, Session, State

WORKERS = tuple(f"{name}@test#0/0" for name in ("one", "two"))
#: What both must have in common; times are each server's own.
COMPARED = ("state", "epoch", "owner", "offered_epoch", "standby", "reason", "recoveries")
TARGETS = (State.WAITING, State.LIVE, State.ENDING)
RECOVER: dict[str, Any] = {"most": 3, "settled": 60.0, "patience": 30.0}

Move = tuple[str, int, int, str, Any]

moves = st.tuples(
    st.sampled_from(
        [
            "claim",
            "move",
            "recover",
            "end",
            "leave",
            "offer",
            "stand_by",
            "ready",
            "give",
            "take_back",
            "step_back",
            "append",
            "ask",
        ]
    ),
    # Epochs and offers near the record's own, which shift by these.
    st.sampled_from([0, 0, 0, 0, -1, 1]),
    st.sampled_from([0, 0, 0, -1, 1]),
    # Whose name is given: the record's, or somebody's.
    st.sampled_from(["its own", "its own", "its own", *WORKERS]),
    st.sampled_from([*TARGETS, State.LIVE, State.LIVE]),
)


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis"]:
    with connect(redis_url) as client:
        yield client


class Both:
    """The Lua scripts and the model, with one session each."""

    def __init__(self, client: "redis.Redis") -> None:
        self.client = client
        self.model = Redis(lambda: 1000.0, has=lambda part: isinstance(part, Switch))
        self.session = new_session()
        self.turns = 0
        run(client, code.create(self.session, lifetime=60))
        self.model.create(self.session)

    @property
    def record(self) -> Session:
        """The scripts' record."""
        record = run(self.client, records.read(self.session.session_id))
        assert record is not None
        return record

    def put(self, move: Move) -> None:
        """The same move to both; they must say the same and hold the same."""
        kind, shift, offer_shift, who, target = move
        record = self.record
        owner = record.owner if who == "its own" else who
        told = replace(record, epoch=record.epoch + shift, owner=owner)
        offered = record.offered_epoch + offer_shift
        standby = record.standby if who == "its own" and record.standby else WORKERS[1] if who == "its own" else who
        theirs, ours = self._ways(kind, told, offered, standby, target)
        assert _outcome(theirs) == _outcome(ours), (kind, told)
        held = self.model.read(self.session.session_id)
        assert held is not None
        for field in COMPARED:
            assert getattr(self.record, field) == getattr(held, field), (kind, field)

    def _ways(
        self, kind: str, told: Session, offered: int, standby: str, target: State
    ) -> tuple[Callable[[], object], Callable[[], object]]:
        key, model, real = told.session_id, self.model, self._real
        successor = replace(told, epoch=offered, owner=standby)
        moved: dict[str, Any] = {"epoch": told.epoch, "owner": told.owner, "stamp": "recovered_at"}
        given: dict[str, Any] = {"offered": offered, "is_open": False}
        self.turns += 1
        text = f"turn {self.turns}"
        claimed: dict[str, Any] = {"epoch": told.epoch, "owner": standby}
        ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "claim": (real(code.claim, key, **claimed, lifetime=60), lambda: model.claim(key, **claimed)),
            "move": (
                real(code.move, key, target, **moved, lifetime=60),
                lambda: model.move(key, target, **moved),
            ),
            "recover": (
                real(code.recover, told, **RECOVER, lifetime=60),
                lambda: model.recover(told, **RECOVER),
            ),
            "end": (real(code.end, told, Reason.LEFT), lambda: model.end(told, Reason.LEFT)),
            "leave": (
                real(code.leave, key, command_id="1", lifetime=60),
                lambda: model.leave(key, command_id="1"),
            ),
            "offer": (real(code.offer, told), lambda: model.offer(told)),
            "stand_by": (
                real(code.stand_by, key, offered=offered, owner=standby),
                lambda: model.stand_by(key, offered=offered, owner=standby),
            ),
            "ready": (real(code.ready, successor, lifetime=60), lambda: model.ready(successor)),
            "give": (real(code.give, told, **given, lifetime=60), lambda: model.give(told, **given)),
            "take_back": (
                real(code.take_back, told, offered=offered),
                lambda: model.take_back(told, offered=offered),
            ),
            "step_back": (
                real(code.step_back, key, offered=offered, owner=standby),
                lambda: model.step_back(key, offered=offered, owner=standby),
            ),
            "append": (
                real(records.append_turn, told, {"text": text}, lifetime=60),
                lambda: model.append_turn(told, text=text, role="user"),
            ),
            "ask": (
                real(code.ask, key, to="", command_id="1", lifetime=60),
                lambda: model.ask(key, to="", command_id="1"),
            ),
        }
        return ways[kind]

    def _real(self, operation: Callable[..., Any], *told: Any, **given: Any) -> Callable[[], object]:
        return lambda: run(self.client, operation(*told, **given))


def _outcome(move: Callable[[], object]) -> str:
    """What became of a move: the refusal's name, or what its answer says."""
    try:
        answer = move()
    except FleetError as refusal:
        return type(refusal).__name__
    if isinstance(answer, code.LeaveAnswer):
        return answer.outcome
    return answer if isinstance(answer, str) and not answer[0].isdigit() else "done"


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(played=st.lists(moves, min_size=1, max_size=25), begins=st.sampled_from([(), ("claim", "live"), ("all",)]))
def test_the_models_record_is_the_codes(client: "redis.Redis", played: list[Move], begins: tuple[str, ...]) -> None:
    both = Both(client)
    if begins:
        both.put(("claim", 0, 0, WORKERS[0], State.LIVE))
        both.put(("move", 0, 0, "its own", State.LIVE))
    if "all" in begins:
        both.put(("offer", 0, 0, "its own", State.LIVE))
        both.put(("stand_by", 0, 0, "its own", State.LIVE))
    for move in played:
        both.put(move)


def test_a_hand_over_and_a_recovery_are_the_same_in_both(client: "redis.Redis") -> None:
    """What the random ones rest on: that they get so far at all."""
    both = Both(client)
    for kind, who in (
        ("claim", WORKERS[0]),
        ("move", "its own"),
        ("offer", "its own"),
        ("stand_by", WORKERS[1]),
        ("ready", "its own"),
        ("give", "its own"),
        ("append", "its own"),
        ("recover", "its own"),
        ("claim", WORKERS[0]),
    ):
        both.put((kind, 0, 0, who, State.LIVE))
    assert (both.record.state, both.record.epoch, both.record.owner) == (State.CONNECTING, 3, WORKERS[0])
