"""A chat in the terminal: lines go to an agent, and its answers appear as they are given."""

import os
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console

from muster.client import ChatEvent, MusterClient
from muster.errors import MusterError

_USER = "terminal"


class Chat:
    """One conversation of text; it has a session from its first text on."""

    def __init__(self, *, client: MusterClient, console: Console, session_id: str | None = None) -> None:
        self._client = client
        self._console = console
        self.session_id = session_id
        self._user_id = _USER

    def begin(self) -> None:
        """Find out whose conversation it is that goes on; raises a `MusterError`."""
        if self.session_id is not None:
            self._user_id = self._client.session(self.session_id).user_id or _USER

    def write(self, text: str) -> bool:
        """Write a line and show the answer; False when there is none. Raises a `MusterError`."""
        events = self._client.chat(text, user_id=self._user_id, session_id=self.session_id)
        return self._show(events)

    def _show(self, events: Iterable[ChatEvent]) -> bool:
        answered = False
        for event in events:
            match event.kind:
                case "session":
                    self.session_id = event.session_id
                case "text":
                    self._console.print(event.text or "", end="", markup=False, highlight=False, soft_wrap=True)
                case "transfer":
                    self._console.print(f" [{event.source} → {event.target}] ", end="", style="dim", markup=False)
                case "done":
                    answered = True
                    self._console.print()
                case "error":
                    self._console.print(f"\n{event.detail} ({event.code})", style="red", markup=False)
        return answered


def run_chat(*, agent_service: str, session_id: str | None, texts: Sequence[str], console: Console) -> int:
    """Chat until the texts, or the terminal's lines, are over; the exit code."""
    with MusterClient(agent_service, api_key=os.environ.get("MUSTER_API_KEY")) as client:
        chat = Chat(client=client, console=console, session_id=session_id)
        try:
            chat.begin()
            answered = [chat.write(text) for text in (texts or _lines(console))]
        except MusterError as error:
            console.print(str(error), style="red", markup=False)
            return 1
    if chat.session_id is not None:
        console.print(f"Go on with it: muster chat {chat.session_id}", style="dim", markup=False, highlight=False)
    return 0 if all(answered) else 1


def _lines(console: Console) -> Iterator[str]:
    """What is typed, until the end of input or Ctrl-C."""
    while True:
        try:
            line = console.input("[bold]>[/bold] ")
        except (EOFError, KeyboardInterrupt):
            return
        if line.strip():
            yield line
