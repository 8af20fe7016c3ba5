"""Switches that make the stand-in provider fail on purpose."""

import asyncio
from typing import Literal

from pydantic import BaseModel, ConfigDict

from local.providers.errors import SwitchedOff

Kind = Literal["stt", "tts", "llm", "embedding"]
Provider = Literal["openai", "elevenlabs"]
Mode = Literal["ok", "fail", "hang"]

LONGEST_HANG_SECONDS = 60.0


class FaultSettings(BaseModel):
    """What each kind of request does: answer, fail at once, or stay silent for a minute and then fail.

    A kind with a provider's name is that provider's alone, and counts when the kind itself answers.
    """

    model_config = ConfigDict(extra="forbid")

    stt: Mode = "ok"
    tts: Mode = "ok"
    llm: Mode = "ok"
    embedding: Mode = "ok"
    openai_stt: Mode = "ok"
    openai_tts: Mode = "ok"
    elevenlabs_stt: Mode = "ok"
    elevenlabs_tts: Mode = "ok"


class Faults:
    """The settings in force; requests that already hang are not woken by a change."""

    def __init__(self) -> None:
        self.settings = FaultSettings()

    def change(self, changes: FaultSettings) -> None:
        """Takes over the kinds that `changes` names and leaves the others."""
        self.settings = self.settings.model_copy(update=changes.model_dump(exclude_unset=True))

    async def pass_through(self, kind: Kind, provider: Provider) -> None:
        """Returns when this kind works at this provider. Raises SwitchedOff."""
        mode = self._mode(kind, provider)
        if mode == "ok":
            return
        if mode == "hang":
            await asyncio.sleep(LONGEST_HANG_SECONDS)
        raise SwitchedOff

    def _mode(self, kind: Kind, provider: Provider) -> Mode:
        modes: dict[str, Mode] = self.settings.model_dump()
        everywhere = modes[kind]
        return modes.get(f"{provider}_{kind}", "ok") if everywhere == "ok" else everywhere
