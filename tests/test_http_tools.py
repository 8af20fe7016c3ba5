"""HTTP tools against a real server: what leaves, what comes back, and everything that must not happen."""

import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from graphs.configuration import HTTPToolConfiguration, SecretReference
from graphs.entities import ToolCall, ToolSchema
from graphs.errors import EndpointFailed, ToolRefused
from graphs.http_tools import HTTPAccess, http_tool
from graphs.roster import parse_arguments
from tests.tool_server import ToolServer
from worker.fleet.settings import FleetSettings
from worker.fleet.tool_hosts import may_call, origin, parse_tool_hosts

KEY = "turn_1:call_1"
SECRETS = {"WEATHER_TOKEN": "Bearer hunter2"}


@pytest.fixture
async def server() -> AsyncIterator[ToolServer]:
    async with ToolServer() as server:
        yield server


def configured(server: ToolServer, path: str, **fields: Any) -> HTTPToolConfiguration:
    fields = {"method": "GET", "timeout": 2.0, **fields}
    return HTTPToolConfiguration(name="weather", description="The weather.", url=f"{server.origin}/{path}", **fields)


async def use(
    server: ToolServer, path: str, arguments: Mapping[str, object] | None = None, *, hosts: str = "", **fields: Any
) -> Mapping[str, object]:
    """Run the tool as a specialist would; only the server itself is listed unless `hosts` says otherwise."""
    listed = parse_tool_hosts(hosts or server.origin)
    access = HTTPAccess(may_call=lambda url: may_call(url, listed), secrets=SECRETS)
    return await http_tool(configured(server, path, **fields), access).run(arguments or {}, idempotency_key=KEY)


async def test_a_get_sends_its_arguments_as_the_query(server: ToolServer) -> None:
    result = await use(server, "weather?units=metric", {"city": "São Paulo & co", "days": 3, "sun": True})

    assert result == {"degrees": 21, "summary": "It is twenty one degrees."}
    [called] = server.called
    assert (called.method, called.body) == ("GET", b"")
    assert called.query == {"units": "metric", "city": "São Paulo & co", "days": "3", "sun": "true"}


async def test_no_log_has_a_word_of_what_a_caller_said(server: ToolServer, caplog: pytest.LogCaptureFixture) -> None:
    # The level of a worker.
    with caplog.at_level(logging.INFO):
        await use(server, "weather", {"city": "Oslo"})
        with pytest.raises(EndpointFailed):
            await use(server, "broken", {"city": "Oslo"})
    # The endpoint keeps a log of its own.
    assert [one.name for one in caplog.records if "Oslo" in one.getMessage() and one.name != "aiohttp.access"] == []


async def test_a_post_sends_its_arguments_as_json(server: ToolServer) -> None:
    await use(server, "weather", {"city": "Zürich", "days": 3}, method="POST")

    [called] = server.called
    assert (called.method, called.query) == ("POST", {})
    assert called.headers["content-type"] == "application/json"
    assert json.loads(called.body) == {"city": "Zürich", "days": 3}


async def test_the_call_s_key_goes_out_so_that_an_endpoint_does_nothing_twice(server: ToolServer) -> None:
    await use(server, "weather", method="POST")

    assert server.called[0].headers["idempotency-key"] == KEY


async def test_whatever_id_a_model_makes_up_stays_one_header(server: ToolServer) -> None:
    listed = parse_tool_hosts(server.origin)
    tool = http_tool(configured(server, "weather"), HTTPAccess(may_call=lambda url: may_call(url, listed)))

    await tool.run({}, idempotency_key="turn_1:é\ud83d\r\nX-Evil: 1")

    headers = server.called[0].headers
    assert headers["idempotency-key"] == "turn_1:%C3%A9%3F%0D%0AX-Evil:%201"
    assert "x-evil" not in headers


async def test_headers_are_sent_and_a_secret_is_put_in_by_the_worker(server: ToolServer) -> None:
    headers = {"X-Shop": "7", "Authorization": SecretReference("WEATHER_TOKEN")}
    tool = configured(server, "weather", headers=headers)

    await use(server, "weather", headers=headers)

    assert (server.called[0].headers["x-shop"], server.called[0].headers["authorization"]) == ("7", "Bearer hunter2")
    assert "hunter2" not in repr(tool) + repr(HTTPAccess(may_call=lambda url: True, secrets=SECRETS))


async def test_without_its_secret_a_tool_asks_nobody(server: ToolServer) -> None:
    with pytest.raises(EndpointFailed, match="not available"):
        await use(server, "weather", headers={"Authorization": SecretReference("ANOTHER_TOKEN")})
    assert server.called == []


@pytest.mark.parametrize(("path", "result"), [("list", {"result": [1, 2]}), ("nothing", {})])
async def test_an_answer_that_is_no_object_becomes_one(
    server: ToolServer, path: str, result: Mapping[str, object]
) -> None:
    assert await use(server, path) == result


async def test_an_answer_may_be_as_long_as_its_limit(server: ToolServer) -> None:
    assert await use(server, "as much as allowed".replace(" ", "%20"))


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("words", "cannot be read"),
        ("not a number", "cannot be read"),
        ("deep", "cannot be read"),
        ("half a character", "cannot be read"),
        ("packed", "cannot be read"),
        ("one byte too many", "too long"),
        ("moved", "status 302"),
        ("broken", "status 500"),
    ],
)
async def test_what_an_endpoint_does_wrong_is_told_to_the_model_without_its_words(
    server: ToolServer, path: str, told: str
) -> None:
    with pytest.raises(EndpointFailed, match=told) as failure:
        await use(server, path.replace(" ", "%20"))

    assert len(server.called) == 1
    assert "secret details" not in str(failure.value) and "127.0.0.1" not in str(failure.value)


