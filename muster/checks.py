"""What `muster doctor` asks of the servers around it: Redis, LiveKit, the providers and the fleet's own services."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from api.models import Readiness
from muster.examination import Finding, failed, ok, warning
from worker.fleet import workers
from worker.fleet.errors import SettingsInvalid, StateUnavailable
from worker.fleet.redis_operations import connect, run
from worker.fleet.redis_server import inspect
from worker.fleet.settings import EnvironmentSettings

#: Seconds for connecting, and again for each answer.
PATIENCE = 3.0
#: Seconds by which a token's beginning may lie ahead of LiveKit's clock; measured with LiveKit 1.13.5.
CLOCK_LIMIT = 60.0
#: Seconds that a clock which is looked after does not reach.
CLOCK_SUSPICION = 5.0

#: Characters; what the hash of the tokens deserves.
SECRET_LENGTH = 32

_LIVEKIT_SCHEMES = {"ws": "http", "wss": "https", "http": "http", "https": "https"}


def check_settings(
    process: str, classes: Sequence[type[EnvironmentSettings]], environ: Mapping[str, str]
) -> list[Finding]:
    """Whether this kind of process would start with these settings, with everything that is missing or wrong."""
    subject = f"settings of the {process}"
    wrong = []
    for kind in classes:
        try:
            kind.from_env(environ)
        except SettingsInvalid as error:
            wrong.append(str(error))
    if wrong:
        return [failed(subject, "; ".join(wrong), "Set these variables; the README's page Settings says what each is.")]
    return [ok(subject, "complete")]


def check_access(environ: Mapping[str, str]) -> list[Finding]:
    """Whether the two services would know each other."""
    if not environ.get("MUSTER_API_KEYS"):
        return [ok("API keys", "none are set, so the services serve this machine only")]
    if not environ.get("AGENT_SERVICE_API_KEY"):
        remedy = "Make one with `muster key control-plane`; its entry goes to MUSTER_API_KEYS, the key here."
        return [failed("API keys", "the control plane has no AGENT_SERVICE_API_KEY", remedy)]
    return [ok("API keys", "set, also the control plane's own")]


def check_redis(variable: str, url: str) -> list[Finding]:
    """Whether the server of this setting answers, is recent enough and keeps what it is told."""
    try:
        with connect(url) as client:
            findings = inspect(client)
    except ValueError:
        return [
            failed(variable, "is not the URL of a Redis server", "Write redis://HOST:PORT/0, or rediss:// for TLS.")
        ]
    except StateUnavailable as error:
        return [failed(variable, f"{place(url)}: {error}", f"Start Redis there, or correct {variable}.")]
    if not findings:
        return [ok(variable, f"{place(url)} answers and is set up as needed")]
    return [
        (failed if finding.refuses else warning)(variable, f"{place(url)}: {finding.problem}", finding.remedy)
        for finding in findings
    ]


def check_workers(url: str) -> list[Finding]:
    """Who takes calls; nothing when Redis cannot tell, which its own check says."""
    try:
        with connect(url) as client:
            fleet = run(client, workers.fleet())
    except (ValueError, StateUnavailable):
        return []
    if not fleet.open_workers:
        draining = f", {len(fleet.workers)} draining" if fleet.workers else ""
        return [warning("workers", f"none takes calls{draining}", "Start one: celery -A worker.fleet.app worker.")]
    detail = f"{len(fleet.open_workers)} of {len(fleet.workers)} take calls, {fleet.free} of {fleet.slots} slots free"
    if not fleet.ready:
        return [warning("workers", f"{detail}; joins are not open yet", "Wait 5 s: Redis was started or emptied.")]
    return [ok("workers", detail)]


def check_livekit(variable: str, url: str, *, key: str | None = None, secret: str | None = None) -> list[Finding]:
    """Whether LiveKit answers, has our time and, with a key, knows it."""
    address = livekit_address(url)
    if address is None:
        return [failed(variable, "is not the URL of a LiveKit server", "Write ws://HOST:7880, or wss://HOST for TLS.")]
    before = time.time()
    try:
        answer = ask(address)
    except httpx.HTTPError as error:
        remedy = f"Start LiveKit there, correct {variable}, or open the firewall in between."
        return [failed(variable, f"{place(url)} {trouble(error)}", remedy)]
    clock = judge_clock(answer.headers.get("Date"), ours=(before + time.time()) / 2)
    found = [ok(variable, f"{place(url)} answers"), *clock]
    if answer.is_error:
        detail = f"{place(url)} answered {answer.status_code}, as LiveKit does not"
        found[0] = warning(variable, detail, f"Correct {variable}, unless a proxy in front answers like that.")
    if key and secret:
        is_wrong = any(finding.outcome == "failed" for finding in clock)
        if len(secret) < SECRET_LENGTH:
            detail = f"it has fewer than {SECRET_LENGTH} characters, so tokens can be forged by trying"
            found.append(warning("LIVEKIT_API_SECRET", detail, "Make a new one: openssl rand -hex 32."))
        found.append(_check_livekit_key(address, key=key, secret=secret, clock_is_wrong=is_wrong))
    return found


def judge_clock(date: str | None, *, ours: float) -> list[Finding]:
    """What a server's Date header, exact to a second, says about our clock (unix seconds)."""
    if date is None:
        return [warning("clock", "LiveKit's answer has no Date", "Compare the clocks of both machines yourself.")]
    off = ours - parsedate_to_datetime(date).timestamp()
    detail = f"this machine is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} LiveKit"
    if abs(off) > CLOCK_LIMIT:
        remedy = f"Set both clocks by NTP: tokens fail when they differ by more than {CLOCK_LIMIT:.0f} s."
        return [failed("clock", detail, remedy)]
    if abs(off) > CLOCK_SUSPICION:
        return [warning("clock", detail, "Set both clocks by NTP; latencies between machines are off by as much.")]
    return [ok("clock", "as LiveKit's")]


