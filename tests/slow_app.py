"""The agent service with addresses that only tests have: answers that take long, never end or fail."""

import time
from collections.abc import Iterator

from flask import Flask, Response

from api import agent_service

#: Seconds a nap takes.
NAP = 1.0
_MEGABYTE = b"." * 1024 * 1024


def create_app() -> Flask:
    """The real service, settings from the environment, with streams served as any of its routes."""
    service = agent_service.create_app()
    service.add_url_rule("/test/events", view_func=events)
    service.add_url_rule("/test/nap", view_func=nap)
    service.add_url_rule("/test/flood", view_func=flood)
    service.add_url_rule("/test/defect", view_func=defect)
    return service


def events() -> Response:
    """A stream of server-sent events on which nothing happens."""

    def stream() -> Iterator[str]:
        yield "event: open\ndata: {}\n\n"
        while True:
            time.sleep(1)
            yield ": still here\n\n"

    return Response(stream(), content_type="text/event-stream")


def nap() -> str:
    """An answer that takes a while."""
    time.sleep(NAP)
    return "rested"


def flood() -> Response:
    """More than any buffer on the way holds."""
    return Response((_MEGABYTE for _ in range(64)), content_type="application/octet-stream")


def defect() -> Response:
    """What nobody expects."""
    raise RuntimeError("broken on purpose")
