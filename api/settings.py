"""Settings of the HTTP services, read once from the environment."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from api.keys import ApiKeys
from worker.fleet.settings import EnvironmentSettings


class AccessSettings(EnvironmentSettings):
    """Who may use a service; without keys nobody but its own machine."""

    api_keys: Annotated[ApiKeys, BeforeValidator(ApiKeys.parse)] = Field(
        default=ApiKeys(),
        alias="MUSTER_API_KEYS",
        repr=False,
        description="clients' keys as `name:hash,…`, made by `muster key NAME`; without any, loopback only",
    )


class ControlPlaneSettings(AccessSettings):
    """Where the agent service is, and what callers need for LiveKit."""

    agent_service_url: str = Field(
        default="http://127.0.0.1:8000", alias="AGENT_SERVICE_URL", description="the agent service"
    )
    agent_service_api_key: str | None = Field(
        default=None,
        alias="AGENT_SERVICE_API_KEY",
        repr=False,
        pattern=r"^[A-Za-z0-9._~+/-]+=*$",
        description="the control plane's own key for the agent service",
    )
    livekit_url: str = Field(alias="LIVEKIT_URL", description="the LiveKit server")
    livekit_public_url: str | None = Field(
        default=None,
        alias="LIVEKIT_PUBLIC_URL",
        description="LiveKit as callers reach it; without it `LIVEKIT_URL`",
    )
    livekit_api_key: str = Field(alias="LIVEKIT_API_KEY", repr=False, description="LiveKit's key, which signs tokens")
    livekit_api_secret: str = Field(alias="LIVEKIT_API_SECRET", repr=False, description="the secret of that key")

    @property
    def callers_livekit_url(self) -> str:
        """LiveKit as callers reach it, which may not be how this network does."""
        return self.livekit_public_url or self.livekit_url


class WebhookSettings(EnvironmentSettings):
    """The keys by which the agent service knows LiveKit's webhooks; without both it takes none."""

    livekit_api_key: str | None = Field(
        default=None, alias="LIVEKIT_API_KEY", repr=False, description="the key that LiveKit signs its webhooks with"
    )
    livekit_api_secret: str | None = Field(
        default=None, alias="LIVEKIT_API_SECRET", repr=False, description="the secret of LIVEKIT_API_KEY"
    )
