"""LiveKit's webhooks: whether they are genuine and of now, and which of them tell that somebody is gone.

LiveKit repeats a request, signature included, that could not be delivered or was answered with 5xx: so Redis' troubles
are told with 503, and everything that a repetition cannot change with another status.
"""

import hashlib
import hmac
import time
from base64 import b64encode
from collections.abc import Mapping
from datetime import timedelta

from flask import Response, request
from google.protobuf.json_format import Parse, ParseError
from jwt import PyJWTError
from livekit.api import DisconnectReason, TokenVerifier, WebhookEvent

from api.errors import WebhookForged, WebhookMalformed, WebhookNotSigned, WebhooksNotConfigured
from api.models import WebhookAnswer
from api.routes import Route
from api.service import respond
from api.settings import WebhookSettings
from worker.fleet.departures import Departure, Departures
from worker.fleet.errors import StateUnavailable
from worker.fleet.session import Reason

#: Seconds by which LiveKit's clock and this machine's may differ.
CLOCK_TOLERANCE = 60
#: Seconds; LiveKit keeps an event for half a minute and signs it for five.
OLDEST = 10 * 60
_LONGEST_ID = 128

#: A caller who is gone for good, as the owner of a session sees it (`worker/call/presence.py`). Every other reason may
#: be a lost connection that comes back; if it does not, LiveKit closes the room.
_GONE: Mapping[DisconnectReason, Reason] = {
    DisconnectReason.CLIENT_INITIATED: Reason.CALLER_LEFT,
    DisconnectReason.USER_REJECTED: Reason.CALLER_LEFT,
    DisconnectReason.PARTICIPANT_REMOVED: Reason.CALLER_LEFT,
    DisconnectReason.ROOM_DELETED: Reason.ROOM_CLOSED,
}


class WebhookReceiver:
    """Tells LiveKit's events from whatever else is sent to their address."""

    def __init__(self, *, key: str, secret: str) -> None:
        self._verifier = TokenVerifier(key, secret, leeway=timedelta(seconds=CLOCK_TOLERANCE))

    def receive(self, body: bytes, signature: str) -> WebhookEvent:
        """The event; `signature` is the Authorization header. Raises `WebhookForged` or `WebhookMalformed`."""
        self._verify(body, signature)
        try:
            event = Parse(body.decode(), WebhookEvent(), ignore_unknown_fields=True)
        except (ParseError, UnicodeDecodeError, RecursionError):
            raise WebhookMalformed() from None
        if not event.event or not 0 < len(event.id) <= _LONGEST_ID:
            raise WebhookMalformed("The event has no name or no id.")
        if not -CLOCK_TOLERANCE <= time.time() - event.created_at <= OLDEST:
            raise WebhookForged("The event is too old, or the clocks are apart.")
        return event

    def _verify(self, body: bytes, signature: str) -> None:
        try:
            claims = self._verifier.verify(signature)
        except PyJWTError:
            raise WebhookForged() from None
        # The tokens that let callers in are signed with the same secret; only a webhook's names its body.
        digest = b64encode(hashlib.sha256(body).digest())
        if not hmac.compare_digest(digest, (claims.sha256 or "").encode()):
            raise WebhookForged()


class WebhookViews:
    """HTTP's words for what LiveKit's events do; `receiver` is None where LiveKit's keys are not known."""

    def __init__(self, *, receiver: WebhookReceiver | None, departures: Departures) -> None:
        self._receiver = receiver
        self._departures = departures

    def livekit(self, *, body: bytes) -> Response:
        """200 with what became of the event."""
        if self._receiver is None:
            raise WebhooksNotConfigured()
        signature = request.headers.get("Authorization")
        if signature is None:
            raise WebhookNotSigned()
        departure = departure_of(self._receiver.receive(body, signature))
        if departure is None:
            return respond(WebhookAnswer(outcome="ignored"))
        handled = self._departures.handle(departure)
        return respond(WebhookAnswer(outcome=handled.outcome, session_id=handled.session_id))


def departure_of(event: WebhookEvent) -> Departure | None:
    """The departure that the event tells of, or None when it tells of something else."""
    room, participant = event.room, event.participant
    if event.event == "room_finished":
        reason, identity = Reason.ROOM_CLOSED, None
        since = _seconds(room.creation_time_ms, room.creation_time)
    elif event.event == "participant_left" and participant.disconnect_reason in _GONE:
        reason, identity = _GONE[participant.disconnect_reason], participant.identity
        since = _seconds(participant.joined_at_ms, participant.joined_at)
    else:
        return None
    return Departure(
        event_id=event.id, room=room.name, reason=reason, identity=identity, since=since, at=event.created_at
    )


def _seconds(milliseconds: int, seconds: int) -> float:
    """The moment that older servers tell in whole seconds only."""
    return milliseconds / 1000 if milliseconds else seconds


def webhook_route(settings: WebhookSettings, departures: Departures) -> Route:
    """Where LiveKit sends its events; the signature is their key."""
    key, secret = settings.livekit_api_key, settings.livekit_api_secret
    receiver = WebhookReceiver(key=key, secret=secret) if key and secret else None
    return Route(
        method="POST",
        address="/webhooks/livekit",
        view=WebhookViews(receiver=receiver, departures=departures).livekit,
        summary="LiveKit's own webhooks, signed in the Authorization header",
        body=bytes,
        media_type="application/webhook+json",
        answers={200: WebhookAnswer},
        refusals=(WebhooksNotConfigured, WebhookNotSigned, WebhookForged, WebhookMalformed, StateUnavailable),
        is_open=True,
    )
