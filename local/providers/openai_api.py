"""The part of OpenAI's HTTP interface that Muster and its tools use."""

import asyncio
import base64
import json
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from aiohttp import web
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from local.providers.audio import read_wav, write_wav
from local.providers.errors import UnsupportedFormat
from local.providers.exchange import Body, collect_speech, event, parse, read_upload, stream_speech
from local.providers.faults import Faults, Provider
from local.providers.journal import Journal
from local.providers.models import Models
from local.providers.recognition import Transcript
from local.providers.responder import Answer, ToolCall
from local.providers.voice import DEFAULT_SPEAKER

PROVIDER: Provider = "openai"
#: Samples per second.
SPEECH_RATE = 24_000
#: What an English text has on average: usage is an estimate here.
CHARACTERS_PER_TOKEN = 4
MODEL_NAMES = ("stand-in", "stand-in-transcribe", "stand-in-tts", "stand-in-embedding")


class StreamOptions(Body):
    include_usage: bool = False


class ChatMessage(Body):
    """One message; what else it carries is the responder's business."""

    model_config = ConfigDict(extra="allow")

    role: str


class Function(Body):
    model_config = ConfigDict(extra="allow")

    name: str


class Tool(Body):
    function: Function


class ChatRequest(Body):
    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[Tool] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None


class SpeechRequest(Body):
    model: str
    input: str = Field(min_length=1, max_length=4096)
    voice: str | dict[str, str] = DEFAULT_SPEAKER
    response_format: str = "mp3"
    speed: float = Field(default=1.0, ge=0.25, le=4.0)
    stream_format: Literal["audio", "sse"] = "audio"

    @property
    def speaker(self) -> str:
        return self.voice if isinstance(self.voice, str) else self.voice.get("id", DEFAULT_SPEAKER)


class EmbeddingsRequest(Body):
    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"


