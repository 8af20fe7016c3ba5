"""Reading a log for people: its end."""

from pathlib import Path

#: Bytes from the end of a log in which its last lines are looked for.
_READ_AT_MOST = 64 * 1024


def tail(path: Path, *, lines: int = 20) -> str:
    """The last lines of a log, or a remark that there are none."""
    if not path.exists():
        return "(no log)"
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - _READ_AT_MOST))
        text = log.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"
