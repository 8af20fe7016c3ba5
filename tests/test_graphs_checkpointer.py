"""The checkpointer on Redis: what LangGraph expects of it, what lasts and how long, and who may write."""

import asyncio
import operator
import sys
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, TypedDict

import ormsgpack
import pytest
import redis
from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.report import ProgressCallbacks
from langgraph.checkpoint.conformance.test_utils import generate_checkpoint, generate_config, generate_metadata
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import ERROR
from langgraph.graph import END, START, StateGraph
from langgraph.types import Durability

from graphs.checkpointer import Fence, RedisCheckpointer, open_checkpointer
from graphs.errors import CheckpointPruned, MemoryUnavailable, MemoryUnreadable, StaleWriter
from local.paths import ROOT
from tests.crashing_graph import WORDS, conversation
from tests.fleet_sessions import new_session
from tests.redis_server import RedisServer
from worker.fleet import record_moves, records
from worker.fleet.redis_operations import connect, run

TTL = 60.0
DURABILITIES: list[Durability] = ["async", "sync", "exit"]

Call = Callable[[RedisCheckpointer, RunnableConfig], Awaitable[object]]


async def _list(checkpointer: RedisCheckpointer, config: RunnableConfig) -> object:
    return [found async for found in checkpointer.alist(config)]


READS: dict[str, Call] = {
    "get": lambda checkpointer, config: checkpointer.aget_tuple(config),
    "list": _list,
}
WRITES: dict[str, Call] = {
    "put": lambda checkpointer, config: checkpointer.aput(config, generate_checkpoint(), generate_metadata(), {}),
    "put_writes": lambda checkpointer, config: checkpointer.aput_writes(config, [("words", "late")], "task"),
    "delete": lambda checkpointer, config: checkpointer.adelete_thread(config["configurable"]["thread_id"]),
    "prune": lambda checkpointer, config: checkpointer.aprune([config["configurable"]["thread_id"]]),
}
CALLS = READS | WRITES


class Talk(TypedDict, total=False):
    words: Annotated[list[str], operator.add]
    active: str


def echo(checkpointer: RedisCheckpointer) -> Any:
    """A graph that answers the last word with its length and its own position."""
    graph = StateGraph(Talk)
    graph.add_node("echo", lambda state: {"words": [f"answer {len(state['words'])}"]})
    graph.add_edge(START, "echo")
    graph.add_edge("echo", END)
    return graph.compile(checkpointer=checkpointer)


def thread(session_id: str | None = None) -> RunnableConfig:
    return {"configurable": {"thread_id": session_id or uuid.uuid4().hex}}


def name_of(config: RunnableConfig) -> str:
    return str(config["configurable"]["thread_id"])


@pytest.fixture
async def checkpointer(redis_url: str) -> AsyncIterator[RedisCheckpointer]:
    async with open_checkpointer(redis_url, ttl=TTL) as opened:
        yield opened


@pytest.fixture
def database(redis_url: str) -> Iterator["redis.Redis"]:
    """Redis as seen by somebody else."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


def stored(database: "redis.Redis", config: RunnableConfig) -> dict[str, dict[bytes, bytes]]:
    """Every key of the thread by its last part."""
    keys = [key.decode() for key in database.scan_iter(f"muster:{{s:{name_of(config)}}}:checkpoint*")]
    return {key.rpartition(":")[2]: database.hgetall(key) for key in keys}  # type: ignore[misc]


def kept(database: "redis.Redis", config: RunnableConfig) -> list[str]:
    """Ids of the root graph's checkpoints."""
    fields = stored(database, config).get("checkpoints", {})
    return sorted(field.decode().split("\x1f")[2] for field in fields if field.startswith(b"checkpoint"))


def written_for(database: "redis.Redis", config: RunnableConfig) -> set[str]:
    """Ids of the checkpoints that results of tasks are stored for."""
    return {field.decode().split("\x1f")[1] for field in stored(database, config).get("checkpoint_writes", {})}


def expiries(database: "redis.Redis", config: RunnableConfig) -> list[int]:
    """When each key of the thread expires, in Unix milliseconds."""
    return [int(database.pexpiretime(f"muster:{{s:{name_of(config)}}}:{key}")) for key in stored(database, config)]


# What LangGraph expects


