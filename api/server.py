"""How gunicorn serves the two services: `gunicorn --config python:api.server "api.agent_service:create_app()"`.

Every lower-case name is one of gunicorn's settings. Nothing of the services is imported here: gevent replaces the
standard library's sockets and locks in the worker process, and what was loaded before would keep the old ones.
"""

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Any

bind = "127.0.0.1:8000"
worker_class = "api.http_worker.HttpWorker"
#: Descriptors of one worker process, most of them for connections; fewer when the system allows only fewer.
worker_connections = 10_000
backlog = 2048

#: A worker whose event loop stands still for so many seconds is replaced.
timeout = 30
#: Seconds after SIGTERM until a worker is killed; `HttpWorker.finish_within` ends it earlier.
graceful_timeout = 15
#: Longer than the usual idle time of load balancers, so that they and not this side close a connection first.
keepalive = 75

limit_request_line = 4094
limit_request_fields = 64
limit_request_field_size = 8190
# A name with an underscore becomes the same variable as its twin with a hyphen; nobody may choose which one counts.
header_map = "refuse"
# What a client says about its address, its scheme or its path is never believed, whoever it is.
forwarded_allow_ips = ""
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
# The other parser is taken when it happens to be installed, and refuses with other words.
http_parser = "python"

# Requests carry keys and session ids: the services log what matters themselves.
accesslog = None
# It would be a thread in the process that forks, and a file in the home folder.
control_socket_disable = True
# On a disk that stalls, the sign of life that a worker writes there comes too late and it is killed.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None


def on_starting(server: Any) -> None:
    """Ends gunicorn before it listens where strangers could reach a service that knows no keys."""
    if server.cfg.is_ssl:
        raise SystemExit("TLS is not spoken here: put a proxy that does in front, and leave certfile and keyfile out.")
    exposed = [str(address) for address in server.cfg.address if not _is_local(address)]
    if exposed and not os.environ.get("MUSTER_API_KEYS"):
        raise SystemExit(
            f"{', '.join(exposed)} can be reached from other machines, and MUSTER_API_KEYS is not set. Make a key with "
            "`muster key NAME` and set MUSTER_API_KEYS to the entry it prints, or bind 127.0.0.1."
        )


def _is_local(address: object) -> bool:
    """Whether only this machine reaches it; gunicorn has pairs of host and port, paths, and descriptors."""
    match address:
        case str():
            return True
        case (str(host), _):
            try:
                return ip_address(host).is_loopback
            except ValueError:
                return host == "localhost"
        case _:
            return False
