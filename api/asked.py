"""The base of every model of what comes from outside."""

from pydantic import BaseModel, ConfigDict


class Asked(BaseModel):
    """Nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class Nothing(Asked):
    """No field at all."""
