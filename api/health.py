"""The health check of a container: `python -m api.health URL` exits with 0 when a GET is answered with 200, else 1."""

import http.client
import sys
from urllib.parse import urlsplit

#: Seconds.
_PATIENCE = 3.0


def complaint(url: str) -> str | None:
    """What is wrong with the service at this address; None when nothing is."""
    target = urlsplit(url)
    # No client that knows proxies: the service is in the same container.
    connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=_PATIENCE)
    try:
        connection.request("GET", target.path or "/")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{url} does not answer: {error}"
    finally:
        connection.close()
    return None if status == http.client.OK else f"{url} answers {status}"


if __name__ == "__main__":
    sys.exit(complaint(sys.argv[1]))
