"""`muster doctor`: which checks there are for a deployment's settings, for a running stack and for a new machine."""

import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from rich.console import Console
from rich.text import Text

from local.errors import StackNotRunning
from local.parts import AGENT_SERVICE, CONTROL_PLANE, FLOWER, LIVEKIT, PROVIDERS, REDIS
from local.paths import home_directory
from local.state import StackState, StateFile
from muster.checks import (
    ELEVENLABS,
    OPENAI,
    check_access,
    check_agent_service,
    check_api_key,
    check_health,
    check_livekit,
    check_provider,
    check_redis,
    check_settings,
    check_workers,
)
from muster.examination import Check, Finding, any_failed, examine
from muster.machine import (
    SERVICE_FILES,
    STACK_FILES,
    check_disk,
    check_files,
    check_livekit_server,
    check_ports,
    check_python,
    check_redis_server,
    check_stand_ins,
)
from muster.settings import READERS

#: Seconds, of which a check that waits for a silent server twice needs six.
WITHIN = 8.0

#: One of them in the environment says that this machine is part of a deployment.
_DEPLOYMENT = ("REDIS_URL", "LIVEKIT_URL", "AGENT_SERVICE_URL")
_REDIS = ("REDIS_URL", "BROKER_URL", "CACHE_URL")
_AGENT_SERVICE_URL = "http://127.0.0.1:8000"

_PORTS = {"agent service": 8000, "control plane": 8080}
_STACK_PORTS = {
    5555: "Flower",
    6379: "Redis",
    7880: "LiveKit",
    7881: "LiveKit's media over TCP",
    7882: "LiveKit's media over UDP",
    8000: "the agent service",
    8080: "the control plane",
    8090: "the stand-in providers",
}

_SIGNS = {"ok": Text("ok     ", "green"), "warning": Text("warning", "yellow"), "failed": Text("failed ", "bold red")}


def diagnose(*, environ: Mapping[str, str], processes: Collection[str] = ()) -> tuple[str, list[Finding]]:
    """What was looked at, in one line, and what was found, within `WITHIN` seconds.

    A deployment's settings are checked when there are some or when `processes` (of `READERS`; none means all) are
    named; else the running local stack, or what a machine needs to start one.
    """
    if processes or any(environ.get(name) for name in _DEPLOYMENT):
        chosen = [process for process in READERS if not processes or process in processes]
        title = f"The settings in this environment, for {', '.join(chosen)}:"
        return title, examine(deployment_checks(environ, chosen), within=WITHIN)
    try:
        state = StateFile(home=home_directory(environ)).running()
    except StackNotRunning:
        title = "No settings here and no stack running: `make up` needs neither. What it finds on this machine:"
        return title, examine(machine_checks(environ), within=WITHIN)
    return f"The running stack of process {state.pid}:", examine(stack_checks(state, environ), within=WITHIN)


def deployment_checks(environ: Mapping[str, str], processes: Sequence[str]) -> dict[str, Check]:
    """By the settings of these kinds of process."""
    checks: dict[str, Check] = {"Python": check_python}
    for process in processes:
        checks[f"settings of the {process}"] = partial(check_settings, process, READERS[process], environ)
    if set(processes) - {"control plane"}:
        checks |= _redis_checks(environ)
    checks |= _livekit_checks(environ)
    if {"worker", "chat worker"} & set(processes):
        checks["OpenAI"] = partial(check_provider, OPENAI, environ)
    if "worker" in processes:
        checks["ElevenLabs"] = partial(check_provider, ELEVENLABS, environ)
    if "control plane" in processes:
        url = environ.get("AGENT_SERVICE_URL") or _AGENT_SERVICE_URL
        checks["API keys"] = partial(check_access, environ)
        checks["agent service"] = partial(check_agent_service, url)
        key = environ.get("AGENT_SERVICE_API_KEY")
        checks["AGENT_SERVICE_API_KEY"] = partial(check_api_key, url, "AGENT_SERVICE_API_KEY", key)
    ports = {_PORTS[process]: f"the {process}" for process in processes if process in _PORTS}
    checks["ports"] = partial(check_ports, ports, replaceable=False)
    checks["files"] = partial(check_files, needed=SERVICE_FILES)
    return checks


