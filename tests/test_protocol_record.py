"""The model's record is the code's: the same moves, put to the Lua scripts and to the model, end in the same record,
the same commands and the same turns.

Admission, leases, the leader, queues and joins are only in the model: nothing here puts them to the scripts.
"""

from collections.abc import Callable, Iterator, Mapping
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
from worker.fleet.handing_over import Command
from worker.fleet.redis_operations import connect, run
from worker.fleet.session import Reason, Session, State

WORKERS = tuple(f"{name}@test#0/0" for name in ("one", "two"))
#: What both must have in common; times are each server's own.
COMPARED = ("state", "epoch", "owner", "offered_epoch", "standby", "reason", "recoveries")
TARGETS = (State.WAITING, State.LIVE, State.ENDING)
RECOVER: dict[str, Any] = {"most": 3, "patience": 30.0}
#: Seconds an owner must have had a session so that the lost ones before it do not count: never, and always.
SETTLED = {"recover": 60.0, "recover settled": 0.0}

Move = tuple[str, int, int, str, Any]

moves = st.tuples(
    st.sampled_from(
        [
            "claim",
            "move",
            "recover",
            "recover settled",
            "end",
            "leave",
            "offer",
            "stand_by",
            "ready",
            "give",
            "take_back",
            "step_back",
            "append",
            "append",
            "repeat",
            "ask",
        ]
    ),
    # Epochs and offers near the record's own, which shift by these.
    st.sampled_from([*[0] * 10, -1, 1]),
    st.sampled_from([*[0] * 6, -1, 1]),
    # Whose name is given: the record's, or somebody's.
    st.sampled_from([*["its own"] * 8, *WORKERS]),
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
        #: What was said, each with the epoch and the owner that it was first stored by.
        self.said: list[dict[str, Any]] = []
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
        self.compare(kind)

    def compare(self, kind: str) -> None:
        """Both must hold the same."""
        key = self.session.session_id
        held = self.model.read(key)
        assert held is not None
        for field in COMPARED:
            assert getattr(self.record, field) == getattr(held, field), (kind, field)
        stored = self.model.tables.sessions[key]
        assert self.turns == [vars(turn) for turn in stored.turns], kind
        assert self.commands == [dict(command) for command in stored.commands], kind

    @property
    def turns(self) -> list[Mapping[str, Any]]:
        """The scripts' turns."""
        return [turn for _, turn in run(self.client, records.turns_after(self.session.session_id, "0-0"))]

    @property
    def commands(self) -> list[Mapping[str, str]]:
        """The scripts' commands."""
        entries: Any = self.client.xrange(records.commands_key(self.session.session_id))
        return [command for _, command in entries]

    def append(self, turn: Mapping[str, Any]) -> tuple[Callable[[], object], Callable[[], object]]:
        """Ways to store this turn as the owner that has it in its name: what tells turns apart is all that is in it."""
        told = replace(self.session, epoch=turn["epoch"], owner=turn["by"])
        said = {"text": turn["text"], "role": turn["role"], "by": turn["by"]}
        real = self._real(records.append_turn, told, turn, lifetime=60)
        return real, lambda: self.model.append_turn(told, **said)

    def _turn(self, told: Session, *, repeats: int) -> Mapping[str, Any]:
        if not self.said or not repeats:
            text = f"turn {len(self.said)}"
            self.said.append({"text": text, "role": "user", "epoch": told.epoch, "by": told.owner})
        return self.said[-max(repeats, 1) :][0]

    def _ways(
        self, kind: str, told: Session, offered: int, standby: str, target: State
    ) -> tuple[Callable[[], object], Callable[[], object]]:
        key, model, real = told.session_id, self.model, self._real
        successor = replace(told, epoch=offered, owner=standby)
        moved: dict[str, Any] = {"epoch": told.epoch, "owner": told.owner, "stamp": "recovered_at"}
        given: dict[str, Any] = {"offered": offered, "is_open": False}
        claimed: dict[str, Any] = {"epoch": told.epoch, "owner": standby}
        recover: dict[str, Any] = {**RECOVER, "settled": SETTLED.get(kind)}
        repeats = {"append": 0, "repeat": 2 + offered - told.offered_epoch}.get(kind)
        ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "claim": (real(code.claim, key, **claimed, lifetime=60), lambda: model.claim(key, **claimed)),
            "move": (
                real(code.move, key, target, **moved, lifetime=60),
                lambda: model.move(key, target, **moved),
            ),
            **dict.fromkeys(
                SETTLED,
                (
                    real(code.recover, told, **recover, lifetime=60),
                    lambda: model.recover(told, **recover),
                ),
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
            # A repetition is of one of the last three, by the owner that has said it.
            **({kind: self.append(self._turn(told, repeats=repeats))} if repeats is not None else {}),
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
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    played=st.lists(moves, min_size=10, max_size=25),
    begins=st.sampled_from([(), ("live",), ("live", "offered"), ("live", "offered")]),
)
def test_the_models_record_is_the_codes(client: "redis.Redis", played: list[Move], begins: tuple[str, ...]) -> None:
    both = Both(client)
    if "live" in begins:
        both.put(("claim", 0, 0, WORKERS[0], State.LIVE))
        both.put(("move", 0, 0, "its own", State.LIVE))
        both.put(("append", 0, 0, "its own", State.LIVE))
        both.put(("append", 0, 0, "its own", State.LIVE))
    if "offered" in begins:
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
        ("append", "its own"),
        ("repeat", "its own"),
        ("recover settled", "its own"),
        ("claim", WORKERS[0]),
    ):
        both.put((kind, 0, 0, who, State.LIVE))
    assert (both.record.state, both.record.epoch, both.record.owner) == (State.CONNECTING, 3, WORKERS[0])
    assert [turn["text"] for turn in both.turns] == ["turn 0", "turn 1"]
    assert [command["kind"] for command in both.commands] == [Command.READY, Command.PASSED]


def test_an_owner_that_has_settled_makes_the_lost_ones_before_it_count_no_more_in_both(client: "redis.Redis") -> None:
    both = Both(client)
    recoveries = []
    for kind in ("recover", "recover", "recover settled", "recover", "recover", "recover"):
        both.put(("claim", 0, 0, WORKERS[0], State.LIVE))
        both.put((kind, 0, 0, "its own", State.LIVE))
        recoveries.append(both.record.recoveries)
    assert recoveries == [1, 2, 1, 2, 3, 3]


def test_a_turn_that_comes_again_is_known_as_long_as_it_is_among_the_last_in_both(client: "redis.Redis") -> None:
    both = Both(client)
    both.put(("claim", 0, 0, WORKERS[0], State.LIVE))
    for _ in range(records.TURNS_COMPARED + 1):
        both.put(("append", 0, 0, "its own", State.LIVE))
    for turn in (both.said[1], both.said[0]):
        for way in both.append(turn):
            way()
        both.compare("append")
    texts = [turn["text"] for turn in both.turns]
    assert (texts.count("turn 1"), texts.count("turn 0")) == (1, 2)
