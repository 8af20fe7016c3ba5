"""What leaves the machine for the voice providers: the same for a stand-in as for the real services."""

import asyncio
import json
import re
import socket
import ssl
import wave
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from email.parser import BytesParser
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult
from livekit import rtc
from livekit.agents import utils
from openai import DefaultAsyncHttpxClient

from graphs.entities import TextDelta, UserTurn
from graphs.llm.openai import OpenAILLM
from graphs.supervisor import build_supervisor
from graphs.tickets import RedisTickets
from tests.recording_server import SILENCE, Recorded, RecordingServer
from worker.call.phrases import Phrases, open_cache
from worker.call.providers import Providers, connect_options, open_providers
from worker.call.settings import CallSettings

OPENAI, ELEVENLABS = "api.openai.com", "api.elevenlabs.io"
MODELS, RECOGNITION, REPLY, SPEECH, PHRASE = ("models", "recognition", "reply", "speech", "phrase")
OTHER_RECOGNITION, OTHER_SPEECH = ("other recognition", "other speech")
SERVICE = {
    MODELS: OPENAI,
    RECOGNITION: OPENAI,
    REPLY: OPENAI,
    SPEECH: ELEVENLABS,
    PHRASE: ELEVENLABS,
    OTHER_RECOGNITION: ELEVENLABS,
    OTHER_SPEECH: OPENAI,
}
WORK = tuple(SERVICE)
#: Each provider hears in one half of the work and speaks in the other.
SWAPPED = {"MUSTER_STT": "elevenlabs", "MUSTER_TTS": "openai"}

#: What no request but those of its own service may hold, by the variable that brings it.
SECRETS = {
    "OPENAI_API_KEY": "secret-of-openai",
    "ELEVEN_API_KEY": "secret-of-elevenlabs",
    "LIVEKIT_API_KEY": "secret-name-of-livekit",
    "LIVEKIT_API_SECRET": "secret-of-livekit",
    "BROKER_URL": "redis://:secret@127.0.0.1:1/0",
}
QUESTION = "How much is the fibre plan?"
SENTENCES = "Our fibre plan is forty a month. It comes with a router, and the first month is free."
ONE_SENTENCE = "The first month is free."
GREETING = "Hello, this is the wire."
SAMPLES = bytes(range(256)) * 50
VOICE = rtc.AudioFrame(SAMPLES, sample_rate=16_000, num_channels=1, samples_per_channel=len(SAMPLES) // 2)

#: What the transport makes up for each connection.
OF_THE_CONNECTION = {"host", "sec-websocket-key"}


@dataclass(frozen=True)
class Wire:
    """The requests of the same work, by the work they were for, as each of the two servers saw them."""

    stand_in: dict[str, Recorded]
    real: dict[str, Recorded]


@pytest.fixture(scope="module")
def wire(redis_database: str, tmp_path_factory: pytest.TempPathFactory) -> Wire:
    """All the work a call gives to its providers, done once with a stand-in's URLs and once without."""
    environ = SECRETS | {"REDIS_URL": redis_database, "CACHE_URL": redis_database, "LIVEKIT_URL": "ws://127.0.0.1:1"}
    directory = tmp_path_factory.mktemp("wire")
    return Wire(asyncio.run(ask_a_stand_in(environ)), asyncio.run(ask_the_real_services(environ, directory)))


async def ask_a_stand_in(environ: dict[str, str]) -> dict[str, Recorded]:
    async with RecordingServer() as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        async with utils.http_context.open():
            await ask_everything(environ | {"OPENAI_BASE_URL": url, "ELEVEN_BASE_URL": url}, open_providers)
    return dict(zip(WORK, server.requests, strict=True))


async def ask_the_real_services(environ: dict[str, str], directory: Path) -> dict[str, Recorded]:
    """Their names are resolved to a server of ours, whose certificate the clients trust."""
    authority = trustme.CA()
    tls, trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert(OPENAI, ELEVENLABS).configure_cert(tls)
    authority.configure_trust(trust)
    path = directory / "server"
    async with (
        RecordingServer(tls=tls, socket=path) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=LedTo(server.port), ssl=trust)) as session,
    ):

        def open_real(settings: CallSettings) -> Providers:
            http = DefaultAsyncHttpxClient(transport=httpx2.AsyncHTTPTransport(verify=trust, uds=str(path)))
            return open_providers(settings, openai_http=http, http_session=session)

        await ask_everything(environ, open_real)
    return dict(zip(WORK, server.requests, strict=True))


