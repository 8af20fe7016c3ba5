"""What a service on a network must expect: hostile requests as bytes, each with the one answer that it gets."""

import hashlib
import json
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

from livekit.api import AccessToken, VideoGrants

#: Opens both services of the test; the other was opened by it once and does not any more.
KEY, REMOVED_KEY = "muster_key-of-the-tests", "muster_key-of-somebody-who-left"
#: Sign the tokens of callers and the webhooks.
LIVEKIT_KEY, LIVEKIT_SECRET = "livekit-of-the-tests", "a secret of the tests that signs tokens"

AGENT_SERVICE, CONTROL_PLANE = "agent_service", "control_plane"


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """A request and its answer.

    After an answer with `closed`, as the HTTP server itself refuses, the connection is closed; after any other it
    serves the next request.
    """

    name: str
    raw: bytes
    status: int
    code: str
    closed: bool = False
    service: str = AGENT_SERVICE


def request(method: str, target: str, *headers: str, body: bytes = b"", key: str | None = KEY) -> bytes:
    """A request as a well-behaved client would frame it, with these headers besides; without a `key` it shows none."""
    lines = [f"{method} {target} HTTP/1.1", "Host: muster.test", *headers]
    lines += [f"Authorization: Bearer {key}"] if key else []
    lines += [f"Content-Length: {len(body)}"] if body or method == "POST" else []
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def post(target: str, body: Any, *headers: str, key: str | None = KEY) -> bytes:
    """A POST of this JSON, or of these bytes as if they were JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request("POST", target, "Content-Type: application/json", *headers, body=raw, key=key)


def chunked(target: str, *chunks: bytes) -> bytes:
    """A POST without a length."""
    head = request("POST", target, "Content-Type: application/json", "Transfer-Encoding: chunked")
    return head.replace(b"Content-Length: 0\r\n", b"") + b"".join(chunks)


def with_length(length: str, *headers: str) -> bytes:
    """The head of a POST that says of its body what this text says."""
    return request("POST", "/join", "Content-Type: application/json", *headers).replace(
        b"Content-Length: 0", f"Content-Length: {length}".encode("latin-1")
    )


def chunk(data: bytes) -> bytes:
    """One chunk; an empty one ends the body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def webhook(body: bytes, signature: str | None, content_type: str = "application/webhook+json") -> bytes:
    """What LiveKit sends, or seems to."""
    signed = [] if signature is None else [f"Authorization: {signature}"]
    return request("POST", "/webhooks/livekit", f"Content-Type: {content_type}", *signed, body=body, key=None)


def sign(body: bytes, *, key: str = LIVEKIT_KEY, secret: str = LIVEKIT_SECRET) -> str:
    """LiveKit's signature of this body."""
    return AccessToken(key, secret).with_sha256(b64encode(hashlib.sha256(body).digest()).decode()).to_jwt()


def unsigned(token: str) -> str:
    """The same claims under the algorithm `none`."""
    header = b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=")
    return f"{header}.{token.split('.')[1]}."


def refused(prefix: str, status: int, code: str, requests: dict[str, bytes], **options: Any) -> list[Hostile]:
    """Requests that get the same answer."""
    return [
        Hostile(name=f"{prefix}: {name}", raw=raw, status=status, code=code, **options)
        for name, raw in requests.items()
    ]


JOIN = {"room": "kitchen", "user_id": "ada"}
TOKEN = {"room": "kitchen", "identity": "ada"}
TOKEN_PATH = "/api/v1/livekit/token"
MEGABYTES = b'{"room": "' + b"x" * 10_000_000 + b'"}'


def in_metadata(json_text: bytes) -> bytes:
    """A join with this text where a value of the metadata stands."""
    return b'{"room": "kitchen", "user_id": "ada", "metadata": {"a": ' + json_text + b"}}"


def with_tool(**fields: Any) -> dict[str, Any]:
    """A join whose one specialist has this tool; no host is listed."""
    tool = {"name": "find", "description": "Find.", "method": "GET", "url": "https://tools.test/", **fields}
    specialist = {"name": "finder", "title": "Finder", "description": "finding", "instructions": "Find it."}
    return {**JOIN, "configuration": {"specialists": [{**specialist, "tools": [tool]}]}}


