"""`muster knowledge`: documents go in, are listed, found and taken out, and what is wrong is said."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from muster.cli import main

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`muster knowledge …` with an index of the test's own."""
    settings = {
        "MUSTER_KNOWLEDGE_INDEX": str(tmp_path / "knowledge.db"),
        "MUSTER_EMBEDDINGS_MODEL": None,
        "COLUMNS": "200",
    }
    return lambda *arguments: CliRunner(env=settings).invoke(main, ["knowledge", *map(str, arguments)])


@pytest.fixture
def faq(tmp_path: Path) -> Path:
    file = tmp_path / "faq.md"
    file.write_text("# Questions\n\n## Parking\nBehind the building.\n\n## Pets\nDogs are welcome.\n")
    return file


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    file = tmp_path / "notes.txt"
    file.write_text("The cellar is closed in winter.")
    return file


def test_documents_are_added_listed_found_and_removed(run: Run, faq: Path, notes: Path, tmp_path: Path) -> None:
    added = run("add", faq, notes)
    assert added.exit_code == 0
    assert "added faq.md (passages: 2)\nadded notes.txt (passages: 1)\n" in added.output
    assert f"MUSTER_KNOWLEDGE_INDEX={tmp_path / 'knowledge.db'}" in added.output
    listed = run("list")
    assert [line.split()[:2] for line in listed.output.splitlines()[1:]] == [["faq.md", "2"], ["notes.txt", "1"]]
    found = run("search", "May I bring my dogs?")
    score, passage_id, *title = found.output.splitlines()[0].split()
    assert float(score) > 0
    assert (passage_id, " ".join(title)) == ("faq.md#2", "Questions > Pets")
    assert "Dogs are welcome." in found.output
    assert run("remove", "faq.md").output == "removed faq.md\n"
    assert run("search", "May I bring my dogs?").output == "Nothing fits.\n"


def test_adding_again_replaces(run: Run, faq: Path) -> None:
    run("add", faq)
    faq.write_text("# Questions\nNo dogs.")
    assert "replaced faq.md (passages: 1)" in run("add", faq).output
    assert "No dogs." in run("search", "dogs").output


def test_a_document_can_have_another_name(run: Run, faq: Path) -> None:
    assert "added questions (passages: 2)" in run("add", faq, "--source", "questions").output
    assert "questions#2" in run("search", "dogs", "--in", "questions").output
    assert run("search", "dogs", "--in", "faq.md").output == "Nothing fits.\n"


def test_a_bad_file_is_named_and_the_others_are_added(run: Run, faq: Path, tmp_path: Path) -> None:
    (tmp_path / "sheet.xlsx").write_bytes(b"PK")
    (tmp_path / "empty.md").touch()
    added = run("add", tmp_path / "sheet.xlsx", faq, tmp_path / "empty.md", tmp_path / "missing.pdf")
    assert added.exit_code == 1
    assert "left out: sheet.xlsx does not end in one of" in added.output
    assert "left out: empty.md holds no text" in added.output
    assert "left out: missing.pdf cannot be opened: No such file or directory" in added.output
    assert "added faq.md" in added.output


def test_two_files_of_one_name_are_refused(run: Run, faq: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    twin = tmp_path / "more" / "faq.md"
    twin.write_text("More.")
    refused = run("add", faq, twin)
    assert refused.exit_code == 2
    assert "faq.md" in refused.output and "--source" in refused.output
    assert run("add", faq, twin, "--source", "one").exit_code == 2


@pytest.mark.parametrize("command", [("list",), ("remove", "faq.md"), ("search", "dogs")])
def test_without_an_index_it_is_said(run: Run, command: tuple[str, ...], tmp_path: Path) -> None:
    answer = run(*command)
    assert answer.exit_code == 1
    assert f"There is no knowledge index {tmp_path / 'knowledge.db'}." in answer.output
    assert not (tmp_path / "knowledge.db").exists()


def test_an_unknown_document_cannot_be_removed(run: Run, faq: Path) -> None:
    run("add", faq)
    answer = run("remove", "other.md")
    assert answer.exit_code == 1
    assert "There is no document other.md" in answer.output


def test_an_index_that_cannot_be_written_is_named(run: Run, faq: Path, tmp_path: Path) -> None:
    answer = run("add", faq, "--index", tmp_path / "nowhere" / "knowledge.db")
    assert answer.exit_code == 1
    assert "cannot be changed" in answer.output


def test_without_its_embeddings_endpoint_nothing_is_added(faq: Path, tmp_path: Path, unused_tcp_port: int) -> None:
    index = tmp_path / "knowledge.db"
    settings = {
        "MUSTER_KNOWLEDGE_INDEX": str(index),
        "MUSTER_EMBEDDINGS_MODEL": "any",
        "MUSTER_EMBEDDINGS_BASE_URL": f"http://127.0.0.1:{unused_tcp_port}/v1",
    }
    answer = CliRunner(env=settings).invoke(main, ["knowledge", "add", str(faq)])
    assert answer.exit_code == 1
    assert "The embeddings endpoint failed" in answer.output
    assert not index.exists()
