"""How the services' own log lines look: the message, and the ids that came with it."""

import logging

#: What every record has; whatever else one has was given to it as `extra`.
_USUAL = {*vars(logging.makeLogRecord({})), "message", "asctime"}


class WithIds(logging.Formatter):
    """`… message name=value`, one pair for each `extra` that is not None."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s [%(process)d] [%(levelname)s] %(message)s", "[%Y-%m-%d %H:%M:%S %z]")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        ids = {name: value for name, value in vars(record).items() if name not in _USUAL and value is not None}
        return " ".join((super().formatMessage(record), *(f"{name}={value}" for name, value in ids.items())))


def log_with_ids() -> None:
    """Write everything from warnings on to standard error, with its ids."""
    handler = logging.StreamHandler()
    handler.setFormatter(WithIds())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
