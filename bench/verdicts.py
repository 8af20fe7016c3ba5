"""Whether a measurement fulfils what is asked of it, as a line for its reader."""


def verdict(holds: bool, what: str) -> str:
    """The line that says so."""
    return f"{'pass' if holds else 'FAIL'}: {what}"


def times(count: int, thing: str) -> str:
    """So many of it, in words."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
