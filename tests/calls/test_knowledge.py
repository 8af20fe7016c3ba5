"""A call whose agent answers from documents: its turns name the passages, and slow embeddings cost no answer."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from local.parts import AGENT_SERVICE, CONTROL_PLANE, WORKER, StackOptions
from local.stack import Stack
from muster.cli import main
from muster.client import MusterClient
from tests.calls.calling import Fleet
from tests.calls.conftest import BRIEF

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

#: Nothing of it stands in the handbooks of the demo.
NEWS = """# News

## Bicycle rental
Bicycles can be rented at our office for seven dollars a day.

## Painting
The walls of the hall will be painted green in spring.
"""


@pytest.fixture(scope="module")
def knowing_fleet(
    fleet: Fleet, start_stack: Callable[[StackOptions], Stack], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """An agent service and a worker of their own on the same servers, with an index made by the command."""
    folder = tmp_path_factory.mktemp("knowledge")
    (folder / "news.md").write_text(NEWS)
    knowledge = {
        "MUSTER_KNOWLEDGE_INDEX": str(folder / "knowledge.db"),
        "MUSTER_EMBEDDINGS_MODEL": "stand-in-embedding",
        "MUSTER_EMBEDDINGS_BASE_URL": f"{fleet.providers}/v1",
        # The models share two cores with everything else here, and how fast they are is not what is tested.
        "MUSTER_RETRIEVAL_BUDGET": "1",
        "MUSTER_PROVIDER_TIMEOUT": "10",
    }
    added = CliRunner(env=knowledge).invoke(main, ["knowledge", "add", str(folder / "news.md")])
    assert added.exit_code == 0, added.output
    shared = dict(fleet.stack.settings)
    shared["REDIS_URL"] = shared["REDIS_URL"].removesuffix("/0") + "/2"
    del shared["AGENT_SERVICE_URL"]
    stack = start_stack(
        StackOptions(
            parts=frozenset({AGENT_SERVICE, CONTROL_PLANE, WORKER}),
            preferred_ports=False,
            home=folder / "home",
            environment=shared | BRIEF | knowledge,
        )
    )
    try:
        with MusterClient(stack.urls[AGENT_SERVICE], control_plane=stack.urls[CONTROL_PLANE]) as client:
            yield Fleet(
                stack=stack,
                client=client,
                voice=fleet.voice,
                providers=fleet.providers,
                settings={**shared, **stack.settings},
            )
    finally:
        stack.stop()


async def test_an_answer_from_a_document_names_its_passage(knowing_fleet: Fleet, tmp_path: Path) -> None:
    async with knowing_fleet.call() as call:
        answered = await knowing_fleet.ask(call, "Can I rent a bicycle at your office?")
        await call.caller.heard.silent_since(answered, gap=1.0, within=20)
        turns = await knowing_fleet.turns(call.session.session_id)
    greeting, answer = (turn for turn in turns if turn.role == "assistant")
    assert "seven dollars" in (answer.text or "")
    assert [citation.passage_id for citation in answer.citations][:1] == ["news.md#1"]
    assert answer.citations[0].title == "News > Bicycle rental"
    assert greeting.citations == ()


async def test_slow_embeddings_cost_no_answer(knowing_fleet: Fleet) -> None:
    async with knowing_fleet.call() as call:
        await knowing_fleet.set_fault("embedding", "hang")
        try:
            answered = await knowing_fleet.ask(call, "What are your opening hours?")
            await call.caller.heard.silent_since(answered, gap=1.0, within=20)
        finally:
            await knowing_fleet.set_fault("embedding", "ok")
        turns = await knowing_fleet.turns(call.session.session_id)
    assert "nine to six" in (turns[-1].text or "")
