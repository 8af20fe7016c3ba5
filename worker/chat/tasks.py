"""The task of a worker for text turns: answer one text."""

import asyncio
from typing import TYPE_CHECKING, Any

from celery import Task

from worker.fleet.publishing import CHAT_TASK_NAME

if TYPE_CHECKING:
    from worker.chat.service import ChatService


class RunChat(Task[[str, str], str]):
    """Answers one text per message; the message carries ids only, the text is in Redis.

    Celery keeps one instance per process, so the event loop and the connections that outlive a turn hang here.
    """

    name = CHAT_TASK_NAME
    ignore_result = True
    _runner: "asyncio.Runner | None" = None
    _service: "ChatService | None" = None

    def preload(self) -> None:
        """Load, in the parent, what every process shares; starts no thread, loop or network client."""
        import worker.chat.service  # noqa: F401

    def run(self, session_id: str, turn_id: str) -> str:
        """The task itself; how the turn went is its result."""
        if self._runner is None or self._service is None:
            self._runner, self._service = asyncio.Runner(), self.open_service()
        owner = f"{self.request.hostname}#{turn_id[:8]}"
        return str(self._runner.run(self._service.answer(session_id, turn_id, owner=owner)))

    def open_service(self) -> Any:
        """What answers texts, made once per process; its clients connect when they are first used."""
        from worker.chat.service import ChatService
        from worker.chat.settings import ChatSettings

        return ChatService(ChatSettings.from_env())