@pytest.mark.parametrize("path", ["slow", "drips"])
async def test_the_whole_call_is_bounded_not_only_each_wait(server: ToolServer, path: str) -> None:
    started = time.monotonic()
    with pytest.raises(EndpointFailed, match="in time"):
        await use(server, path, timeout=0.5)

    assert time.monotonic() - started < 3


async def test_a_server_that_is_not_there_is_told_to_the_model() -> None:
    async with ToolServer() as server:
        pass
    with pytest.raises(EndpointFailed, match="reached"):
        await use(server, "weather")


async def test_arguments_that_are_no_text_are_told_to_the_model(server: ToolServer) -> None:
    for method in ("GET", "POST"):
        with pytest.raises(EndpointFailed, match="these arguments"):
            await use(server, "weather", {"city": "\ud83d"}, method=method)
    assert server.called == []


async def test_a_host_that_is_not_listed_is_never_asked(server: ToolServer) -> None:
    port = server.origin.rpartition(":")[2]
    for hosts in ("tools.test", f"http://localhost:{port}", f"127.0.0.1:{port}", "http://127.0.0.1"):
        with pytest.raises(EndpointFailed, match="not available"):
            await use(server, "weather", hosts=hosts)
    assert server.called == []


async def test_no_proxy_of_the_machine_s_sees_a_tool_s_request(
    server: ToolServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    assert await use(server, "weather")


async def test_an_https_host_must_show_a_certificate_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, tls = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    async with ToolServer(tls=tls) as server:
        with pytest.raises(EndpointFailed, match="reached"):
            await use(server, "weather")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        assert await use(server, "weather", hosts=server.origin.removeprefix("https://"))

    assert len(server.called) == 1


async def test_only_a_get_may_be_asked_for_words_that_are_not_final(server: ToolServer) -> None:
    tool = configured(server, "weather")
    access = HTTPAccess(may_call=lambda url: True)
    assert not http_tool(tool, access).has_side_effects
    assert http_tool(replace(tool, method="POST"), access).has_side_effects


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://api.example.com/a?b=c", "https://api.example.com:443"),
        ("https://api.example.com:443", "https://api.example.com:443"),
        ("https://api.example.com:0443/", "https://api.example.com:443"),
        ("http://127.0.0.1:8000/a", "http://127.0.0.1:8000"),
        ("http://[::1]:8000/a", "http://[::1]:8000"),
        ("http://10.0.0.1", "http://10.0.0.1:80"),
        ("https://listed.test@evil.test/", None),
        ("https://evil.test\\@listed.test/", None),
        ("https://evil.test#@listed.test/", None),
        ("https://listed.test/#fragment", None),
        ("https://LISTED.test/", None),
        ("https://listed.test./", None),
        ("https://listed.test:/", None),
        ("https://listed.test:+443/", None),
        ("https://l%69sted.test/", None),
        ("https://lïsted.test/", None),
        ("https://listed.test/\n", None),
        ("https://listed.test\n", None),
        ("https://listed.test/a b", None),
        ("//listed.test/", None),
        ("ftp://listed.test/", None),
        ("HTTPS://listed.test/", None),
        ("https:///listed.test", None),
        ("https://", None),
        ("", None),
    ],
)
def test_a_url_has_one_reading_or_none(url: str, found: str | None) -> None:
    assert origin(url) == found


def test_scheme_host_and_port_are_compared_exactly() -> None:
    hosts = FleetSettings.from_env(
        {"REDIS_URL": "redis://", "MUSTER_TOOL_HOSTS": "crm.test, http://10.0.0.1:8080"}
    ).tool_hosts

    assert may_call("https://crm.test/customers", hosts)
    assert may_call("http://10.0.0.1:8080/customers", hosts)
    for url in (
        "http://crm.test/customers",
        "https://crm.test:8443/customers",
        "https://crm.test.evil.test/",
        "https://evil.test/crm.test",
        "https://sub.crm.test/",
        "http://10.0.0.1/",
        "https://10.0.0.1:8080/",
        "http://167772161:8080/",
        "http://0x0a000001:8080/",
        "http://[::ffff:10.0.0.1]:8080/",
    ):
        assert not may_call(url, hosts), url


@pytest.mark.parametrize(
    "text", ["a,,b", "https://a.test/path", "a.test?x", "*.a.test", "a.test:99999", "ftp://a.test"]
)
def test_a_list_of_hosts_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="entry"):
        parse_tool_hosts(text)


@pytest.mark.parametrize(
    ("kind", "wrong", "told"),
    [
        ("number", ["3", True, None, [], float("inf"), float("nan")], "must be a number"),
        ("integer", [3.5, "3", True, None], "must be a whole number"),
        ("boolean", [0, 1, "true", None], "must be true or false"),
        ("string", [3, "", " ", None, []], "must be a text"),
    ],
)
def test_an_argument_of_another_type_is_refused(kind: str, wrong: list[object], told: str) -> None:
    schema = ToolSchema("tool", "", {"type": "object", "properties": {"value": {"type": kind}}})
    for value in wrong:
        with pytest.raises(ToolRefused, match=told):
            parse_arguments(ToolCall("c", "tool", json.dumps({"value": value})), schema)


@pytest.mark.parametrize(("kind", "value"), [("number", 3), ("number", 3.5), ("integer", 3), ("boolean", False)])
def test_an_argument_of_its_type_is_taken(kind: str, value: object) -> None:
    schema = ToolSchema("tool", "", {"type": "object", "properties": {"value": {"type": kind}}})
    assert parse_arguments(ToolCall("c", "tool", json.dumps({"value": value})), schema) == {"value": value}
