"""A server as users start it, a process that is called over a socket, and its application called in this process."""

import asyncio
import base64
import http.client
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

import blip2rt
from blip2rt.command_line import Parser
from blip2rt.gallery import Index
from blip2rt.serve import cli
from blip2rt.serve.app import make_app
from blip2rt.serve.inference import open_model
from blip2rt.serve.logs import LOG, JsonFormatter
from blip2rt.serve.service import Service

ROOT = Path(__file__).parents[2]
PHOTO, CAT = ROOT / "docs" / "photo.jpg", ROOT / "tests" / "cat.jpg"  # Chelsea by Stéfan van der Walt (CC0)
TIMEOUT = 300  # seconds after which something hangs, however busy the machine is


class Response:
    """A status, headers with lower-case names, and a body."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's format, which is checked."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"], self.body
        assert "\n" not in error["message"] and "Traceback" not in error["message"]
        return error

    def message(self, path: str) -> str:
        """The error message in the format of a path's API, which is checked."""
        if not path.startswith("/api/"):
            return str(self.error["message"])
        message = self.json["error"]
        assert set(self.json) == {"error"} and isinstance(message, str), self.body
        assert "\n" not in message and "Traceback" not in message
        return message


_DELAYED = """
import sys
from blip2rt.cli import main
from blip2rt.model import Model
warm_up = Model.warm_up
Model.warm_up = lambda model: (sys.stdin.read(), warm_up(model))
sys.exit(main(sys.argv[1:]))
"""


