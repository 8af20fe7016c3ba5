"""Settings of a worker for text turns."""

from pydantic import Field

from worker.call.settings import AgentSettings


class ChatSettings(AgentSettings):
    """What it needs beyond the conversation's settings; neither LiveKit nor a voice."""

    chat_processes: int = Field(
        default=2, alias="MUSTER_CHAT_PROCESSES", ge=1, description="texts per worker for text turns at a time"
    )
