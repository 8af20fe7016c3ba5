"""Settings of the fleet, read once from the environment."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from worker.fleet.errors import SettingsInvalid

Seconds = Annotated[float, Field(gt=0)]


class EnvironmentSettings(BaseModel):
    """Base of all settings: each field's alias is its environment variable.

    Values never appear in errors or in `repr` unless a field asks for it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read every field's variable; an empty one counts as not set.

        Raises `SettingsInvalid` that names everything missing or wrong at once.
        """
        environ = os.environ if environ is None else environ
        names = {field.alias for field in cls.model_fields.values() if field.alias}
        given: dict[str, Any] = {name: environ[name] for name in names if environ.get(name)}
        try:
            return cls(**given)
        except ValidationError as error:
            wrong = "; ".join(f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors())
            raise SettingsInvalid(f"settings missing or wrong: {wrong}") from None


class FleetSettings(EnvironmentSettings):
    """What every process of the fleet needs; durations are in seconds."""

    redis_url: str = Field(alias="REDIS_URL", repr=False)
    broker_url: str = Field(default="", alias="BROKER_URL", repr=False)
    cache_url: str = Field(default="", alias="CACHE_URL", repr=False)
    tenant: str = Field(default="default", alias="MUSTER_TENANT")
    slots: int = Field(default=2, alias="MUSTER_SLOTS", ge=1)
    join_ttl: Seconds = Field(default=30, alias="MUSTER_JOIN_TTL")
    queue_per_slot: float = Field(default=1, alias="MUSTER_QUEUE_PER_SLOT", ge=0)
    max_duration: Seconds = Field(default=3600, alias="MUSTER_MAX_DURATION")

    @model_validator(mode="before")
    @classmethod
    def one_server_serves_all(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Broker and cache default to the server of the state."""
        for name in ("BROKER_URL", "CACHE_URL"):
            if "REDIS_URL" in values:
                values.setdefault(name, values["REDIS_URL"])
        return values

    @property
    def session_hold(self) -> float:
        """Seconds a confirmed session holds its room without a release: the longest call and 5 minutes."""
        return self.max_duration + 300
