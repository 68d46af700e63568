"""Fetches an image from hosts that the server's user has named, and from nowhere else.

A name is resolved once, every address of the answer must be public, and the connection goes to the address that was
checked: a second answer of the name server changes nothing. Each redirect is checked as the first address was. An
address that the user has named itself, as in 192.168.1.5:8080, is allowed, for that is what was said.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import SplitResult, urljoin, urlsplit

from .faults import Fault, bad
from .settings import Media

_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_CHUNK = 1 << 16


def fetch(url: str, media: Media, most: int, param: str = "image") -> bytes:
    """The bytes at an address. most: bytes. Raises Fault."""
    end = time.monotonic() + media.seconds
    for _ in range(_REDIRECTS + 1):
        parts, port = _allowed(url, media, param)
        connection = _connect(parts, _address(parts, port, media, param), port, end, param)
        watch = threading.Timer(end - time.monotonic(), _cut, [connection])  # who sends a byte at a time is late, too
        watch.daemon = True
        watch.start()
        try:
            path = parts.path or "/"
            target = f"{path}?{parts.query}" if parts.query else path
            connection.request("GET", target, headers={"Host": parts.netloc, "User-Agent": "blip2rt",
                                                       "Accept": "image/*", "Accept-Encoding": "identity"})  # fmt: skip
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308):
                url = urljoin(url, response.getheader("Location", ""))
                continue
            if response.status != 200:
                raise bad(f"the image's server answers {response.status}: check the address", param, "media_failed")
            return _read(connection, response, most, end, param)
        except (OSError, http.client.HTTPException, ValueError):
            raise bad("the image cannot be fetched: check the address", param, "media_failed") from None
        finally:
            watch.cancel()
            connection.close()
    raise bad(f"the address leads on more than {_REDIRECTS} times: name where it leads", param, "media_failed")


def _allowed(url: str, media: Media, param: str) -> tuple[SplitResult, int]:
    """The parts of an address on an allowed host and port."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        raise bad("the image's address cannot be read: check it", param, "media_not_allowed") from None
    host = (parts.hostname or "").rstrip(".")
    named = parts.scheme in _PORTS and not parts.username and not parts.password
    names = {f"{host}:{port}"} | ({host} if port in _PORTS.values() else set())
    if not host or not named or any(ord(letter) <= 32 for letter in url) or not names & set(media.domains):
        raise bad(f"{host[:100]!r} is no host of --allow-media-domains: send the picture as a data URI", param,
                  "media_not_allowed")  # fmt: skip
    return parts, port


def _address(parts: SplitResult, port: int, media: Media, param: str) -> str:
    """The address to connect to: each one that the name has is public."""
    host = (parts.hostname or "").rstrip(".")
    try:
        return str(ipaddress.ip_address(host))  # the user has named it
    except ValueError:
        pass
    try:
        found = {str(row[4][0]) for row in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        raise bad(f"{host[:100]!r} has no address: check the name", param, "media_failed") from None
    if not found or not all(map(is_public, found)):
        raise bad(f"{host[:100]!r} leads into a private network: name its address in --allow-media-domains", param,
                  "media_not_allowed")  # fmt: skip
    return sorted(found, key=lambda address: (":" in address, address))[0]


def is_public(address: str) -> bool:
    """Whether an address is one of the open Internet, also where it wraps one of version 4."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            return is_public(str(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)))
        wrapped = parsed.ipv4_mapped or parsed.sixtofour
        if wrapped is not None:
            return is_public(str(wrapped))
        if parsed.teredo is not None:
            return False
    return parsed.is_global and not parsed.is_multicast


def _connect(parts: SplitResult, address: str, port: int, end: float, param: str) -> http.client.HTTPConnection:
    """A connection to the checked address, that speaks for the name."""
    left = max(end - time.monotonic(), 0.01)
    try:
        plain = socket.create_connection((address, port), left)
    except OSError:
        raise bad("the image's server cannot be reached: check the address", param, "media_failed") from None
    connection = http.client.HTTPConnection(parts.hostname or "", port, timeout=left)
    connection.sock = plain
    if parts.scheme == "https":
        try:
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname)
        except (OSError, ValueError):
            plain.close()
            raise bad("the image's server has no valid certificate: check the address", param, "media_failed") from None
    return connection


def _cut(connection: http.client.HTTPConnection) -> None:
    with contextlib.suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)


def _read(
    connection: http.client.HTTPConnection, response: http.client.HTTPResponse, most: int, end: float, param: str
) -> bytes:
    body = bytearray()
    while True:
        left = end - time.monotonic()
        if left <= 0:
            raise bad("the image's server is too slow: send the picture as a data URI", param, "media_failed")
        if connection.sock is not None:
            connection.sock.settimeout(left)
        chunk = response.read1(_CHUNK)
        if not chunk:
            return bytes(body)
        body += chunk
        if len(body) > most:
            raise Fault(413, f"the image has more than {most:,} bytes: name a smaller one", "body_too_large", param)