NOT_JSON = {
    "nothing": b"",
    "an object that ends too early": b"{",
    "a field without a value": b'{"room":}',
    "a comma too many": b'{"room": "kitchen", "user_id": "ada",}',
    "single quotes": b"{'room': 'kitchen', 'user_id': 'ada'}",
    "a comment": b'{"room": "kitchen", "user_id": "ada"} // hello',
    "two documents": b'{"room": "kitchen", "user_id": "ada"}{}',
    "a word": b"undefined",
    "bytes that are not UTF-8": b'{"room": "\xff", "user_id": "ada"}',
    "UTF-16": '{"room": "kitchen", "user_id": "ada"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"room": "kitchen", "user_id": "ada"}',
    "half an escape": b'{"room": "\\u00", "user_id": "ada"}',
    "half a surrogate pair": b'{"room": "\\ud83d", "user_id": "ada"}',
    "the other half first": b'{"room": "\\ude00\\ud83d", "user_id": "ada"}',
    "a surrogate in UTF-8": b'{"room": "\xed\xa0\x80", "user_id": "ada"}',
    "a raw newline in a text": b'{"room": "kit\nchen", "user_id": "ada"}',
    "a raw NUL in a text": b'{"room": "kit\x00chen", "user_id": "ada"}',
    "a number that starts with 0": in_metadata(b"007"),
    "a number of 5,000 digits": in_metadata(b"9" * 5_000),
    "arrays 9,999 deep, never closed": b"[" * 9_999,
    "arrays 30,000 deep": b"[" * 30_000 + b"]" * 30_000,
    "objects 10,000 deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "metadata 10,000 deep": in_metadata(b"[" * 10_000 + b"]" * 10_000),
}

WRONG_JOINS: dict[str, Any] = {
    "metadata 100 deep": in_metadata(b"[" * 100 + b"]" * 100),
    "not a number": in_metadata(b"NaN"),
    "an infinite number": in_metadata(b"1e999"),
    "metadata of more than 8 KiB": {**JOIN, "metadata": {"a": "x" * 9_000}},
    "64 KiB of metadata": in_metadata(b'"' + b"x" * 65_000 + b'"'),
    "2,000 unknown fields": {**JOIN, **{f"field-{number}": 1 for number in range(2_000)}},
    "a room twice": b'{"room": "kitchen", "user_id": "ada", "room": "attic"}',
    "a metadata field twice": b'{"room": "kitchen", "user_id": "ada", "metadata": {"a": 1, "a": 2}}',
    "a prototype": {**JOIN, "__proto__": {"admin": True}},
    "no user": {"room": "kitchen"},
    "no field": {},
    "a list": [JOIN],
    "a text": "kitchen",
    "a number": 7,
    "null": None,
    "a number for a room": {**JOIN, "room": 7},
    "null for a room": {**JOIN, "room": None},
    "a list for a room": {**JOIN, "room": ["kitchen"]},
    "an object for a room": {**JOIN, "room": {"$ne": ""}},
    "true for a user": {**JOIN, "user_id": True},
    "a list for metadata": {**JOIN, "metadata": [["a", 1]]},
    "an object in metadata": {**JOIN, "metadata": {"a": {"b": 1}}},
    "a user of 129 characters": {**JOIN, "user_id": "u" * 129},
    "a specialist of nobody's": {**JOIN, "configuration": {"specialists": ["astrology"]}},
    "a module for a specialist": {**JOIN, "configuration": {"specialists": ["os.path"]}},
    "9 specialists": {**JOIN, "configuration": {"specialists": ["sales"] * 9}},
    "40 KiB of instructions": {**JOIN, "configuration": {"instructions": "x" * 40_000}},
    "null for a configuration": {**JOIN, "configuration": None},
    "a configuration 100 deep": {**JOIN, "configuration": json.loads('{"a":' * 100 + "1" + "}" * 100)},
    "a tool of a host that is not listed": with_tool(),
    "a tool of the machine itself": with_tool(url="http://127.0.0.1:6379/"),
    "a tool of the cloud's metadata": with_tool(url="http://169.254.169.254/latest/meta-data/"),
    "a tool that is a file": with_tool(url="file:///etc/passwd"),
    "a tool with another host in front": with_tool(url="https://tools.test@elsewhere.test/"),
    "a tool whose url goes on": with_tool(url="https://tools.test/ HTTP/1.1\r\nHost: elsewhere.test"),
    "a tool that deletes": with_tool(method="DELETE"),
    "a tool that takes an hour": with_tool(timeout=3_600),
    "a tool with a header in a header": with_tool(headers={"X-A": "1\r\nX-B: 2"}),
    "a tool with a schema elsewhere": with_tool(parameters={"$ref": "https://elsewhere.test/schema"}),
}

