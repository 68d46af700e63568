"""Images that a request names: only what the administrator allows is fetched or read."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.server
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blip2rt.serve import images
from blip2rt.serve.errors import ApiError
from blip2rt.serve.images import _decode, _read_file, fetch, image_bytes, is_public
from blip2rt.serve.settings import Limits, MediaAccess
from tests.serve.server_process import ServerProcess, chat, encoded

pytestmark = pytest.mark.long(8, "a real server that fetches pictures")

IMAGE = b"\x89PNG pretended"


class Site(http.server.BaseHTTPRequestHandler):
    """/image is an image, /to/X redirects to X, /slow trickles, /large never ends."""

    requested: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.requested.append((self.headers["Host"], self.path))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
        elif self.path == "/slow":
            self.send_response(200)
            for _ in range(100):
                self.wfile.write(b"X")
                time.sleep(0.1)
        elif self.path == "/large":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b"\0" * 65536)
        else:
            self.send_response(200 if self.path == "/image" else 404)
            self.end_headers()
            self.wfile.write(IMAGE)

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client has disconnected
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Any]:
    handler = type("Handler", (Site,), {"requested": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.requested = handler.requested  # type: ignore[attr-defined]
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """DNS answers by host, one per query; the last one repeats. 93.184.216.0/24 connects to this machine."""
    answers: dict[str, list[str]] = {}
    connect, resolve = socket.create_connection, socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if host == "127.0.0.1":
            return resolve(host, port)
        if host not in answers:
            raise socket.gaierror(-2, "Name or service not known")
        found = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found.split()]

    def create_connection(address: tuple[str, int], *rest: Any, **more: Any) -> socket.socket:
        host, port = address
        assert host.replace(".", "").replace(":", "").isalnum() and not host.islower(), "an address, never a name"
        return connect(("127.0.0.1" if host.startswith("93.184.216.") else host, port), *rest, **more)

    monkeypatch.setattr(images.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(images.socket, "create_connection", create_connection)
    return answers


@pytest.fixture
def photos(site: Any, resolver: dict[str, list[str]]) -> str:
    """The site under a name with a public address, with its port."""
    resolver["photos.example"] = ["93.184.216.34"]
    return f"photos.example:{site.server_port}"


def rejected(url: str, media: MediaAccess, max_bytes: int = 1000) -> ApiError:
    with pytest.raises(ApiError) as raised:
        fetch(url, media, max_bytes)
    return raised.value


def test_allowed_hosts_are_fetched(site: Any, photos: str) -> None:
    media = MediaAccess((photos,))
    assert fetch(f"http://{photos}/image", media, 1000) == IMAGE
    assert site.requested == [(photos, "/image")], "the Host header has the name"
    assert fetch(f"http://{photos.replace('photos', 'PHOTOS')}/to//image", media, 1000) == IMAGE


FORBIDDEN_URLS = """
http://other.example/image  http://photos.example:8081/image  http://photos.example.evil.example/image  http://
http://evil.example/photos.example  http://photos.example@evil.example/image  http://user:word@photos.example/image
http://evil.example#photos.example  http:///image  http://photos.example:99999/image  http://[::1/image
http://127.0.0.1/image  http://2130706433/image  http://0x7f000001/  http://[::ffff:127.0.0.1]/  http://localhost/image
http://169.254.169.254/latest/meta-data/  http://photos.example\\@evil.example/
"""


@pytest.mark.parametrize("url", [*FORBIDDEN_URLS.split(), "http://photos.example\r\nX: y/image"])
def test_other_hosts_are_never_contacted(url: str, resolver: dict[str, list[str]]) -> None:
    """The resolver has no answer for them."""
    error = rejected(url, MediaAccess(("photos.example",)))
    assert (error.status, error.code) == (400, "media_not_allowed")


PRIVATE = """127.0.0.1 10.0.0.1 192.168.1.1 172.16.0.9 169.254.169.254 0.0.0.0 100.64.0.1 ::1 fe80::1 fd00::1
::ffff:10.0.0.1 224.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: 198.18.0.1"""


@pytest.mark.parametrize("addresses", [*PRIVATE.split(), "93.184.216.34 127.0.0.1"])
def test_names_of_private_addresses_are_rejected(addresses: str, resolver: dict[str, list[str]]) -> None:
    resolver["photos.example"] = [addresses]
    error = rejected("http://photos.example/image", MediaAccess(("photos.example",)))
    assert error.code == "media_not_allowed" and "private network" in error.message


def test_names_are_resolved_once(photos: str, resolver: dict[str, list[str]]) -> None:
    """DNS rebinding: a second, different answer is never used."""
    resolver["photos.example"] = ["93.184.216.34", "127.0.0.1"]
    assert fetch(f"http://{photos}/image", MediaAccess((photos,)), 1000) == IMAGE
    assert resolver["photos.example"] == ["127.0.0.1"]


def test_redirects_are_checked(site: Any, photos: str, resolver: dict[str, list[str]]) -> None:
    media, start = MediaAccess((photos,)), f"http://{photos}/to/"
    forbidden = "http://169.254.169.254/latest http://127.0.0.1/ http://evil.example/image file:///etc/passwd"
    for target in (*forbidden.split(), f"http://127.0.0.1:{site.server_port}/image", "gopher://photos.example/"):
        assert rejected(start + target, media).code == "media_not_allowed", target
    assert "redirects more than 3 times" in rejected(start + "/to/" * 8 + "/image", media).message
    resolver["photos.example"] = ["93.184.216.34", "10.0.0.1"]
    repeated = rejected(f"{start}http://{photos}/image", media)
    assert "private network" in repeated.message, "each redirect resolves again"


def test_listed_addresses_may_be_private(site: Any) -> None:
    port = site.server_port
    media = MediaAccess((f"127.0.0.1:{port}",))
    assert fetch(f"http://127.0.0.1:{port}/image", media, 1000) == IMAGE
    assert rejected(f"http://127.0.0.1:{port + 1}/image", media).code == "media_not_allowed"
    assert rejected(f"http://127.0.0.1:{port}/none", media).code == "media_failed"


def test_size_and_time_are_limited(site: Any) -> None:
    port = site.server_port
    media = MediaAccess((f"127.0.0.1:{port}",), seconds=1)
    assert rejected(f"http://127.0.0.1:{port}/large", media).status == 413
    begun = time.monotonic()
    assert rejected(f"http://127.0.0.1:{port}/slow", media).code == "media_failed"
    assert time.monotonic() - begun < 5


def test_certificates_are_checked(photos: str) -> None:
    """This site has none."""
    assert "no valid certificate" in rejected(f"https://{photos}/image", MediaAccess((photos,))).message


def test_public_addresses() -> None:
    assert all(map(is_public, ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"]))
    assert not any(map(is_public, ["", "x", "127.0.0.1", "fe80::1%eth0", "2001:0:7f00:1::", "255.255.255.255"]))


def test_only_files_under_allowed_folders_are_read(tmp_path: Path) -> None:
    folder, outside = tmp_path / "in side", tmp_path / "outside"
    for each in (folder, outside):
        each.mkdir()
        (each / "a.png").write_bytes(IMAGE)
    (folder / "out.png").symlink_to(outside / "a.png")
    (folder / "in.png").symlink_to(folder / "a.png")
    os.mkfifo(folder / "pipe")
    media = MediaAccess(folders=(folder,))
    uri = folder.as_uri()
    assert _read_file(f"{uri}/a.png", media, 100) == _read_file(f"{uri}/in.png", media, 100) == IMAGE
    for path in ("out.png", "../outside/a.png", "%2e%2e/outside/a.png", "none.png", "pipe", "", "."):
        with pytest.raises(ApiError, match="no such file under a folder of --allow-media-path"):
            _read_file(f"{uri}/{path}", media, 100)
    for other in ("file:///etc/passwd", f"file://evil.example{folder}/a.png", "file:///proc/self/environ"):
        with pytest.raises(ApiError, match="no such file"):
            _read_file(other, media, 100)
    with pytest.raises(ApiError, match="more than 3 bytes"):
        _read_file(f"{uri}/a.png", media, 3)


def test_base64_has_many_spellings(nano: ServerProcess, cat: bytes) -> None:
    data = bytes(range(256))
    plain = base64.b64encode(data).decode()
    urlsafe, folded = base64.urlsafe_b64encode(data).decode(), f" {plain[:99]}\r\n{plain[99:]}\n"
    assert {_decode(text) for text in (plain, plain.rstrip("="), urlsafe, folded)} == {data}
    for wrong in ("", "photo.jpg!", "ä", "a", "===="):
        with pytest.raises(ApiError):
            _decode(wrong)
    texts = [f"{start}{encoded(cat)}" for start in ("", "DATA:image/jpg;charset=x;BASE64,", "data:;base64,")]
    assert len({nano.post("/v1/caption", {"image": text}).json["caption"] for text in texts}) == 1


def test_invalid_references_are_rejected_quickly(tmp_path: Path) -> None:
    """Decoding 20 MB of percent signs took seconds and blocked the server."""
    media, limits = MediaAccess(("127.0.0.1",), (tmp_path,)), Limits()
    for reference, message in (
        ("data:image/png,%41%41", "not base64"),
        ("data:image/png;base64", "the image is empty"),
        ("data:text/html;base64,%41", "neither base64"),
        ("gopher://127.0.0.1/", "neither base64"),
        ("http://127.0.0.1/" + "a" * 8192, "more than 8,192"),
        (f"file://{tmp_path}" + "/." * 4096, "more than 8,192"),
    ):
        with pytest.raises(ApiError, match=message) as raised:
            asyncio.run(image_bytes(reference, media, limits, "images"))
        error = raised.value
        assert (error.status, error.code, error.param) == (400, "invalid_image", "images")


@pytest.mark.long(17, "deadlines of a real server that waits")
def test_fetching_ends_with_the_deadline_and_the_client(site: Any, start: Callable[..., ServerProcess]) -> None:
    """/slow takes ten seconds."""
    allowed, slow = f"127.0.0.1:{site.server_port}", {"image": f"http://127.0.0.1:{site.server_port}/slow"}
    inputs = {"input": [slow] * 3}
    hasty = start("--allow-media-domains", allowed, "--deadline", 1)
    for path, body in (("/v1/embeddings", inputs), ("/v1/caption", slow), ("/v1/match", {**slow, "text": "a"})):
        late = hasty.post(path, body)
        assert late.status == 504 and late.error["code"] == "deadline_exceeded"
    site.requested.clear()
    patient = start("--allow-media-domains", allowed)
    with patient.begin("/v1/embeddings", inputs):
        while not site.requested:
            time.sleep(0.01)
    patient.wait_for_log("request", status=499, path="/v1/embeddings")
    assert len(site.requested) == 1


def test_nothing_is_fetched_by_default(nano: ServerProcess, site: Any, start: Callable[..., ServerProcess]) -> None:
    local = f"http://127.0.0.1:{site.server_port}/image"
    for url in (local, "https://example.org/a.png", "file:///etc/passwd"):
        option = "--allow-media-path" if url.startswith("file") else "--allow-media-domains"
        message = chat("who?")
        message["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": url}})
        for body, path in (
            (message, "/v1/chat/completions"),
            ({"image": url}, "/v1/caption"),
            ({"model": "nano", "images": [url]}, "/api/generate"),
            ({"image": url, "txt": "a"}, "/blip2itm"),
        ):
            found = nano.post(path, body)
            assert found.status == 400 and option in found.message(path)
    assert site.requested == []
    allowing = start("--allow-media-domains", f"127.0.0.1:{site.server_port}")
    found = allowing.post("/v1/caption", {"image": local})
    assert found.error["code"] == "invalid_image"
    assert site.requested == [(f"127.0.0.1:{site.server_port}", "/image")]
