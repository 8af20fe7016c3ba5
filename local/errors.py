"""The exceptions of the local stack; a class's docstring is its message.

LocalError
├── StepFailed
├── RedisMissing
├── LiveKitMissing
├── StandInMissing
├── SettingMissing
├── StackRunning
├── StackNotRunning
├── PartNotStarted
├── PartDied
└── PartNotReady
"""

import inspect


class LocalError(Exception):
    """Something of the local stack failed."""

    def __init__(self, **facts: object) -> None:
        super().__init__(inspect.cleandoc(self.__doc__ or "").format(**facts))


class StepFailed(LocalError):
    """{step} failed.
    The last lines of {log}:

    {tail}

    What to do: {advice}
    """


class RedisMissing(LocalError):
    """There is no Redis server: set REDIS_URL, or install redis-server (7 or newer) or valkey-server."""


class LiveKitMissing(LocalError):
    """There is no LiveKit server yet: run `make setup`, or set LIVEKIT_URL."""


class StandInMissing(LocalError):
    """{absence}. {instead}"""


class SettingMissing(LocalError):
    """{given} is set, so {missing} must be set as well."""


class StackRunning(LocalError):
    """A stack is running already: process {pid}, {urls}. Stop it with Ctrl-C there, or with `kill {pid}`."""


class StackNotRunning(LocalError):
    """No stack is running: start one with `muster up` (or `make up`) and keep it open."""


class PartNotStarted(LocalError):
    """{part} could not be started: {error}."""


class PartDied(LocalError):
    """{part} ended with exit code {code}.
    The last lines of {log}:

    {tail}
    """


class PartNotReady(LocalError):
    """{part} was not ready after {seconds:.0f} seconds.
    The last lines of {log}:

    {tail}
    """
