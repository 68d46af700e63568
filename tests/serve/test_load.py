"""Slow and disconnecting clients, a full queue, deadlines, and many callers."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.seeds import new_seed
from tests.serve.server_process import ServerProcess, chat, encoded, events

pytestmark = pytest.mark.long(12, "a real server under load: queues and deadlines need time")
CHAT = "/v1/chat/completions"
# A text that takes a second, and is streamed. The penalty keeps it from a line's end, which would end it.
LONG = {"min_new_tokens": 200, "max_tokens": 200, "num_beams": 1, "repetition_penalty": 1.1}


def test_slow_bodies_time_out(start: Callable[..., ServerProcess], cat: bytes) -> None:
    """Meanwhile others are served."""
    server = start("--body-seconds", 3)
    head = b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n{"
    slow = [server.connect(head) for _ in range(100)]
    begun = time.monotonic()
    assert server.post("/v1/caption", {"image": encoded(cat)}).status == 200
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
    begun = time.monotonic()
    assert single.post(CHAT, chat(cat, **LONG)).json["usage"]["completion_tokens"] == 200
    whole, gone = time.monotonic() - begun, single.metric("blip2rt_clients_gone_total")
    left = single.begin(CHAT, chat(cat, stream=streamed, **LONG))
    if streamed:
        assert left.recv(1000).startswith(b"HTTP/1.1 200")
    single.wait_for_metric("blip2rt_running", 1)
    left.close()
    begun = time.monotonic()
    single.wait_idle()
    assert time.monotonic() - begun < whole / 2
    single.wait_for_log("request", status=499, path=CHAT)
    single.wait_for_metric("blip2rt_clients_gone_total", gone + 1)


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
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
    assert process.num_threads() <= threads + 8 and process.num_fds() <= files + 4
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


def test_requests_have_a_deadline(cat: bytes) -> None:
    server = ServerProcess("--parallel", 1, "--max-tokens", 800, "--threads", 1, "--deadline", "0.1")
    late = server.post(CHAT, chat(cat, **LONG))
    assert late.status == 504 and late.error["code"] == "deadline_exceeded"
    streamed = server.post(CHAT, chat(cat, stream=True, **LONG))
    last = json.loads(streamed.body.decode().strip().split("\n\n")[-1].removeprefix("data: "))
    assert streamed.status == 504 or last["error"]["code"] == "deadline_exceeded"
    server.wait_idle()
    assert server.stop() == 0


def test_parallel_callers_get_the_same_answers(nano: ServerProcess, model: Any, cat: bytes) -> None:
    expected = {question: model.ask(cat, question) for question in ("what animal is it?", "what colour is it?", "who?")}

    def answer(question: str) -> str:
        return str(nano.post(CHAT, chat(question, cat)).json["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(15) as callers:
        answers = list(callers.map(answer, list(expected) * 5))
    assert answers == list(expected.values()) * 5
