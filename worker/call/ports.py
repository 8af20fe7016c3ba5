"""The ports of speech: what makes the recognition and the voice of one call, whichever provider serves it."""

from typing import Any, Protocol

from livekit.agents import stt, tts

#: Samples per second of every voice; PCM16 mono.
SAMPLE_RATE = 24_000


class STTPort(Protocol):
    """Makes LiveKit's `stt.STT`.

    `open` asks nothing of the network. It is called in the event loop that uses the STT, inside
    `livekit.agents.utils.http_context.open()` unless the adapter was given its HTTP session. Who opens it closes it by
    `aclose`; a client or session given to the adapter stays open.

    `recognize` takes an utterance of any sample rate and gives its words, none for silence. It raises nothing but
    `APIError`, at the latest after `conn_options.timeout` seconds for each attempt, and tells each answer by
    `metrics_collected`.
    """

    @property
    def name(self) -> str:
        """The provider, as the settings name it."""
        ...

    def open(self) -> stt.STT[Any]:
        """A recognition of its own for one call."""
        ...


class TTSPort(Protocol):
    """Makes LiveKit's `tts.TTS`; opened and closed as an STT.

    `stream` speaks text while it is still being written: PCM16 mono of `SAMPLE_RATE`, and in each frame the words that
    begin in it or after it, with their times (`USERDATA_TIMED_TRANSCRIPT`); put together they are the text. It raises
    nothing but `APIError`, at the latest when nothing was heard for twice `conn_options.timeout` seconds, and an
    attempt that was heard is never begun again.
    """

    @property
    def name(self) -> str:
        """The provider, as the settings name it."""
        ...

    @property
    def voice(self) -> str:
        """Everything that decides how a text sounds, as one text."""
        ...

    def open(self) -> tts.TTS[Any]:
        """A voice of its own for one call."""
        ...
