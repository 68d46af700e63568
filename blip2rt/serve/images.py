"""Turn a request's image reference into bytes: a data URI, base64, or a URL or file that the administrator allows.

A host name is resolved once, all of its addresses must be public, and the connection goes to the address that was
checked, so a second DNS answer changes nothing. Redirects pass the same checks. An address that the administrator has
listed, as in 192.168.1.5:8080, may be private.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import http.client
import ipaddress
import os
import socket
import ssl
import stat
import threading
import time
from pathlib import Path
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from .errors import ApiError, bad_request
from .settings import Limits, MediaAccess

_MAX_URL_CHARS = 8192
_MAX_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_CHUNK_BYTES = 1 << 16
_SEND = "send the picture as a data URI"
_SEND_BASE64 = f"{_SEND} (data:image/jpeg;base64,...)"


async def image_bytes(reference: str | bytes, media: MediaAccess, limits: Limits, param: str = "image") -> bytes:
    """Return the file's bytes. Raises ApiError, which names the field `param`."""
    if isinstance(reference, bytes):
        return reference
    try:
        return await _resolve(reference, media, limits.body_bytes)
    except ApiError as error:
        error.param = param
        raise


async def _resolve(reference: str, media: MediaAccess, max_bytes: int) -> bytes:
    start = reference[:8].lower()
    if start.startswith("data:"):
        kind, _, data = reference.partition(",")
        if not kind[-20:].lower().rstrip().endswith(";base64"):
            raise _invalid("the data URI is not base64")
        return _decode(data)
    if start.startswith(("http:", "https:", "file:")) and len(reference) > _MAX_URL_CHARS:
        raise _invalid(f"the address has more than {_MAX_URL_CHARS:,} characters")
    if start.startswith(("http://", "https://")):
        if not media.domains:
            raise _forbidden(f"URLs are not fetched: {_SEND_BASE64}, or start the server with --allow-media-domains")
        return await asyncio.to_thread(fetch, reference, media, max_bytes)
    if start.startswith("file:"):
        if not media.folders:
            raise _forbidden(f"files are not read: {_SEND_BASE64}, or start the server with --allow-media-path")
        return await asyncio.to_thread(_read_file, reference, media, max_bytes)
    return _decode(reference)


def _invalid(message: str) -> ApiError:
    return bad_request(f"{message}: {_SEND_BASE64}", code="invalid_image")


def _forbidden(message: str) -> ApiError:
    return bad_request(message, code="media_not_allowed")


def _failed(message: str) -> ApiError:
    return bad_request(message, code="media_failed")


def _decode(data: str) -> bytes:
    """Decode base64 of either alphabet, with or without padding and line breaks."""
    try:
        text = data.encode("ascii").translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n").rstrip(b"=")
        decoded = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _invalid("the image is neither base64 nor a URL") from None
    if not decoded:
        raise _invalid("the image is empty")
    return decoded


def _read_file(uri: str, media: MediaAccess, max_bytes: int) -> bytes:
    """Read a file under an allowed folder, after resolving links. Missing and forbidden files give the same error."""
    parts = urlsplit(uri)
    path = Path(os.path.realpath(unquote(parts.path).replace("\0", "")))
    refused = _forbidden("no such file under a folder of --allow-media-path")
    allowed = any(path.is_relative_to(os.path.realpath(folder)) for folder in media.folders)
    if parts.netloc not in ("", "localhost") or not allowed:
        raise refused
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        raise refused from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise refused
        if status.st_size > max_bytes:
            raise ApiError(413, f"the file has more than {max_bytes:,} bytes: name a smaller one", "body_too_large")
        with open(descriptor, "rb", closefd=False) as stream:
            return stream.read(max_bytes)
    finally:
        os.close(descriptor)


