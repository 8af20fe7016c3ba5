"""An agent that hears nothing of a caller whose microphone is on asks LiveKit for their sound again."""

from collections.abc import Mapping
from types import MappingProxyType

from livekit import rtc
from livekit.rtc._proto import participant_pb2, track_pb2

from worker.call.baton import Ear
from worker.call.subscribing import subscribe_until_heard


class Publication(rtc.RemoteTrackPublication):
    """Takes note of what is asked of it, and is heard when it was asked."""

    def __init__(self, ear: Ear, *, muted: bool) -> None:
        self._info = track_pb2.TrackPublicationInfo(
            sid="TR_1",
            name="",
            kind=rtc.TrackKind.KIND_AUDIO,
            source=rtc.TrackSource.SOURCE_MICROPHONE,
            muted=muted,
        )
        self._ear = ear
        self.asked: list[bool] = []

    def set_subscribed(self, subscribed: bool) -> None:
        self.asked.append(subscribed)
        if len(self.asked) == 2:
            self._ear.hears.set()


class Caller(rtc.RemoteParticipant):
    def __init__(self, publication: Publication) -> None:
        self._info = participant_pb2.ParticipantInfo(identity="ada")
        self._publications = {publication.sid: publication}

    @property
    def track_publications(self) -> Mapping[str, rtc.RemoteTrackPublication]:
        return MappingProxyType(self._publications)


async def asked_of(*, muted: bool, heard: bool = False, helps: bool = True, participants: bool = True) -> list[object]:
    """What is asked of LiveKit, and whether another agent is wanted in the end."""
    ear = Ear()
    if heard:
        ear.hears.set()
    publication = Publication(ear if helps else Ear(), muted=muted)
    room = {"ada": Caller(publication)} if participants else {}
    wanted: list[object] = []
    await subscribe_until_heard(
        room, "ada", ear=ear, session_id="s", move=lambda: wanted.append("another agent"), within=0.01
    )
    return [*publication.asked, *wanted]


async def test_a_caller_who_is_not_heard_is_subscribed_again_until_they_are() -> None:
    assert await asked_of(muted=False) == [False, True]


async def test_another_agent_is_wanted_where_asking_does_not_help() -> None:
    assert await asked_of(muted=False, helps=False) == [False, True, "another agent"]


async def test_a_caller_who_is_heard_or_has_no_open_microphone_is_left_alone() -> None:
    assert await asked_of(muted=False, heard=True) == []
    assert await asked_of(muted=True) == []
    assert await asked_of(muted=False, participants=False) == []
