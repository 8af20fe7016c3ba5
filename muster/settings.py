"""Which process reads which settings, and the page of the README that says so.

`python -m muster.settings` writes the page into the README.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from api.settings import AccessSettings, ControlPlaneSettings, WebhookSettings
from local.paths import ROOT
from worker.call.settings import CallSettings
from worker.chat.settings import ChatSettings
from worker.fleet.settings import EnvironmentSettings, FleetSettings

#: What each kind of process reads when it starts.
READERS: Mapping[str, tuple[type[EnvironmentSettings], ...]] = {
    "worker": (CallSettings,),
    "chat worker": (ChatSettings,),
    "agent service": (FleetSettings, AccessSettings, WebhookSettings),
    "control plane": (ControlPlaneSettings,),
}

BEGIN = "<!-- settings: made by `python -m muster.settings` -->\n"
END = "<!-- end of settings -->\n"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One environment variable; `readers` are the processes it is required by or offered to."""

    variable: str
    default: str
    description: str
    readers: tuple[str, ...]


def all_settings() -> list[Setting]:
    """Every variable that a class of settings names, in the order of `READERS` and of the fields."""
    named: dict[str, dict[str, FieldInfo]] = {}
    for reader, classes in READERS.items():
        for field in (field for kind in classes for field in kind.model_fields.values()):
            assert field.alias is not None, "each field of the settings has its variable as alias"
            named.setdefault(field.alias, {})[reader] = field
    return [_setting(variable, fields) for variable, fields in named.items()]


def settings_page() -> str:
    """The table as Markdown, between the two marks."""
    rows = [
        f"| `{one.variable}` | {one.default} | {', '.join(one.readers)} | {one.description} |" for one in all_settings()
    ]
    return "\n".join(["", "| variable | default | read by | what |", "|---|---|---|---|", *rows, "", ""])


def with_page(readme: str) -> str:
    """The README with its table as it should be; raises `ValueError` when a mark is missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the README has lost a mark of its settings")
    return before + begin + settings_page() + end + after


def _setting(variable: str, fields: Mapping[str, FieldInfo]) -> Setting:
    first = next(iter(fields.values()))
    required = any(field.is_required() for field in fields.values())
    return Setting(
        variable=variable,
        default="**required**" if required else _default(first),
        description=first.description or "",
        readers=tuple(
            f"{reader} (optional)" if required and not field.is_required() else reader
            for reader, field in fields.items()
        ),
    )


def _default(field: FieldInfo) -> str:
    # What `repr` leaves out is a secret, and a secret's default is nobody's business.
    if not field.repr or field.default in (None, "", frozenset()):
        return "not set"
    extra: Any = field.json_schema_extra or {}
    value = str(field.default) if isinstance(field.default, int | float) else f"`{field.default}`"
    return f"{value} {extra['unit']}" if "unit" in extra else value


def main(readme: Path = ROOT / "README.md") -> None:
    """Write the page into the README."""
    readme.write_text(with_page(readme.read_text()))


if __name__ == "__main__":
    main()
