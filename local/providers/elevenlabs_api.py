"""The part of ElevenLabs' interface that Muster and its tools use: speech by HTTP and by socket."""

import asyncio
import base64
import itertools
import re
from contextlib import suppress
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web
from pydantic import Field

from local.providers.audio import read_pcm, read_wav
from local.providers.errors import ProviderError, UnsupportedFormat
from local.providers.exchange import Body, parse, read_upload, stream_speech
from local.providers.faults import Faults, Provider
from local.providers.journal import Journal
from local.providers.models import Models
from local.providers.voice import SPEAKERS, Piece

PROVIDER: Provider = "elevenlabs"
PCM_FORMAT = re.compile(r"pcm_(8000|16000|22050|24000|32000|44100|48000)")
#: Samples per second.
UPLOADED_PCM_RATE = 16_000
#: The longest audio of one message.
MESSAGE_SECONDS = 0.5
DEFAULT_CONTEXT = "default"
#: Seconds.
DEFAULT_INACTIVITY_TIMEOUT = 20.0


class VoiceSettings(Body):
    speed: float | None = Field(default=None, ge=0.5, le=2.0)


class TextToSpeechRequest(Body):
    text: str = Field(min_length=1)
    voice_settings: VoiceSettings | None = None


class SocketMessage(Body):
    """What a client sends: text for a context, or the end of a context or of the socket."""

    context_id: str = DEFAULT_CONTEXT
    text: str | None = None
    flush: bool = False
    close_context: bool = False
    close_socket: bool = False
    voice_settings: VoiceSettings | None = None


class ElevenLabsInterface:
    """Speech synthesis by HTTP and by socket, recognition, and the list of voices."""

    def __init__(self, *, models: Models, faults: Faults, journal: Journal) -> None:
        self._models = models
        self._faults = faults
        self._journal = journal

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/text-to-speech/{voice}/multi-stream-input", self.converse),
            web.post("/v1/text-to-speech/{voice}", self.speak),
            web.post("/v1/text-to-speech/{voice}/stream", self.speak),
            web.post("/v1/speech-to-text", self.transcribe),
            web.get("/v1/voices", self.list_voices),
        ]

    async def converse(self, request: web.Request) -> web.WebSocketResponse:
        """One socket with many contexts; see `SpeechSocket`."""
        rate = sample_rate(request)
        idle = float(request.query.get("inactivity_timeout", DEFAULT_INACTIVITY_TIMEOUT))
        socket = web.WebSocketResponse(receive_timeout=idle)
        await socket.prepare(request)
        await SpeechSocket(
            socket,
            models=self._models,
            faults=self._faults,
            journal=self._journal,
            rate=rate,
            speaker=request.match_info["voice"],
        ).serve()
        return socket

    async def speak(self, request: web.Request) -> web.StreamResponse:
        rate = sample_rate(request)
        speech = parse(await request.read(), TextToSpeechRequest)
        with self._journal.request("tts", PROVIDER, text=speech.text) as entry:
            await self._faults.pass_through("tts", PROVIDER)
            speaker, speed = request.match_info["voice"], speed_of(speech.voice_settings)
            pieces = self._models.speak(speech.text, rate=rate, speaker=speaker, speed=speed)
            return await stream_speech(request, pieces, entry)

    async def transcribe(self, request: web.Request) -> web.Response:
        with self._journal.request("stt", PROVIDER) as entry:
            await self._faults.pass_through("stt", PROVIDER)
            content, fields = await read_upload(request, needed="model_id")
            raw = fields.get("file_format") == "pcm_s16le_16"
            recording = read_pcm(content, rate=UPLOADED_PCM_RATE) if raw else read_wav(content)
            transcript = await self._models.transcribe(recording)
            entry.text, entry.audio = transcript.text, transcript.seconds
        # The model does not tell where its words are; an empty list says so.
        body = {"language_code": "eng", "language_probability": 1.0, "text": transcript.text, "words": []}
        return web.json_response(body)

    async def list_voices(self, request: web.Request) -> web.Response:
        voices = [
            {"voice_id": name, "name": name.capitalize(), "category": "premade", "labels": {"language": "en"}}
            for name in SPEAKERS
        ]
        return web.json_response({"voices": voices})