#: Written as escapes: most of them show nothing, or something else than what they are.
WRONG_ROOMS = {
    "empty": "",
    "129 characters": "r" * 129,
    "258 bytes in 86 characters": "\u5b57" * 86,
    "a newline": "kit\nchen",
    "a tab": "kit\tchen",
    "NUL": "kit\x00chen",
    "a terminal's escape": "\x1b[2Jkitchen",
    "right-to-left override": "\u202enehctik",
    "a space without width": "kit\u200bchen",
    "a joiner": "\U0001f468\u200d\U0001f469",
    "a soft hyphen": "kit\u00adchen",
    "a space that does not break": "the\u00a0kitchen",
    "an ideographic space": "the\u3000kitchen",
    "a line separator": "kit\u2028chen",
    "a byte order mark": "\ufeffkitchen",
    "private use": "\ue000",
    "unassigned": "\u0378",
    "no character": "\uffff",
    "an accent of its own (NFD)": "cafe\u0301",
    "a sign with a canonical double": "\u212bngstrom",
}

WRONG_TOKENS: dict[str, Any] = {
    "an agent's identity": {**TOKEN, "identity": "agent-1-1"},
    "a lifetime as text": {**TOKEN, "ttl": "600"},
    "a lifetime of half a second": {**TOKEN, "ttl": 0.5},
    "a lifetime below zero": {**TOKEN, "ttl": -1},
    "a lifetime of years": {**TOKEN, "ttl": 10**9},
    "a dispatch": {**TOKEN, "dispatch": True},
    "another grant": {**TOKEN, "grants": {"roomAdmin": True}},
    "an agent that may be": {**TOKEN, "agent": "maybe"},
    "a room that turns round": {**TOKEN, "room": "\u202enehctik"},
}

WRONG_MEDIA = {
    "none": request("POST", "/join", body=b"{}"),
    "text": request("POST", "/join", "Content-Type: text/plain", body=b"{}"),
    "a form": request("POST", "/join", "Content-Type: application/x-www-form-urlencoded", body=b"room=kitchen"),
    "parts": request("POST", "/join", "Content-Type: multipart/form-data; boundary=x", body=b"--x--"),
    "XML": request("POST", "/join", "Content-Type: application/xml", body=b"<!DOCTYPE a [<!ENTITY b 'c'>]><a/>"),
    "something like JSON": request("POST", "/join", "Content-Type: application/json-patch+json", body=b"[]"),
    "JSON in Latin-1": request("POST", "/join", "Content-Type: application/json; charset=latin-1", body=b"{}"),
    "JSON in UTF-16": request("POST", "/join", "Content-Type: application/json; charset=utf-16", body=b"{}"),
    "gzip": post("/join", b"\x1f\x8b\x08\x00", "Content-Encoding: gzip"),
}

WRONG_METHODS = {
    "GET /join": request("GET", "/join"),
    "HEAD /join": request("HEAD", "/join"),
    "PUT /join": request("PUT", "/join"),
    "PATCH /leave": request("PATCH", "/leave"),
    "DELETE /sessions": request("DELETE", "/sessions"),
    "POST /sessions": post("/sessions", {}),
    "POST /health": post("/health", {}),
    "OPTIONS /join": request("OPTIONS", "/join"),
    "TRACE /health": request("TRACE", "/health"),
    "PROPFIND /sessions": request("PROPFIND", "/sessions"),
    "GET in place of POST": request("GET", "/leave", "X-HTTP-Method-Override: POST"),
    "without a key": request("DELETE", "/sessions", key=None),
}

WRONG_QUERIES = {
    "an unknown name": request("GET", "/sessions?page=2"),
    "an unknown name for /join": post("/join?room=attic", JOIN),
    "an unknown name for /health": request("GET", "/health?verbose=1"),
    "a state twice": request("GET", "/sessions?state=live&state=ended"),
    "an unknown state": request("GET", "/sessions?state=happy"),
    "a state in capitals": request("GET", "/sessions?state=LIVE"),
    "a state that is not UTF-8": request("GET", "/sessions?state=%ff"),
    "a cursor that is none": request("GET", "/sessions/a/turns?after=yesterday"),
    "a cursor of 20 digits": request("GET", f"/sessions/a/turns?after={10**19}-0"),
    "a cursor with Arabic digits": request("GET", "/sessions/a/turns?after=%D9%A1-0"),
    "a key in the address": request("GET", f"/sessions?api_key={KEY}"),
}

