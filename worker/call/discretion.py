"""Keeps words and tokens out of the log: LiveKit's native part quotes whole requests and answers when they fail."""

import logging
import re

_TOKEN = re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*")
_REQUEST = re.compile(r"FfiRequest \{ message: Some\((\w+).*\}", re.DOTALL)


class Discretion(logging.Filter):
    """Leaves of a quoted request its kind, and of a token nothing."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record's message; it is always logged."""
        message = _REQUEST.sub(r"FfiRequest \1", record.getMessage())
        record.msg, record.args = _TOKEN.sub("(a token)", message), ()
        return True
