"""The model's LiveKit: who is in which room, what each agent's SDK knows of it, and what it tells its event loop."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from livekit import rtc

#: Seconds after which the server gives up a participant of which it hears nothing.
GIVEN_UP = 20.0
CALLER = "caller"
#: What the SDK finds out by itself.
_OWN_NEWS = ("reconnecting", "reconnected")


class Track(rtc.LocalAudioTrack):
    """A published track of which only the mute switch is there."""

    def __init__(self) -> None:
        self.is_muted = False

    def mute(self) -> None:
        self.is_muted = True

    def unmute(self) -> None:
        self.is_muted = False

    def __del__(self) -> None:
        pass


@dataclass
class Publication:
    """What a participant has published."""

    track: Track


@dataclass
class Publisher:
    """The agent's own side of the room."""

    track_publications: dict[str, Publication] = field(default_factory=dict)


@dataclass(frozen=True)
class Participant:
    """Somebody else in the room."""

    identity: str


class Room:
    """One agent's SDK, as far as `Fences` and `Presence` see it: events, and the participants it knows of.

    It runs in threads of its own: it reconnects by itself, with the token that the server has refreshed, and tells the
    event loop of it. What it tells waits while the process does not run.
    """

    def __init__(self, identity: str, name: str, server: "RoomServer") -> None:
        self.identity = identity
        self.name = name
        self.local_participant = Publisher({"agent": Publication(Track())})
        self.remote_participants: dict[str, Participant] = {}
        self.connection_state = rtc.ConnectionState.CONN_DISCONNECTED
        #: Whether the network carries anything.
        self.has_link = True
        #: Whether the connection was lost: the SDK begins anew as soon as it can.
        self.is_broken = False
        self._server = server
        self._handlers: list[tuple[str, Callable[..., None]]] = []
        self._untold: list[tuple[str, tuple[Any, ...]]] = []

    def on(self, event: str, handler: Callable[..., None]) -> None:
        """As the SDK's."""
        self._handlers.append((event, handler))

    def isconnected(self) -> bool:
        """As the SDK's: what it believes."""
        return bool(self.connection_state == rtc.ConnectionState.CONN_CONNECTED)

    @property
    def is_muted(self) -> bool:
        """Whether nothing is heard of it."""
        return self.local_participant.track_publications["agent"].track.is_muted

    @property
    def is_heard(self) -> bool:
        """Whether its sound gets to the others."""
        return self.is_reached and not self.is_muted

    @property
    def is_reached(self) -> bool:
        """Whether what it sends gets to the others, and theirs to it."""
        return self.has_link and self._server.has(self)

    def note(self, event: str, *arguments: Any) -> None:
        """Something happened; the event loop learns of it when it runs and the news gets through."""
        self._untold.append((event, arguments))

    def tell(self) -> None:
        """Hand the news to the event loop."""
        while self._untold and (self.has_link or self._untold[0][0] in _OWN_NEWS):
            event, arguments = self._untold.pop(0)
            if event == "participant_connected":
                self.remote_participants[arguments[0].identity] = arguments[0]
            elif event == "participant_disconnected":
                self.remote_participants.pop(arguments[0].identity, None)
            elif event == "disconnected":
                self.connection_state = rtc.ConnectionState.CONN_DISCONNECTED
            for name, handler in self._handlers:
                if name == event and event != "participant_disconnected":
                    handler(*arguments)

    def connect(self) -> None:
        """Join for the first time."""
        self._server.enter(self)
        self.connection_state = rtc.ConnectionState.CONN_CONNECTED
        self.look()

    def look(self) -> None:
        """Learn who is in the room."""
        self.remote_participants = {each: Participant(each) for each in self._server.others(self)}

    def disconnect(self) -> None:
        """Leave."""
        self.connection_state = rtc.ConnectionState.CONN_DISCONNECTED
        self._server.leave(self)

    # --- the SDK's reconnecting, step by step ---

    @property
    def must_reconnect(self) -> bool:
        """Whether the connection it believes in is gone."""
        return self.isconnected() and (self.is_broken or (self.has_link and not self._server.has(self)))

    def begin_to_reconnect(self) -> None:
        """First step: what was told of the old connection is void, and the event loop learns that it is gone."""
        self._untold.clear()
        self.connection_state = rtc.ConnectionState.CONN_RECONNECTING
        self.note("reconnecting")

    def resume(self) -> None:
        """Second step: the server takes it back, whoever has removed it, and its sound flows."""
        self.is_broken = False
        self._server.enter(self)

    def be_reconnected(self) -> None:
        """Third step: it learns who is in the room, and the event loop that it is back."""
        self.connection_state = rtc.ConnectionState.CONN_CONNECTED
        known = set(self.remote_participants)
        self.look()
        self.note("reconnected")
        for identity in sorted(set(self.remote_participants) - known):
            self.note("participant_connected", Participant(identity))


class RoomServer:
    """The server."""

    def __init__(self) -> None:
        self._rooms: dict[str, dict[str, Room]] = {}
        #: Whether it takes removals.
        self.removes = True

    def has(self, room: Room) -> bool:
        """Whether this very connection is in its room."""
        return self._rooms.get(room.name, {}).get(room.identity) is room

    def others(self, room: Room) -> list[str]:
        """The identities beside its own; the caller is always there."""
        return [CALLER, *(identity for identity in self._rooms.get(room.name, {}) if identity != room.identity)]

    def with_agents(self) -> set[str]:
        """The rooms that have an agent in them, whether or not it is heard."""
        return {name for name, participants in self._rooms.items() if participants}

    def enter(self, room: Room) -> None:
        """Take it in; one of the same identity has to go."""
        participants = self._rooms.setdefault(room.name, {})
        before = participants.get(room.identity)
        if before is room:
            return
        if before is not None:
            before.note("disconnected", rtc.DisconnectReason.DUPLICATE_IDENTITY)
        participants[room.identity] = room
        self._tell_others(room, "participant_connected")

    def leave(self, room: Room) -> None:
        """Let it go."""
        if self.has(room):
            del self._rooms[room.name][room.identity]
            self._tell_others(room, "participant_disconnected")

    def remove(self, name: str, identity: str) -> None:
        """Take a participant out. Whoever is cut off does not learn of it, and comes back."""
        room = self._rooms.get(name, {}).get(identity) if self.removes else None
        if room is not None:
            self.leave(room)
            if room.has_link:
                room.note("disconnected", rtc.DisconnectReason.PARTICIPANT_REMOVED)

    def _tell_others(self, room: Room, event: str) -> None:
        for other in self._rooms[room.name].values():
            if other is not room:
                other.note(event, Participant(room.identity))
