"""An agent that hears nothing of a caller whose microphone is on: LiveKit is asked for their sound again."""

import asyncio
import logging
from collections.abc import Mapping

from livekit import rtc

from worker.call.baton import Ear

logger = logging.getLogger(__name__)

#: Seconds until an agent usually hears, with room for a busy machine; how often it asks, and seconds between the two
#: halves of asking.
_HEARS_WITHIN = 4.0
_TRIES = 3
_APART = 0.2


async def subscribe_until_heard(
    participants: Mapping[str, rtc.RemoteParticipant],
    caller: str,
    *,
    ear: Ear,
    session_id: str,
    within: float = _HEARS_WITHIN,
) -> None:
    """Ask again as often as it may help; on a busy server a subscription was seen that never brought a frame."""
    for _ in range(_TRIES):
        try:
            async with asyncio.timeout(within):
                await ear.hears.wait()
                return
        except TimeoutError:
            await _subscribe_again(participants.get(caller), session_id=session_id)


async def _subscribe_again(participant: rtc.RemoteParticipant | None, *, session_id: str) -> None:
    publications = [] if participant is None else list(participant.track_publications.values())
    for publication in publications:
        if publication.source == rtc.TrackSource.SOURCE_MICROPHONE and not publication.muted:
            logger.warning("the caller's microphone is on and nothing is heard", extra={"session": session_id})
            publication.set_subscribed(False)
            await asyncio.sleep(_APART)
            publication.set_subscribed(True)
