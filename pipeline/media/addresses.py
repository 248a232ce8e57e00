"""Which hosts an http(s) source may name.

A cloud machine's metadata service answers on a link-local address and hands out its keys: a corpus never lies there,
so those addresses are refused whoever asks. This machine's own services are refused unless
`sources.follow_outside` is set. Hosts are judged by what they resolve to here, so a name, a decimal or a mapped
spelling of such an address is refused too, and so is a server's redirect to one. Trade-off: a name that resolves
otherwise by the time it is read is not seen here; run hostile lists where no metadata service answers.
"""

import functools
import ipaddress
import re
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from aiohttp import ClientSession, TraceRequestRedirectParams

_HTTP = re.compile(r"https?://", re.IGNORECASE)
_CHAIN = re.compile(r"::(?=[A-Za-z][\w+.\-]*://)")
_METADATA_NAMES = frozenset({"metadata.google.internal", "metadata"})
_METADATA_ADDRESSES = frozenset({ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")})

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_address(url: str, *, allow_loopback: bool) -> None:
    """Refuse a URL, or a link of a chained one, whose host is link-local, a metadata service or this machine.

    Raises: UsageError that names the URL. A host that does not resolve passes: opening it fails by itself.
    """
    for link in _CHAIN.split(url):
        if _HTTP.match(link):
            _check_host(link, url, allow_loopback)


def http_options(url: str) -> dict[str, dict[str, Any]]:
    """What fsspec is told for the http(s) links of a URL: a client that looks where it is sent."""
    schemes = {link.partition(":")[0] for link in _CHAIN.split(url) if _HTTP.match(link)}
    return {scheme: {"get_client": _open_client} for scheme in schemes}


async def _open_client(**options: Any) -> "ClientSession":
    from aiohttp import ClientSession, TraceConfig

    tracing = TraceConfig()
    tracing.on_request_redirect.append(_check_redirect)
    return ClientSession(trace_configs=[tracing], **options)


async def _check_redirect(_session: object, _context: object, redirect: "TraceRequestRedirectParams") -> None:
    """Raise PermissionError, which is one medium's error, instead of following a redirect to a refused host."""
    source = str(redirect.url)
    target = urljoin(source, redirect.response.headers.get("Location", ""))
    is_from_here = any(map(_is_this_machine, _addresses(urlsplit(source).hostname or "")))
    try:
        check_address(target, allow_loopback=is_from_here)
    except UsageError as error:
        raise PermissionError(f"{source} redirects to {target}: {error}") from None


def _check_host(link: str, url: str, allow_loopback: bool) -> None:
    try:
        host = urlsplit(link).hostname
    except ValueError as error:
        raise UsageError(f"source {url!r}: not a URL: {error}") from error
    if not host or "\\" in link.split("/")[2]:
        raise UsageError(f"source {url!r}: the URL names no host")
    if host.rstrip(".").lower() in _METADATA_NAMES or any(map(_is_metadata, _addresses(host))):
        raise UsageError(f"source {url!r}: {host} is a link-local or metadata address, which no medium is read from")
    if not allow_loopback and any(map(_is_this_machine, _addresses(host))):
        raise UsageError(
            f"source {url!r}: {host} is this machine; set sources.follow_outside=true if its server is meant"
        )


@functools.lru_cache(maxsize=1024)
def _addresses(host: str) -> tuple[Address, ...]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple({_plain(str(entry[4][0])) for entry in found})


def _plain(text: str) -> Address:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_metadata(address: Address) -> bool:
    return address.is_link_local or address in _METADATA_ADDRESSES


def _is_this_machine(address: Address) -> bool:
    return address.is_loopback or address.is_unspecified