@pytest.mark.parametrize("fenced", [False, True])
async def test_langgraphs_conformance_suite_is_green(
    redis_url: str, fenced: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    fence = claimed(redis_url) if fenced else None

    @checkpointer_test(name="RedisCheckpointer")
    async def opened() -> AsyncGenerator[RedisCheckpointer, None]:
        async with open_checkpointer(redis_url, ttl=TTL, fence=fence) as checkpointer:
            yield checkpointer

    report = await validate(opened, progress=ProgressCallbacks.quiet())
    report.print_report()
    assert {name for name, result in report.results.items() if result.detected} == {
        "put", "put_writes", "get_tuple", "list", "delete_thread", "prune",
    }  # fmt: skip
    assert [failure for result in report.results.values() for failure in result.failures] == []
    assert "Result: FULL (6/6)" in capsys.readouterr().out


async def test_a_graph_goes_on_where_another_process_left_it(redis_url: str) -> None:
    config = thread()
    async with open_checkpointer(redis_url, ttl=TTL) as first:
        await echo(first).ainvoke({"words": ["hello"], "active": "sales"}, config)
    async with open_checkpointer(redis_url, ttl=TTL) as second:
        state = await echo(second).ainvoke({"words": ["again"]}, config)
    assert state == {"words": ["hello", "answer 1", "again", "answer 3"], "active": "sales"}


async def test_the_thread_is_listed_newest_first_and_all_threads_are_not(checkpointer: RedisCheckpointer) -> None:
    config = thread()
    await echo(checkpointer).ainvoke({"words": ["hello"]}, config)
    steps = [snapshot.metadata["step"] async for snapshot in echo(checkpointer).aget_state_history(config)]
    assert steps == [1, 0, -1]
    with pytest.raises(NotImplementedError):
        await anext(aiter(checkpointer.alist(None)))


async def test_the_unit_of_work_closes_its_connections(redis_url: str, database: "redis.Redis") -> None:
    before = len(database.client_list())
    async with open_checkpointer(redis_url, ttl=TTL) as checkpointer:
        await checkpointer.aget_tuple(thread())
        assert len(database.client_list()) == before + 1
    assert len(database.client_list()) == before


# How long it lasts


async def test_all_keys_of_a_session_expire_together_and_each_write_postpones_it(
    checkpointer: RedisCheckpointer, database: "redis.Redis"
) -> None:
    config = thread()
    await echo(checkpointer).ainvoke({"words": ["hello"]}, config)
    newest = await checkpointer.aget_tuple(config)
    assert newest is not None
    following = generate_checkpoint()
    seen = [expiries(database, config)]
    for call in (
        lambda: checkpointer.aput_writes(newest.config, [("words", "more")], "task"),
        lambda: checkpointer.aprune([name_of(config)]),
        lambda: checkpointer.aput(newest.config, following, generate_metadata(), {}),
    ):
        await asyncio.sleep(0.02)
        await call()
        seen.append(expiries(database, config))
    assert all(len(times) == 2 and len(set(times)) == 1 for times in seen), seen
    assert len({times[0] for times in seen}) == len(seen)


async def test_what_is_not_written_again_lasts_as_long_as_the_session(redis_url: str, database: "redis.Redis") -> None:
    config = thread()
    async with open_checkpointer(redis_url, ttl=1.5) as checkpointer:
        graph = echo(checkpointer)
        for turn in range(6):
            await graph.ainvoke({"words": ["hello"]} | ({"active": "sales"} if turn == 0 else {}), config)
            await asyncio.sleep(0.4)
        state = await graph.aget_state(config)
    assert (state.values["active"], len(state.values["words"])) == ("sales", 12)
    await asyncio.sleep(1.6)
    assert stored(database, config) == {}


async def test_only_the_newest_checkpoints_stay_and_the_results_that_belong_to_them(
    redis_url: str, database: "redis.Redis"
) -> None:
    config = thread()
    async with open_checkpointer(redis_url, ttl=TTL, keep=2) as checkpointer:
        for turn in range(10):
            await echo(checkpointer).ainvoke({"words": [f"turn {turn}"]}, config)
        state = await echo(checkpointer).aget_state(config)
    assert len(state.values["words"]) == 20
    ids = kept(database, config)
    assert ids[-1] == state.config["configurable"]["checkpoint_id"]
    assert len(ids) == 2
    # Results of a task may be stored just after the next checkpoint; they go with the one after it.
    assert len(written_for(database, config) - set(ids)) <= 1


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_a_run_of_many_steps_is_whole_when_each_step_prunes_the_one_before(
    redis_url: str, database: "redis.Redis", durability: Durability
) -> None:
    steps = 12
    graph = StateGraph(Talk)
    for step in range(steps):
        graph.add_node(str(step), lambda state: {"words": [str(len(state["words"]))]})
    graph.add_edge(START, "0")
    for step in range(1, steps):
        graph.add_edge(str(step - 1), str(step))
    config = thread()
    async with open_checkpointer(redis_url, ttl=TTL, keep=1) as checkpointer:
        compiled = graph.compile(checkpointer=checkpointer)
        await compiled.ainvoke({"words": ["0"]}, config, durability=durability)
        state = await compiled.aget_state(config)
    assert state.values["words"] == ["0", *map(str, range(1, steps + 1))]
    assert (state.next, len(kept(database, config))) == ((), 1)


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_a_task_that_is_done_does_not_run_again_when_its_step_is_resumed(
    redis_url: str, durability: Durability
) -> None:
    runs: list[str] = []

    def works(state: Talk) -> Talk:
        runs.append("works")
        return {"words": ["done"]}

    async def fails_once(state: Talk) -> Talk:
        runs.append("fails")
        await asyncio.sleep(0.05)
        if runs.count("fails") == 1:
            raise OSError("the line is cut")
        return {"words": ["done too"]}

    graph = StateGraph(Talk)
    graph.add_node("works", works)
    graph.add_node("fails", fails_once)
    graph.add_edge(START, "works")
    graph.add_edge(START, "fails")
    config = thread()
    async with open_checkpointer(redis_url, ttl=TTL, keep=1) as checkpointer:
        with pytest.raises(OSError, match="the line is cut"):
            await graph.compile(checkpointer=checkpointer).ainvoke({"words": ["go"]}, config, durability=durability)
    async with open_checkpointer(redis_url, ttl=TTL, keep=1) as checkpointer:
        state = await graph.compile(checkpointer=checkpointer).ainvoke(None, config, durability=durability)
    assert sorted(state["words"]) == ["done", "done too", "go"]
    assert sorted(runs) == ["fails", "fails", "works"]


async def test_a_run_from_a_pruned_checkpoint_fails_instead_of_beginning_anew(redis_url: str) -> None:
    config = thread()
    async with open_checkpointer(redis_url, ttl=TTL, keep=2) as checkpointer:
        graph = echo(checkpointer)
        await graph.ainvoke({"words": ["hello"]}, config)
        base = (await graph.aget_state(config)).config
        for turn in range(3):
            await graph.ainvoke({"words": [f"turn {turn}"]}, config)
        with pytest.raises(CheckpointPruned):
            await graph.ainvoke({"words": ["from there"]}, base)
        assert len((await graph.aget_state(config)).values["words"]) == 8


async def test_a_result_that_comes_after_its_checkpoint_was_pruned_goes_with_the_next_checkpoint(
    redis_url: str, database: "redis.Redis"
) -> None:
    config = generate_config()
    async with open_checkpointer(redis_url, ttl=TTL, keep=1) as checkpointer:
        pruned = await checkpointer.aput(config, generate_checkpoint(), generate_metadata(), {})
        coming = generate_checkpoint()
        await checkpointer.aput(config, generate_checkpoint(), generate_metadata(), {})
        await checkpointer.aput_writes(pruned, [("words", "late")], "task")
        early = generate_config(name_of(config), checkpoint_id=generate_checkpoint()["id"])
        await checkpointer.aput_writes(early, [("words", "early")], "task")
        assert len(stored(database, config)["checkpoint_writes"]) == 2
        await checkpointer.aput(config, coming, generate_metadata(), {})
    assert written_for(database, config) == {early["configurable"]["checkpoint_id"]}


@pytest.mark.parametrize("keep", [None, 1, 2])
async def test_the_newest_checkpoint_is_the_one_written_last_though_its_writers_clock_is_behind(
    redis_url: str, database: "redis.Redis", keep: int | None
) -> None:
    config = generate_config()
    behind, right, ahead = (generate_checkpoint() for _ in range(3))
    async with open_checkpointer(redis_url, ttl=TTL, keep=keep) as checkpointer:
        for checkpoint in (right, ahead, behind):
            at = await checkpointer.aput(config, checkpoint, generate_metadata(), {})
            await checkpointer.aput_writes(at, [("words", "hello")], "task")
        newest = await checkpointer.aget_tuple(config)
    assert newest is not None
    assert newest.checkpoint["id"] == behind["id"]
    expected = {None: [behind, right, ahead], 1: [behind], 2: [behind, ahead]}[keep]
    assert kept(database, config) == [checkpoint["id"] for checkpoint in expected]
    assert written_for(database, config) == {checkpoint["id"] for checkpoint in expected}


class Delta(TypedDict, total=False):
    words: Annotated[list[str], DeltaChannel(lambda known, new: [*known, *(word for one in new for word in one)])]


async def test_a_thread_with_a_delta_channel_is_never_pruned(redis_url: str) -> None:
    graph: Any = StateGraph(Delta)
    graph.add_node("echo", lambda state: {"words": [f"answer {len(state['words'])}"]})
    graph.add_edge(START, "echo")
    config = thread()
    async with open_checkpointer(redis_url, ttl=TTL, keep=1) as checkpointer:
        for turn in range(10):
            await graph.compile(checkpointer=checkpointer).ainvoke({"words": [f"turn {turn}"]}, config)
        await checkpointer.aprune([name_of(config)])
        state = await graph.compile(checkpointer=checkpointer).aget_state(config)
    assert state.values["words"] == [word for turn in range(10) for word in (f"turn {turn}", f"answer {2 * turn + 1}")]


# Many writers, one owner


async def test_the_same_result_written_many_times_at_once_counts_once(checkpointer: RedisCheckpointer) -> None:
    at = await checkpointer.aput(generate_config(), generate_checkpoint(), generate_metadata(), {})
    results = [("words", ["a"]), ("active", "sales")]
    await asyncio.gather(*(checkpointer.aput_writes(at, results, f"task {i % 5}") for i in range(50)))
    found = await checkpointer.aget_tuple(at)
    assert found is not None
    assert found.pending_writes == [(f"task {i}", channel, value) for i in range(5) for channel, value in results]


async def test_a_task_that_runs_again_changes_its_error_and_not_its_results(checkpointer: RedisCheckpointer) -> None:
    at = await checkpointer.aput(generate_config(), generate_checkpoint(), generate_metadata(), {})
    for attempt in ("first", "second"):
        await checkpointer.aput_writes(at, [("words", attempt), (ERROR, attempt)], "task")
    found = await checkpointer.aget_tuple(at)
    assert found is not None
    assert found.pending_writes == [("task", ERROR, "second"), ("task", "words", "first")]


async def test_two_runs_at_once_leave_the_whole_state_of_one_of_them(redis_url: str, database: "redis.Redis") -> None:
    config = thread()

    async def talk(name: str) -> object:
        state: object = None
        async with open_checkpointer(redis_url, ttl=TTL, keep=2) as checkpointer:
            for turn in range(15):
                state = await echo(checkpointer).ainvoke({"words": [f"{name} {turn}"]}, config)
        return state

    ends = await asyncio.gather(talk("one"), talk("two"))
    async with open_checkpointer(redis_url, ttl=TTL) as checkpointer:
        state = await echo(checkpointer).aget_state(config)
    assert state.next == ()
    assert state.values in ends
    assert len(kept(database, config)) == 2


def claimed(redis_url: str, session_id: str | None = None) -> Fence:
    """The fence of a session's owner, whose record is in Redis."""
    session = new_session(session_id=session_id)
    client = connect(redis_url)
    run(client, record_moves.create(session, lifetime=TTL))
    run(client, record_moves.claim(session.session_id, epoch=1, owner="worker", lifetime=TTL))
    client.close()
    return Fence(records.record_key(session.session_id), epoch=1, owner="worker")


TAKEN: dict[str, Callable[["redis.Redis", str], object]] = {
    "a younger epoch": lambda database, record: database.hset(record, "epoch", "2"),
    "another owner": lambda database, record: database.hset(record, "owner", "another"),
    "no owner": lambda database, record: database.hdel(record, "owner"),
    "no record": lambda database, record: database.delete(record),
}


@pytest.mark.parametrize("taken", TAKEN)
@pytest.mark.parametrize("write", WRITES)
async def test_who_does_not_own_the_session_writes_nothing(
    redis_url: str, database: "redis.Redis", write: str, taken: str
) -> None:
    config = thread()
    fence = claimed(redis_url, name_of(config))
    async with open_checkpointer(redis_url, ttl=TTL, fence=fence) as checkpointer:
        state = await echo(checkpointer).ainvoke({"words": ["hello"]}, config)
        assert state["words"] == ["hello", "answer 1"]
        newest = await checkpointer.aget_tuple(config)
        assert newest is not None
        before = stored(database, config), expiries(database, config)
        TAKEN[taken](database, fence.record)
        await asyncio.sleep(0.005)
        with pytest.raises(StaleWriter):
            await WRITES[write](checkpointer, newest.config)
        assert (stored(database, config), expiries(database, config)) == before
        assert await checkpointer.aget_tuple(config) == newest


@pytest.mark.parametrize("write", WRITES)
async def test_the_owner_writes(redis_url: str, database: "redis.Redis", write: str) -> None:
    config = thread()
    async with open_checkpointer(redis_url, ttl=TTL, fence=claimed(redis_url, name_of(config))) as checkpointer:
        await echo(checkpointer).ainvoke({"words": ["hello"]}, config)
        newest = await checkpointer.aget_tuple(config)
        assert newest is not None
        before = stored(database, config)
        await WRITES[write](checkpointer, newest.config)
        assert stored(database, config) != before


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_a_run_that_loses_its_session_fails_and_its_answer_is_not_stored(
    redis_url: str, database: "redis.Redis", durability: Durability
) -> None:
    config = thread()
    fence = claimed(redis_url, name_of(config))
    async with open_checkpointer(redis_url, ttl=TTL, fence=fence) as checkpointer:
        graph = conversation(checkpointer)
        words = graph.astream({"said": ["hello"]}, config, durability=durability, stream_mode="custom")
        with pytest.raises(StaleWriter):
            async with aclosing(words):
                async for word in words:
                    if word == "word 5":
                        database.hset(fence.record, "epoch", "2")
        state = await graph.aget_state(config)
    assert "answer to hello" not in state.values.get("said", [])


# Redis fails


async def test_a_server_that_is_away_is_not_an_empty_memory(own_redis: RedisServer) -> None:
    config = generate_config(checkpoint_id=generate_checkpoint()["id"])
    async with open_checkpointer(own_redis.url, ttl=TTL) as checkpointer:
        own_redis.stop()
        for call in CALLS.values():
            with pytest.raises(MemoryUnavailable):
                await call(checkpointer, config)
        own_redis.start()
        assert await checkpointer.aget_tuple(config) is None


async def test_a_server_that_does_not_answer_is_not_an_empty_memory(own_redis: RedisServer) -> None:
    config = generate_config(checkpoint_id=generate_checkpoint()["id"])
    async with open_checkpointer(own_redis.url, ttl=TTL, timeout=0.1) as checkpointer:
        with own_redis.frozen():
            for call in CALLS.values():
                with pytest.raises(MemoryUnavailable, match="TimeoutError"):
                    await call(checkpointer, config)


@pytest.mark.parametrize("call", CALLS)
async def test_a_server_that_refuses_is_not_an_empty_memory(own_redis: RedisServer, call: str) -> None:
    config = generate_config(checkpoint_id=generate_checkpoint()["id"])
    own_redis.configure(requirepass="secret")
    async with open_checkpointer(own_redis.url, ttl=TTL) as checkpointer:
        with pytest.raises(MemoryUnavailable, match="AuthenticationError"):
            await CALLS[call](checkpointer, config)


TROUBLES: dict[str, Callable[[RedisServer], object]] = {
    "full": lambda server: server.configure(maxmemory="1"),
    "read-only": RedisServer.demote,
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_a_server_that_takes_no_writes_is_told_and_still_read(own_redis: RedisServer, trouble: str) -> None:
    config = generate_config()
    async with open_checkpointer(own_redis.url, ttl=TTL) as checkpointer:
        at = await checkpointer.aput(config, generate_checkpoint(), generate_metadata(), {})
        TROUBLES[trouble](own_redis)
        for call in (WRITES["put"], WRITES["put_writes"]):
            with pytest.raises(MemoryUnavailable):
                await call(checkpointer, at)
        for read in READS.values():
            assert await read(checkpointer, config)


async def test_one_failed_read_does_not_begin_a_new_conversation(own_redis: RedisServer) -> None:
    config = thread()
    async with open_checkpointer(own_redis.url, ttl=TTL, timeout=0.3) as checkpointer:
        graph = echo(checkpointer)
        for turn in range(3):
            await graph.ainvoke({"words": [f"turn {turn}"]}, config)
        with own_redis.frozen(), pytest.raises(MemoryUnavailable):
            await graph.ainvoke({"words": ["turn 3"]}, config)
        assert len((await graph.aget_state(config)).values["words"]) == 6
        assert len((await graph.ainvoke({"words": ["turn 3"]}, config))["words"]) == 8


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_a_run_whose_results_cannot_be_stored_fails(own_redis: RedisServer, durability: Durability) -> None:
    config = thread()
    async with open_checkpointer(own_redis.url, ttl=TTL) as checkpointer:
        words = conversation(checkpointer).astream(
            {"said": ["hello"]}, config, durability=durability, stream_mode="custom"
        )
        with pytest.raises(MemoryUnavailable):
            async with aclosing(words):
                async for word in words:
                    if word == "word 5":
                        own_redis.stop()
    own_redis.start()


# What is stored


def permissive_mkdir(folder: Path) -> ormsgpack.Ext:
    """What LangGraph's serializer, as it comes, executes on loading."""
    return ormsgpack.Ext(1, ormsgpack.packb(("os", "mkdir", (str(folder),))))


async def test_a_stored_callable_is_not_executed(
    checkpointer: RedisCheckpointer, database: "redis.Redis", tmp_path: Path
) -> None:
    folder = tmp_path / "made"
    JsonPlusSerializer(allowed_msgpack_modules=True).loads_typed(("msgpack", ormsgpack.packb(permissive_mkdir(folder))))
    assert folder.exists(), "the bait does not work"
    folder.rmdir()

    at = await checkpointer.aput(generate_config(), generate_checkpoint(), generate_metadata(), {})
    await checkpointer.aput_writes(at, [("words", "hello")], "task")
    bait = permissive_mkdir(folder)
    forged = generate_checkpoint(channel_values={"words": bait})
    checkpoints, writes = (f"muster:{{s:{name_of(at)}}}:{name}" for name in ("checkpoints", "checkpoint_writes"))
    checkpoint_id = at["configurable"]["checkpoint_id"]
    packed = ormsgpack.packb([forged, generate_metadata(), None])
    database.hset(checkpoints, f"checkpoint\x1f\x1f{checkpoint_id}", packed)
    (field,) = database.hkeys(writes)
    database.hset(writes, field, ormsgpack.packb(["words", bait, ""]))

    found = await checkpointer.aget_tuple(at)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"words": [str(folder)]}
    assert found.pending_writes == [("task", "words", [str(folder)])]
    assert not folder.exists()


@pytest.mark.parametrize("damaged", [b"\xc1", b"", ormsgpack.packb("words"), ormsgpack.packb([1])])
async def test_what_is_damaged_is_not_an_empty_memory(
    checkpointer: RedisCheckpointer, database: "redis.Redis", damaged: bytes
) -> None:
    at = await checkpointer.aput(generate_config(), generate_checkpoint(), generate_metadata(), {})
    field = f"checkpoint\x1f\x1f{at['configurable']['checkpoint_id']}"
    database.hset(f"muster:{{s:{name_of(at)}}}:checkpoints", field, damaged)
    for read in READS.values():
        with pytest.raises(MemoryUnreadable):
            await read(checkpointer, at)


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_a_killed_process_leaves_what_it_has_written(redis_url: str, durability: Durability) -> None:
    config = thread()
    command = [sys.executable, "-m", "tests.crashing_graph", redis_url, name_of(config), durability]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert [await process.stdout.readline() for _ in range(8)][-1] == b"word 7\n"
    process.kill()
    await process.communicate()
    async with open_checkpointer(redis_url, ttl=TTL, keep=2) as checkpointer:
        graph = conversation(checkpointer)
        state = await graph.aget_state(config)
        answered = ["first", "answer to first"]
        if durability == "exit":
            assert (state.values["said"], state.next) == (answered, ())
            return
        assert (state.values["said"], state.next) == ([*answered, "second"], ("sales",))
        assert state.values["active"] == "sales"
        words = [word async for word in graph.astream(None, config, stream_mode="custom")]
        assert len(words) == WORDS
        state = await graph.aget_state(config)
        assert (state.values["said"], state.next) == ([*answered, "second", "answer to second"], ())