class OpenAIInterface:
    """Transcriptions, speech, chat completions, embeddings and the list of models.

    `first_token_delay` and `token_interval` are seconds: what a remote model would take.
    """

    def __init__(
        self,
        *,
        models: Models,
        faults: Faults,
        journal: Journal,
        first_token_delay: float,
        token_interval: float,
    ) -> None:
        self._models = models
        self._faults = faults
        self._journal = journal
        self._first_token_delay = first_token_delay
        self._token_interval = token_interval

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/audio/transcriptions", self.transcribe),
            web.post("/v1/audio/speech", self.speak),
            web.post("/v1/chat/completions", self.complete),
            web.post("/v1/embeddings", self.embed),
            web.get("/v1/models", self.list_models),
        ]

    async def transcribe(self, request: web.Request) -> web.Response:
        with self._journal.request("stt", PROVIDER) as entry:
            await self._faults.pass_through("stt", PROVIDER)
            content, fields = await read_upload(request, needed="model")
            transcript = await self._models.transcribe(read_wav(content))
            entry.text, entry.audio = transcript.text, transcript.seconds
        return transcription(transcript, fields.get("response_format", "json"))

    async def speak(self, request: web.Request) -> web.StreamResponse:
        speech = parse(await request.read(), SpeechRequest)
        if speech.response_format not in ("pcm", "wav"):
            raise UnsupportedFormat("response_format: the stand-in provider speaks 'pcm' and 'wav' only.")
        with self._journal.request("tts", PROVIDER, text=speech.input) as entry:
            await self._faults.pass_through("tts", PROVIDER)
            pieces = self._models.speak(speech.input, rate=SPEECH_RATE, speaker=speech.speaker, speed=speech.speed)
            if speech.response_format == "pcm":
                return await stream_speech(request, pieces, entry, as_events=speech.stream_format == "sse")
            # A WAV header states the length, so the whole speech has to be there first.
            content = write_wav(await collect_speech(pieces, entry), rate=SPEECH_RATE)
        return web.Response(body=content, content_type="audio/wav")

    async def complete(self, request: web.Request) -> web.StreamResponse:
        chat = parse(await request.read(), ChatRequest)
        with self._journal.request("llm", PROVIDER) as entry:
            await self._faults.pass_through("llm", PROVIDER)
            messages = [message.model_dump() for message in chat.messages]
            answer = await self._models.answer(messages, [tool.model_dump() for tool in chat.tools or ()])
            entry.text = answer.text or ", ".join(call.name for call in answer.tool_calls)
            completion = Completion(chat, answer)
            await asyncio.sleep(self._first_token_delay)
            entry.mark_first()
            if chat.stream:
                return await self._stream(request, completion)
        return web.json_response(completion.whole())

    async def _stream(self, request: web.Request, completion: "Completion") -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        for chunk in completion.chunks():
            await response.write(event(chunk))
            await asyncio.sleep(self._token_interval)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def embed(self, request: web.Request) -> web.Response:
        wanted = parse(await request.read(), EmbeddingsRequest)
        texts = [wanted.input] if isinstance(wanted.input, str) else wanted.input
        with self._journal.request("embedding", PROVIDER):
            await self._faults.pass_through("embedding", PROVIDER)
            vectors, tokens = await self._models.embed(texts)
        data = [
            {"object": "embedding", "index": index, "embedding": encoded(vector, wanted.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return web.json_response({"object": "list", "data": data, "model": wanted.model, "usage": usage})

    async def list_models(self, request: web.Request) -> web.Response:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "muster"} for name in MODEL_NAMES]
        return web.json_response({"object": "list", "data": data})


class Completion:
    """An answer in the two shapes of a chat completion: whole and in chunks."""

    def __init__(self, chat: ChatRequest, answer: Answer) -> None:
        self._chat = chat
        self._text = answer.text
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": chat.model}
        self._tool_calls = [tool_call(call) for call in answer.tool_calls]
        self._finish_reason = "tool_calls" if answer.tool_calls else "stop"

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self._text or None}
        if self._tool_calls:
            message["tool_calls"] = self._tool_calls
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        return self._head | {"object": "chat.completion", "choices": [choice], "usage": self._usage()}

    def chunks(self) -> Iterator[dict[str, Any]]:
        yield self._chunk({"role": "assistant", "content": None if self._tool_calls else ""})
        for token in tokens_of(self._text):
            yield self._chunk({"content": token})
        for index, call in enumerate(self._tool_calls):
            function = call["function"]
            announced = call | {"index": index, "function": function | {"arguments": ""}}
            yield self._chunk({"tool_calls": [announced]})
            arguments = {"arguments": function["arguments"]}
            yield self._chunk({"tool_calls": [{"index": index, "function": arguments}]})
        yield self._chunk({}, finish_reason=self._finish_reason)
        if self._chat.stream_options and self._chat.stream_options.include_usage:
            yield self._head | {"object": "chat.completion.chunk", "choices": [], "usage": self._usage()}

    def _chunk(self, delta: dict[str, Any], *, finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]}

    def _usage(self) -> dict[str, int]:
        prompt = len(self._chat.model_dump_json(include={"messages", "tools"})) // CHARACTERS_PER_TOKEN
        completion = (len(self._text) + len(json.dumps(self._tool_calls))) // CHARACTERS_PER_TOKEN
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }


def tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def tokens_of(text: str) -> list[str]:
    """Words with the space before them: what one streamed chunk carries."""
    return re.findall(r"\s*\S+", text)


def encoded(vector: NDArray[np.float32], encoding_format: str) -> str | list[float]:
    if encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in vector]


def transcription(transcript: Transcript, response_format: str) -> web.Response:
    """Raises UnsupportedFormat for subtitles."""
    if response_format == "text":
        return web.Response(text=transcript.text + "\n")
    if response_format == "json":
        return web.json_response({"text": transcript.text})
    if response_format == "verbose_json":
        return web.json_response(verbose_transcription(transcript))
    raise UnsupportedFormat(f"response_format: {response_format!r} is not one of json, text, verbose_json.")


def verbose_transcription(transcript: Transcript) -> dict[str, Any]:
    segment = {"id": 0, "start": transcript.start, "end": transcript.end, "text": transcript.text}
    return {
        "task": "transcribe",
        "language": "english",
        "duration": transcript.seconds,
        "text": transcript.text,
        "segments": [segment] if transcript.text else [],
    }
