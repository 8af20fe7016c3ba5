"""Who is in the room: whether the caller hung up, got lost or came back, and whether the room is still there."""

from livekit import rtc

from worker.call.ending import Countdown, Ending
from worker.fleet.session import Reason, Session

#: Somebody decided it, the caller or an operator; every other disconnect may be a lost connection that comes back.
_CALLER_LEFT = frozenset(
    {
        rtc.DisconnectReason.CLIENT_INITIATED,
        rtc.DisconnectReason.USER_REJECTED,
        rtc.DisconnectReason.PARTICIPANT_REMOVED,
    }
)
_ROOM_GONE = frozenset({rtc.DisconnectReason.ROOM_DELETED, rtc.DisconnectReason.ROOM_CLOSED})
#: What ends the agent's own stay for good; after every other disconnect there may be a way back (see `lost_room.py`).
DECIDED = _ROOM_GONE | {rtc.DisconnectReason.PARTICIPANT_REMOVED, rtc.DisconnectReason.DUPLICATE_IDENTITY}


class Presence:
    """Decides the end when there is nobody to talk to, or nowhere; `grace` in seconds for a lost caller.

    It listens from before the room is joined: who leaves while the pipeline is being built has left all the same.
    """

    def __init__(self, room: rtc.Room, session: Session, *, ending: Ending, grace: float) -> None:
        self._room = room
        self._caller = session.user_id
        self._ending = ending
        self._lost = Countdown(ending, Reason.CALLER_LOST, seconds=grace)
        room.on("disconnected", ending.guard(self._disconnected))
        room.on("reconnected", ending.guard(self._reconnected))
        room.on("participant_connected", ending.guard(self._participant_connected))
        room.on("participant_disconnected", ending.guard(self._participant_disconnected))

    @property
    def is_caller_lost(self) -> bool:
        """Whether the caller was there, is not, and may come back."""
        return self._lost.is_running

    def close(self) -> None:
        """Wait for nobody any more."""
        self._lost.stop()

    def _disconnected(self, reason: rtc.DisconnectReason.ValueType) -> None:
        if reason in _ROOM_GONE:
            # The server closes a room whose last caller it has given up.
            self._ending.decide(Reason.CALLER_LOST if self._lost.is_running else Reason.ROOM_CLOSED)
        elif reason == rtc.DisconnectReason.PARTICIPANT_REMOVED:
            self._ending.decide(Reason.LEFT)
        elif reason == rtc.DisconnectReason.DUPLICATE_IDENTITY:
            # Who comes in the same epoch has claimed it from a Redis that has lost this claim.
            self._ending.supersede()

    def _reconnected(self) -> None:
        if self._caller not in self._room.remote_participants:
            self._lost.start()

    def _participant_connected(self, participant: rtc.RemoteParticipant) -> None:
        if participant.identity == self._caller:
            self._lost.stop()

    def _participant_disconnected(self, participant: rtc.RemoteParticipant) -> None:
        if participant.identity != self._caller:
            return
        if participant.disconnect_reason in _CALLER_LEFT:
            self._ending.decide(Reason.CALLER_LEFT)
        elif participant.disconnect_reason in _ROOM_GONE:
            self._ending.decide(Reason.ROOM_CLOSED)
        elif self._room.connection_state == rtc.ConnectionState.CONN_CONNECTED:
            # While the agent itself has no connection, nothing is known of the caller.
            self._lost.start()