def _check_livekit_key(address: str, *, key: str, secret: str, clock_is_wrong: bool) -> Finding:
    import aiohttp
    from livekit.api import ListRoomsRequest, LiveKitAPI, ServerError

    async def list_rooms() -> None:
        limit = aiohttp.ClientTimeout(total=PATIENCE)
        async with LiveKitAPI(address, key, secret, timeout=limit, failover=False) as livekit:
            await livekit.room.list_rooms(ListRoomsRequest())

    subject = "LIVEKIT_API_KEY"
    try:
        asyncio.run(list_rooms())
    except ServerError as error:
        # Its message quotes the token.
        if error.status != httpx.codes.UNAUTHORIZED:
            return failed(subject, f"LiveKit answered {error.status} ({error.code})", "Look into LiveKit's log.")
        if clock_is_wrong:
            return failed(subject, "LiveKit refuses our token", "Set the clock right first; then check the key again.")
        remedy = "Set LIVEKIT_API_KEY and LIVEKIT_API_SECRET to a pair of LiveKit's own `keys`."
        return failed(subject, "LiveKit refuses the key or its secret", remedy)
    except (aiohttp.ClientError, TimeoutError) as error:
        return failed(subject, f"LiveKit's API {trouble(error)}", "LIVEKIT_URL must lead to LiveKit's own HTTP port.")
    return ok(subject, "LiveKit knows the key and its secret")


@dataclass(frozen=True, kw_only=True, slots=True)
class Provider:
    """A provider of speech or language: `question` is a path that costs nothing and needs the key."""

    name: str
    prefix: str
    address: str
    question: str
    header: str
    scheme: str = ""


OPENAI = Provider(
    name="OpenAI",
    prefix="OPENAI",
    address="https://api.openai.com/v1",
    question="models",
    header="Authorization",
    scheme="Bearer ",
)
ELEVENLABS = Provider(
    name="ElevenLabs",
    prefix="ELEVEN",
    address="https://api.elevenlabs.io/v1",
    question="voices",
    header="xi-api-key",
)


def check_provider(provider: Provider, environ: Mapping[str, str]) -> list[Finding]:
    """Whether the provider, or the server that stands for it, answers and knows the key; nothing without a key."""
    key_variable, url_variable = f"{provider.prefix}_API_KEY", f"{provider.prefix}_BASE_URL"
    key, given = environ.get(key_variable), environ.get(url_variable)
    if not key:
        return []
    base = (given or provider.address).rstrip("/")
    try:
        headers = {provider.header: f"{provider.scheme}{key}"}
        answer = ask(f"{base}/{provider.question}", headers=headers, through_proxy=True)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeEncodeError) as error:
        remedy = f"Correct {url_variable}." if given else "Let this machine reach it, by HTTPS_PROXY for instance."
        return [failed(provider.name, f"{place(base)} {trouble(error)}", remedy)]
    return [_judge_provider(provider.name, answer, key_variable=key_variable, url_variable=url_variable)]


