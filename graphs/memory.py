"""What an agent remembers of a conversation."""

from collections.abc import Sequence
from dataclasses import replace

from graphs.entities import Message


class Memory:
    """Messages that were said and heard, oldest first, and who answers next."""

    def __init__(self, history: Sequence[Message], *, active: str) -> None:
        self.messages = list(history)
        self.active = active

    def knows(self, message_id: str) -> bool:
        return any(message.id == message_id for message in self.messages)

    def remember(self, turn_id: str, messages: Sequence[Message], *, active: str) -> None:
        """Keep a finished tool call's messages at the end of its turn, and who is responsible after it."""
        for message in messages:
            self._put(message, self._span(turn_id)[1])
        self.active = active

    def commit_user(self, message: Message) -> None:
        self._put(replace(message, specialist=message.specialist or self.active), len(self.messages))

    def commit_assistant(self, turn_id: str, text: str, *, interrupted: bool, item_id: str) -> None:
        """Put the heard words where their turn ends, even when the next turn has begun."""
        if not text:
            return
        start, end = self._span(turn_id)
        speakers = [message.specialist for message in self.messages[start:end] if message.specialist]
        reply = Message(
            id=item_id,
            role="assistant",
            content=text,
            interrupted=interrupted,
            specialist=speakers[-1] if speakers else self.active,
        )
        self._put(reply, end)

    def _span(self, turn_id: str) -> tuple[int, int]:
        """From a turn's user message to the next one; for words without a turn, the empty end."""
        length = len(self.messages)
        # From the end, where it nearly always is.
        start = next((i for i in range(length - 1, -1, -1) if self.messages[i].id == turn_id), length)
        following = range(start + 1, length)
        return start, next((i for i in following if self.messages[i].role == "user"), length)

    def _put(self, message: Message, position: int) -> None:
        for i, known in enumerate(self.messages):
            if known.id == message.id:
                self.messages[i] = message
                return
        self.messages.insert(position, message)
