"""What a worker's parent loads before it forks: imports and model weights, never a thread, loop or FFI object."""

import logging

from livekit import local_inference


def load() -> None:
    """Import the whole call and map the weights of voice activity and end-of-turn detection."""
    import worker.call.service  # noqa: F401
    from worker.call.discretion import Discretion

    logging.getLogger("livekit").addFilter(Discretion())
    local_inference.init_vad()
    local_inference.init_eot()
