"""An agent that hears nothing of a caller whose microphone is on asks LiveKit for their sound again."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
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


async def asked_of(
    *, muted: bool = False, heard: bool = False, helps: bool = True, sounds: bool = False, participants: bool = True
) -> list[object]:
    """What is asked of LiveKit, and how often another agent is wanted until the second one hears."""
    ear = Ear()
    if heard:
        ear.hears.set()
    if sounds:
        ear.frame_arrived()
    publication = Publication(ear if helps else Ear(), muted=muted)
    room = {"ada": Caller(publication)} if participants else {}
    wanted: list[object] = []

    def move() -> None:
        wanted.append("another agent")
        if len(wanted) == 2:
            ear.hears.set()

    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            await subscribe_until_heard(room, "ada", ear=ear, session_id="s", move=move, within=0.02)
    return [*publication.asked, *wanted]


async def test_a_caller_who_is_not_heard_is_subscribed_again_until_they_are() -> None:
    assert await asked_of() == [False, True]


async def test_another_agent_is_wanted_until_one_hears_where_asking_does_not_help() -> None:
    assert await asked_of(helps=False) == [False, True, "another agent", "another agent"]


async def test_a_caller_who_is_heard_or_has_no_open_microphone_is_left_alone() -> None:
    assert await asked_of(heard=True) == []
    assert await asked_of(muted=True) == []
    assert await asked_of(participants=False) == []


async def test_a_caller_whose_sound_comes_with_gaps_is_left_alone() -> None:
    assert await asked_of(sounds=True) == []
