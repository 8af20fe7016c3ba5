"""API keys: what a client shows, what the settings know of it, and how the two are compared.

The settings hold `name:hash` entries, never a key, so that whoever reads them cannot use the service.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Self

from api.errors import KeyMalformed, KeyMissing, KeyNameInvalid, KeyUnknown

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")
#: RFC 6750's `Bearer` and a `token68`.
_CREDENTIALS = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
_KEY_BYTES = 32


@dataclass(frozen=True)
class NewKey:
    """A key that was just made: `key` is for the client and known nowhere else, `entry` is for the settings."""

    key: str
    entry: str

    def __repr__(self) -> str:
        return f"NewKey({self.entry.partition(':')[0]})"


@dataclass(frozen=True)
class KeyEntry:
    """One line of the settings: whose key it is, and the key's SHA-256 in lower-case hexadecimal."""

    name: str
    sha256: str


@dataclass(frozen=True)
class ApiKeys:
    """The keys that open a service; a name may have several, so that a new one can replace an old one."""

    entries: tuple[KeyEntry, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The keys of `name:hash,name:hash`; raises `ValueError` that names wrong entries by their position."""
        return cls(tuple(_parse_entry(entry, number) for number, entry in enumerate(text.split(","), start=1)))

    def __bool__(self) -> bool:
        return bool(self.entries)

    def name_of(self, authorization: str | None) -> str:
        """Whose key an `Authorization` header shows; raises `KeyMissing`, `KeyMalformed` or `KeyUnknown`."""
        if authorization is None:
            raise KeyMissing()
        credentials = _CREDENTIALS.fullmatch(authorization)
        if credentials is None:
            raise KeyMalformed()
        shown = _sha256(credentials[1])
        # All are compared, so that the time tells nothing about which one is right.
        matching = [entry.name for entry in self.entries if hmac.compare_digest(entry.sha256, shown)]
        if not matching:
            raise KeyUnknown()
        return matching[0]


def generate(name: str) -> NewKey:
    """A fresh key for a client called `name`; raises `KeyNameInvalid`."""
    if not _NAME.fullmatch(name):
        raise KeyNameInvalid()
    key = f"muster_{secrets.token_urlsafe(_KEY_BYTES)}"
    return NewKey(key=key, entry=f"{name}:{_sha256(key)}")


def _sha256(key: str) -> str:
    # Keys are random and long: there is nothing to guess that a slow hash would protect.
    return hashlib.sha256(key.encode()).hexdigest()


def _parse_entry(entry: str, number: int) -> KeyEntry:
    name, _, digest = (part.strip() for part in entry.partition(":"))
    if not _NAME.fullmatch(name) or not _HASH.fullmatch(digest.lower()):
        # Not shown: somebody may have put the key itself there.
        raise ValueError(f"entry {number} is not NAME:SHA256 as `muster key NAME` prints it")
    return KeyEntry(name=name, sha256=digest.lower())
