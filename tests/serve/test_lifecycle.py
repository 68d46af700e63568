"""Start, shutdown and load: signals, slow and disconnecting clients, a full queue, deadlines, many callers."""

import contextlib
import json
import random
import re
import shlex
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from blip2rt.cli import main
from tests.seeds import new_seed
from tests.serve.server_process import TIMEOUT, AppClient, ServerProcess, chat, encoded, events, read_all

pytestmark = pytest.mark.long(20, "processes that start, drain and end by signals, and queues under load")
CHAT = "/v1/chat/completions"
PROCESSOR = "process_cpu_seconds_total"
Start = Callable[..., ServerProcess]


def test_requests_are_rejected_while_the_model_loads(app: Callable[..., AppClient], small: bytes) -> None:
    server = app(ready=False)
    image = {"image": encoded(small)}
    bodies = {
        CHAT: chat("Hi"),
        "/v1/caption": image,
        "/v1/ask": {**image, "question": "who?"},
        "/v1/match": {**image, "texts": "a"},
        "/blip2itm": {**image, "txt": "a"},
        "/api/generate": {"prompt": "Hi"},
        "/api/chat": {"messages": []},
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
    server.load()
    assert server.get("/ready").json == {"status": "ready", "model": "tiny", "pictures": 0, "labels": False}
    assert {server.post(path, body).status for path, body in bodies.items()} == {200}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model {empty}", ""),
        ("--max-body 0", "give a number of bytes above 0"),
        ("--cache 32", "that is 32 bytes, too few for an image: give 32M, or 0 for none"),
        ("--api-key 'a b'", "without spaces"),
        ("--host 999.1.1.1 --port 0", "cannot listen on 999.1.1.1, port 0"),
        ("--port {taken}", ": address already in use; choose others"),
    ],
)
def test_errors_at_start_are_one_line(nano, tiny, tmp_path, capsys, flags, message):
    given = ["--model", str(tiny.path), *shlex.split(flags.format(empty=tmp_path, taken=nano.port))]
    with contextlib.suppress(SystemExit):
        assert main(["serve", *given]) == 2
    said = capsys.readouterr().err
    assert said.startswith("blip2rt") and message in said and said.count("\n") == 1


@pytest.mark.parametrize(("how", "status", "delayed"), [(signal.SIGTERM, 0, True), (signal.SIGINT, 130, False)])
def test_signals_stop_the_server(start: Start, how: signal.Signals, status: int, delayed: bool) -> None:
    server = start(delayed=delayed)
    server.process.send_signal(how)
    assert server.process.wait(TIMEOUT) == status, "while loading, without waiting for the model"
    assert not server.other_lines


def test_shutdown_finishes_accepted_requests(cat: bytes) -> None:
    server = ServerProcess("--parallel", 1, "--threads", 1, "--drain", TIMEOUT)
    body = chat(cat, min_new_tokens=60, max_tokens=60)
    callers = ThreadPoolExecutor(2)
    found = [callers.submit(server.post, CHAT, body) for _ in range(2)]
    stream = server.begin(CHAT, {**body, "stream": True})
    server.wait_for_metric("blip2rt_queue", 2)
    server.process.send_signal(signal.SIGTERM)
    with pytest.raises(OSError):
        server._wait(lambda: server.connect().close())
    assert [each.result(TIMEOUT).json["usage"]["completion_tokens"] for each in found] == [60] * 2
    assert b"[DONE]" in read_all(stream)
    assert server.process.wait(TIMEOUT) == 0 and not server.other_lines


def test_requests_are_accepted_until_the_drain(start: Start, small: bytes) -> None:
    """A load balancer needs some seconds to notice that /ready fails."""
    for delay in (2, 10, 60):  # seconds; on a busy machine, a short one passes too early
        server, begun = start("--drain-delay", delay), time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        try:
            server._wait(lambda server=server: server.get("/ready").status == 503)
            found = server.post("/v1/caption", {"image": encoded(small)})
        except (OSError, AssertionError):  # it has ended
            assert time.monotonic() - begun > delay
            continue
        assert found.status == 200 and server.process.wait(TIMEOUT) == 0 and time.monotonic() - begun > delay
        return
    pytest.fail("no request arrived within the delay")


def test_requests_are_aborted_after_the_drain(cat: bytes) -> None:
    server = ServerProcess("--parallel", 1, "--max-tokens", 900, "--threads", 1, "--drain", "0.2")
    body = chat(cat, min_new_tokens=900, max_tokens=900, stream=True)
    streams = [server.begin(CHAT, body) for _ in range(3)]
    assert streams[0].recv(100)
    assert server.stop() == 0
    received = [read_all(each) for each in streams]
    aborted = [re.search(rb'"code": ?"ending"', each) is not None for each in received]
    assert all(abort or b"[DONE]" in each for abort, each in zip(aborted, received, strict=True)) and aborted[-1]