WRONG_SESSION_IDS = {
    "a space": request("GET", "/sessions/a%20b"),
    "braces, as in Redis' hash tags": request("GET", "/sessions/%7Ba%7D"),
    "two dots": request("GET", "/sessions/%2e%2e"),
    "NUL": request("GET", "/sessions/a%00b"),
    "a line end": request("GET", "/sessions/a%0d%0aSet-Cookie:%20b"),
    "bytes that are not UTF-8": request("GET", "/sessions/%ff"),
    "200 characters": request("GET", f"/sessions/{'a' * 200}"),
    "a path in /leave": post("/leave", {"session_id": "../../etc/passwd"}),
    "a pattern in /leave": post("/leave", {"session_id": "*"}),
    "a number in /leave": post("/leave", {"session_id": 1}),
}

NO_SUCH_ADDRESS = {
    "a double slash": request("GET", "/sessions//turns"),
    "another host": request("GET", "//evil.test/health"),
    "a slash at the end": request("GET", "/sessions/"),
    "capitals": request("GET", "/HEALTH"),
    "dots": request("GET", "/sessions/../health"),
    "encoded dots": request("GET", "/%2e%2e/%2e%2e/etc/passwd"),
    "backslashes": request("GET", "/..\\..\\etc\\passwd"),
    "an encoded slash": request("GET", "/sessions/..%2f..%2fhealth"),
    "a parameter": request("GET", "/health;jsessionid=1"),
    "a file of ours": request("GET", "/.env"),
    "a folder of Flask's": request("GET", "/static/../api/keys.py"),
    "without a key": request("GET", "/admin", key=None),
}

NO_KEY = {
    "/join": post("/join", JOIN, key=None),
    "/leave": post("/leave", {"session_id": "a"}, key=None),
    "/sessions": request("GET", "/sessions", key=None),
    "a body that is none": post("/join", b"{", key=None),
    "a key in another header": request("GET", "/sessions", f"X-Api-Key: {KEY}", key=None),
    "a key in a cookie": request("GET", "/sessions", f"Cookie: key={KEY}", key=None),
    "a proxy's word for us": request("GET", "/sessions", "X-Forwarded-For: 127.0.0.1", key=None),
}

MALFORMED_KEYS = {
    "empty": request("GET", "/sessions", "Authorization:", key=None),
    "without a key": request("GET", "/sessions", "Authorization: Bearer", key=None),
    "without a scheme": request("GET", "/sessions", f"Authorization: {KEY}", key=None),
    "Basic": request("GET", "/sessions", "Authorization: Basic dGVzdDp0ZXN0", key=None),
    "another scheme": request("GET", "/sessions", f"Authorization: Token {KEY}", key=None),
    "two keys": request("GET", "/sessions", f"Authorization: Bearer {KEY} {KEY}", key=None),
    "two headers": request("GET", "/sessions", f"Authorization: Bearer {KEY}", key=KEY),
    "in quotes": request("GET", "/sessions", f'Authorization: Bearer "{KEY}"', key=None),
    "not ASCII": request("GET", "/sessions", "Authorization: Bearer schl\u00fcssel", key=None),
}

UNKNOWN_KEYS = {
    "somebody's": request("GET", "/sessions", key="muster_key-of-nobody"),
    "of somebody who left": request("GET", "/sessions", key=REMOVED_KEY),
    "with one letter more": request("GET", "/sessions", key=f"{KEY}s"),
    "with one letter less": request("GET", "/sessions", key=KEY[:-1]),
    "in capitals": request("GET", "/sessions", key=KEY.upper()),
    "its hash": request("GET", "/sessions", key=hashlib.sha256(KEY.encode()).hexdigest()),
    "of 4,000 letters": request("GET", "/sessions", key="k" * 4_000),
    "in /join": post("/join", JOIN, key="muster_key-of-nobody"),
}

WRONG_IDEMPOTENCY_KEYS = {
    "empty": post("/join", JOIN, "Idempotency-Key:"),
    "129 characters": post("/join", JOIN, f"Idempotency-Key: {'k' * 129}"),
    "two of them": post("/join", JOIN, "Idempotency-Key: a", "Idempotency-Key: b"),
    "a space": post("/join", JOIN, "Idempotency-Key: a b"),
    "not ASCII": post("/join", JOIN, "Idempotency-Key: schl\u00fcssel"),
}

