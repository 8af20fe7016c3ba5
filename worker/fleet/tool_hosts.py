"""Which hosts an HTTP tool may call: URLs and the operator's list are read here, in one way, and nowhere else."""

import re

#: What a tool's URL may look like: no user, no fragment, no escapes in the host, nothing that two parsers read in two
#: ways.
URL_PATTERN = (
    r"^https?://([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])(:[0-9]{1,5})?"
    r"(/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?(\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?$"
)
_URL = re.compile(URL_PATTERN)
_ORIGIN = re.compile(r"(https?)://([^/?]+?)(?::([0-9]+))?(?:[/?].*)?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LAST_PORT = 65_535


def parse_tool_hosts(text: str) -> frozenset[str]:
    """The origins of `host,host:port,http://host:port`; without a scheme it is https. Raises ValueError."""
    entries = [entry.strip() for entry in text.split(",")]
    return frozenset(_listed(entry, number) for number, entry in enumerate(entries, start=1))


def may_call(url: str, hosts: frozenset[str]) -> bool:
    """Whether scheme, host and port of the URL are listed, exactly."""
    return origin(url) in hosts


def origin(url: str) -> str | None:
    """Scheme, host and port of the URL, such as "https://example.com:443"; None when it is not a tool's URL."""
    parts = _ORIGIN.fullmatch(url) if _URL.fullmatch(url) else None
    if parts is None:
        return None
    scheme, host, port = parts.groups()
    return f"{scheme}://{host}:{int(port or _DEFAULT_PORTS[scheme])}"


def _listed(entry: str, number: int) -> str:
    found = origin(entry if "://" in entry else f"https://{entry}")
    is_bare = found is not None and not re.search(r"[/?]", entry.partition("://")[2] or entry)
    if found is None or not is_bare or int(found.rpartition(":")[2]) > _LAST_PORT:
        raise ValueError(f"entry {number} is not a host, host:port or http://host:port")
    return found
