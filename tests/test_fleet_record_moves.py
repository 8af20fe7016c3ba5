"""One module moves the record: found by reading every script of the project."""

import importlib
import re
from collections.abc import Iterator

from local.paths import ROOT
from tests.tree import tracked_files
from worker.fleet import record_moves
from worker.fleet.session import ANSWERED_IN, LEFT_UNOWNED, PASSED_IN, State, states_before

#: What only a move changes.
MOVED = {"state", "epoch", "owner", "offered_epoch", "standby"}
#: The turn of text has a state of its own, in a hash of its own: the third key of its scripts.
A_TURNS_OWN = {
    ("worker.fleet.chats", "_WRITE", "KEYS[3]"),
    ("worker.fleet.chats", "_TAKE", "KEYS[3]"),
    ("worker.fleet.chats", "_REPLY", "KEYS[3]"),
}
#: Its field comes from outside of the script, and `records.stamp` takes only the names of times.
STAMP = ("worker.fleet.records", "_STAMP", "KEYS[1]")
#: A field for each worker.
STATUS = {("worker.fleet.workers", script, "KEYS[2]") for script in ("_RENEW", "_RESIGN")}

_WRITE = re.compile(r"redis\.p?call\('H(?:SET|SETNX|MSET|INCRBY|INCRBYFLOAT|DEL)',\s*([^,]+),([^\n]*(?:\n  [^\n]*)*)")


def scripts() -> Iterator[tuple[str, str, str]]:
    """Module, name and text of each script, as Redis gets it."""
    for path in tracked_files():
        place = path.relative_to(ROOT)
        if place.parts[0] in {"worker", "graphs", "api"} and path.suffix == ".py" and "#!lua" in path.read_text():
            module = importlib.import_module(".".join(place.with_suffix("").parts))
            for name, value in vars(module).items():
                if isinstance(value, str) and value.startswith("#!lua"):
                    yield module.__name__, name, value


def writes() -> Iterator[tuple[tuple[str, str, str], str]]:
    """Every write of a hash: where it is and the key, and the fields as they are written there."""
    for module, name, script in scripts():
        for key, fields in _WRITE.findall(script):
            yield (module, name, key), fields


def test_whatever_changes_state_epoch_or_owner_is_a_move() -> None:
    named = {field: re.compile(rf"'{field}'") for field in MOVED}
    outside = {
        (where, field)
        for where, fields in writes()
        for field, pattern in named.items()
        if pattern.search(fields) and where[0] != record_moves.__name__
    }
    # The one function of a move that another script is built with.
    composed = {(("worker.fleet.chats", "_TAKE", "KEYS[1]"), field) for field in ("epoch", "owner")}
    assert outside - composed == {(turn, "state") for turn in A_TURNS_OWN}
    assert record_moves.CLAIM_FOR_A_TURN in {name: text for _, name, text in scripts()}["_TAKE"]


def test_no_script_elsewhere_writes_fields_that_it_does_not_name() -> None:
    unnamed = {where for where, fields in writes() if "ARGV" in fields.split(",")[0] or "unpack" in fields}
    assert {where for where in unnamed if where[0] != record_moves.__name__} == {STAMP, *STATUS}


def test_the_scan_sees_the_moves() -> None:
    seen = {name for (module, name, _), _ in writes() if module == record_moves.__name__}
    assert {"_CREATE", "_MOVE", "_RECOVER", "_LEAVE", "_OFFER", "_STAND_BY", "_STEP_BACK", "_PASS"} <= seen


def test_the_moves_without_a_state_of_their_own_are_in_the_table_too() -> None:
    assert states_before(State.RECOVERING) >= PASSED_IN
    assert set(LEFT_UNOWNED) <= states_before(State.ENDED)
    assert {reason.final_state for reason in LEFT_UNOWNED.values()} == {State.ENDED}
    assert ANSWERED_IN.isdisjoint(states_before(State.RECOVERING))
