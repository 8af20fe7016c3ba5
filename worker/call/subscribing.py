"""An agent that hears nothing of a caller whose microphone is on: their sound is asked for again, or another agent."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from livekit import rtc

from worker.call.baton import Ear

logger = logging.getLogger(__name__)

#: Seconds until an agent usually hears, with room for a busy machine, and seconds between the two halves of asking.
_HEARS_WITHIN = 3.0
_APART = 0.2


async def subscribe_until_heard(
    participants: Mapping[str, rtc.RemoteParticipant],
    caller: str,
    *,
    ear: Ear,
    session_id: str,
    move: Callable[[], None],
    within: float = _HEARS_WITHIN,
) -> None:
    """Ask again once; on a busy server a subscription was seen that never brought a frame.

    Where asking does not help, the connection is broken in a way that LiveKit's client does not see, or the client is:
    `move` asks for an agent of another process. It takes the call only when it hears, and may be as deaf, so that
    `move` is called again and again.
    """
    asked = 0
    while not await _hears(ear, within):
        microphones = _open_microphones(participants.get(caller))
        if not ear.is_deaf or not microphones:
            continue
        asked += 1
        if asked == 1:
            await _subscribe_again(microphones, session_id=session_id)
            continue
        if asked == 2:
            logger.warning("another agent may hear the caller", extra={"session": session_id})
        move()


async def _hears(ear: Ear, within: float) -> bool:
    try:
        async with asyncio.timeout(within):
            await ear.hears.wait()
    except TimeoutError:
        return False
    return True


def _open_microphones(participant: rtc.RemoteParticipant | None) -> Sequence[rtc.RemoteTrackPublication]:
    publications = [] if participant is None else list(participant.track_publications.values())
    return [each for each in publications if each.source == rtc.TrackSource.SOURCE_MICROPHONE and not each.muted]


async def _subscribe_again(microphones: Sequence[rtc.RemoteTrackPublication], *, session_id: str) -> None:
    for microphone in microphones:
        logger.warning("the caller's microphone is on and nothing is heard", extra={"session": session_id})
        microphone.set_subscribed(False)
        await asyncio.sleep(_APART)
        microphone.set_subscribed(True)
