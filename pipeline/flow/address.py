"""Whether anything answers at a cluster's address, asked before Ray is.

`ray.init` (2.60) tries a dead host for minutes and says nothing meanwhile. Trade-off: one more connection at the start.
"""

import socket
from urllib.parse import urlsplit

from pipeline.errors import RunError, UsageError

CONNECT_SECONDS = 10.0
_CLIENT_PREFIX = "ray://"


def require_answer(address: str, timeout_seconds: float = CONNECT_SECONDS) -> None:
    """Open a connection to `host:port` or `ray://host:port`, and close it; `auto` is Ray's to look up.

    Raises: UsageError for another form; RunError where nothing answers in time.
    Cost: one round trip; up to `timeout_seconds` for each address that the host's name resolves to.
    """
    if address == "auto":
        return
    try:
        parts = urlsplit("//" + address.removeprefix(_CLIENT_PREFIX))
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None:
        raise UsageError(f"ray at {address}: expected host:port (Ray's port, usually 6379), ray://host:port or auto")
    try:
        socket.create_connection((host, port), timeout_seconds).close()
    except OSError as error:
        reason = "timed out" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise RunError(
            f"ray at {address}: expected a cluster, nothing answers there ({reason}, after at most "
            f"{timeout_seconds:g} s); check that it runs (`ray status`) and that this machine may connect to it"
        ) from error
