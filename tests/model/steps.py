"""Each step of the model says of which function of the code it is the model, and fails to exist without it."""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

Model = TypeVar("Model", bound=Callable[..., Any])

#: "module:qualified name" of the code -> the model's own function.
STEPS: dict[str, Callable[..., Any]] = {}


def models(*places: str) -> Callable[[Model], Model]:
    """Say that what follows is the model of these functions of the code, as "module:qualified name"."""

    def note(model: Model) -> Model:
        for place in places:
            STEPS[place] = model
        return model

    return note


def code_of(place: str) -> Callable[..., Any]:
    """The code's function; raises `AttributeError` or `ImportError` when it is not there any more."""
    module, _, name = place.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    assert callable(found), place
    return found  # type: ignore[no-any-return]
