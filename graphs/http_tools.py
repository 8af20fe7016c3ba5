"""Tools that are HTTP endpoints: one bounded request for each call, to hosts the operator has listed and no others."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from graphs.configuration import HTTPToolConfiguration
from graphs.entities import JSONObject
from graphs.errors import EndpointFailed
from graphs.roster import Tool

logger = logging.getLogger(__name__)

#: Bytes of an answer: it becomes a part of every later prompt of the conversation.
RESULT_LIMIT = 16 * 1024


@dataclass(frozen=True, slots=True)
class HTTPAccess:
    """What HTTP tools may reach: `may_call` is asked before each request, `secrets` are header values by name."""

    may_call: Callable[[str], bool]
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


#: Every HTTP tool is refused.
NO_HTTP_ACCESS = HTTPAccess(may_call=lambda url: False)


def http_tool(configuration: HTTPToolConfiguration, access: HTTPAccess) -> Tool:
    """The tool; a GET counts as one without side effects and may run for words that are not final."""
    endpoint = _Endpoint(configuration, access)
    return Tool(
        name=configuration.name,
        description=configuration.description,
        parameters=configuration.parameters,
        run=endpoint.call,
        has_side_effects=configuration.method != "GET",
    )


class _Endpoint:
    """One endpoint, called as its configuration says."""

    def __init__(self, configuration: HTTPToolConfiguration, access: HTTPAccess) -> None:
        self._configuration = configuration
        self._access = access

    async def call(self, arguments: Mapping[str, object], *, idempotency_key: str) -> JSONObject:
        """The answer's JSON, an object; the same key means the same call. Raises EndpointFailed."""
        name = self._configuration.name
        if not self._access.may_call(self._configuration.url):
            logger.error("a tool's host is not listed")
            raise EndpointFailed(f"{name} is not available.")
        headers = self._headers(idempotency_key)
        try:
            async with asyncio.timeout(self._configuration.timeout):
                body = await self._request(arguments, headers)
        except TimeoutError as error:
            raise EndpointFailed(f"{name} did not answer in time.") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EndpointFailed(f"{name} could not be reached.") from error
        return _parsed(body, name=name)

    def _headers(self, idempotency_key: str) -> dict[str, str]:
        headers = {}
        for header, value in self._configuration.headers.items():
            text = value if isinstance(value, str) else self._access.secrets.get(value.secret)
            if text is None:
                logger.error("a tool's secret is not set")
                raise EndpointFailed(f"{self._configuration.name} is not available.")
            headers[header] = text
        # A model's ids are any text, and a header is not.
        return headers | {
            "Idempotency-Key": quote(idempotency_key, safe=":", errors="replace"),
            "Accept": "application/json",
            # What is not packed cannot be larger than it looks.
            "Accept-Encoding": "identity",
        }

    async def _request(self, arguments: Mapping[str, object], headers: Mapping[str, str]) -> bytes:
        # Reading the authorities (SSL_CERT_FILE, or those of the Web) takes 30 ms, in which a loop would play no audio.
        verify = await asyncio.to_thread(httpx.create_ssl_context)
        # Without httpx's client, which logs whole URLs, and so what the caller said. A transport goes through no proxy,
        # follows nothing, and knows no password that is meant for something else on this machine.
        async with httpx.AsyncHTTPTransport(verify=verify, trust_env=False) as transport:
            response = await transport.handle_async_request(self._build(arguments, headers))
            try:
                return await self._read(response)
            finally:
                await response.aclose()

    def _build(self, arguments: Mapping[str, object], headers: Mapping[str, str]) -> httpx.Request:
        asked = self._configuration
        extensions = {"timeout": httpx.Timeout(asked.timeout).as_dict()}
        try:
            if asked.method == "POST":
                return httpx.Request("POST", asked.url, json=arguments, headers=headers, extensions=extensions)
            url = httpx.URL(asked.url).copy_merge_params(dict[str, Any](arguments))
            return httpx.Request("GET", url, headers=headers, extensions=extensions)
        except ValueError as error:
            # Half a surrogate pair, or a secret that is no header.
            raise EndpointFailed(f"{asked.name} cannot be sent these arguments.") from error

    async def _read(self, response: httpx.Response) -> bytes:
        name = self._configuration.name
        if not response.is_success:
            raise EndpointFailed(f"{name} failed with status {response.status_code}.")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise EndpointFailed(f"{name} gave an answer that cannot be read.")
        body = b""
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > RESULT_LIMIT:
                raise EndpointFailed(f"{name} gave an answer that is too long.")
        return body


def _parsed(body: bytes, *, name: str) -> JSONObject:
    try:
        result = json.loads(body or b"{}", parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise EndpointFailed(f"{name} gave an answer that cannot be read.") from error
    return result if isinstance(result, dict) else {"result": result}


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
