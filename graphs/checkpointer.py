"""LangGraph's checkpointer on plain Redis or Valkey, whose writes only the session's owner may make.

Key space (a LangGraph thread is a session; one slot for each; both keys expire together, `ttl` after the last write):
    muster:{s:<thread id>}:checkpoints        HASH  checkpoint␟<namespace>␟<checkpoint id> -> state, metadata, parent
                                                    newest␟<namespace> -> id of the checkpoint that was written last
                                                    delta -> there from the first DeltaChannel on
    muster:{s:<thread id>}:checkpoint_writes  HASH  <namespace>␟<checkpoint id>␟<task id>␟<index> -> a task's result

␟ is U+001F. What is stored is msgpack.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_serializable_checkpoint_metadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from graphs.errors import CheckpointPruned, MemoryUnavailable, MemoryUnreadable, StaleWriter

#: Seconds to wait for one answer of Redis.
TIMEOUT = 1.0

_SEPARATOR = "\x1f"

# KEYS: checkpoints, writes. ARGV: namespace, checkpoint id ('' = the newest).
_GET = r"""#!lua flags=no-writes
local namespace, id = ARGV[1], ARGV[2]
if id == '' then id = redis.call('HGET', KEYS[1], 'newest\31' .. namespace) end
if not id then return {'none'} end
local checkpoint = redis.call('HGET', KEYS[1], 'checkpoint\31' .. namespace .. '\31' .. id)
if not checkpoint then
  local prefix = 'checkpoint\31' .. namespace .. '\31'
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.sub(field, 1, #prefix) == prefix and string.sub(field, #prefix + 1) > id then return {'older'} end
  end
  return {'none'}
end
local prefix, writes, all = namespace .. '\31' .. id .. '\31', {}, redis.call('HGETALL', KEYS[2])
for i = 1, #all, 2 do
  if string.sub(all[i], 1, #prefix) == prefix then
    table.insert(writes, all[i])
    table.insert(writes, all[i + 1])
  end
end
return {'found', id, checkpoint, writes}"""

# KEYS: checkpoints, writes.
_LIST = """#!lua flags=no-writes
return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2])}"""

# What every write begins with; a record that is not there has no epoch that could be right.
# KEYS: checkpoints, writes, and with a fence the session's record.
# ARGV: epoch, owner, lifetime in ms, then the script's own.
_FENCED = r"""#!lua
if KEYS[3] then
  local record = redis.call('HMGET', KEYS[3], 'epoch', 'owner')
  if record[1] ~= ARGV[1] or (record[2] or '') ~= ARGV[2] then return 'stale' end
