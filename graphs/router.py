"""Who answers a turn."""

from typing import Protocol

from graphs.roster import Roster


class AgentRouterPort(Protocol):
    """Names the specialist who answers, given who answered last; must not call a model before they speak."""

    def __call__(self, active: str | None, roster: Roster) -> str: ...


def sticky(active: str | None, roster: Roster) -> str:
    """Whoever answered last goes on, until they hand the caller over themselves."""
    return active if active is not None and active in roster else roster.first
