"""The names of the specialists, for a service that must know them without loading the conversation."""


def roster_names() -> tuple[str, ...]:
    """The specialists' names, in the order in which callers meet them."""
    # Imported here because the fleet loads nothing of the conversation; this package is names alone.
    from graphs.specialists import ROSTER

    return ROSTER