class LedTo(AbstractResolver):
    """Resolves every name to one port of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=self._port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        """Nothing is held."""


async def ask_everything(environ: dict[str, str], open_all: Callable[[CallSettings], Providers]) -> None:
    """One of everything a call asks its providers for, in the order of `WORK`."""
    settings = CallSettings.from_env(environ)
    providers = open_all(settings)
    try:
        await providers.openai.models.list()
        await hear(providers, settings)
        async with open_cache(settings) as cache:
            llm = OpenAILLM(providers.openai, model=settings.llm_model, timeout=settings.provider_timeout)
            agent = build_supervisor(llm=llm, open_ticket=RedisTickets(cache, tenant="default"), slots={})
            async with aclosing(agent.respond(UserTurn("turn_1", QUESTION))) as events:
                assert [event.text async for event in events if isinstance(event, TextDelta)]
            await speak(providers, settings, SENTENCES)
            await cache.flushdb()
            phrases = Phrases(providers.voices, cache=cache, timeout=settings.provider_timeout)
            assert await phrases.load(GREETING) == SILENCE
    finally:
        await providers.aclose()
    others = open_all(settings := CallSettings.from_env(environ | SWAPPED))
    try:
        await hear(others, settings)
        await speak(others, settings, ONE_SENTENCE)
    finally:
        await others.aclose()


async def hear(providers: Providers, settings: CallSettings) -> None:
    options = connect_options(settings).stt_conn_options
    assert (await providers.stt.recognize(VOICE, conn_options=options)).alternatives[0].text


async def speak(providers: Providers, settings: CallSettings, text: str) -> None:
    async with providers.tts.stream(conn_options=connect_options(settings).tts_conn_options) as speech:
        speech.push_text(text)
        speech.end_input()
        assert [audio async for audio in speech]


def multipart(request: Recorded) -> dict[str, Any]:
    """Each field's content, and the file's type beside its content."""
    form = BytesParser().parsebytes(f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode() + request.body)
    fields = {}
    for part in form.walk():
        if name := part.get_param("name", header="content-disposition"):
            content = part.get_payload(decode=True)
            fields[str(name)] = (part.get_content_type(), content) if part.get_filename() else content
    return fields


def assert_voice(wav: bytes) -> None:
    with wave.open(BytesIO(wav)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
        assert file.readframes(file.getnframes()) == SAMPLES


def comparable(request: Recorded) -> dict[str, Any]:
    """All of a request except where it went and what is drawn at random."""
    text = repr(request.body)
    headers = {name: value for name, value in request.headers.items() if name not in OF_THE_CONNECTION}
    if boundary := re.search(r"boundary=(\w+)", headers.get("content-type", "")):
        headers["content-type"] = "multipart/form-data; boundary=<random>"
        text = text.replace(boundary[1], "<random>")
    said = json.dumps(request.messages)
    for context in {message["context_id"] for message in request.messages}:
        said = said.replace(context, "<random>")
    target = str(request.url.relative())
    return {"method": request.method, "target": target, "headers": headers, "body": text, "messages": said}


@pytest.mark.parametrize("work", WORK)
def test_the_real_service_gets_the_request_that_a_stand_in_gets(wire: Wire, work: str) -> None:
    assert comparable(wire.real[work]) == comparable(wire.stand_in[work])


def test_without_a_stand_in_url_the_real_services_are_asked(wire: Wire) -> None:
    voice = "https://api.elevenlabs.io/v1/text-to-speech/hpp4J3VqNfWAUOO0d1Us"
    assert {work: f"{request.method} {request.url.with_query(None)}" for work, request in wire.real.items()} == {
        MODELS: "GET https://api.openai.com/v1/models",
        RECOGNITION: "POST https://api.openai.com/v1/audio/transcriptions",
        REPLY: "POST https://api.openai.com/v1/chat/completions",
        SPEECH: f"GET {voice}/multi-stream-input",
        PHRASE: f"GET {voice}/multi-stream-input",
        OTHER_RECOGNITION: "POST https://api.elevenlabs.io/v1/speech-to-text",
        OTHER_SPEECH: "POST https://api.openai.com/v1/audio/speech",
    }
    assert {request.url.host for request in wire.stand_in.values()} == {"127.0.0.1"}


@pytest.mark.parametrize("work", WORK)
def test_a_service_gets_its_own_key_and_no_other_secret(wire: Wire, work: str) -> None:
    own = "OPENAI_API_KEY" if SERVICE[work] == OPENAI else "ELEVEN_API_KEY"
    header, form = ("authorization", "Bearer {}") if SERVICE[work] == OPENAI else ("xi-api-key", "{}")
    request = wire.real[work]
    assert request.headers[header] == form.format(SECRETS[own])
    assert [name for name, secret in SECRETS.items() if secret in repr(request)] == [own]
    assert repr(request).count(SECRETS[own]) == 1


def test_recognition_uploads_the_samples_as_a_wav_file(wire: Wire) -> None:
    fields = multipart(wire.real[RECOGNITION])
    kind, content = fields.pop("file")
    assert fields == {"model": b"gpt-4o-mini-transcribe", "language": b"en", "response_format": b"json"}
    assert kind == "audio/wav"
    assert_voice(content)


def test_the_front_desk_asks_the_model_for_a_stream_and_offers_its_tools(wire: Wire) -> None:
    body = json.loads(wire.real[REPLY].body)
    instructions, question = body.pop("messages")
    [tool] = body.pop("tools")
    assert body == {"model": "gpt-4.1-mini", "stream": True, "stream_options": {"include_usage": True}}
    assert instructions.keys() == {"role", "content"}
    assert instructions["role"] == "system"
    assert question == {"role": "user", "content": QUESTION}
    assert tool.keys() == {"type", "function"}
    assert tool["function"].keys() == {"name", "description", "parameters"}
    assert (tool["type"], tool["function"]["name"]) == ("function", "transfer_to")


def test_the_reply_is_spoken_over_one_context_of_a_socket(wire: Wire) -> None:
    request = wire.real[SPEECH]
    assert dict(request.url.query) == {
        "model_id": "eleven_turbo_v2_5",
        "output_format": "pcm_24000",
        "enable_ssml_parsing": "false",
        "enable_logging": "true",
        "inactivity_timeout": "180",
        "apply_text_normalization": "auto",
        "sync_alignment": "true",
        "auto_mode": "true",
    }
    context = {"context_id": request.messages[0]["context_id"]}
    assert request.messages == [
        context | {"text": " ", "voice_settings": {}},
        context | {"text": "Our fibre plan is forty a month. ", "flush": True},
        context | {"text": "It comes with a router, and the first month is free. ", "flush": True},
        context | {"text": "", "flush": True},
        context | {"close_context": True},
    ]


def test_elevenlabs_recognises_the_samples_as_a_wav_file(wire: Wire) -> None:
    fields = multipart(wire.real[OTHER_RECOGNITION])
    kind, content = fields.pop("file")
    assert fields == {"model_id": b"scribe_v2", "language_code": b"en", "tag_audio_events": b"false"}
    assert kind == "audio/x-wav"
    assert_voice(content)


def test_openai_speaks_a_sentence_as_raw_samples(wire: Wire) -> None:
    assert json.loads(wire.real[OTHER_SPEECH].body) == {
        "input": ONE_SENTENCE,
        "model": "gpt-4o-mini-tts",
        "voice": "ash",
        "response_format": "pcm",
        "speed": 1.0,
        "stream_format": "sse",
    }


def test_a_phrase_is_rendered_in_the_voice_and_format_of_the_call(wire: Wire) -> None:
    phrase, speech = wire.real[PHRASE], wire.real[SPEECH]
    assert (phrase.url, phrase.headers.keys()) == (speech.url, speech.headers.keys())
    assert [message["text"] for message in phrase.messages if message.get("text", "").strip()] == [f"{GREETING} "]


async def test_an_empty_stand_in_url_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = {"OPENAI_BASE_URL": "", "ELEVEN_BASE_URL": ""}
    for name, value in empty.items():
        monkeypatch.setenv(name, value)
    settings = CallSettings.from_env(SECRETS | empty | {"REDIS_URL": "redis://", "LIVEKIT_URL": "ws://127.0.0.1:1"})
    async with utils.http_context.open():
        providers = open_providers(settings)
        assert str(providers.openai.base_url) == "https://api.openai.com/v1/"
        await providers.aclose()
