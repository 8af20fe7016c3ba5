"""Reading requests and sending speech: what both providers' interfaces share."""

import base64
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from aiohttp import web
from aiohttp.web_request import FileField
from pydantic import BaseModel, ConfigDict, ValidationError

from local.providers.errors import InvalidRequest
from local.providers.journal import Entry
from local.providers.voice import Piece


class Body(BaseModel):
    """A request's body; the real services take many more fields, which change nothing here."""

    model_config = ConfigDict(extra="ignore")


AnyBody = TypeVar("AnyBody", bound=BaseModel)


def parse(content: bytes | str, shape: type[AnyBody]) -> AnyBody:
    """Raises InvalidRequest, which names the first wrong field."""
    try:
        return shape.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "body"
        raise InvalidRequest(f"{field}: {first['msg']}") from error


async def read_upload(request: web.Request, *, needed: str) -> tuple[bytes, dict[str, str]]:
    """The form's "file" and its text fields. Raises InvalidRequest when it or `needed` is missing."""
    form = await request.post()
    file = form.get("file")
    if not isinstance(file, FileField):
        raise InvalidRequest("file: a multipart form with a file is needed")
    fields = {name: value for name, value in form.items() if isinstance(value, str)}
    if not fields.get(needed):
        raise InvalidRequest(f"{needed}: Field required")
    return file.file.read(), fields


async def collect_speech(pieces: AsyncIterator[Piece], entry: Entry) -> bytes:
    pcm = b""
    async for piece in pieces:
        entry.mark_first()
        entry.audio += piece.seconds
        pcm += piece.pcm
    return pcm


async def stream_speech(
    request: web.Request, pieces: AsyncIterator[Piece], entry: Entry, *, as_events: bool = False
) -> web.StreamResponse:
    """Sends raw PCM piece by piece, or each piece in one of OpenAI's server-sent events."""
    kind = "text/event-stream" if as_events else "audio/pcm"
    headers = {"Content-Type": kind, "X-Request-Id": f"req_{uuid.uuid4().hex}"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    async for piece in pieces:
        entry.mark_first()
        entry.audio += piece.seconds
        await response.write(audio_event(piece.pcm) if as_events else piece.pcm)
    if as_events:
        await response.write(event({"type": "speech.audio.done", "usage": {}}))
    await response.write_eof()
    return response


def audio_event(pcm: bytes) -> bytes:
    return event({"type": "speech.audio.delta", "audio": base64.b64encode(pcm).decode()})


def event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"