#: The server does not read these to their end.
TOO_LARGE = {
    "one byte too many": post("/join", b" " * (64 * 1024 + 1)),
    "100 KB without a length": chunked("/join", chunk(b" " * 100_000), chunk(b"")),
    "2 MB of a webhook": webhook(b" " * 2_000_000, None),
    "10 MB": post("/join", MEGABYTES),
    "10 MB for /leave": post("/leave", MEGABYTES),
    "10 MB for nobody": post("/nowhere", MEGABYTES),
    "10 MB without a key": post("/join", MEGABYTES, key=None),
    "10 MB in a GET": request("GET", "/sessions", "Content-Length: 10000000", body=b""),
    "10 GB that never come": with_length("10000000000"),
    "10 GB, announced": with_length("10000000000", "Expect: 100-continue"),
    "10 MB without a length": chunked("/join", *[chunk(b" " * 100_000)] * 100, chunk(b"")),
    "chunks that never end": chunked("/join", *[chunk(b" " * 100_000)] * 11),
}

TWO_BODIES = b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: muster.test\r\n\r\n"

#: What different parsers on the way would read differently, or cannot be read at all.
NOT_HTTP = {
    "a length and chunks": with_length("5", "Transfer-Encoding: chunked") + TWO_BODIES,
    "chunks and a length": with_length("50", "Transfer-Encoding: chunked") + TWO_BODIES,
    "two lengths": with_length("2", "Content-Length: 50") + b"{}",
    "the same length twice": with_length("2", "Content-Length: 2") + b"{}",
    "a list of lengths": with_length("2, 2") + b"{}",
    "a length and gzip": with_length("2", "Transfer-Encoding: gzip") + b"{}",
    "chunks that are not last": with_length("2", "Transfer-Encoding: chunked, gzip") + b"{}",
    "chunks of chunks": with_length("2", "Transfer-Encoding: chunked, chunked") + b"{}",
    "a length below zero": with_length("-1"),
    "a length with a sign": with_length("+2") + b"{}",
    "a length in hexadecimal": with_length("0x2") + b"{}",
    "a length with an underscore": with_length("1_0"),
    "a length in Arabic digits": with_length("\xb2"),
    "a header with a space before its colon": request("GET", "/health", "Transfer-Encoding : chunked"),
    "a folded header": request("GET", "/health", "X-Folded: a\r\n b"),
    "a header without a colon": request("GET", "/health", "Nonsense"),
    "a header without a name": request("GET", "/health", ": value"),
    "a header with an underscore": request("GET", "/health", "Content_Length: 5"),
    "NUL in a header": request("GET", "/health", "X-Nul: a\x00b"),
    "a bare CR in a header": request("GET", "/health", "X-Cr: a\rTransfer-Encoding: chunked"),
    "NUL in a key": request("GET", "/sessions", "Authorization: Bearer a\x00b", key=None),
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "a version that is none": b"GET /health HTTP/x.y\r\nHost: muster.test\r\n\r\n",
    "a method with a space": b"GE T /health HTTP/1.1\r\nHost: muster.test\r\n\r\n",
    "a method in small letters": b"get /health HTTP/1.1\r\nHost: muster.test\r\n\r\n",
    "an address with a space": b"GET /a b HTTP/1.1\r\nHost: muster.test\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 32 + b"\r\n\r\n",
    "lines without CR": b"GET /health HTTP/1.1\nHost: muster.test\n\n",
    "a chunk size that is no number": chunked("/join", b"zz\r\n{}\r\n0\r\n\r\n"),
    "a chunk size below zero": chunked("/join", b"-2\r\n{}\r\n0\r\n\r\n"),
    "a chunk longer than it says": chunked("/join", b"1\r\n{}\r\n0\r\n\r\n"),
    "a chunk with a bare CR": chunked("/join", b"2\r{}\r\n0\r\n\r\n"),
    "a trailer that is none": chunked("/join", b"2\r\n{}\r\n0\r\nnonsense\r\n\r\n"),
}

UNKNOWN_CODINGS = {
    "something like chunks": with_length("2", "Transfer-Encoding: xchunked") + b"{}",
    "none in particular": with_length("2", "Transfer-Encoding: ,") + b"{}",
}

#: Of 2020, so that it is old even where its signature is good.
EVENT = b'{"event": "room_finished", "id": "EV_1", "createdAt": "1577836800", "room": {"name": "kitchen"}}'
GRANTS = VideoGrants(room_join=True, room="kitchen")
CALLERS_TOKEN = AccessToken(LIVEKIT_KEY, LIVEKIT_SECRET).with_identity("ada").with_grants(GRANTS).to_jwt()