class Caller:
    """Calls a server. Subclasses send the request."""

    log: list[dict[str, Any]]

    def call(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Response:
        raise NotImplementedError

    def get(self, path: str, **headers: str) -> Response:
        return self.call("GET", path, None, headers)

    def post(self, path: str, body: Any, **headers: str) -> Response:
        """POST an object as JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.call("POST", path, data, {"Content-Type": "application/json", **headers})

    def post_form(self, path: str, body: bytes) -> Response:
        """POST a form with the boundary b."""
        return self.post(path, body, Content_Type="multipart/form-data; boundary=b")

    def logged(self, start: str, **fields: Any) -> dict[str, Any] | None:
        """Return the first log line with this start and these fields."""
        lines = [line for line in list(self.log) if line["message"].startswith(start)]
        return next((line for line in lines if fields.items() <= line.items()), None)

    def metric(self, name: str, **headers: str) -> float:
        """Return a metric; its name includes the labels as they are written."""
        for line in self.get("/metrics", **headers).body.decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        return 0.0


class AppClient(Caller):
    """The application of `blip2rt serve` with these arguments, without a socket."""

    def __init__(self, model: Path, *arguments: object, ready: bool = True) -> None:
        parser = Parser()
        cli.add_options(parser)
        settings = cli.settings_from(parser.parse_args(list(map(str, arguments))))
        self.service, self.log = Service(open_model(str(model), settings, threads=1), settings), []
        self._app, self._loop = make_app(self.service), asyncio.new_event_loop()
        self._handler = logging.Handler()
        self._handler.emit = lambda record: self.log.append(json.loads(JsonFormatter().format(record)))  # type: ignore[method-assign]
        LOG.addHandler(self._handler)
        LOG.setLevel(logging.INFO)
        if ready:
            self.load()

    def load(self) -> None:
        self._loop.run_until_complete(self.service.load())

    def call(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Response:
        return self._loop.run_until_complete(respond(self._app, method, path, body or b"", headers))

    def close(self) -> None:
        LOG.removeHandler(self._handler)
        self.service.close()
        self._loop.close()


async def respond(
    app: Any, method: str, path: str, body: bytes, headers: dict[str, str], leave: asyncio.Event | None = None
) -> Response:
    """Return an application's response to a request whose client disconnects when `leave` is set."""
    unread, sent, (place, _, query) = [body], list[Any](), path.partition("?")

    async def receive() -> dict[str, Any]:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await (leave or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    named = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    pairs = {"host": "localhost", "content-length": str(len(body)), **named}.items()
    scope = {"type": "http", "method": method, "path": place, "query_string": query.encode(), "http_version": "1.1"}
    scope |= {"scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1)}
    await app(scope | {"headers": [(name.encode(), value.encode()) for name, value in pairs]}, receive, send)
    start, *parts = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return Response(start["status"], found, b"".join(part.get("body", b"") for part in parts))


class ServerProcess(Caller):
    """`blip2rt serve` on a free port, with its log as objects. delayed: its model loads after release()."""

    def __init__(self, *arguments: object, env: dict[str, str] | None = None, delayed: bool = False) -> None:
        program = ["-c", _DELAYED] if delayed else ["-m", "blip2rt"]
        command = [sys.executable, *program, "serve", "--port", "0", "--drain-delay", "0", *map(str, arguments)]
        environment = {k: v for k, v in os.environ.items() if k != "BLIP2RT_API_KEY"}
        environment |= {"OMP_NUM_THREADS": "1", **(env or {})}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment)
        self.log: list[dict[str, Any]] = []
        self.other_lines: list[str] = []
        threading.Thread(target=self._read_log, daemon=True).start()
        self.url = self.wait_for_log("http")["message"]
        self.port = int(self.url.rpartition(":")[2])
        if not delayed:
            self.wait_ready()

    def release(self) -> None:
        """Let a delayed server load its model."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.other_lines.append(line)

    def wait_for_log(self, start: str, **fields: Any) -> dict[str, Any]:
        """Return the first log line with this start and these fields."""

        return self._wait(lambda: self.logged(start, **fields))

    def wait_ready(self) -> None:
        self._wait(lambda: self.get("/ready").status == 200)

    def _wait(self, condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + TIMEOUT
        while not (value := condition()):
            assert time.monotonic() < end and self.process.poll() is None, (self.log[-5:], self.other_lines)
            time.sleep(0.02)
        return value

    def call(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Response:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return Response(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def connect(self, sent: bytes = b"") -> socket.socket:
        """Open a connection and send bytes."""
        connection = socket.create_connection(("127.0.0.1", self.port), TIMEOUT)
        connection.sendall(sent)
        return connection

    def begin(self, path: str, body: Any) -> socket.socket:
        """Send a POST and return the connection without reading the response."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
        return self.connect(head.encode() + data)

    def wait_for_metric(self, name: str, least: float) -> None:
        """Wait until a metric has at least this value; with 0, until it is 0."""
        self._wait(lambda: self.metric(name) >= least if least else self.metric(name) == 0)

    def wait_idle(self) -> None:
        """Wait until no request runs or waits."""
        for name in ("blip2rt_queue", "blip2rt_running"):
            self.wait_for_metric(name, 0)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Stop it; return its exit status."""
        self.release()
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(TIMEOUT)


def index_of(bundle: Any, folder: Path, pictures: dict[str, bytes]) -> Path:
    """A new index in `folder` of pictures by name."""
    (folder / "photos").mkdir()
    for name, data in pictures.items():
        (folder / "photos" / name).write_bytes(data)
    with Index.create(folder / "photos.index", folder / "photos", blip2rt.load(bundle.path)) as made:
        made.add()
    return folder / "photos.index"


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def png(image: Any) -> bytes:
    """An image or an array as a PNG."""
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, "PNG")
    return stream.getvalue()


def encoded(image: bytes) -> str:
    """Base64."""
    return base64.b64encode(image).decode()


def data_uri(image: bytes, kind: str = "jpeg") -> str:
    return f"data:image/{kind};base64,{encoded(image)}"


def parts(*contents: str | bytes, **more: Any) -> list[dict[str, Any]]:
    """Parts of an OpenAI message: strings are texts, bytes are pictures. more: fields of image_url."""
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_uri(part), **more}}
        for part in contents
    ]


def chat(*contents: str | bytes, **more: Any) -> dict[str, Any]:
    """The body of a chat with one message."""
    return {"model": "nano", "messages": [{"role": "user", "content": parts(*contents)}], **more}


def events(body: bytes) -> list[Any]:
    """Server-sent events -> their objects; the last one must be [DONE], and is left out."""
    blocks = body.decode().strip().split("\n\n")
    assert blocks[-1] == "data: [DONE]" and all(block.startswith("data: ") for block in blocks), body
    return [json.loads(block[6:]) for block in blocks[:-1]]
