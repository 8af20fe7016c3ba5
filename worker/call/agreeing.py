"""What two agents of one session agree on in their room while Redis cannot tell whether the baton was passed.

Only who stands by can know that it will not take what may have been passed to it. So it is asked, and either has taken
it already or renounces it for good, in one step of its event loop. Who gets no answer knows nothing.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

from livekit import rtc

from worker.fleet.session import Session

logger = logging.getLogger(__name__)

_METHOD = "muster.baton"
#: Seconds the question may take to arrive, and seconds the answer may take.
_ARRIVES = 1.0
_ANSWERED = 1.0


class Verdict(StrEnum):
    """What became of a baton whose pass is in doubt."""

    #: The successor answers the caller.
    TAKEN = "taken"
    #: It never will.
    RENOUNCED = "renounced"
    #: It is in the room no more, so that it answers nobody.
    GONE = "gone"
    #: It did not say.
    UNKNOWN = "unknown"


class Agreement:
    """One agent's side, in a room that it has joined; `session` is as this agent owns it or will."""

    def __init__(self, room: rtc.Room, session: Session) -> None:
        self._room = room
        self._session = session

    def answer(self, decide: Callable[[], Verdict]) -> None:
        """Answer older agents of the session by `decide`, which must not await anything; nobody else is answered."""

        def handle(call: rtc.RpcInvocationData) -> str:
            epoch = self._session.epoch_of(call.caller_identity)
            if epoch is None or epoch >= self._session.epoch:
                return Verdict.UNKNOWN.value
            verdict = decide()
            logger.warning("asked for the baton: %s", verdict, extra={"session": self._session.session_id})
            return verdict.value

        self._room.local_participant.register_rpc_method(_METHOD, handle)

    async def ask(self, epoch: int) -> Verdict:
        """Ask the agent that was offered this epoch; it takes two seconds at most."""
        try:
            answer = await self._room.local_participant.perform_rpc(
                destination_identity=self._identity_in(epoch),
                method=_METHOD,
                payload="",
                response_timeout=_ANSWERED,
                max_round_trip_latency=_ARRIVES,
            )
            return Verdict(answer)
        except (rtc.RpcError, ValueError) as error:
            verdict = Verdict.GONE if self._is_gone(epoch) else Verdict.UNKNOWN
            logger.warning(
                "no word of the baton, its taker is %s: %s", verdict, error, extra={"session": self._session.session_id}
            )
            return verdict

    def _is_gone(self, epoch: int) -> bool:
        # Who has no connection itself sees nobody.
        return self._room.isconnected() and self._identity_in(epoch) not in self._room.remote_participants

    def _identity_in(self, epoch: int) -> str:
        return replace(self._session, epoch=epoch).agent_identity