def fetch(url: str, media: MediaAccess, max_bytes: int) -> bytes:
    """Download an image from an allowed host. Raises ApiError."""
    end = time.monotonic() + media.seconds
    for _ in range(_MAX_REDIRECTS + 1):
        parts, port = _check_allowed(url, media)
        connection = _connect(parts, _resolve_host(parts, port), port, end)
        watch = threading.Timer(end - time.monotonic(), _abort, [connection])  # also for a server that trickles bytes
        watch.daemon = True
        watch.start()
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"Host": parts.netloc, "User-Agent": "blip2rt", "Accept": "image/*"}
            connection.request("GET", target, headers=headers | {"Accept-Encoding": "identity"})
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308):
                url = urljoin(url, response.getheader("Location", ""))
                continue
            if response.status != 200:
                raise _failed(f"the image's server answers {response.status}: check the address")
            return _download(connection, response, max_bytes, end)
        except (OSError, http.client.HTTPException, ValueError):
            raise _failed("the image cannot be fetched: check the address") from None
        finally:
            watch.cancel()
            connection.close()
    raise _failed(f"the address redirects more than {_MAX_REDIRECTS} times: name its target")


def _check_allowed(url: str, media: MediaAccess) -> tuple[SplitResult, int]:
    """Split the URL and return it with its port. Raises ApiError unless host and port are allowed."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        raise _forbidden("the image's address is not a valid URL: check it") from None
    host = (parts.hostname or "").rstrip(".")
    plain = parts.scheme in _PORTS and not parts.username and not parts.password
    names = {f"{host}:{port}"} | ({host} if port in _PORTS.values() else set())
    if not host or not plain or any(ord(letter) <= 32 for letter in url) or not names & set(media.domains):
        raise _forbidden(f"{host[:100]!r} is not a host of --allow-media-domains: {_SEND}")
    return parts, port


def _resolve_host(parts: SplitResult, port: int) -> str:
    """Return the IP address to connect to. Every address of a name must be public."""
    host = (parts.hostname or "").rstrip(".")
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host))  # the administrator has listed it
    try:
        addresses = {str(row[4][0]) for row in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        raise _failed(f"{host[:100]!r} has no address: check the name") from None
    if not addresses or not all(map(is_public, addresses)):
        raise _forbidden(f"{host[:100]!r} leads into a private network: list its address in --allow-media-domains")
    return min(addresses, key=lambda address: (":" in address, address))


def is_public(address: str) -> bool:
    """Whether an IP address is public, including the IPv4 address that an IPv6 one may embed."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            return is_public(str(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)))
        embedded = parsed.ipv4_mapped or parsed.sixtofour
        if embedded is not None:
            return is_public(str(embedded))
        if parsed.teredo is not None:
            return False
    return parsed.is_global and not parsed.is_multicast


def _connect(parts: SplitResult, address: str, port: int, end: float) -> http.client.HTTPConnection:
    """Connect to the checked address, with TLS for the host's name."""
    left = max(end - time.monotonic(), 0.01)
    try:
        plain = socket.create_connection((address, port), left)
    except OSError:
        raise _failed("the image's server cannot be reached: check the address") from None
    connection = http.client.HTTPConnection(parts.hostname or "", port, timeout=left)
    connection.sock = plain
    if parts.scheme == "https":
        try:
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname)
        except (OSError, ValueError):
            plain.close()
            raise _failed("the image's server has no valid certificate: check the address") from None
    return connection


def _abort(connection: http.client.HTTPConnection) -> None:
    with contextlib.suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)


def _download(
    connection: http.client.HTTPConnection, response: http.client.HTTPResponse, max_bytes: int, end: float
) -> bytes:
    body = bytearray()
    while (left := end - time.monotonic()) > 0:
        if connection.sock is not None:
            connection.sock.settimeout(left)
        if not (chunk := response.read1(_CHUNK_BYTES)):
            return bytes(body)
        body += chunk
        if len(body) > max_bytes:
            raise ApiError(413, f"the image has more than {max_bytes:,} bytes: name a smaller one", "body_too_large")
    raise _failed(f"the image's server is too slow: {_SEND}")
