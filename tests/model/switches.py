"""What the model can do without: the five fences, and the four rules beside them."""

from enum import StrEnum


class Switch(StrEnum):
    """A part of the protocol that can be switched off, to see what breaks without it."""

    #: Fence 1: every write of an owner carries epoch and owner, and is refused when they are not the record's.
    EPOCH_CHECKS = "epoch checks"
    #: Fence 2: the kernel kills a process whose worker's lease was not renewed for `DEAD_MAN` seconds.
    DEAD_MAN = "dead-man timer"
    #: Fence 3: a successor takes the older agents out of the room before it speaks.
    REMOVE_FIRST = "removal before speaking"
    #: Fence 4: who holds the call takes out an older agent that it sees, and leaves when it sees a younger one.
    WATCH_ROOM = "watch of the room"
    #: Fence 5: an agent that reconnects is mute, and asks whose session it is.
    MUTE_AND_CHECK = "mute and check"

    #: While Redis does not answer, a room without a younger agent keeps the dead-man timer from going off.
    WITNESS = "witness"
    #: The reaper judges only after it has seen Redis without a break for a whole lease.
    WHOLE_LEASE = "a whole lease of Redis"
    #: Joins stay closed for a lease after Redis was found empty.
    READY_KEY = "ready key"
    #: One session at a time may have a room.
    ROOM_LOCK = "room lock"


FENCES = (
    Switch.EPOCH_CHECKS,
    Switch.DEAD_MAN,
    Switch.REMOVE_FIRST,
    Switch.WATCH_ROOM,
    Switch.MUTE_AND_CHECK,
)
RULES = (Switch.WITNESS, Switch.WHOLE_LEASE, Switch.READY_KEY, Switch.ROOM_LOCK)


class Fix(StrEnum):
    """What the code lacks, and the model can have: each closes a flaw that the model has shown."""

    #: Each keeper looks for sessions that the record says are its worker's and that no process of it runs.
    LOOK_FOR_OWN = "keeper looks for its own"
    #: A turn is not stored again although others were stored after it.
    KNOWN_TURNS = "every stored turn is known"
    #: A join whose admission was answered looks once more whether joins are open.
    READY_AGAIN = "ready is read again"