def stack_checks(state: StackState, environ: Mapping[str, str]) -> dict[str, Check]:
    """Of the local stack that runs."""
    urls = state.urls
    checks: dict[str, Check] = {"Python": check_python}
    if REDIS in urls:
        checks["Redis"] = partial(check_redis, "Redis", urls[REDIS])
        checks["workers"] = partial(check_workers, urls[REDIS])
    if LIVEKIT in urls:
        checks["LiveKit"] = partial(check_livekit, "LiveKit", urls[LIVEKIT])
    if AGENT_SERVICE in urls:
        key = environ.get("MUSTER_API_KEY")
        checks["agent service"] = partial(check_agent_service, urls[AGENT_SERVICE])
        checks["MUSTER_API_KEY"] = partial(check_api_key, urls[AGENT_SERVICE], "MUSTER_API_KEY", key)
    health = {CONTROL_PLANE: "/api/v1/health", PROVIDERS: "/health", FLOWER: "/healthcheck"}
    for part, path in health.items():
        if part in urls:
            checks[part] = partial(check_health, part.replace("_", " "), f"{urls[part]}{path}")
    return checks | {"files": partial(check_files, needed=STACK_FILES), "disk": partial(check_disk, environ)}


def machine_checks(environ: Mapping[str, str]) -> dict[str, Check]:
    """Of a machine on which the local stack is to be started."""
    return {
        "Python": check_python,
        "Redis server": check_redis_server,
        "LiveKit server": partial(check_livekit_server, environ),
        "stand-in models": check_stand_ins,
        "OpenAI": partial(check_provider, OPENAI, environ),
        "ElevenLabs": partial(check_provider, ELEVENLABS, environ),
        "ports": partial(check_ports, _STACK_PORTS, replaceable=True),
        "files": partial(check_files, needed=STACK_FILES),
        "disk": partial(check_disk, environ),
    }


def print_findings(console: Console, title: str, findings: Sequence[Finding]) -> None:
    """One line for each finding, and one more for what to do."""
    console.print(title, soft_wrap=True)
    for finding in findings:
        line = Text.assemble("  ", _SIGNS[finding.outcome], "  ", (finding.subject, "bold"), f": {finding.detail}")
        console.print(line, soft_wrap=True)
        if finding.remedy:
            console.print(Text(f"           → {finding.remedy}"), soft_wrap=True)
    failures = sum(finding.outcome == "failed" for finding in findings)
    warnings = sum(finding.outcome == "warning" for finding in findings)
    console.print(f"{failures} failed, {warnings} to look at, {len(findings) - failures - warnings} ok.")


def findings_json(findings: Sequence[Finding]) -> str:
    """The same for machines."""
    told = [
        {"subject": each.subject, "outcome": each.outcome, "detail": each.detail, "remedy": each.remedy}
        for each in findings
    ]
    return json.dumps({"ok": not any_failed(findings), "findings": told}, indent=2)


def _redis_checks(environ: Mapping[str, str]) -> dict[str, Check]:
    urls: dict[str, str] = {}
    for variable in _REDIS:
        given = environ.get(variable)
        if given and given not in urls.values():
            urls[variable] = given
    checks: dict[str, Check] = {variable: partial(check_redis, variable, url) for variable, url in urls.items()}
    if "REDIS_URL" in urls:
        checks["workers"] = partial(check_workers, urls["REDIS_URL"])
    return checks


def _livekit_checks(environ: Mapping[str, str]) -> dict[str, Check]:
    checks: dict[str, Check] = {}
    if url := environ.get("LIVEKIT_URL"):
        key, secret = environ.get("LIVEKIT_API_KEY"), environ.get("LIVEKIT_API_SECRET")
        checks["LIVEKIT_URL"] = partial(check_livekit, "LIVEKIT_URL", url, key=key, secret=secret)
    if public := environ.get("LIVEKIT_PUBLIC_URL"):
        checks["LIVEKIT_PUBLIC_URL"] = partial(check_livekit, "LIVEKIT_PUBLIC_URL", public)
    return checks
