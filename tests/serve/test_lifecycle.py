"""Start and shutdown: loading, errors at start, signals, and requests during the drain."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.serve.server_process import ROOT, TIMEOUT, ServerProcess, chat, encoded, read_all

pytestmark = pytest.mark.long(12, "processes that start, drain and end by signals")
CHAT = "/v1/chat/completions"
Start = Callable[..., ServerProcess]


def test_requests_are_rejected_while_the_model_loads(start: Start, small: bytes) -> None:
    server = start(delayed=True)
    image = {"image": encoded(small)}
    bodies = {
        CHAT: chat("Hi"),
        "/v1/embeddings": {"input": "a"},
        "/v1/caption": image,
        "/v1/ask": {**image, "question": "who?"},
        "/v1/match": {**image, "text": "a"},
        "/blip2itm": {**image, "txt": "a"},
        "/api/generate": {"prompt": "Hi"},
        "/api/chat": {"messages": []},
        "/api/embed": {"input": "a"},
    }
    for path, body in bodies.items():
        found = server.post(path, body)
        assert found.status == 503 and found.headers["retry-after"] == "2", path
        assert found.message(path) == "the model is being loaded: try again in a moment"
    found = server.get("/ready")
    assert found.status == 503 and found.json == {"status": "loading"} and found.headers["retry-after"] == "2"
    for path in ("/health", "/", "/metrics", "/v1/models", "/api/tags"):
        assert server.get(path).status == 200, path
    assert server.metric("blip2rt_ready") == 0
    server.release()
    server.wait_ready()
    assert server.get("/ready").json == {"status": "ready", "model": "tiny", "pictures": 0, "labels": False}
    assert {server.post(path, body).status for path, body in bodies.items()} == {200}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "{empty}"], ""),
        (["--max-body", "0"], "give a number of bytes above 0"),
        (["--cache", "32"], "that is 32 bytes, too few for an image: give 32M, or 0 for none"),
        (["--api-key", "a b"], "without spaces"),
        (["--host", "999.1.1.1"], "cannot listen on 999.1.1.1, port 0"),
        (["--port", "{taken}"], ": address already in use; choose others"),
    ],
)
def test_errors_at_start_are_one_line(
    nano: ServerProcess, tiny: Any, tmp_path: Any, arguments: list[str], message: str
) -> None:
    arguments = [each.format(empty=tmp_path, taken=nano.port) for each in arguments]
    command = [sys.executable, "-m", "blip2rt", "serve", "--port", "0", "--model", str(tiny.path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("blip2rt") and message in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("delayed", [False, True], ids=["ready", "loading"])
@pytest.mark.parametrize(("how", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_stop_the_server(start: Start, how: signal.Signals, status: int, delayed: bool) -> None:
    server = start(delayed=delayed)
    server.process.send_signal(how)
    assert server.process.wait(TIMEOUT) == status, "while loading, without waiting for the model"
    assert not server.other_lines


def test_shutdown_finishes_accepted_requests(cat: bytes) -> None:
    server = ServerProcess("--parallel", 1, "--threads", 1, "--drain", TIMEOUT)
    body = chat(cat, min_new_tokens=60, max_tokens=60)
    callers = ThreadPoolExecutor(3)
    found = [callers.submit(server.post, CHAT, body) for _ in range(3)]
    stream = server.begin(CHAT, {**body, "stream": True})
    server.wait_for_metric("blip2rt_queue", 3)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    with pytest.raises(OSError):
        server.get("/health")
    assert [each.result(TIMEOUT).json["usage"]["completion_tokens"] for each in found] == [60] * 3
    assert b"[DONE]" in read_all(stream)
    assert server.process.wait(TIMEOUT) == 0 and not server.other_lines


def test_requests_are_accepted_until_the_drain(start: Start, small: bytes) -> None:
    """A load balancer needs some seconds to notice that /ready fails."""
    server = start("--drain-delay", 3)
    begun = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    server._wait(lambda: server.get("/ready").status == 503)
    assert server.post("/v1/caption", {"image": encoded(small)}).status == 200
    assert server.process.wait(TIMEOUT) == 0 and time.monotonic() - begun > 3


def test_requests_are_aborted_after_the_drain(cat: bytes) -> None:
    server = ServerProcess("--parallel", 1, "--max-tokens", 900, "--threads", 1, "--drain", "0.2")
    body = chat(cat, min_new_tokens=900, max_tokens=900, stream=True)
    streams = [server.begin(CHAT, body) for _ in range(6)]
    assert streams[0].recv(100)
    begun = time.monotonic()
    assert server.stop() == 0 and time.monotonic() - begun < 30
    received = [read_all(each) for each in streams]
    aborted = [re.search(rb'"code": ?"ending"', each) is not None for each in received]
    assert all(abort or b"[DONE]" in each for abort, each in zip(aborted, received, strict=True)) and aborted[-1]
