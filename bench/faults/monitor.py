"""What a Redis server says it does (`MONITOR`), taken apart into the steps that were atomic."""

import ast
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_LINE = re.compile(rb"^\+(\d+\.\d+) \[\d+ (\S+)\] (.*)$", re.DOTALL)
_WORD = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SCRIPT = "lua"
_EVALUATIONS = ("EVAL", "EVALSHA")


@dataclass(frozen=True, slots=True)
class Command:
    """One command; `at` in Unix seconds of the server's clock, `client` its address, or "lua" for a script's own."""

    at: float
    client: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """In capitals."""
        return self.words[0].upper()


@dataclass(frozen=True, slots=True)
class Step:
    """What was done in one piece: a script and its commands, or a single command."""

    at: float
    commands: tuple[Command, ...]
    #: The SHA-1 of the script, empty for a single command, and what it was given.
    script: str = ""
    keys: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


def parse(line: bytes) -> Command | None:
    """A line of the monitor without its end; None when it is none, such as the answer to `MONITOR`."""
    found = _LINE.match(line)
    if not found:
        return None
    at, client, words = found.groups()
    return Command(float(at), client.decode(), tuple(_text(word) for word in _WORD.findall(words)))


class Steps:
    """Puts a script's commands together with the call of the script."""

    def __init__(self) -> None:
        self._call: Command | None = None
        self._inside: list[Command] = []

    def feed(self, command: Command) -> Iterator[Step]:
        """The steps that are complete when this command follows them."""
        if command.client == _SCRIPT:
            self._inside.append(command)
            return
        yield from self.flush()
        if command.name in _EVALUATIONS:
            self._call = command
        else:
            yield Step(command.at, (command,))

    def flush(self) -> Iterator[Step]:
        """The step that nothing has followed yet."""
        call, inside = self._call, tuple(self._inside)
        self._call, self._inside = None, []
        if call is not None:
            keys, arguments = _given(call.words)
            yield Step(call.at, inside, digest_of(call), keys, arguments)
        elif inside:
            yield Step(inside[0].at, inside)


def digest(script: str) -> str:
    """The name under which Redis knows a script."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def digest_of(call: Command) -> str:
    """The script that is called."""
    return call.words[1] if call.name == "EVALSHA" else digest(call.words[1])


def _given(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    count = int(words[2])
    return tuple(words[3 : 3 + count]), tuple(words[3 + count :])


def _text(quoted: bytes) -> str:
    # Redis quotes as Python does.
    text: bytes = ast.literal_eval("b" + quoted.decode("ascii"))
    return text.decode(errors="replace")
