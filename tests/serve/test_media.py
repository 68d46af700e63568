"""Pictures that a request names: nothing is fetched or read that the server's user has not named."""

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

from blip2rt.serve import fetch as fetching
from blip2rt.serve.faults import Fault
from blip2rt.serve.fetch import fetch, is_public
from blip2rt.serve.media import _decode, _from_file, image_bytes
from blip2rt.serve.settings import Limits, Media
from tests.serve.running import Running, chat

pytestmark = pytest.mark.long(8)

IMAGE = b"\x89PNG pretended"


class Site(http.server.BaseHTTPRequestHandler):
    """/image gives one; /to/X leads to X; /slow drips; /large never ends."""

    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.asked.append((self.headers["Host"], self.path))
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
        with contextlib.suppress(OSError):  # who asked has left
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Any]:
    handler = type("Handler", (Site,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.asked = handler.asked  # type: ignore[attr-defined]
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The name server's answers, of which one is given to each question and the last one to all that follow.

    Addresses of 93.184.216.0/24 lead to this machine, so that a public one can be connected to.
    """
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

    monkeypatch.setattr(fetching.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(fetching.socket, "create_connection", create_connection)
    return answers


def refused(url: str, media: Media, most: int = 1000) -> Fault:
    with pytest.raises(Fault) as raised:
        fetch(url, media, most)
    return raised.value


def test_an_allowed_host_is_fetched_from(site: Any, resolver: dict[str, list[str]]) -> None:
    resolver["photos.example"] = ["93.184.216.34"]
    port = site.server_port
    media = Media((f"photos.example:{port}",))
    assert fetch(f"http://photos.example:{port}/image", media, 1000) == IMAGE
    assert site.asked == [(f"photos.example:{port}", "/image")], "by its name"
    assert fetch(f"http://PHOTOS.example:{port}/to//image", media, 1000) == IMAGE


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/image", "http://photos.example:8081/image", "http://photos.example.evil.example/image",
        "http://evil.example/photos.example", "http://photos.example@evil.example/image",
        "http://user:word@photos.example/image", "http://evil.example#photos.example", "http:///image", "http://",
        "http://photos.example\r\nX: y/image", "http://photos.example:99999/image", "http://[::1/image",
        "http://127.0.0.1/image", "http://2130706433/image", "http://0x7f000001/", "http://[::ffff:127.0.0.1]/",
        "http://169.254.169.254/latest/meta-data/", "http://localhost/image", "http://photos.example\\@evil.example/",
    ],
)  # fmt: skip
def test_no_other_host_is_asked(url: str, resolver: dict[str, list[str]]) -> None:
    """There is no answer and no socket for them: the stand-in would complain."""
    fault = refused(url, Media(("photos.example",)))
    assert (fault.status, fault.code) == (400, "media_not_allowed")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.9", "169.254.169.254", "0.0.0.0", "100.64.0.1", "::1", "fe80::1",
     "fd00::1", "::ffff:10.0.0.1", "224.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "198.18.0.1",
     "93.184.216.34 127.0.0.1"],
)  # fmt: skip
def test_a_name_that_leads_into_a_private_network_is_refused(address: str, resolver: dict[str, list[str]]) -> None:
    resolver["photos.example"] = [address]
    fault = refused("http://photos.example/image", Media(("photos.example",)))
    assert fault.code == "media_not_allowed" and "private network" in fault.message


def test_a_name_is_resolved_once(site: Any, resolver: dict[str, list[str]]) -> None:
    """A name server that answers otherwise the second time is not asked a second time."""
    resolver["photos.example"] = ["93.184.216.34", "127.0.0.1"]
    port = site.server_port
    assert fetch(f"http://photos.example:{port}/image", Media((f"photos.example:{port}",)), 1000) == IMAGE
    assert resolver["photos.example"] == ["127.0.0.1"]


def test_each_redirect_is_checked(site: Any, resolver: dict[str, list[str]]) -> None:
    port = site.server_port
    media = Media((f"photos.example:{port}",))
    for target in ("http://169.254.169.254/latest", "http://127.0.0.1/", f"http://127.0.0.1:{port}/image",
                   "http://evil.example/image", "file:///etc/passwd", "gopher://photos.example/"):  # fmt: skip
        resolver["photos.example"] = ["93.184.216.34"]
        assert refused(f"http://photos.example:{port}/to/{target}", media).code == "media_not_allowed", target
    resolver["photos.example"] = ["93.184.216.34", "10.0.0.1"]
    again = refused(f"http://photos.example:{port}/to/http://photos.example:{port}/image", media)
    assert "private network" in again.message, "the name is resolved and checked anew"
    resolver["photos.example"] = ["93.184.216.34"]
    path = "/to/" * 9 + "/image"
    assert "leads on more than 3 times" in refused(f"http://photos.example:{port}{path}", media).message


def test_an_address_that_the_user_names_may_be_private(site: Any) -> None:
    port = site.server_port
    media = Media((f"127.0.0.1:{port}",))
    assert fetch(f"http://127.0.0.1:{port}/image", media, 1000) == IMAGE
    assert refused(f"http://127.0.0.1:{port + 1}/image", media).code == "media_not_allowed"
    assert refused(f"http://127.0.0.1:{port}/none", media).code == "media_failed"


def test_size_and_time_are_bounded(site: Any) -> None:
    port = site.server_port
    media = Media((f"127.0.0.1:{port}",), seconds=1)
    assert refused(f"http://127.0.0.1:{port}/large", media).status == 413
    begun = time.monotonic()
    assert refused(f"http://127.0.0.1:{port}/slow", media).code == "media_failed"
    assert time.monotonic() - begun < 5


def test_https_is_for_the_name_that_was_named(site: Any, resolver: dict[str, list[str]]) -> None:
    """This site has no certificate at all."""
    resolver["photos.example"] = ["93.184.216.34"]
    port = site.server_port
    media = Media((f"photos.example:{port}",))
    assert "no valid certificate" in refused(f"https://photos.example:{port}/image", media).message


def test_public_addresses() -> None:
    assert all(map(is_public, ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"]))
    assert not any(map(is_public, ["", "x", "127.0.0.1", "fe80::1%eth0", "2001:0:7f00:1::", "255.255.255.255"]))


def test_files_under_an_allowed_folder_are_read(tmp_path: Path) -> None:
    folder, outside = tmp_path / "in side", tmp_path / "outside"
    for each in (folder, outside):
        each.mkdir()
        (each / "a.png").write_bytes(IMAGE)
    (folder / "out.png").symlink_to(outside / "a.png")
    (folder / "in.png").symlink_to(folder / "a.png")
    os.mkfifo(folder / "pipe")
    media = Media(folders=(folder,))
    uri = folder.as_uri()
    assert _from_file(f"{uri}/a.png", media, 100, "image") == _from_file(f"{uri}/in.png", media, 100, "image") == IMAGE
    for path in ("out.png", "../outside/a.png", "%2e%2e/outside/a.png", "none.png", "pipe", "", "."):
        with pytest.raises(Fault, match="no such file under a folder of --allow-media-path"):
            _from_file(f"{uri}/{path}", media, 100, "image")
    for other in ("file:///etc/passwd", f"file://evil.example{folder}/a.png", "file:///proc/self/environ"):
        with pytest.raises(Fault, match="no such file"):
            _from_file(other, media, 100, "image")
    with pytest.raises(Fault, match="more than 3 bytes"):
        _from_file(f"{uri}/a.png", media, 3, "image")


def test_base64_is_read_as_it_is_written() -> None:
    data = bytes(range(256))
    plain = base64.b64encode(data).decode()
    for written in (
        plain,
        plain.rstrip("="),
        base64.urlsafe_b64encode(data).decode(),
        f" {plain[:99]}\r\n{plain[99:]}\n",
    ):
        assert _decode(written, "image") == data
    for wrong in ("", "photo.jpg!", "ä", "a", "===="):
        with pytest.raises(Fault):
            _decode(wrong, "image")


def test_what_is_decoded_slowly_or_is_no_address_is_refused(tmp_path: Path) -> None:
    """Percent signs of 20 MB took seconds in which nobody was answered."""
    media, limits = Media(("127.0.0.1",), (tmp_path,)), Limits()
    for reference, told in (
        ("data:image/png,%41%41", "not of base64"), ("data:image/png;base64", "the image is empty"),
        ("data:text/html;base64,%41", "neither base64"), ("gopher://127.0.0.1/", "neither base64"),
        ("http://127.0.0.1/" + "a" * 8192, "more than 8,192"), (f"file://{tmp_path}" + "/." * 4096, "more than 8,192"),
    ):  # fmt: skip
        with pytest.raises(Fault, match=told) as raised:
            asyncio.run(image_bytes(reference, media, limits))
        assert (raised.value.status, raised.value.code) == (400, "invalid_image")


@pytest.mark.long(17)
def test_what_is_fetched_has_a_deadline_and_ends_with_its_client(site: Any, start: Callable[..., Running]) -> None:
    """/slow takes ten seconds."""
    allowed, body = (
        f"127.0.0.1:{site.server_port}",
        {"input": [{"image": f"http://127.0.0.1:{site.server_port}/slow"}] * 3},
    )
    hasty = start("--allow-media-domains", allowed, "--deadline", 1)
    for path, asked in (
        ("/v1/embeddings", body),
        ("/v1/caption", body["input"][0]),
        ("/v1/match", {**body["input"][0], "text": "a"}),
    ):
        late = hasty.post(path, asked)
        assert late.status == 504 and late.error["code"] == "deadline_exceeded"
    site.asked.clear()
    patient = start("--allow-media-domains", allowed)
    with patient.open("/v1/embeddings", body):
        while not site.asked:
            time.sleep(0.01)
    patient.line("request", status=499, path="/v1/embeddings")
    assert len(site.asked) == 1


def test_a_server_fetches_nothing_unless_told(
    nano: Running, site: Any, start: Callable[..., Running], photo: Any
) -> None:
    port = site.server_port
    for url, option in ((f"http://127.0.0.1:{port}/image", "--allow-media-domains"),
                        ("https://example.org/a.png", "--allow-media-domains"),
                        ("file:///etc/passwd", "--allow-media-path")):  # fmt: skip
        asked = chat("who?")
        asked["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": url}})
        for body, path in ((asked, "/v1/chat/completions"), ({"image": url}, "/v1/caption"),
                           ({"model": "nano", "images": [url]}, "/api/generate"),
                           ({"image": url, "txt": "a"}, "/blip2itm")):  # fmt: skip
            found = nano.post(path, body)
            assert found.status == 400 and option in found.told(path)
    assert site.asked == []
    told = start("--allow-media-domains", f"127.0.0.1:{port}")
    found = told.post("/v1/caption", {"image": f"http://127.0.0.1:{port}/image"})
    assert found.error["code"] == "invalid_image" and site.asked == [(f"127.0.0.1:{port}", "/image")]
