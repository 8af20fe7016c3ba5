"""What a route says of itself; the URL rules and the OpenAPI document are both made from it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from flask import Response
from werkzeug.exceptions import HTTPException, InternalServerError, RequestEntityTooLarge, UnsupportedMediaType

from api.asked import Asked
from api.errors import InvalidRequest, KeyMalformed, KeyMissing, KeysRequired, KeyUnknown, MalformedBody
from api.models import Answer

#: Bytes of a JSON body; the largest valid request has 32 KiB of configuration, 8 KiB of metadata and two names.
BODY_LIMIT = 64 * 1024
#: The same for addresses that take more; in LiveKit's events rooms and participants carry up to 64 KB of metadata and
#: as much of attributes.
LARGE_BODIES: Mapping[str, int] = {"/webhooks/livekit": 1024 * 1024}
EVENT_STREAM = "text/event-stream"
_VARIABLE = re.compile(r"<(\w+)>")


@dataclass(frozen=True, kw_only=True)
class Route:
    """One method of one address: what it takes, what it answers, what it refuses.

    `view` is called with the parts that have a model, each validated and named as here: `path`, `query`, `headers`,
    `body`. With `body=bytes` it gets the body as it came.
    """

    method: Literal["GET", "POST"]
    address: str
    view: Callable[..., Response]
    summary: str
    #: What it answers by status; the first is the usual one.
    answers: Mapping[int, type[Answer]]
    path: type[Asked] | None = None
    query: type[Asked] | None = None
    headers: type[Asked] | None = None
    body: type[Asked] | type[bytes] | None = None
    #: The body's media type.
    media_type: str = "application/json"
    #: The media type of what it answers: with `EVENT_STREAM` each field of the model is the data of an event.
    answers_media_type: str = "application/json"
    #: What it refuses besides that which every route refuses.
    refusals: tuple[type[Exception], ...] = ()
    #: Whether it is served without a key.
    is_open: bool = False

    @property
    def body_limit(self) -> int:
        """Bytes of the body."""
        return body_limit(self.address)

    @property
    def template(self) -> str:
        """The address as OpenAPI writes it."""
        return _VARIABLE.sub(r"{\1}", self.address)

    @property
    def problems(self) -> tuple[type[Exception], ...]:
        """Everything it refuses."""
        keys: tuple[type[Exception], ...] = (KeyMissing, KeyMalformed, KeyUnknown, KeysRequired)
        # `HTTPException`: a body that breaks off.
        body: tuple[type[Exception], ...] = (RequestEntityTooLarge, UnsupportedMediaType, HTTPException)
        return (
            InvalidRequest,
            InternalServerError,
            *(() if self.is_open else keys),
            *(() if self.body is None else body),
            *(() if self.body in (None, bytes) else (MalformedBody,)),
            *self.refusals,
        )


def body_limit(address: str) -> int:
    """Bytes of a body sent to this address, whether or not there is a route for it."""
    return LARGE_BODIES.get(address, BODY_LIMIT)