FORGED_WEBHOOKS = {
    "an empty signature": webhook(EVENT, ""),
    "no token": webhook(EVENT, ".."),
    "our own key": webhook(EVENT, f"Bearer {KEY}"),
    "another secret": webhook(EVENT, sign(EVENT, secret="another secret of at least 32 letters")),
    "another key": webhook(EVENT, sign(EVENT, key="another")),
    "another body": webhook(EVENT + b" ", sign(EVENT)),
    "no signature at all": webhook(EVENT, unsigned(sign(EVENT))),
    "a caller's token": webhook(EVENT, CALLERS_TOKEN),
    "an event of years ago": webhook(EVENT, sign(EVENT)),
}

MALFORMED_WEBHOOKS = {
    "nothing": webhook(b"", sign(b"")),
    "half an object": webhook(b"{", sign(b"{")),
    "a list": webhook(b"[]", sign(b"[]")),
    "deep arrays": webhook(b"[" * 9_999, sign(b"[" * 9_999)),
    "no event": webhook(b"{}", sign(b"{}")),
}

LARGE_HEADERS = {
    "one of 9,000 letters": request("GET", "/health", f"X-Long: {'a' * 9_000}"),
    "a hundred": request("GET", "/health", *[f"X-{number}: a" for number in range(100)]),
    "40,000 letters in all": request("GET", "/health", *[f"X-{number}: {'a' * 8_000}" for number in range(5)]),
    "a key of 9,000 letters": request("GET", "/sessions", key="k" * 9_000),
}

HOSTILE_REQUESTS = [
    *refused("not JSON", 400, "invalid_request", {name: post("/join", body) for name, body in NOT_JSON.items()}),
    *refused("a wrong join", 422, "invalid_request", {name: post("/join", body) for name, body in WRONG_JOINS.items()}),
    *refused(
        "a wrong room",
        422,
        "invalid_request",
        {name: post("/join", {**JOIN, "room": room}) for name, room in WRONG_ROOMS.items()},
    ),
    *refused(
        "a wrong token request",
        422,
        "invalid_request",
        {name: post(TOKEN_PATH, body) for name, body in WRONG_TOKENS.items()},
        service=CONTROL_PLANE,
    ),
    *refused("a wrong media type", 415, "unsupported_media_type", WRONG_MEDIA),
    *refused("a wrong method", 405, "method_not_allowed", WRONG_METHODS),
    *refused("a wrong query", 422, "invalid_request", WRONG_QUERIES),
    *refused("a wrong session id", 422, "invalid_request", WRONG_SESSION_IDS),
    *refused("no such address", 404, "not_found", NO_SUCH_ADDRESS),
    *refused("no key", 401, "key_missing", NO_KEY),
    *refused("a malformed key", 401, "key_malformed", MALFORMED_KEYS),
    *refused("an unknown key", 401, "key_unknown", UNKNOWN_KEYS),
    *refused("a wrong idempotency key", 422, "invalid_request", WRONG_IDEMPOTENCY_KEYS),
    *refused("a webhook that is not signed", 401, "webhook_not_signed", {"by anybody": webhook(EVENT, None)}),
    *refused("a forged webhook", 401, "webhook_forged", FORGED_WEBHOOKS),
    *refused("a signed webhook", 400, "webhook_malformed", MALFORMED_WEBHOOKS),
    *refused(
        "a webhook",
        415,
        "unsupported_media_type",
        {"as a form": webhook(EVENT, sign(EVENT), "application/x-www-form-urlencoded")},
    ),
    *refused("too large", 413, "payload_too_large", TOO_LARGE, closed=True),
    *refused(
        "too large",
        413,
        "payload_too_large",
        {"one byte too many for a token": post(TOKEN_PATH, b" " * (64 * 1024 + 1))},
        service=CONTROL_PLANE,
        closed=True,
    ),
    *refused("not HTTP", 400, "bad_request", NOT_HTTP, closed=True),
    *refused("an unknown coding", 501, "not_implemented", UNKNOWN_CODINGS, closed=True),
    *refused(
        "an address of 5,000 letters", 414, "uri_too_long", {"GET": request("GET", f"/{'a' * 5_000}")}, closed=True
    ),
    *refused("headers that are too large", 431, "headers_too_large", LARGE_HEADERS, closed=True),
    *refused(
        "an expectation",
        417,
        "expectation_failed",
        {"of nonsense": post("/join", JOIN, "Expect: nonsense")},
        closed=True,
    ),
]
