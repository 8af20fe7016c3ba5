"""A scenario as plain data: what is asked of a stack, made of a seed and of nothing else."""

import random
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bench.faults.kinds import KINDS

Phase = Literal["caller_speaks", "agent_thinks", "agent_speaks", "both_listen", "hand_over", "recovery"]
Ending = Literal["leave", "hang_up", "return"]

PHASES: tuple[Phase, ...] = ("caller_speaks", "agent_thinks", "agent_speaks", "both_listen", "hand_over", "recovery")
#: Seconds into a phase at which a fault may come at latest; within a hand-over or a recovery much happens.
_LATEST: dict[Phase, float] = {
    "caller_speaks": 1.2,
    "agent_thinks": 1.0,
    "agent_speaks": 1.5,
    "both_listen": 0.6,
    "hand_over": 2.5,
    "recovery": 1.5,
}
#: Seconds a fault lasts: often around the bounds of the fleet, sometimes far above.
_SECONDS = ((2.0, 4.0), (3.0, 6.0), (5.0, 10.0), (10.0, 20.0))
_WEIGHTS = (4, 4, 3, 1)
_PAIR = 0.55
_TWO_CALLERS = 0.3


@dataclass(frozen=True)
class Planned:
    """One fault: `after` seconds into the phase of the caller's call or, without a phase, after the one before."""

    fault: str
    caller: int
    phase: Phase | None
    after: float
    seconds: float


@dataclass(frozen=True)
class Scenario:
    """`faults` in order; `ending` is how the first caller's call ends."""

    seed: int
    callers: int
    faults: tuple[Planned, ...]
    ending: Ending

    @classmethod
    def from_seed(cls, seed: int) -> "Scenario":
        """Always the same for a seed; as many seeds in a row as there are kinds drawn have each of them first once."""
        chance = random.Random(f"muster/{seed}")
        callers = 2 if chance.random() < _TWO_CALLERS else 1
        names = sorted(name for name, kind in KINDS.items() if kind.is_drawn)
        phase = chance.choice(PHASES)
        first = Planned(
            names[seed % len(names)],
            chance.randrange(callers),
            phase,
            round(chance.uniform(0, _LATEST[phase]), 2),
            _seconds(chance),
        )
        faults = [first]
        if chance.random() < _PAIR:
            after = round(chance.uniform(0, 3), 2)
            faults.append(Planned(chance.choice(names), chance.randrange(callers), None, after, _seconds(chance)))
        return cls(seed, callers, tuple(faults), chance.choice(("leave", "hang_up", "return")))

    def to_json(self) -> dict[str, Any]:
        """As a result file holds it."""
        return asdict(self)

    def __str__(self) -> str:
        faults = "; ".join(
            f"{each.fault} on caller {each.caller}, {each.after:g} s {'into ' + each.phase if each.phase else 'later'}"
            f" ({each.seconds:g} s)"
            for each in self.faults
        )
        return f"seed {self.seed}: {self.callers} caller(s), {faults}, ends by {self.ending}"


def _seconds(chance: random.Random) -> float:
    low, high = chance.choices(_SECONDS, _WEIGHTS)[0]
    return round(chance.uniform(low, high), 1)
