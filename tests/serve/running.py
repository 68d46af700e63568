"""A server as its users start it: a process, called over a socket."""

from __future__ import annotations

import base64
import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import blip2rt

ROOT = Path(blip2rt.__file__).parents[1]
PHOTO = ROOT / "docs" / "photo.jpg"
TIMEOUT = 300  # seconds after which something has hung, however busy the machine is


class Response:
    """A status, headers with lower-case names, and a body."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, whose form is checked."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"], self.body
        assert "\n" not in error["message"] and "Traceback" not in error["message"]
        return error

    @property
    def ollama_error(self) -> str:
        """The error of a route of Ollama's, whose form is checked."""
        assert set(self.json) == {"error"} and isinstance(self.json["error"], str), self.body
        assert "\n" not in self.json["error"] and "Traceback" not in self.json["error"]
        found: str = self.json["error"]
        return found

    def told(self, path: str) -> str:
        """What is wrong, in the form of this path."""
        message: str = self.ollama_error if path.startswith("/api/") else self.error["message"]
        return message


_HELD = """
import sys
from blip2rt.cli import main
from blip2rt.model import Model
whole = Model.warm_up
Model.warm_up = lambda model: (sys.stdin.read(), whole(model))
sys.exit(main(sys.argv[1:]))
"""


class Running:
    """`blip2rt serve` at a free port, its log as objects. held: its model is loaded once release() is called."""

    def __init__(
        self, *arguments: object, env: dict[str, str] | None = None, ready: bool = True, held: bool = False
    ) -> None:
        program = ["-c", _HELD] if held else ["-m", "blip2rt"]
        command = [sys.executable, *program, "serve", "--port", "0", *map(str, arguments)]
        kept = {k: v for k, v in os.environ.items() if k != "BLIP2RT_API_KEY"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**kept, "OMP_NUM_THREADS": "1", **(env or {})},
        )  # fmt: skip
        self.log: list[dict[str, Any]] = []
        self.others: list[str] = []
        self._lines: queue.Queue[None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.url = self.line("http")["message"]
        self.port = int(self.url.rpartition(":")[2])
        if ready and not held:
            self.wait_ready()

    def release(self) -> None:
        """Let a server that is held load its model."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.others.append(line)
            self._lines.put(None)
        self._lines.put(None)

    def line(self, start: str, **fields: Any) -> dict[str, Any]:
        """The first line of the log that starts so and has these fields; it is waited for."""
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            for line in list(self.log):
                if line["message"].startswith(start) and all(line.get(k) == v for k, v in fields.items()):
                    return line
            if self.process.poll() is not None and not self._alive():
                break
            try:
                self._lines.get(timeout=1)
            except queue.Empty:
                continue
        raise AssertionError(f"no line {start!r} {fields} in the log: {self.log[-5:]} {self.others}")

    def _alive(self) -> bool:
        time.sleep(0.2)
        return not self._lines.empty()

    def wait_ready(self) -> None:
        end = time.monotonic() + TIMEOUT
        while self.get("/ready").status != 200:
            assert time.monotonic() < end and self.process.poll() is None, self.others
            time.sleep(0.05)

    def get(self, path: str, **headers: str) -> Response:
        return self.call("GET", path, None, headers)

    def post(self, path: str, body: Any, **headers: str) -> Response:
        """POST an object as JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.call("POST", path, data, {"Content-Type": "application/json", **headers})

    def call(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Response:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return Response(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def open(self, path: str, body: Any) -> socket.socket:
        """Send a request and return the socket, for who listens otherwise, or leaves."""
        data = json.dumps(body).encode()
        found = socket.create_connection(("127.0.0.1", self.port), TIMEOUT)
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
        found.sendall(head.encode() + data)
        return found

    def metric(self, name: str, **headers: str) -> float:
        """The value of a metric, with its labels as it is written."""
        for line in self.get("/metrics", **headers).body.decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        return 0.0

    def settle(self) -> None:
        """Wait until no request is worked on."""
        end = time.monotonic() + TIMEOUT
        while self.metric("blip2rt_running") or self.metric("blip2rt_queue"):
            assert time.monotonic() < end
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it; return its exit code."""
        self.release()
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(TIMEOUT)


def encoded(image: bytes) -> str:
    """Base64."""
    return base64.b64encode(image).decode()


def data_uri(image: bytes, kind: str = "jpeg") -> str:
    return f"data:image/{kind};base64,{encoded(image)}"


def chat(*parts: Any, **more: Any) -> dict[str, Any]:
    """The body of a chat: strings are texts, bytes are pictures."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else
               {"type": "image_url", "image_url": {"url": data_uri(part)}} for part in parts]  # fmt: skip
    return {"model": "nano", "messages": [{"role": "user", "content": content}], **more}


def events(body: bytes) -> list[Any]:
    """Server-sent events -> their objects; the last one must be [DONE], and is left out."""
    blocks = body.decode().strip().split("\n\n")
    assert blocks[-1] == "data: [DONE]" and all(block.startswith("data: ") for block in blocks), body
    return [json.loads(block[6:]) for block in blocks[:-1]]
