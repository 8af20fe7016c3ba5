"""Settings of a call: LiveKit, the providers, the knowledge, the timers and the turn handling."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from graphs.configuration import AgentConfiguration
from worker.fleet.settings import EnvironmentSettings, FleetSettings, Seconds

#: Named because the SDK would take OPENAI_BASE_URL as it is, and an empty one leads nowhere.
OPENAI_URL = "https://api.openai.com/v1"
#: Before the name of each secret that HTTP tools may send as a header.
SECRET_PREFIX = "MUSTER_SECRET_"


def tool_secrets(environ: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """The secrets of HTTP tools by the names under which configurations refer to them."""
    environ = os.environ if environ is None else environ
    return {
        variable.removeprefix(SECRET_PREFIX): value
        for variable, value in environ.items()
        if variable.startswith(SECRET_PREFIX) and value
    }


OPENAI: Literal["openai"] = "openai"
ELEVENLABS: Literal["elevenlabs"] = "elevenlabs"


def _names(value: object) -> object:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


def _each_once(value: Sequence[str]) -> Sequence[str]:
    if len(set(value)) < len(value):
        raise ValueError("each provider is named once")
    return value


#: Providers, the preferred one first; in the environment with commas between them.
Order = Annotated[
    tuple[Literal["openai", "elevenlabs"], ...],
    BeforeValidator(_names),
    AfterValidator(_each_once),
]


class KnowledgeSettings(EnvironmentSettings):
    """What searching documents needs: a call and `muster knowledge` read the same."""

    knowledge_index: Path | None = Field(
        default=None,
        alias="MUSTER_KNOWLEDGE_INDEX",
        description="file that `muster knowledge add` made; without it no turn is looked up in documents",
    )
    retrieval_budget: Seconds = Field(
        default=0.15,
        alias="MUSTER_RETRIEVAL_BUDGET",
        description="how long a turn waits for passages before it goes on without them",
    )
    embeddings_model: str | None = Field(
        default=None,
        alias="MUSTER_EMBEDDINGS_MODEL",
        description="model whose vectors let documents be found by meaning too; without it words decide alone",
    )
    embeddings_base_url: str | None = Field(
        default=None,
        alias="MUSTER_EMBEDDINGS_BASE_URL",
        description="compatible server of that model, up to and with `/v1`; without it where the chat model is",
    )
    embeddings_api_key: str = Field(
        default="",
        alias="MUSTER_EMBEDDINGS_API_KEY",
        repr=False,
        description="key of that server, which never gets `OPENAI_API_KEY`",
    )
    openai_api_key: str = Field(
        default="",
        alias="OPENAI_API_KEY",
        repr=False,
        description="recognition and model; any text for a server that wants none",
    )
    openai_base_url: str | None = Field(
        default=None,
        alias="OPENAI_BASE_URL",
        description="a compatible server, up to and with `/v1`; without it OpenAI's own",
    )


class AgentSettings(KnowledgeSettings, FleetSettings):
    """What the conversation needs, spoken or written."""

    openai_api_key: str = Field(
        alias="OPENAI_API_KEY",
        repr=False,
        description="model, recognition and voice; any text for a server that wants none",
    )
    llm_model: str = Field(default="gpt-4.1-mini", alias="MUSTER_LLM_MODEL", description="OpenAI's chat model")
    llm_fallback_model: str | None = Field(
        default=None,
        alias="MUSTER_LLM_FALLBACK_MODEL",
        description="chat model of the same server that answers when the first one fails; without it nobody does",
    )
    router: Literal["sticky", "speculative"] = Field(
        default="sticky",
        alias="MUSTER_ROUTER",
        description="who answers a turn: whoever answered last (`sticky`), or whom a small model names while they "
        "begin to (`speculative`)",
    )
    router_model: str | None = Field(
        default=None,
        alias="MUSTER_ROUTER_MODEL",
        description="the small model of a `speculative` router; without it the chat model",
    )
    knowledge: Path | None = Field(
        default=None,
        alias="MUSTER_KNOWLEDGE",
        description="folder with products and handbooks; without it `graphs/knowledge/demo`",
    )
    provider_timeout: Seconds = Field(
        default=5,
        alias="MUSTER_PROVIDER_TIMEOUT",
        description="longest wait for one provider request; then the next provider is asked, or the only one once more",
    )

    def with_configuration(self, configuration: AgentConfiguration) -> Self:
        """The same with what one session's configuration sets of it."""
        asked = self._configured(configuration)
        return self.model_copy(update={name: value for name, value in asked.items() if value is not None})

    def _configured(self, configuration: AgentConfiguration) -> Mapping[str, str | None]:
        return {"llm_model": configuration.model}


