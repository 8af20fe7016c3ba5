"""Settings of the control plane, read once from the environment."""

from pydantic import Field

from worker.fleet.settings import EnvironmentSettings


class ControlPlaneSettings(EnvironmentSettings):
    """Where the agent service is, and what callers need for LiveKit."""

    agent_service_url: str = Field(default="http://127.0.0.1:8000", alias="AGENT_SERVICE_URL")
    livekit_url: str = Field(alias="LIVEKIT_URL")
    livekit_public_url: str | None = Field(default=None, alias="LIVEKIT_PUBLIC_URL")
    livekit_api_key: str = Field(alias="LIVEKIT_API_KEY", repr=False)
    livekit_api_secret: str = Field(alias="LIVEKIT_API_SECRET", repr=False)

    @property
    def callers_livekit_url(self) -> str:
        """LiveKit as callers reach it, which may not be how this network does."""
        return self.livekit_public_url or self.livekit_url
