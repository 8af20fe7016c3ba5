"""What a check finds, and how many checks run at once within a time."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from threading import Thread
from typing import Literal

Outcome = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at, how it is, and what to do about it in one line; nothing when it is ok."""

    subject: str
    outcome: Outcome
    detail: str
    remedy: str | None = None


Check = Callable[[], Sequence[Finding]]


def ok(subject: str, detail: str) -> Finding:
    """It is as it should be."""
    return Finding(subject=subject, outcome="ok", detail=detail)


def warning(subject: str, detail: str, remedy: str) -> Finding:
    """It may become a trouble, or is one only if nobody knows of it."""
    return Finding(subject=subject, outcome="warning", detail=detail, remedy=remedy)


def failed(subject: str, detail: str, remedy: str) -> Finding:
    """Calls will not work like this."""
    return Finding(subject=subject, outcome="failed", detail=detail, remedy=remedy)


def examine(checks: Mapping[str, Check], *, within: float) -> list[Finding]:
    """Run all checks at once; their findings in the order of `checks`.

    A check that is not done after `within` seconds has failed; what it waits for is left to itself.
    """
    running = {subject: _start(check) for subject, check in checks.items()}
    deadline = time.monotonic() + within
    for future in running.values():
        wait_for([future], timeout=max(deadline - time.monotonic(), 0))
    found = [_result(subject, future, within=within) for subject, future in running.items()]
    return [finding for findings in found for finding in findings]


def any_failed(findings: Iterable[Finding]) -> bool:
    """Whether something must be done before calls work."""
    return any(finding.outcome == "failed" for finding in findings)


def _start(check: Check) -> "Future[Sequence[Finding]]":
    future: Future[Sequence[Finding]] = Future()

    def run() -> None:
        try:
            future.set_result(check())
        except BaseException as error:
            # Raised again in the thread that asks for the result.
            future.set_exception(error)

    # A pool's threads are waited for when Python exits, and looking up a name may take half a minute.
    Thread(target=run, daemon=True).start()
    return future


def _result(subject: str, future: "Future[Sequence[Finding]]", *, within: float) -> Sequence[Finding]:
    if future.done():
        return future.result()
    return [failed(subject, f"no answer within {within:.0f} s", "Check the name server and the network in between.")]
