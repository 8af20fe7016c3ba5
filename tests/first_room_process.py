"""A process that joins its first room over a link that refuses it at first, and says whether it hears a caller.

`python -m tests.first_room_process ROOM`, with the server in the `LIVEKIT_` variables.
"""

import asyncio
import os
import sys
from contextlib import aclosing
from urllib.parse import urlsplit

from livekit import rtc

from local.link import LinkState, Proxy
from local.ports import HOST
from tests.fleet_sessions import new_session
from tests.test_call_knowledge import CALL
from worker.call import room as rooms
from worker.call.settings import CallSettings

#: Seconds.
_HEARS_WITHIN = 5.0
#: Connections: with the third one LiveKit's client would be in, by its second attempt.
_REFUSED = 2


class _Reluctant(Proxy):
    """Resets the first connections."""

    _tried = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.change(LinkState.CUT if self._tried < _REFUSED else LinkState.MENDED)
        self._tried += 1
        await super().serve(reader, writer)


async def _hears(room: rtc.Room) -> bool:
    subscribed: asyncio.Queue[rtc.Track] = asyncio.Queue()
    room.on("track_subscribed", lambda track, *_: subscribed.put_nowait(track))
    for participant in room.remote_participants.values():
        for publication in participant.track_publications.values():
            if publication.track is not None:
                subscribed.put_nowait(publication.track)
    try:
        async with asyncio.timeout(_HEARS_WITHIN):
            async with aclosing(rtc.AudioStream.from_track(track=await subscribed.get())) as stream:
                await anext(aiter(stream))
    except TimeoutError:
        return False
    return True


async def _join(room: str) -> None:
    there = {name: os.environ[name] for name in ("LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET")}
    address = urlsplit(there["LIVEKIT_URL"])
    assert address.hostname is not None and address.port is not None
    proxy = _Reluctant(address.hostname, address.port)
    async with await asyncio.start_server(proxy.serve, HOST, 0) as server:
        link = f"ws://{HOST}:{server.sockets[0].getsockname()[1]}"
        joined = rtc.Room()
        settings = CallSettings.from_env(CALL | there | {"LIVEKIT_URL": link})
        await rooms.connect(joined, new_session(room=room), settings)
        print("hears" if await _hears(joined) else "hears nothing", flush=True)
        await joined.disconnect()


if __name__ == "__main__":
    asyncio.run(_join(sys.argv[1]))
