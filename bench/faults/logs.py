"""What a stack's logs tell of errors that nobody looked at."""

import re
from collections.abc import Iterable
from pathlib import Path

from local.paths import ROOT

#: The line in which asyncio names a task or a callback that ended in an exception, and where its code stands.
_ENDED_BADLY = re.compile(r"^(?:future|handle): <.* at (/\S+\.py):\d+>.*")


def unseen_errors(lines: Iterable[str], *, root: Path = ROOT) -> list[str]:
    """Each task and callback of the code below `root` that ended in an exception which nobody took."""
    found = (_ENDED_BADLY.match(line.rstrip("\n")) for line in lines)
    return [_brief(match.group()) for match in found if match and _is_ours(Path(match.group(1)), root)]


def _is_ours(path: Path, root: Path) -> bool:
    return path.is_relative_to(root) and "site-packages" not in path.parts


def _brief(line: str) -> str:
    """An exception's text may be a file's whole contents."""
    return f"an error that nobody took: {line[:300]}"