def _judge_provider(name: str, answer: httpx.Response, *, key_variable: str, url_variable: str) -> Finding:
    told = f"{place(str(answer.url))} answered {answer.status_code}"
    if answer.status_code == httpx.codes.FORBIDDEN or "missing_permissions" in answer.text:
        return warning(name, f"{told}: the key is limited", "See that it may transcribe, chat and speak as needed.")
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return failed(name, f"{told}: it does not know the key", f"Set {key_variable} to a valid key.")
    if answer.status_code in {httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED}:
        return warning(
            name, f"{told} where a list should be", f"{url_variable} ends in /v1; correct it if it does not."
        )
    if answer.is_error:
        return failed(name, told, "Try again later, and look at the provider's status page.")
    return ok(name, f"{place(str(answer.url))} answers and accepts the key")


def check_agent_service(url: str) -> list[Finding]:
    """Whether the agent service can use its Redis."""
    subject = "agent service"
    try:
        answer = ask(f"{url.rstrip('/')}/ready")
        told = Readiness.model_validate_json(answer.content)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return [warning(subject, f"{place(url)} {trouble(error)}", "Start it, or correct AGENT_SERVICE_URL.")]
    except ValidationError:
        remedy = "Something else listens there: correct AGENT_SERVICE_URL."
        return [failed(subject, f"{place(url)} answered {answer.status_code}, not as the agent service", remedy)]
    if told.status != "ready":
        return [failed(subject, f"{told.status}: {told.detail}", "Set its Redis right; it looks again every 5 s.")]
    return [ok(subject, f"{place(url)} is ready, {told.free} of {told.slots} slots free")]


def check_api_key(url: str, variable: str, key: str | None) -> list[Finding]:
    """Whether the agent service takes this key, or asks for none; nothing when it cannot tell."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = ask(f"{url.rstrip('/')}/sessions", headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeEncodeError):
        return []
    if answer.is_success:
        return [ok(variable, "the agent service accepts it" if key else "not set, and the agent service asks for none")]
    if answer.status_code != httpx.codes.UNAUTHORIZED:
        return []
    remedy = f"Make one with `muster key NAME`; its entry goes to MUSTER_API_KEYS, the key to {variable}."
    return [failed(variable, "the agent service " + ("does not know it" if key else "asks for a key"), remedy)]


def check_health(subject: str, address: str) -> list[Finding]:
    """Whether a service answers its health check."""
    try:
        answer = ask(address)
    except httpx.HTTPError as error:
        return [failed(subject, f"{place(address)} {trouble(error)}", f"Look into the log of {subject}.")]
    if answer.is_error:
        return [failed(subject, f"{place(address)} answered {answer.status_code}", f"Look into the log of {subject}.")]
    return [ok(subject, f"{place(address)} answers")]


def ask(url: str, *, headers: Mapping[str, str] | None = None, through_proxy: bool = False) -> httpx.Response:
    """One GET; `through_proxy` goes where the environment's proxy settings say. Raises `httpx.HTTPError`."""
    with httpx.Client(timeout=PATIENCE, trust_env=through_proxy) as client:
        return client.get(url, headers=headers)


def livekit_address(url: str) -> str | None:
    """LiveKit's HTTP address for its WebSocket URL; None when it is neither."""
    scheme, _, rest = url.partition("://")
    return f"{_LIVEKIT_SCHEMES[scheme]}://{rest}" if rest and scheme in _LIVEKIT_SCHEMES else None


def place(url: str) -> str:
    """Host and port of a URL: what may be shown of one that can hold a password."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2] or "an empty host"
    except ValueError:
        return "an unreadable address"


def trouble(error: Exception) -> str:
    """Why nothing came back, without what a library quotes."""
    match error:
        case httpx.ConnectTimeout():
            return "cannot be reached: no connection in time"
        case httpx.TimeoutException() | TimeoutError():
            return "does not answer in time"
        case httpx.ConnectError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return "shows a certificate that this machine does not trust"
        case httpx.ConnectError():
            return "cannot be reached: no such name, or nobody listens"
        case httpx.InvalidURL() | httpx.UnsupportedProtocol():
            return "is no address of an HTTP service"
        case _:
            return f"does not answer in HTTP ({type(error).__name__})"
