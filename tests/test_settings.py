"""The settings: the README's page is what the classes say, and what is missing is named at once."""

import inspect

import pytest

from api import settings as api_settings
from local.paths import ROOT
from muster.settings import BEGIN, READERS, all_settings, settings_page, with_page
from worker.call import settings as call_settings
from worker.fleet import settings as fleet_settings
from worker.fleet.errors import SettingsInvalid
from worker.fleet.settings import EnvironmentSettings

CLASSES = [
    kind
    for module in (api_settings, call_settings, fleet_settings)
    for _, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, EnvironmentSettings) and kind.__module__ == module.__name__ and kind is not EnvironmentSettings
]


def test_the_readme_s_page_is_what_the_classes_say() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme == with_page(readme), "write it again: .venv/bin/python -m muster.settings"


def test_a_readme_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="mark"):
        with_page(BEGIN)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_field_has_a_variable_and_a_description_of_one_line(kind: type[EnvironmentSettings]) -> None:
    fields = kind.model_fields.values()
    assert [field for field in fields if not field.alias or not field.description] == []
    assert [field.description for field in fields if set("\n|") & set(str(field.description))] == []


def test_every_class_of_settings_has_a_reader() -> None:
    read = {ancestor for kinds in READERS.values() for kind in kinds for ancestor in kind.__mro__}
    assert set(CLASSES) <= read


def test_the_page_marks_what_is_required_and_tells_units() -> None:
    page = settings_page()
    assert "| `REDIS_URL` | **required** | worker, chat worker, agent service | the state" in page
    assert "| `LIVEKIT_API_SECRET` | **required** | worker, agent service (optional), control plane |" in page
    assert "| `MUSTER_JOIN_TTL` | 30 s | worker, chat worker, agent service |" in page
    assert "| `MUSTER_MAX_DURATION` | 3600 s |" in page


def test_the_page_shows_no_default_of_a_secret() -> None:
    secret = {str(field.alias) for kind in CLASSES for field in kind.model_fields.values() if not field.repr}
    shown = {setting.variable: setting.default for setting in all_settings() if setting.variable in secret}
    assert {"MUSTER_API_KEYS", "OPENAI_API_KEY", "BROKER_URL"} <= shown.keys()
    assert set(shown.values()) <= {"not set", "**required**"}


@pytest.mark.parametrize(("reader", "kinds"), READERS.items())
def test_everything_missing_is_named_at_once(reader: str, kinds: tuple[type[EnvironmentSettings], ...]) -> None:
    for kind in kinds:
        required = [str(field.alias) for field in kind.model_fields.values() if field.is_required()]
        if required:
            with pytest.raises(SettingsInvalid) as refusal:
                kind.from_env({})
            assert [name for name in required if name not in str(refusal.value)] == [], reader


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_no_error_shows_what_was_set(kind: type[EnvironmentSettings]) -> None:
    wrong = {str(field.alias): "hunter2\n" for field in kind.model_fields.values() if not field.repr}
    try:
        shown = repr(kind.from_env({"LIVEKIT_URL": "ws://127.0.0.1", "LIVEKIT_API_KEY": "key", **wrong}))
    except SettingsInvalid as refusal:
        shown = str(refusal)
    assert wrong
    assert "hunter2" not in shown
