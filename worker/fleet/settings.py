"""Settings of the fleet, read once from the environment."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from redis.connection import parse_url

from worker.fleet.errors import SettingsInvalid
from worker.fleet.times import JOIN_TTL, QUEUE_PER_SLOT
from worker.fleet.tool_hosts import parse_tool_hosts


def _redis_url(url: str) -> str:
    parse_url(url)  # type: ignore[no-untyped-call]
    return url


RedisUrl = Annotated[str, AfterValidator(_redis_url)]
Seconds = Annotated[float, Field(gt=0, json_schema_extra={"unit": "s"})]


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

    redis_url: RedisUrl = Field(alias="REDIS_URL", repr=False, description="the state: records, leases, admission")
    broker_url: str = Field(
        default="", alias="BROKER_URL", repr=False, description="Celery's broker; without it the server of `REDIS_URL`"
    )
    cache_url: RedisUrl = Field(
        default="", alias="CACHE_URL", repr=False, description="rendered phrases; without it the server of `REDIS_URL`"
    )
    tenant: str = Field(default="default", alias="MUSTER_TENANT", description="prefix of the tenant's keys in Redis")
    slots: int = Field(default=2, alias="MUSTER_SLOTS", ge=1, description="calls per worker at a time")
    join_ttl: Seconds = Field(
        default=JOIN_TTL, alias="MUSTER_JOIN_TTL", description="a session that no worker has claimed by then fails"
    )
    queue_per_slot: float = Field(
        default=QUEUE_PER_SLOT,
        alias="MUSTER_QUEUE_PER_SLOT",
        ge=0,
        description="sessions that may wait, for each slot of the fleet",
    )
    max_duration: Seconds = Field(default=3600, alias="MUSTER_MAX_DURATION", description="longest call")
    chat_patience: Seconds = Field(
        default=10, alias="MUSTER_CHAT_PATIENCE", description="how long a text waits for a worker to answer it"
    )
    tool_hosts: Annotated[frozenset[str], BeforeValidator(parse_tool_hosts)] = Field(
        default=frozenset(),
        alias="MUSTER_TOOL_HOSTS",
        description="hosts that HTTP tools may call, as `host,host:port,http://host:port`; without any, none",
    )
    health_file: Path | None = Field(
        default=None,
        alias="MUSTER_HEALTH_FILE",
        description="a worker's keeper touches it while the lease holds; one file per worker",
    )

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