# A text that takes a second, and is streamed. The penalty keeps it from a line's end, which would end it.
LONG = {"min_new_tokens": 150, "max_tokens": 150, "num_beams": 1, "repetition_penalty": 1.1}


def test_slow_bodies_time_out(limited: ServerProcess, small: bytes) -> None:
    """Meanwhile others are served."""
    head = b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n{"
    slow = [limited.connect(head) for _ in range(100)]
    begun = time.monotonic()
    assert limited.post("/v1/caption", {"image": encoded(small)}).status == 200
    while time.monotonic() - begun < 1.5:
        for each in slow:
            with contextlib.suppress(OSError):  # a busy machine may time out earlier
                each.sendall(b"X")
        time.sleep(0.5)
    for each in slow:
        assert each.recv(100).startswith(b"HTTP/1.1 408")
        each.close()
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("streamed", [False, True])
def test_disconnecting_ends_the_work(single: ServerProcess, cat: bytes, streamed: bool) -> None:
    single.wait_idle()
    begun = single.metric(PROCESSOR)
    assert single.post(CHAT, chat(cat, **LONG)).json["usage"]["completion_tokens"] == 150
    whole, gone = single.metric(PROCESSOR) - begun, single.metric("blip2rt_clients_gone_total")
    left = single.begin(CHAT, chat(cat, stream=streamed, **LONG))
    if streamed:
        assert left.recv(1000).startswith(b"HTTP/1.1 200")
    single.wait_for_metric("blip2rt_running", 1)
    left.close()
    begun = single.metric(PROCESSOR)
    single.wait_idle()
    assert single.metric(PROCESSOR) - begun < whole / 2
    single.wait_for_log("request", status=499, path=CHAT)
    single.wait_for_metric("blip2rt_clients_gone_total", gone + 1)


@pytest.mark.parametrize("count", [25, pytest.param(1000, marks=pytest.mark.slow)])
def test_abandoned_streams_leak_nothing(nano: ServerProcess, cat: bytes, count: int) -> None:
    psutil = pytest.importorskip("psutil")
    process, rng = psutil.Process(nano.process.pid), random.Random(new_seed())
    body = chat(cat, "what is it?", stream=True, max_tokens=20)
    for _ in range(10):
        nano.post(CHAT, body)
    nano.wait_idle()
    memory, threads, files = process.memory_info().rss, process.num_threads(), process.num_fds()
    for _ in range(count):
        with nano.begin(CHAT, body) as left, contextlib.suppress(TimeoutError):
            left.settimeout(rng.random() * 0.1)
            left.recv(rng.randint(1, 2000))
    nano.wait_idle()
    assert events(nano.post(CHAT, body).body)
    nano._wait(lambda: process.num_threads() <= threads + 8 and process.num_fds() <= files + 4)
    assert process.memory_info().rss - memory < 100e6
    assert nano.metric("blip2rt_body_bytes") == 0


def test_full_queue_rejects_requests(single: ServerProcess, cat: bytes) -> None:
    single.wait_idle()
    with single.begin(CHAT, chat(cat, stream=True, **LONG)) as running:
        assert running.recv(1000)
        with single.begin(CHAT, chat(cat, stream=True, **LONG)):
            single.wait_for_metric("blip2rt_queue", 1)
            refused = single.post(CHAT, chat(cat))
            assert refused.status == 429 and refused.error["type"] == "rate_limit_error"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert {single.get(path).status for path in ("/health", "/ready", "/v1/models")} == {200}
            assert single.post(CHAT, chat("Hi")).status == 200, "the greeting needs no slot"
        single.wait_for_metric("blip2rt_queue", 0)  # a client that leaves the queue is forgotten
    single.wait_idle()
    assert single.post(CHAT, chat(cat)).status == 200
    assert single.metric('blip2rt_refused_total{reason="queue"}') >= 1


@pytest.mark.parametrize("streamed", [False, True])
def test_requests_have_a_deadline(app, small, monkeypatch, streamed):
    monkeypatch.setattr("blip2rt.serve.service.generate", lambda *given: given[3].wait(TIMEOUT))  # until cancelled
    server = app("--parallel", 1, "--deadline", "0.1")
    late = server.post(CHAT, chat(small, stream=streamed))
    last = json.loads(late.body.decode().strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "deadline_exceeded" and (streamed or late.status == 504)


def test_parallel_callers_get_the_same_answers(nano: ServerProcess, model: Any, cat: bytes) -> None:
    expected = {question: model.ask(cat, question) for question in ("what animal is it?", "what colour is it?", "who?")}

    def answer(question: str) -> str:
        return str(nano.post(CHAT, chat(question, cat)).json["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(15) as callers:
        answers = list(callers.map(answer, list(expected) * 5))
    assert answers == list(expected.values()) * 5
