"""The times that the ownership protocol rests on, in seconds.

`tests/test_fleet_times.py` asserts what must hold between them.

A time that only one module knows, such as the wait between two attempts, stays with it.
"""

# The lease: who owns a session.

#: Between two renewals of a worker's lease, and two attempts to lead: one call of Redis per worker and second.
BEAT = 1.0
#: After its last renewal a worker counts as lost; so a lost machine is found within it.
LEASE = 5.0
#: How long the leader's lock outlives the leader, which may have died with the machine that it must find lost.
LEADER_LOCK = 3.0
#: Longest gap between two sights of Redis that still count as an unbroken look; longer ones are a keeper's own sleep.
UNBROKEN = 2.5 * BEAT

# The liveness table: whether a process lives.

#: Between two stamps of a call's event loop.
STAMP = 0.5
#: Between two looks of a keeper at its children: a dead one is found within it.
LOOK = 0.1
#: A child whose last stamp is older hangs, and its keeper kills it.
HUNG = 3.0

# The dead man's switch: that a process which may have lost its session is silent.

#: It goes off so long after the last renewal was *sent*; below the lease, so before anybody can take over.
DEAD_MAN = 3.5
#: Between two times of arming it.
ARMING = 0.25
#: Before it goes off, Redis is asked whether it answers at all.
DOUBT = 1.0
#: Redis has so long to answer that.
DOUBT_ANSWER = 0.4
#: How long a call outlives an outage of Redis by the room's witness: a restart of Redis must not end calls.
WITNESS = 30.0
#: For how long one look at the room is witness; enough for a keeper to renew the lease once Redis is back, and over
#: before the reaper may judge.
RESPITE = 2.5
#: So long after a younger agent came to the room an older one that nobody could take out is dead by its switch.
OUTLIVED = DEAD_MAN + DOUBT

# Joins, the last two as defaults of the settings.

#: How long joins stay closed at most after Redis was found without its data. A worker that is cut off from it cannot
#: register its calls again, and no call outlives that.
CLOSED = WITNESS + RESPITE + BEAT
#: A session that nobody has claimed by then fails: nobody joins a room that was left.
JOIN_TTL = 30
#: Sessions that may wait, for each slot of the fleet.
QUEUE_PER_SLOT = 1

# The reaper: how long something may be so before it is set right.

#: A session that waits for an owner may be without a message: `/join` is just publishing it.
UNPUBLISHED = 2.0
#: Its message is published again after it. Reading a message is not atomic on Redis: a worker that dies in that moment
#: leaves no trace of it anywhere. So it is repeated until the deadline instead of searched for; of several messages
#: only one finds the session unclaimed, the others end at once.
UNCLAIMED = 5.0
#: A hold may be without a record: `/join` is just writing it.
UNRECORDED = 5.0
#: A session that is over may hold its room: its owner is just leaving it.
LEAVING = 5.0
#: Between two looks at LiveKit's rooms and at the workers' index: each costs a request per room.
SWEEP = 10.0
#: An agent that nobody vouches for may be in a room: its owner is just leaving it, or registers again.
ORPHANED = 15.0
#: A live worker may not list a session that is its own among what it runs: what it has told is a lease old at most, and
#: the session was claimed since.
UNHELD = LEASE + 2 * BEAT

# Recovery: how a session goes on without its owner.

#: A session may be without an owner for so long.
UNOWNED = 30.0
#: Whoever gives it up must have seen it wait for so long without a break: while Redis is away nobody can claim it, and
#: its message may be void by the time it returns.
UNOWNED_SEEN = 15.0
#: However little was seen of it, so long after that it is given up: no live call outlives a longer outage either.
UNOWNED_UNSEEN = 60.0
#: After its claim an owner's loss has nothing to do with the ones before.
SETTLED = 60.0

# Hand-over: how a session goes to another owner.

#: A worker that was chosen has so long until a process of its stands by; its free slot may be taken meanwhile.
TAKEN_UP_WITHIN = 3.0
#: A successor has so long, from the offer on, until it hears the caller.
READY_WITHIN = 20.0
#: An agent stays after it has handed over: the caller's jitter buffer still plays its last words.
LINGER = 0.5
#: One that is still there after it is taken for dead.
LEFT = 3.0
