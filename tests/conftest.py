"""What all tests share: a real Redis server, emptied before each test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from local.errors import RedisMissing
from local.ports import PortPicker
from tests.provider_server import ProviderServer, provider_server
from tests.redis_server import RedisServer

# One thread of arithmetic, as in every process of the product: two that wait for each other on a busy core take several
# times as long. numpy reads it when it is first imported, which no test has done yet.
os.environ["OPENBLAS_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of the tests' own; without one tests are skipped, on CI they fail."""
    try:
        server = RedisServer(port=PortPicker().pick(), directory=tmp_path_factory.mktemp("redis"))
    except RedisMissing as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_database(request: pytest.FixtureRequest) -> str:
    """The URL of the database that tests share: TEST_REDIS_URL, else the tests' own server's."""
    given = os.environ.get("TEST_REDIS_URL")
    if given:
        return given
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.url


@pytest.fixture
def redis_url(redis_database: str) -> str:
    """The URL of a database that is empty when the test starts."""
    with redis.Redis.from_url(redis_database) as client:
        client.flushdb()
    return redis_database


@pytest.fixture(scope="module")
def providers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderServer]:
    """A stand-in provider server of a module's own."""
    with provider_server(tmp_path_factory.mktemp("providers") / "requests.jsonl") as server:
        yield server


@pytest.fixture
def own_redis(redis_server: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    """A running server that belongs to one test."""
    server = RedisServer(port=PortPicker().pick(), directory=tmp_path)
    server.start()
    yield server
    server.stop()
