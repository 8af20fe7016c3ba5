"""What the model can do without: each part of the five fences, and the rules beside them."""

from enum import StrEnum


class Switch(StrEnum):
    """A part of the protocol that can be switched off, to see what breaks without it."""

    #: Fence 1: every write of an owner carries epoch and owner, and is refused when they are not the record's.
    EPOCH_CHECKS = "epoch checks"
    #: Fence 2: the kernel kills a process whose worker's lease was not renewed for `DEAD_MAN` seconds.
    DEAD_MAN = "dead-man timer"
    #: Fence 3: a successor takes the older agents out of the room before it speaks.
    REMOVE_FIRST = "removal before speaking"
    #: Fence 3: and waits until it sees none there, or until whom it cannot take out is dead.
    OUTLIVE = "outliving"
    #: Fence 4: who holds the call takes out an older agent that comes into the room.
    HOLDER_REMOVES = "removal on sight"
    #: Fence 4: an agent leaves when a younger one comes into the room.
    YIELD = "leaving on sight"
    #: Fence 4: a successor that was seen to be gone before it took the call is a younger one again.
    REFUSE = "withdrawn offer"
    #: Fence 5: an agent that reconnects is mute.
    MUTE = "mute"
    #: Fence 5: and asks whose session it is.
    CHECK = "check"
    #: Fence 5: and looks for a younger one before it is heard again.
    LOOK_BACK = "look back"

    #: While Redis does not answer, the room keeps the dead-man timer from going off.
    WITNESS = "witness"
    #: Only a room that is connected does.
    WITNESS_CONNECTED = "connected witness"
    #: Only a room without a younger agent does.
    WITNESS_ALONE = "witness without a younger one"
    #: And for `times.WITNESS` seconds at most.
    WITNESS_BOUND = "end of the witness"
    #: A keeper takes the agent of a session whose owner it has given up out of the room.
    KEEPER_REMOVES = "removal by the keeper"
    #: The reaper judges only after it has seen Redis without a break for a whole lease.
    WHOLE_LEASE = "a whole lease of Redis"
    #: Joins stay closed for a lease after Redis was found empty.
    READY_KEY = "ready key"
    #: One session at a time may have a room.
    ROOM_LOCK = "room lock"
    #: A worker lists what its processes run, and what is its own in the record and not in its list is lost.
    HOLDINGS = "list of what runs"
    #: A turn is not stored again although others were stored after it.
    KNOWN_TURNS = "stored turns are known"
    #: Whether joins are open is kept beside the rooms, too, and read in the step that gives one.
    OPEN_ROOMS = "open beside the rooms"
    #: Joins stay closed for longer while LiveKit shows an agent in a room that nobody holds.
    ROOMS_ASKED = "rooms are asked"
    #: An owner sees every few seconds that its room is held.
    ROOM_CHECK = "look at the hold"
    #: Each owner has a name that no other process has had.
    OWN_NAMES = "names of their own"


FENCES = (
    Switch.EPOCH_CHECKS,
    Switch.DEAD_MAN,
    Switch.REMOVE_FIRST,
    Switch.OUTLIVE,
    Switch.HOLDER_REMOVES,
    Switch.YIELD,
    Switch.REFUSE,
    Switch.MUTE,
    Switch.CHECK,
    Switch.LOOK_BACK,
)
RULES = tuple(part for part in Switch if part not in FENCES)
