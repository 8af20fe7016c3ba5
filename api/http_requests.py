"""Gunicorn's requests with bounds for what reading one may cost."""

from typing import Any

from gunicorn.http.body import Body, ChunkedReader
from gunicorn.http.errors import InvalidChunkSize, InvalidHeader
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser

#: Bytes of a request line and its headers together.
HEAD_LIMIT = 32 * 1024
#: Pieces of a chunked body; each costs time, however small it is.
MOST_CHUNKS = 10_000


class BoundedChunks(ChunkedReader):  # type: ignore[misc]
    """A chunked body of not too many chunks: a megabyte of one-byte chunks would stop the event loop for seconds."""

    def __init__(self, request: Request, unreader: Any) -> None:
        super().__init__(request, unreader)
        self._count = 0

    def parse_chunk_size(self, unreader: Any, data: bytes | None = None) -> Any:
        self._count += 1
        if self._count > MOST_CHUNKS:
            raise InvalidChunkSize(b"")
        return super().parse_chunk_size(unreader, data)


class BoundedRequest(Request):  # type: ignore[misc]
    """A request whose head is small, whose host is named and whose body is in not too many pieces."""

    body: Any

    @property
    def declared_length(self) -> int:
        """Bytes of the body, as the client announced them; 0 when it did not."""
        return sum(int(value) for name, value in self.headers if name == "CONTENT-LENGTH")

    def parse(self, unreader: Any) -> Any:
        # Gunicorn's own bound is the product of its two limits: half a megabyte per connection, searched again with
        # every byte that arrives.
        self.max_buffer_headers = HEAD_LIMIT
        rest = super().parse(unreader)
        if self.version >= (1, 1) and not any(name == "HOST" for name, _ in self.headers):
            raise InvalidHeader("HOST", req=self)
        return rest

    def set_body_reader(self) -> None:
        super().set_body_reader()
        if isinstance(self.body.reader, ChunkedReader):
            self.body = Body(BoundedChunks(self, self.unreader))


class BoundedRequests(RequestParser):  # type: ignore[misc]
    """The requests of one connection, one after the other."""

    mesg_class = BoundedRequest