class CallSettings(AgentSettings):
    """What a worker needs beyond the fleet's settings; durations are in seconds.

    `OPENAI_BASE_URL` and `ELEVEN_BASE_URL` point the genuine clients at any compatible server; without them
    they talk to the real services.
    """

    livekit_url: str = Field(alias="LIVEKIT_URL", description="the LiveKit server")
    livekit_api_key: str = Field(alias="LIVEKIT_API_KEY", repr=False, description="LiveKit's key, which signs tokens")
    livekit_api_secret: str = Field(alias="LIVEKIT_API_SECRET", repr=False, description="the secret of that key")

    stt: Order | None = Field(
        default=None,
        alias="MUSTER_STT",
        description="who hears the caller, the preferred one first: `openai`, `elevenlabs` or both with a comma; "
        "without it both, OpenAI first, ElevenLabs if its key is set",
    )
    tts: Order | None = Field(
        default=None,
        alias="MUSTER_TTS",
        description="who speaks, as `MUSTER_STT`; without it both, ElevenLabs first",
    )
    eleven_api_key: str = Field(
        default="",
        alias="ELEVEN_API_KEY",
        repr=False,
        description="voice and recognition; **required** unless `MUSTER_TTS` and `MUSTER_STT` leave ElevenLabs out; "
        "any text for a server that wants none",
    )
    eleven_base_url: str | None = Field(
        default=None,
        alias="ELEVEN_BASE_URL",
        description="a compatible server, up to and with `/v1`; without it ElevenLabs' own",
    )

    stt_model: str = Field(
        default="gpt-4o-mini-transcribe", alias="MUSTER_STT_MODEL", description="OpenAI's recognition model"
    )
    eleven_stt_model: str = Field(
        default="scribe_v2", alias="MUSTER_ELEVEN_STT_MODEL", description="ElevenLabs' recognition model"
    )
    tts_model: str = Field(default="eleven_turbo_v2_5", alias="MUSTER_TTS_MODEL", description="ElevenLabs' voice model")
    voice_id: str = Field(default="hpp4J3VqNfWAUOO0d1Us", alias="MUSTER_VOICE_ID", description="ElevenLabs' voice")
    openai_tts_model: str = Field(
        default="gpt-4o-mini-tts", alias="MUSTER_OPENAI_TTS_MODEL", description="OpenAI's voice model"
    )
    openai_voice: str = Field(default="ash", alias="MUSTER_OPENAI_VOICE", description="OpenAI's voice")
    language: str | None = Field(
        default=None,
        alias="MUSTER_LANGUAGE",
        description="what callers speak; without it English is recognised and the voice goes by the text",
    )

    greeting: str = Field(
        default="Hello, this is Northwind. How can I help you today?",
        alias="MUSTER_GREETING",
        description="first words of a call; rendered ahead, as the next two",
    )
    apology: str = Field(
        default="I am sorry, I could not follow just now. Could you say that again?",
        alias="MUSTER_APOLOGY",
        description="said when a turn failed",
    )
    farewell: str = Field(
        default="I am sorry, something is broken on our side, so I have to end this call. Please call again later.",
        alias="MUSTER_FAREWELL",
        description="said when two turns in a row failed",
    )

    resumption: str = Field(
        default="I am sorry, I lost you for a moment.",
        alias="MUSTER_RESUMPTION",
        description="said when another worker goes on with a call whose own was lost",
    )

    caller_arrival_timeout: Seconds = Field(
        default=60, alias="MUSTER_CALLER_ARRIVAL_TIMEOUT", description="how long an agent waits for its caller"
    )
    caller_lost_grace: Seconds = Field(
        default=20,
        alias="MUSTER_CALLER_LOST_GRACE",
        description="how long a caller whose connection broke may take, and a room that an agent has lost",
    )
    idle_timeout: Seconds = Field(
        default=300, alias="MUSTER_IDLE_TIMEOUT", description="silence of both sides that ends a call"
    )

    turn_detection: Literal["model", "vad"] = Field(
        default="model", alias="MUSTER_TURN_DETECTION", description="how the end of a turn is judged: `model` or `vad`"
    )
    endpointing_min_delay: Seconds = Field(
        default=0.6, alias="MUSTER_ENDPOINTING_MIN_DELAY", description="silence that ends a turn that sounds finished"
    )
    endpointing_max_delay: Seconds = Field(
        default=0.9, alias="MUSTER_ENDPOINTING_MAX_DELAY", description="silence that ends any turn"
    )
    early_transcripts: int = Field(
        default=2,
        ge=0,
        alias="MUSTER_EARLY_TRANSCRIPTS",
        description="short silences of an utterance at which its words are recognised already; each after which the "
        "caller goes on costs one more request, 0 recognises ends only",
    )
    draft_audio: bool = Field(
        default=True,
        alias="MUSTER_DRAFT_AUDIO",
        description="whether the sound of a turn that is not over is kept in Redis, for a minute at most, so that an "
        "agent that goes on when this one is lost has its words; without it only what is recognised is kept",
    )
    drafts: int = Field(
        default=4,
        ge=0,
        alias="MUSTER_DRAFTS",
        description="answers that may be drafted for one turn until it is over; each is a model request, 0 drafts none",
    )
    preemptive_voice: bool = Field(
        default=True,
        alias="MUSTER_PREEMPTIVE_VOICE",
        description="whether a draft is spoken into memory too; the voice is paid for drafts that nobody hears",
    )
    interruption_min_duration: Seconds = Field(
        default=0.4, alias="MUSTER_INTERRUPTION_MIN_DURATION", description="speech that interrupts the agent"
    )

    @model_validator(mode="before")
    @classmethod
    def a_missing_key_is_judged_too(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A default is not validated, or its error would not name the variable."""
        return {"ELEVEN_API_KEY": ""} | values

    @field_validator("eleven_api_key")
    @classmethod
    def who_is_named_has_a_key(cls, key: str, info: ValidationInfo) -> str:
        """ElevenLabs speaks unless the order of voices leaves it out, and hears only when it is named."""
        # An order that was refused is not there; its own error is told.
        speaks = ELEVENLABS in (info.data["tts"] or (ELEVENLABS,)) if "tts" in info.data else False
        hears = ELEVENLABS in (info.data.get("stt") or ())
        if not key and (speaks or hears):
            raise ValueError("required, because MUSTER_TTS and MUSTER_STT do not leave ElevenLabs out")
        return key

    @property
    def stt_order(self) -> Order:
        """Who hears the caller, the preferred one first."""
        return self.stt or ((OPENAI, ELEVENLABS) if self.eleven_api_key else (OPENAI,))

    @property
    def tts_order(self) -> Order:
        """Who speaks, the preferred one first."""
        return self.tts or (ELEVENLABS, OPENAI)

    @property
    def phrases(self) -> tuple[str, ...]:
        """Every phrase that is rendered ahead of a call."""
        return (self.greeting, self.apology, self.farewell, self.resumption)

    def _configured(self, configuration: AgentConfiguration) -> Mapping[str, str | None]:
        return {
            **super()._configured(configuration),
            "greeting": configuration.greeting,
            "openai_voice" if self.tts_order[0] == OPENAI else "voice_id": configuration.voice,
            "language": configuration.language,
        }