end
local function expire()
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
"""

# A state with a DeltaChannel is put together from older checkpoints, so none of its thread can go.
# Results of tasks can arrive after their checkpoint was pruned; results for one that is yet to come are newer.
_PRUNE = r"""
local function prune(namespace, keep)
  if redis.call('HEXISTS', KEYS[1], 'delta') == 1 then return end
  local oldest = redis.call('HGET', KEYS[1], 'newest\31' .. namespace)
  local prefix, others, dead = 'checkpoint\31' .. namespace .. '\31', {}, {}
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    local id = string.sub(field, #prefix + 1)
    if string.sub(field, 1, #prefix) == prefix and id ~= oldest then table.insert(others, id) end
  end
  table.sort(others)
  for i, id in ipairs(others) do
    if i <= #others + 1 - keep then
      dead[id] = true
      redis.call('HDEL', KEYS[1], prefix .. id)
    elseif id < oldest then
      oldest = id
    end
  end
  for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
    local of, id = string.match(field, '^([^\31]*)\31([^\31]*)')
    if of == namespace and (dead[id] or id < oldest) then redis.call('HDEL', KEYS[2], field) end
  end
end
"""

# ARGV from 4: namespace, checkpoint id, packed checkpoint, how many to keep (0 = all), '1' for a DeltaChannel.
# The newest is the one written last: ids come from clocks, and the next owner's clock may be behind.
_PUT = (
    _FENCED
    + _PRUNE
    + r"""
local namespace, id, keep = ARGV[4], ARGV[5], tonumber(ARGV[7])
redis.call('HSET', KEYS[1], 'checkpoint\31' .. namespace .. '\31' .. id, ARGV[6], 'newest\31' .. namespace, id)
if ARGV[8] == '1' then redis.call('HSET', KEYS[1], 'delta', 1) end
if keep > 0 then prune(namespace, keep) end
expire()
return 'written'"""
)

# ARGV from 4: for each write its command, field and value. HSETNX: a task that runs again must not count twice.
_PUT_WRITES = (
    _FENCED
    + r"""
for i = 4, #ARGV, 3 do redis.call(ARGV[i], KEYS[2], ARGV[i + 1], ARGV[i + 2]) end
expire()
return 'written'"""
)

_KEEP_NEWEST = (
    _FENCED
    + _PRUNE
    + r"""
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local namespace = string.match(field, '^newest\31(.*)$')
  if namespace then prune(namespace, 1) end
end
expire()
return 'written'"""
)

_DELETE = (
    _FENCED
    + r"""
redis.call('DEL', KEYS[1], KEYS[2])
return 'written'"""
)


@dataclass(frozen=True)
class Fence:
    """Who may write: the owner that the session's record names, in that epoch.

    `record` is the key of the record, a HASH with `epoch` and `owner`, in the same slot as the thread.
    """

    record: str
    epoch: int
    owner: str


@dataclass(frozen=True)
class _Thread:
    """A thread, and the namespace in it of the graph or of one of its subgraphs."""

    id: str
    namespace: str

    @classmethod
    def of(cls, config: RunnableConfig) -> "_Thread":
        configurable = config["configurable"]
        return cls(str(configurable["thread_id"]), configurable.get("checkpoint_ns") or "")

    def config(self, checkpoint_id: str) -> RunnableConfig:
        return {
            "configurable": {
                "thread_id": self.id,
                "checkpoint_ns": self.namespace,
                "checkpoint_id": checkpoint_id,
            }
        }


class RedisCheckpointer(BaseCheckpointSaver[str]):
    """Keeps the state of graphs in Redis; one step there, and one round trip, for each call.

    `client` must not decode responses. `ttl` is in seconds from a thread's last write. `keep` is how many
    checkpoints of a namespace stay, the newest; without it all do. State is plain JSON: of what is stored,
    nothing but LangGraph's few safe types is built on loading, and other objects come back as the data they
    were made of.

    Every method raises MemoryUnavailable when Redis fails: a failure must never look like a conversation
    that has not begun. Writes raise StaleWriter, and change nothing, unless `fence` holds. Reads raise
    MemoryUnreadable for what no checkpointer has written.
    """

    def __init__(self, client: Redis, *, ttl: float, keep: int | None = None, fence: Fence | None = None) -> None:
        super().__init__(serde=JsonPlusSerializer(allowed_msgpack_modules=None))
        self._client = client
        self._lifetime = round(ttl * 1000)
        self._keep = keep
        self._fence = fence

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that `config` names, else the one written last; None when there is none.

        Raises CheckpointPruned for one that is not kept any more: LangGraph would begin an empty conversation there.
        """
        thread = _Thread.of(config)
        outcome, *found = await self._run(_GET, _keys(thread.id), [thread.namespace, get_checkpoint_id(config) or ""])
        if outcome == b"older" and self._keep is not None:
            raise CheckpointPruned
        if outcome != b"found":
            return None
        checkpoint_id, packed, writes = found
        return self._tuple(thread, checkpoint_id.decode(), packed, _pairs(writes))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """A thread's checkpoints, the highest id first; those of all threads cannot be listed."""
        if config is None:
            raise NotImplementedError("checkpoints are listed for one thread")
        checkpoints, writes = await self._run(_LIST, _keys(_Thread.of(config).id), [])
        stored = self._stored(config, _pairs(checkpoints), _pairs(writes), before=before)
        wanted = (found for found in stored if all(found.metadata.get(k) == v for k, v in (filter or {}).items()))
        for found in islice(wanted, limit):
            yield found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint with all of its state, and forget those that are not kept."""
        thread = _Thread.of(config)
        described = get_serializable_checkpoint_metadata(config, metadata)
        await self._write(
            _PUT,
            thread.id,
            [
                thread.namespace,
                checkpoint["id"],
                self._pack([checkpoint, described, get_checkpoint_id(config)]),
                self._keep or 0,
                int("counters_since_delta_snapshot" in metadata),
            ],
        )
        return thread.config(checkpoint["id"])

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store what a task of a checkpoint's step has produced; the same again changes nothing."""
        thread = _Thread.of(config)
        arguments: list[str | bytes] = []
        for position, (channel, value) in enumerate(writes):
            index = WRITES_IDX_MAP.get(channel, position)
            field = (thread.namespace, config["configurable"]["checkpoint_id"], task_id, str(index))
            arguments += [
                "HSETNX" if index >= 0 else "HSET",
                _SEPARATOR.join(field),
                self._pack([channel, value, task_path]),
            ]
        await self._write(_PUT_WRITES, thread.id, arguments)

    async def adelete_thread(self, thread_id: str) -> None:
        """Forget everything of a thread."""
        await self._write(_DELETE, thread_id, [])

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Keep only the newest checkpoint of each namespace, or with "delete" none."""
        scripts = {"keep_latest": _KEEP_NEWEST, "delete": _DELETE}
        for thread_id in thread_ids:
            await self._write(scripts[strategy], thread_id, [])

    def get_next_version(self, current: str | None, channel: None) -> str:
        return f"{int(current or 0) + 1:032}"

    def _stored(
        self,
        config: RunnableConfig,
        checkpoints: Mapping[bytes, bytes],
        writes: Mapping[bytes, bytes],
        *,
        before: RunnableConfig | None,
    ) -> Iterator[CheckpointTuple]:
        """What is stored of the thread, namespace and checkpoint that `config` names."""
        asked, namespace = get_checkpoint_id(config), config["configurable"].get("checkpoint_ns")
        end = get_checkpoint_id(before) if before else None
        places = [field.decode().split(_SEPARATOR) for field in checkpoints if field.startswith(b"checkpoint")]
        for kind, place, id_ in sorted(places, key=lambda parts: parts[2], reverse=True):
            if namespace not in (None, place) or asked not in (None, id_) or (end is not None and id_ >= end):
                continue
            prefix = _SEPARATOR.join([place, id_, ""]).encode()
            own = {field: value for field, value in writes.items() if field.startswith(prefix)}
            packed = checkpoints[_SEPARATOR.join([kind, place, id_]).encode()]
            yield self._tuple(_Thread(_Thread.of(config).id, place), id_, packed, own)

    def _tuple(
        self, thread: _Thread, checkpoint_id: str, packed: bytes, writes: Mapping[bytes, bytes]
    ) -> CheckpointTuple:
        checkpoint, metadata, parent = self._unpack(packed)
        pending = []
        for field, value in writes.items():
            _, _, task_id, index = field.decode().split(_SEPARATOR)
            channel, written, task_path = self._unpack(value)
            pending.append((writes_sort_key(task_path, task_id, int(index)), (task_id, channel, written)))
        pending.sort(key=lambda write: write[0])
        return CheckpointTuple(
            config=thread.config(checkpoint_id),
            checkpoint=checkpoint,
            metadata=metadata,
            parent_config=thread.config(parent) if parent else None,
            pending_writes=[write for _, write in pending],
        )

    def _pack(self, parts: Sequence[Any]) -> bytes:
        # A list is always written as msgpack, whose kind need not be stored then, and cannot be forged.
        return self.serde.dumps_typed(list(parts))[1]

    def _unpack(self, packed: bytes) -> Sequence[Any]:
        try:
            parts = self.serde.loads_typed(("msgpack", packed))
        except ValueError as error:
            raise MemoryUnreadable from error
        if not isinstance(parts, list) or len(parts) != 3:
            raise MemoryUnreadable
        return parts

    async def _write(self, script: str, thread_id: str, arguments: Sequence[str | bytes | int]) -> None:
        keys, fence = _keys(thread_id), self._fence
        if fence is not None:
            keys.append(fence.record)
        owner: list[str | int] = ["", ""] if fence is None else [fence.epoch, fence.owner]
        if await self._run(script, keys, [*owner, self._lifetime, *arguments]) != b"written":
            raise StaleWriter

    async def _run(self, script: str, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Any:
        try:
            return await self._client.register_script(script)(keys=keys, args=arguments)
        except RedisError as error:
            raise MemoryUnavailable(cause=error) from error


@asynccontextmanager
async def open_checkpointer(
    url: str, *, ttl: float, keep: int | None = None, fence: Fence | None = None, timeout: float = TIMEOUT
) -> AsyncGenerator[RedisCheckpointer, None]:
    """A checkpointer with a client of its own, for one unit of work; arguments as those of RedisCheckpointer.

    The client waits `timeout` seconds for each answer and does not retry. Opening it does not connect.
    """
    client = Redis.from_url(
        url,
        decode_responses=False,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
    )
    try:
        yield RedisCheckpointer(client, ttl=ttl, keep=keep, fence=fence)
    finally:
        await client.aclose()


def _keys(thread_id: str) -> list[str]:
    return [f"muster:{{s:{thread_id}}}:{name}" for name in ("checkpoints", "checkpoint_writes")]


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