class Context:
    """One utterance on a socket: texts to speak, in order, and how far its audio has come (seconds)."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.texts: asyncio.Queue[str | None] = asyncio.Queue()
        self.unflushed = ""
        self.text_is_complete = False
        self.spoken = 0.0
        self.speed = 1.0

    def accept(self, message: SocketMessage) -> None:
        text = message.text or ""
        self.unflushed += text
        self.text_is_complete = message.flush and not text.strip()
        if message.voice_settings:
            self.speed = speed_of(message.voice_settings)
        if message.flush:
            self.flush()

    def flush(self) -> None:
        if self.unflushed.strip():
            self.texts.put_nowait(self.unflushed.lstrip())
        self.unflushed = ""


class SpeechSocket:
    """Serves one multi-context socket: audio with the time of every character, piece by piece.

    A `close_context` that follows a flush without text, or that leaves text unflushed, ends an utterance:
    the rest is spoken first. Any other one is an interruption: what is not yet spoken never will be.
    """

    def __init__(
        self,
        socket: web.WebSocketResponse,
        *,
        models: Models,
        faults: Faults,
        journal: Journal,
        rate: int,
        speaker: str,
    ) -> None:
        self._socket = socket
        self._models = models
        self._faults = faults
        self._journal = journal
        self._rate = rate
        self._speaker = speaker
        self._contexts: dict[str, tuple[Context, asyncio.Task[None]]] = {}
        self._tasks = asyncio.TaskGroup()

    async def serve(self) -> None:
        """Returns when the client is gone, closes the socket or says nothing for too long."""
        async with self._tasks:
            with suppress(TimeoutError):
                await self._read()
            for _, task in self._contexts.values():
                task.cancel()
        await self._socket.close()

    async def _read(self) -> None:
        async for frame in self._socket:
            if frame.type is not WSMsgType.TEXT or not await self._handle(frame.data):
                return

    async def _handle(self, data: str) -> bool:
        try:
            message = parse(data, SocketMessage)
        except ProviderError as error:
            await self._fail(error, context=None)
            return False
        if message.close_context:
            await self._close(message.context_id)
        elif not message.close_socket:
            self._open(message.context_id).accept(message)
        return not message.close_socket

    def _open(self, identity: str) -> Context:
        if identity not in self._contexts:
            context = Context(identity)
            self._contexts[identity] = context, self._tasks.create_task(self._speak(context))
        return self._contexts[identity][0]

    async def _close(self, identity: str) -> None:
        if identity not in self._contexts:
            return
        context, task = self._contexts[identity]
        if context.text_is_complete or context.unflushed.strip():
            context.flush()
            context.texts.put_nowait(None)
        else:
            task.cancel()
            await self._finish(context)

    async def _speak(self, context: Context) -> None:
        try:
            while (text := await context.texts.get()) is not None:
                await self._speak_text(context, text)
            await self._finish(context)
        except ProviderError as error:
            await self._fail(error, context=context.identity)

    async def _speak_text(self, context: Context, text: str) -> None:
        with self._journal.request("tts", PROVIDER, text=text) as entry:
            await self._faults.pass_through("tts", PROVIDER)
            # Once there is audio to listen to, whole sentences sound better than an early clause.
            eager = context.spoken == 0
            speech = self._models.speak(text, rate=self._rate, speaker=self._speaker, speed=context.speed, eager=eager)
            async for piece in speech:
                entry.mark_first()
                entry.audio += piece.seconds
                await self._send_piece(context, piece)

    async def _send_piece(self, context: Context, piece: Piece) -> None:
        times = alignment(piece, begin=context.spoken)
        context.spoken += piece.seconds
        size = 2 * round(MESSAGE_SECONDS * self._rate)
        for start in range(0, len(piece.pcm), size):
            message: dict[str, Any] = {
                "audio": base64.b64encode(piece.pcm[start : start + size]).decode(),
                "contextId": context.identity,
            }
            if start == 0:
                message |= {"alignment": times, "normalizedAlignment": times}
            await self._send(message)

    async def _finish(self, context: Context) -> None:
        self._contexts.pop(context.identity, None)
        await self._send({"contextId": context.identity, "isFinal": True})

    async def _fail(self, error: ProviderError, *, context: str | None) -> None:
        # Out of the reader's hands: its end must not cancel the closing of the socket.
        self._contexts.pop(context or "", None)
        await self._send({"error": str(error), "code": error.code, "contextId": context})
        await self._socket.close(code=WSCloseCode.INTERNAL_ERROR, message=error.code.encode())

    async def _send(self, message: dict[str, Any]) -> None:
        # The client may leave at any moment; reading from the socket tells so.
        with suppress(ConnectionResetError):
            await self._socket.send_json(message)


def alignment(piece: Piece, *, begin: float) -> dict[str, list[Any]]:
    """When each character is spoken, in milliseconds since the context's first audio."""
    edges = [round(1000 * (begin + start)) for start in (*piece.starts, piece.seconds)]
    return {
        "chars": list(piece.text),
        "charStartTimesMs": edges[:-1],
        "charDurationsMs": [max(0, end - start) for start, end in itertools.pairwise(edges)],
    }


def speed_of(settings: VoiceSettings | None) -> float:
    return settings.speed if settings and settings.speed else 1.0


def sample_rate(request: web.Request) -> int:
    """Samples per second of the query's output_format. Raises UnsupportedFormat."""
    name = request.query.get("output_format", "mp3_44100_128")
    if found := PCM_FORMAT.fullmatch(name):
        return int(found[1])
    raise UnsupportedFormat(f"output_format: the stand-in provider speaks pcm_* only, not {name!r}.")
