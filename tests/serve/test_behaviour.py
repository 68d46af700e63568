"""What a server does under load, and to callers who are slow, wrong, gone or not meant."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from blip2rt.serve.gate import Gate
from blip2rt.serve.metrics import Metrics
from blip2rt.serve.settings import Access, Settings
from tests.seeds import new_seed
from tests.serve.running import PHOTO, ROOT, TIMEOUT, Response, Running, chat, data_uri, encoded, events

pytestmark = pytest.mark.long(25)

LONG = {"min_new_tokens": 200, "max_tokens": 200}  # a text that takes seconds


@pytest.fixture(scope="module")
def narrow() -> Iterator[Running]:
    """One request at a time, one that waits."""
    running = Running("--parallel", 1, "--max-queue", 1, "--threads", 1, "--deadline", TIMEOUT)
    yield running
    assert running.stop() == 0


def small(photo: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photo()).save(stream, "PNG")
    return stream.getvalue()


# Where it listens and who may call


def test_it_listens_on_this_machine_alone(nano: Running) -> None:
    assert nano.url.startswith("http://127.0.0.1:")
    own = [row[4][0] for row in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    for address in {address for address in own if not str(address).startswith("127.")}:
        with pytest.raises(OSError):
            socket.create_connection((str(address), nano.port), 2)


def test_a_key_opens_what_is_not_open_to_all(start: Callable[..., Running], photo: Any) -> None:
    server = start("--api-key", "first", env={"BLIP2RT_API_KEY": "second third"})
    for path in ("/", "/health", "/ready", "/docs", "/openapi.json"):
        assert server.get(path).status == 200, path
    body = {"image": encoded(small(photo))}
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "first"},
        {"Authorization": "Basic first"},
    ):
        refused = server.post("/v1/caption", body, **headers)
        assert refused.status == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert refused.error["code"] == "invalid_api_key" and refused.error["type"] == "authentication_error"
        tags = server.get("/api/tags", **headers)
        assert server.get("/metrics", **headers).status == tags.status == 401
        assert tags.ollama_error == refused.error["message"]
    for key in ("first", "second", "third"):
        assert server.post("/v1/caption", body, Authorization=f"Bearer {key}").status == 200
    assert server.get("/metrics", X_API_Key="first").status == 200
    assert not any("first" in json.dumps(line) for line in server.log)


def test_pages_of_others_may_not_call(nano: Running, start: Callable[..., Running]) -> None:
    assert nano.get("/v1/models", Origin="https://evil.example").error["code"] == "origin_not_allowed"
    assert nano.get("/v1/models", Origin=f"http://127.0.0.1:{nano.port}").status == 200
    assert "access-control-allow-origin" not in nano.get("/v1/models").headers
    server = start("--cors-origin", "https://ours.example")
    assert server.get("/v1/models", Origin="https://evil.example").status == 403
    found = server.get("/v1/models", Origin="https://ours.example")
    assert found.status == 200 and found.headers["access-control-allow-origin"] == "https://ours.example"
    asked = {"Origin": "https://ours.example", "Access-Control-Request-Method": "POST"}
    assert server.call("OPTIONS", "/v1/caption", None, asked).status == 200


def test_a_page_that_may_call_reads_why_it_was_refused(start: Callable[..., Running]) -> None:
    server = start("--cors-origin", "https://ours.example", "--api-key", "k", "--max-body", 100)
    ours, key = {"Origin": "https://ours.example"}, {"Authorization": "Bearer k"}
    for found, status in (
        (server.get("/v1/models", **ours), 401),
        (server.get("/v1/models", Host="evil.example", **ours), 403),
        (server.get("/nothing", **ours, **key), 404),
        (server.post("/v1/caption", b"{", **ours, **key), 400),
        (server.post("/v1/caption", b"x" * 101, **ours, **key), 413),
    ):
        assert found.status == status and found.error["message"]
        assert found.headers["access-control-allow-origin"] == "https://ours.example"
    for origin, method in (("https://evil.example", "POST"), ("https://ours.example", "DELETE")):
        asked = {"Origin": origin, "Access-Control-Request-Method": method}
        refused = server.call("OPTIONS", "/v1/caption", None, asked)
        assert refused.status == 403 and refused.error["code"] == "origin_not_allowed"


def test_a_strangers_name_for_this_machine_is_refused(nano: Running, start: Callable[..., Running]) -> None:
    """As a page does whose name server answers 127.0.0.1 the second time."""
    assert nano.get("/v1/models", Host="evil.example").error["code"] == "host_not_allowed"
    for host in ("localhost", "localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert nano.get("/v1/models", Host=host).status == 200
    assert start("--allow-host", "Cam.lan").get("/v1/models", Host="cam.lan:80").status == 200


def test_a_strangers_page_is_refused_wherever_the_server_listens() -> None:
    """Its name server may lead to any address of this network."""

    def refused(host: str, origin: str | None, **access: Any) -> str | None:
        gate = Gate(None, Settings("0.0.0.0", access=Access(**access)), Metrics(), None, None)  # type: ignore[arg-type]
        headers = {"host": host, **({} if origin is None else {"origin": origin})}
        scope = {"type": "http", "path": "/v1/search", "method": "POST"}
        fault = gate._refusal({**scope, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]})
        return fault and fault.code

    assert refused("evil.example:8000", "http://evil.example:8000") == "host_not_allowed"
    assert refused("evil.example", "http://evil.example", hosts=("box.lan",)) == "host_not_allowed"
    assert refused("evil.example", "http://evil.example", origins=("https://ours.example",)) == "host_not_allowed"
    assert refused("10.0.0.5", "http://evil.example") == "origin_not_allowed"
    assert refused("", "null") == "origin_not_allowed"
    for host in ("10.0.0.5:8000", "[fd00::5]:8000", "localhost:8000"):
        assert refused(host, f"http://{host}") is None
    assert refused("box.lan:8000", "http://box.lan:8000", hosts=("box.lan",)) is None
    assert refused("box.lan:8000", "https://ours.example", origins=("https://ours.example",)) is None
    assert refused("box.lan:8000", None) is None, "no page calls"


# What is wrong with a request


MALFORMED = [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"messages": []}', b'{"messages": 3}', b"[" * 100_000,
    b'{"messages": [{"role": "king", "content": "x"}]}', b'{"messages": [{"role": "user", "content": 7}]}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}], "n": 1}', b'{"a":' * 5000,
    b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', b"\0" * 100,
    b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png"}}]}]}',
    b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://x/y.png"}}]}]}',
    b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "photo.jpg"}]}]}',
]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/caption", "/v1/embeddings", "/api/chat", "/blip2itm"])
def test_a_malformed_body_is_a_mistake_of_the_caller(nano: Running, path: str) -> None:
    for body in MALFORMED:
        found = nano.post(path, body)
        if path == "/api/chat" and found.status == 200:
            assert body == b'{"messages": []}'  # which loads a model, there
            continue
        assert found.status == 400, (body[:80], found.body)
        assert found.told(path)
        assert path == "/api/chat" or found.error["type"] == "invalid_request_error"


def test_a_body_of_many_small_values_holds_nobody_up(nano: Running) -> None:
    """Two million mistakes, each of which was told; meanwhile the server answered nobody."""
    many = b",".join([b"3"] * (2 << 20))
    begun = time.monotonic()
    for path, body in (
        ("/v1/chat/completions", b'{"messages":[{"role":"user","content":[%b]}]}'),
        ("/v1/embeddings", b'{"input":[%b]}'), ("/v1/match", b'{"image":"","texts":[%b]}'),
        ("/api/chat", b'{"format":{"a":[%b]}}'),
    ):  # fmt: skip
        found = nano.post(path, body % many)
        assert found.status == 400 and "commas and brackets: send fewer values" in found.told(path)
    assert time.monotonic() - begun < 30
    chat_of_many = {"messages": [{"role": "user", "content": "a, b"}, {"role": "assistant", "content": "c"}] * 500}
    assert nano.post("/v1/chat/completions", chat_of_many).status == 200


def test_random_bytes_are_never_more_than_a_mistake(nano: Running) -> None:
    rng = random.Random(new_seed())
    good = json.dumps(chat("who?", PHOTO.read_bytes()[:2000])).encode()
    for _ in range(25):
        body = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        found = nano.post(
            "/v1/chat/completions", bytes(body[: rng.randrange(len(body))] if rng.random() < 0.3 else body)
        )
        assert found.status in (200, 400), found.body


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GARBAGE\r\n\r\n", 400, "invalid_http"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nBad Name: x\r\n\r\n", 400, "invalid_http"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 66_000 + b"\r\n\r\n", 431, "head_too_large"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 11_000 + b"\r\n", 431, "head_too_large"),
        (b"GET /" + b"x" * 66_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431, "head_too_large"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (32 << 20), 431, "head_too_large"),
        (b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX: "
         + b"x" * (32 << 20), 431, "head_too_large"),
        (b"\r\n" * (1 << 20), 431, "head_too_large"),
    ],
    ids=["no HTTP", "a bad name", "a header", "headers", "an address", "no end", "a trailer", "empty lines"],
)  # fmt: skip
def test_what_is_no_request_is_refused_in_the_one_format(nano: Running, sent: bytes, status: int, code: str) -> None:
    with socket.create_connection(("127.0.0.1", nano.port), TIMEOUT) as caller:
        with contextlib.suppress(OSError):  # the server has heard enough
            caller.sendall(sent)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := caller.recv(65536):
                received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status) and b"\r\nConnection: close" in head, received[:200]
    assert Response(status, {}, body).error["code"] == code


def test_what_is_large_but_allowed_is_read(nano: Running, cat: bytes) -> None:
    """A head of 60 KiB, and a body in small chunks."""
    assert nano.get("/health", X="x" * 60_000).status == 200
    body = json.dumps({"image": encoded(cat)}).encode()
    with socket.create_connection(("127.0.0.1", nano.port), TIMEOUT) as caller:
        caller.sendall(b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        caller.sendall(b"".join(b"1\r\n%c\r\n" % letter for letter in body) + b"0\r\nX: y\r\n\r\n")
        assert caller.recv(100).startswith(b"HTTP/1.1 200")


def test_an_upgrade_is_passed_over(nano: Running) -> None:
    found = nano.get("/v1/models", Connection="Upgrade", Upgrade="websocket", Sec_WebSocket_Version="13",
                     Sec_WebSocket_Key="AAAAAAAAAAAAAAAAAAAAAA==")  # fmt: skip
    assert found.status == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upgrade_is_passed_over_and_the_body_read(nano: Running, cat: bytes, chunked: bool) -> None:
    """As Java's client offers it. Two requests come in pieces, one behind the other."""
    rng = random.Random(new_seed())
    body = json.dumps({"image": encoded(cat), "num_beams": 1}).encode()
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAA\r\nUpgrade: h2c\r\n"
    sent = b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\n" + offer + length + b"\r\n\r\n" + framed
    sent += b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\n" + offer + b"Connection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", nano.port), TIMEOUT) as caller:
        while sent:
            size = rng.choice([1, 7, 100, 5000, len(sent)])
            caller.sendall(sent[:size])
            sent = sent[size:]
        received = b""
        while chunk := caller.recv(65536):
            received += chunk
    assert received.count(b"HTTP/1.1 200 ") == 1 and received.count(b"HTTP/1.1 405 ") == 1, received[:500]
    assert nano.post("/v1/caption", body).json["caption"].encode() in received


def test_empty_lines_keep_no_connection(start: Callable[..., Running]) -> None:
    with socket.create_connection(("127.0.0.1", start("--body-seconds", 3).port), TIMEOUT) as caller:
        caller.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert caller.recv(1000).startswith(b"HTTP/1.1 200")
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() < begun + 30:
                caller.sendall(b"\r\n")
                time.sleep(0.2)
        assert time.monotonic() < begun + 15


def test_a_form_that_is_broken_is_a_mistake(nano: Running) -> None:
    for kind, body in (("multipart/form-data", b"x"), ("multipart/form-data; boundary=b", b"--b\r\nnonsense"),
                       ("multipart/form-data; boundary=b", b"--another\r\n"),
                       ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--"),
                       ("multipart/form-data; boundary=b", b"")):  # fmt: skip
        found = nano.post("/v1/caption", body, Content_Type=kind)
        assert found.status == 400, (body, found.body)
        assert found.error["message"]
    assert nano.line("Expected boundary", logger="python_multipart.multipart"), "the parser logs, and in JSON"
    assert not nano.others


def test_a_field_that_comes_twice_or_of_another_type_is_named(nano: Running) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="%b"; filename="x.jpg"\r\n\r\nx\r\n'
    form = part % b"image" * 2 + part % b"question" + b"--b--\r\n"
    found = nano.post("/v1/ask", form, Content_Type="multipart/form-data; boundary=b")
    assert found.status == 400 and found.error["message"] == "image: the form has it 2 times: send it once"
    for path, body, place in (
        ("/v1/caption", {"image": 3}, "image"), ("/v1/caption", {"image": "", "bad_words": {}}, "bad_words"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ("/v1/embeddings", {"input": 7}, "input"), ("/api/embed", {"input": 3.5}, "input"),
    ):  # fmt: skip
        found = nano.post(path, body)
        assert found.status == 400 and (path == "/api/embed" or found.error["param"] == place), found.body
        assert found.told(path).startswith(f"{place}: Input should be a valid"), found.body
        assert "more)" not in found.told(path)


def test_what_is_not_there_says_so(nano: Running) -> None:
    assert nano.get("/nothing").error["message"] == "there is no /nothing: /docs lists what there is"
    assert nano.get("/v1/caption").status == 405 and nano.get("/v1/caption").error["code"] == "method_not_allowed"
    assert nano.get("/../pyproject.toml").status == nano.get("/v1/models/").status == 404
    assert nano.post("/v1/caption/", {}).error["code"] == "not_found"


def test_options_that_make_no_sense_are_named(nano: Running, cat: bytes) -> None:
    body = {"image": encoded(cat), "min_new_tokens": 5, "max_new_tokens": 2}
    assert "min_new_tokens is 5, more than max_new_tokens, 2" in nano.post("/v1/caption", body).error["message"]
    assert nano.post("/v1/ask", {"image": encoded(cat), "question": " "}).error["param"] == "question"
    assert nano.post("/v1/match", {"image": encoded(cat), "texts": ["?!"]}).error["param"] == "text"
    assert nano.post("/v1/match", {"image": encoded(cat)}).error["param"] == "text"


def test_options_are_the_librarys(nano: Running, model: Any, cat: bytes) -> None:
    drawn = {"do_sample": True, "seed": 5, "top_k": 9, "max_new_tokens": 5}
    for options in (drawn, {**drawn, "num_beams": 3}, {"early_stopping": "never", "max_new_tokens": 5}):
        for path, more, wanted in (
            ("/v1/caption", {}, model.caption(cat, **options)),
            ("/v1/ask", {"question": "who is it?"}, model.ask(cat, "who is it?", **options)),
        ):  # fmt: skip
            key = path.rpartition("/")[2].replace("ask", "answer")
            assert nano.post(path, {"image": encoded(cat), **more, **options}).json[key] == wanted, options
    assert model.caption(cat, **drawn) != model.caption(cat, max_new_tokens=5), "which tests nothing"
    part = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    fields = {"image": encoded(cat), **drawn, "early_stopping": "never"}
    form = b"".join(part % (name.encode(), str(value).encode()) for name, value in fields.items()) + b"--b--\r\n"
    found = nano.post("/v1/caption", form, Content_Type="multipart/form-data; boundary=b")
    assert found.json["caption"] == model.caption(cat, **drawn, early_stopping="never")
    for options, told in (
        ({"do_sample": False, "temperature": 0.7}, "temperature is 0.7, but tokens are not drawn"),
        ({"do_sample": True, "temperature": 0}, "temperature is 0.0: give a number above 0"),
        ({"early_stopping": "often"}, "early_stopping: "),
    ):
        refused = nano.post("/v1/caption", {"image": encoded(cat), **options})
        assert refused.status == 400 and refused.error["message"].startswith(told), refused.body


def test_a_text_that_time_has_ended_is_marked(nano: Running, cat: bytes) -> None:
    for path, more in (("/v1/caption", {}), ("/v1/ask", {"question": "what is it?"})):
        body = {"image": encoded(cat), "min_new_tokens": 9, "num_beams": 1, **more}
        found = nano.post(path, {**body, "max_time": 0})
        assert (found.json["finish_reason"], found.json["truncated"]) == ("time", True)
        assert found.json["usage"]["completion_tokens"] == 1
        last = events(nano.post(path, {**body, "max_time": 0, "stream": True}).body)[-1]
        assert (last["finish_reason"], last["truncated"]) == ("time", True)
        found = nano.post(path, {**body, "max_time": TIMEOUT, "min_new_tokens": 1, "max_new_tokens": 1})
        assert (found.json["finish_reason"], found.json["truncated"]) == ("length", True)
    found = nano.post("/v1/caption", {"image": encoded(cat)})
    assert (found.json["finish_reason"], found.json["truncated"]) == ("stop", False)
    found = nano.post("/v1/chat/completions", chat(cat, min_new_tokens=9, max_time=0))
    assert [each["finish_reason"] for each in found.json["choices"]] == ["length"]


def test_who_shows_nothing_has_options_checked_too(nano: Running) -> None:
    for more in ({"n": 150_000}, {"num_beams": 9}, {"min_new_tokens": 5, "max_tokens": 2}, {"stop": ["x"] * 17},
                 {"stop": "x" * 201}, {"top_k": 2**40, "temperature": 1}):  # fmt: skip
        for streamed in (False, True):
            found = nano.post("/v1/chat/completions", chat("Hi", **more, stream=streamed))
            assert found.status == 400 and found.error["type"] == "invalid_request_error", (more, found.body[:200])
    found = nano.post("/v1/chat/completions", chat("Hippopotamuses, hello", n=8)).json
    assert len(found["choices"]) == 8 and found["usage"]["prompt_tokens"] == 2, "words, for nothing is computed"
    for options in ({"top_k": 2**40, "temperature": 1}, {"stop": [""]}):
        body = {"messages": [{"role": "user", "content": "Hi"}], "options": options}
        assert nano.post("/api/chat", body).status == nano.post("/api/generate", {"options": options}).status == 400


def test_bodies_pixels_and_texts_are_bounded(start: Callable[..., Running], photo: Any) -> None:
    server = start("--max-body", "50K", "--max-pixels", 10_000, "--max-prompt", 300)
    image = small(photo)
    for size in (60_000, 500_000):
        found = server.post("/v1/caption", json.dumps({"image": "A" * size}).encode())
        assert found.status == 413 and found.error["code"] == "body_too_large"
    chunked = socket.create_connection(("127.0.0.1", server.port), TIMEOUT)
    chunked.sendall(b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(10):
        chunked.sendall(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
    chunked.sendall(b"0\r\n\r\n")
    assert chunked.recv(100).startswith(b"HTTP/1.1 413")
    chunked.close()
    large = io.BytesIO()
    Image.new("L", (101, 100)).save(large, "PNG")
    told = server.post("/v1/caption", {"image": encoded(large.getvalue())}).error["message"]
    assert "10,000" in told and told.endswith("scale it down first, or start the server with --max-pixels")
    assert server.post("/v1/ask", {"image": encoded(image), "question": "w" * 301}).error["code"] == "prompt_too_long"
    assert server.post("/v1/ask", {"image": encoded(image), "question": "w" * 300}).status == 200
    assert server.post("/v1/caption", {"image": encoded(image)}).status == 200
    shown, half, long = {"image": encoded(image)}, "w " * 76, "w" * 301
    for path, body in (
        ("/v1/caption", {"prompt": long}), ("/v1/caption", {"forced_prefix": long}),
        ("/v1/caption", {"bad_words": [half, half]}), ("/v1/caption", {"stop_strings": [half, half]}),
        ("/v1/caption", {"prompt": half, "forced_prefix": half}), ("/v1/ask", {"question": half, "bad_words": half}),
        ("/v1/match", {"text": half, "texts": [half]}), ("/blip2itm", {"txt": long}),
        ("/v1/embeddings", {"input": [half, half]}), ("/api/embed", {"input": long}),
        ("/v1/chat/completions", chat(half, half)), ("/v1/chat/completions", chat(half, image, stop=[half])),
        ("/v1/chat/completions", {"messages": [{"role": "system", "content": long}]}),
        ("/api/generate", {"prompt": half, "options": {"stop": half}}),
        ("/api/chat", {"messages": [{"role": "user", "content": half}] * 2}),
    ):  # fmt: skip
        found = server.post(path, {**shown, **body})
        assert found.status == 400 and "characters, and 300 are allowed" in found.told(path), (path, body, found.body)
    found = server.post("/v1/caption", {**shown, "bad_words": ["a"] * 257})
    assert found.error["message"].startswith("bad_words: give 256 strings at most")
    assert server.post("/v1/embeddings", {"input": data_uri(image)}).status == 200, "a picture is no text"
    found = server.post("/v1/embeddings", {"input": [data_uri(b"x")] * 65})
    assert found.error["message"] == "input: more than 64 pictures: send fewer"
    assert server.metric("blip2rt_body_bytes") == 0


# Who is slow, or leaves


def test_who_sends_a_byte_at_a_time_is_cut_off(start: Callable[..., Running], cat: bytes) -> None:
    """Heads and bodies have a time; meanwhile others are served."""
    server = start("--body-seconds", 12)
    slow = [socket.create_connection(("127.0.0.1", server.port), TIMEOUT) for _ in range(200)]
    begun = time.monotonic()
    for i, each in enumerate(slow):
        each.sendall(
            b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\n" + (b"Content-Length: 999\r\n\r\n{" if i % 2 else b"")
        )
    assert server.post("/v1/caption", {"image": encoded(cat)}).status == 200, "others are served"
    heads, bodies = slow[::2], slow[1::2]
    while time.monotonic() - begun < 1.5:
        for each in slow:
            with contextlib.suppress(OSError):  # a busy machine took its time for the heads
                each.sendall(b"X" if each in bodies else b"X: y\r\n")
        time.sleep(0.5)
    for each in heads:
        with contextlib.suppress(ConnectionResetError):
            assert each.recv(100) == b"", "after 4 seconds"
    for each in bodies:
        assert each.recv(100).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - begun < 60
    for each in slow:
        each.close()


def test_who_leaves_ends_the_work(narrow: Running, cat: bytes) -> None:
    narrow.settle()
    begun = time.monotonic()
    assert narrow.post("/v1/chat/completions", chat(cat, **LONG)).json["usage"]["completion_tokens"] == 200
    whole = time.monotonic() - begun
    for streamed in (True, False):
        left = narrow.open("/v1/chat/completions", chat(cat, stream=streamed, **LONG))
        if streamed:
            assert left.recv(1000).startswith(b"HTTP/1.1 200")
        else:
            while not narrow.metric("blip2rt_running"):
                time.sleep(0.01)
        left.close()
        begun = time.monotonic()
        narrow.settle()
        assert time.monotonic() - begun < whole / 2
        narrow.line("request", status=499, path="/v1/chat/completions")
    assert narrow.metric("blip2rt_clients_gone_total") >= 2


def test_who_leaves_the_queue_is_not_worked_for(narrow: Running, cat: bytes) -> None:
    narrow.settle()
    first = narrow.open("/v1/chat/completions", chat(cat, stream=True, **LONG))
    assert first.recv(1000)
    second = narrow.open("/v1/chat/completions", chat(cat, stream=True, **LONG))
    while not narrow.metric("blip2rt_queue"):
        time.sleep(0.01)
    second.close()
    while narrow.metric("blip2rt_queue"):
        time.sleep(0.01)
    first.close()
    narrow.settle()


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_streams_that_are_left_leave_nothing_behind(nano: Running, cat: bytes, count: int) -> None:
    """At random moments; places, threads and memory are as before."""
    psutil = pytest.importorskip("psutil")
    process, rng = psutil.Process(nano.process.pid), random.Random(new_seed())
    body = chat(cat, "what is it?", stream=True, max_tokens=20)
    for _ in range(10):
        nano.post("/v1/chat/completions", body)
    nano.settle()
    before, threads, files = process.memory_info().rss, process.num_threads(), process.num_fds()
    for _ in range(count):
        left = nano.open("/v1/chat/completions", body)
        left.settimeout(rng.random() * 0.1)
        with contextlib.suppress(TimeoutError):
            left.recv(rng.randint(1, 2000))
        left.close()
    nano.settle()
    assert events(nano.post("/v1/chat/completions", body).body), "it goes on"
    assert process.num_threads() <= threads + 8 and process.num_fds() <= files + 4
    assert process.memory_info().rss - before < 100e6
    assert nano.metric("blip2rt_body_bytes") == 0


def test_a_full_queue_sends_away(narrow: Running, cat: bytes) -> None:
    narrow.settle()
    busy = [narrow.open("/v1/chat/completions", chat(cat, stream=True, **LONG))]
    assert busy[0].recv(1000)
    busy.append(narrow.open("/v1/chat/completions", chat(cat, stream=True, **LONG)))
    while not narrow.metric("blip2rt_queue"):
        time.sleep(0.01)
    refused = narrow.post("/v1/chat/completions", chat(cat))
    assert refused.status == 429 and refused.error["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert narrow.get("/health").status == narrow.get("/ready").status == narrow.get("/v1/models").status == 200
    assert narrow.post("/v1/chat/completions", chat("Hi")).status == 200, "which computes nothing"
    for each in busy:
        each.close()
    narrow.settle()
    assert narrow.post("/v1/chat/completions", chat(cat)).status == 200
    assert narrow.metric('blip2rt_refused_total{reason="queue"}') >= 1


def test_a_request_has_a_deadline(cat: bytes) -> None:
    server = Running("--parallel", 1, "--max-tokens", 800, "--threads", 1, "--deadline", "0.1")
    late = server.post("/v1/chat/completions", chat(cat, **LONG))
    assert late.status == 504 and late.error["code"] == "deadline_exceeded"
    streamed = server.post("/v1/chat/completions", chat(cat, stream=True, **LONG))
    last = json.loads(streamed.body.decode().strip().split("\n\n")[-1].removeprefix("data: "))
    assert streamed.status == 504 or last["error"]["code"] == "deadline_exceeded"
    server.settle()
    assert server.stop() == 0


# Its beginning and its end


def test_it_answers_while_the_model_is_being_loaded(start: Callable[..., Running], photo: Any) -> None:
    server = start(held=True)
    image = encoded(small(photo))
    bodies = {
        "/v1/chat/completions": chat("Hi"), "/v1/embeddings": {"input": "a"}, "/v1/caption": {"image": image},
        "/v1/ask": {"image": image, "question": "who?"}, "/v1/match": {"image": image, "text": "a"},
        "/blip2itm": {"image": image, "txt": "a"}, "/api/generate": {"prompt": "Hi"}, "/api/chat": {"messages": []},
        "/api/embed": {"input": "a"},
    }  # fmt: skip
    for path, body in bodies.items():
        found = server.post(path, body)
        assert found.status == 503 and found.headers["retry-after"] == "2", path
        assert found.told(path) == "the model is being loaded: try again in a moment"
    found = server.get("/ready")
    assert found.status == 503 and found.json == {"status": "loading"} and found.headers["retry-after"] == "2"
    for path in ("/health", "/", "/metrics", "/v1/models", "/api/tags"):
        assert server.get(path).status == 200, path
    assert server.metric("blip2rt_ready") == 0
    server.release()
    server.wait_ready()
    assert server.get("/ready").json == {"status": "ready", "model": "tiny", "pictures": 0}
    assert {server.post(path, body).status for path, body in bodies.items()} == {200}


def test_a_bundle_that_is_none_ends_it_with_one_line(tmp_path: Any) -> None:
    words = [sys.executable, "-m", "blip2rt", "serve", "--port", "0", "--model", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("blip2rt: error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--max-body", "0"], "give a number of bytes, above 0"),
        (["--api-key", "a b"], "without spaces"),
        (["--host", "999.1.1.1"], "cannot listen at 999.1.1.1, port 0"),
    ],
)
def test_what_it_cannot_be_told_ends_it_with_one_line(tiny: Any, words: list[str], told: str) -> None:
    words = [sys.executable, "-m", "blip2rt", "serve", "--port", "0", "--model", str(tiny.path), *words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 2 and told in done.stderr and done.stderr.startswith("blip2rt"), done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_that_is_taken_ends_it(nano: Running, tiny: Any) -> None:
    words = [sys.executable, "-m", "blip2rt", "serve", "--port", str(nano.port), "--model", str(tiny.path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, cwd=ROOT)
    assert done.returncode == 2 and ": address already in use; choose others" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_told_to_end_while_the_model_is_being_loaded_it_ends_at_once(
    start: Callable[..., Running], how: signal.Signals, code: int
) -> None:
    server = start(held=True)
    server.process.send_signal(how)
    assert server.process.wait(TIMEOUT) == code, "it waits for the model"
    assert not server.others


def test_told_to_end_it_finishes_what_is_under_way(cat: bytes) -> None:
    server = Running("--parallel", 1, "--threads", 1, "--drain", TIMEOUT)
    body = chat(cat, min_new_tokens=60, max_tokens=60)
    found: list[Response] = []
    callers = [
        threading.Thread(target=lambda: found.append(server.post("/v1/chat/completions", body))) for _ in range(3)
    ]
    for each in callers:
        each.start()
    stream = server.open("/v1/chat/completions", {**body, "stream": True})
    while server.metric("blip2rt_queue") < 3:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    with pytest.raises(OSError):
        server.get("/health")  # nobody new is let in
    for each in callers:
        each.join(TIMEOUT)
    assert [each.json["usage"]["completion_tokens"] for each in found] == [60] * 3
    received = b""
    while chunk := stream.recv(65536):
        received += chunk
    assert b"[DONE]" in received
    assert server.process.wait(TIMEOUT) == 0 and not server.others


def test_what_takes_longer_than_the_drain_is_cut(cat: bytes) -> None:
    server = Running("--parallel", 1, "--max-tokens", 900, "--threads", 1, "--drain", "0.2")
    body = chat(cat, min_new_tokens=900, max_tokens=900, stream=True)
    streams = [server.open("/v1/chat/completions", body) for _ in range(6)]
    assert streams[0].recv(100)
    begun = time.monotonic()
    assert server.stop() == 0 and time.monotonic() - begun < 30
    ends = []
    for each in streams:
        received = b""
        while chunk := each.recv(65536):
            received += chunk
        ends.append("cut" if re.search(b'"code": ?"ending"', received) else "whole" if b"[DONE]" in received else "")
    assert all(ends) and ends[-1] == "cut", "each is told"


def test_ctrl_c_ends_it(start: Callable[..., Running]) -> None:
    assert start().stop(signal.SIGINT) == 130


# What it tells


def test_the_log_has_no_picture_and_no_words(start: Callable[..., Running], photo: Any) -> None:
    image = encoded(small(photo))
    silent, open_ = start(), start("--log-prompts")
    for server in (silent, open_):
        assert server.post("/v1/ask", {"image": image, "question": "is the secret dog here"}).status == 200
        line = server.line("request", path="/v1/ask")
        assert line["status"] == 200 and line["seconds"] > 0 and line["client"] == "127.0.0.1" and line["bytes"] > 100
        assert line["prompt_tokens"] > 3 and line["completion_tokens"] >= 0
        assert image[:40] not in json.dumps(server.log)
    assert "secret" not in json.dumps(silent.log)
    assert open_.line("request", path="/v1/ask")["question"] == "is the secret dog here"


def test_a_request_has_a_number(nano: Running) -> None:
    number = nano.get("/v1/models").headers["x-request-id"]
    assert nano.line("request", id=number)["path"] == "/v1/models"
    nano.get("/health")
    assert not [line for line in nano.log if line.get("path") in ("/health", "/ready")], "which are called all the time"


def test_the_metrics_count(start: Callable[..., Running], photo: Any) -> None:
    client = pytest.importorskip("prometheus_client.parser")
    server = start()
    body = {"image": encoded(small(photo)), "stream": True}
    usage = events(server.post("/v1/caption", body).body)[-1]["usage"]
    assert server.metric('blip2rt_tokens_total{kind="prompt"}') == usage["prompt_tokens"]
    assert server.metric('blip2rt_tokens_total{kind="completion"}') == usage["completion_tokens"]
    assert server.metric('blip2rt_requests_total{route="/v1/caption",status="200"}') == 1
    assert server.metric('blip2rt_request_seconds_count{route="/v1/caption"}') == 1
    assert server.metric("blip2rt_first_piece_seconds_count") == 1 and server.metric("blip2rt_ready") == 1
    for path in ("/x", "/y", "/v1/models/a", "/v1/models/b"):
        server.get(path)
    page = server.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(client.text_string_to_metric_families(page.body.decode()))
    routes = {sample.labels["route"] for each in families for sample in each.samples if "route" in sample.labels}
    assert routes <= {"/v1/caption", "/v1/models/{name}", "/ready", "/metrics", "other"}, "a stranger adds none"


def test_the_api_is_described(nano: Running) -> None:
    document = nano.get("/openapi.json").json
    assert document["openapi"].startswith("3.") and "/v1/chat/completions" in document["paths"]
    for name in json.dumps(document).split('"#/components/schemas/')[1:]:
        assert name.partition('"')[0] in document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method in methods:
            found = nano.call(method.upper(), path.replace("{name}", "nano"), b"{}" if method == "post" else None, {})
            assert found.status != 404 and found.status != 405, path
    page = nano.get("/docs")
    assert page.status == 200 and "http" not in page.body.decode().split("<body>")[0], "nothing is fetched"


def test_the_page_is_one_file_that_fetches_nothing(nano: Running) -> None:
    page = nano.get("/")
    text = page.body.decode()
    assert page.headers["content-type"].startswith("text/html") and "<video" in text
    assert "http://" not in text and "https://" not in text and 'src="' not in text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy


def test_callers_at_the_same_time_get_what_they_get_alone(nano: Running, model: Any, cat: bytes) -> None:
    wanted = {question: model.ask(cat, question) for question in ("what animal is it?", "what colour is it?", "who?")}
    found: list[tuple[str, str]] = []

    def call(question: str) -> None:
        answer = nano.post("/v1/chat/completions", chat(question, cat)).json
        found.append((question, answer["choices"][0]["message"]["content"]))

    callers = [threading.Thread(target=call, args=(question,)) for question in list(wanted) * 5]
    for each in callers:
        each.start()
    for each in callers:
        each.join(TIMEOUT)
    assert len(found) == 15 and all(wanted[question] == answer for question, answer in found)


@pytest.mark.slow
def test_64_callers_for_a_minute(cat: bytes) -> None:
    """All are answered or told to come again, and memory does not grow."""
    psutil = pytest.importorskip("psutil")
    server = Running()
    process, end, lock = psutil.Process(server.process.pid), time.monotonic() + 60, threading.Lock()
    found: list[int] = []
    bodies: list[tuple[str, Any]] = [
        ("/v1/chat/completions", chat(cat, "what is it?", stream=True)),
        ("/v1/caption", {"image": encoded(cat)}),
        ("/v1/match", {"image": encoded(cat), "text": "a cat"}),
        ("/api/generate", {"images": [encoded(cat)]}),
    ]

    def call(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < end:
            answer = server.post(*rng.choice(bodies))
            with lock:
                found.append(answer.status)
            if answer.status == 429:
                time.sleep(1)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(64)]
    for each in callers:
        each.start()
    time.sleep(20)
    early = process.memory_info().rss
    for each in callers:
        each.join(TIMEOUT)
    assert set(found) <= {200, 429} and found.count(200) > 64
    assert process.memory_info().rss < 1.1 * early + 50e6
    assert server.metric("blip2rt_body_bytes") == server.metric("blip2rt_running") == 0
    assert server.stop() == 0 and not server.others


def test_the_uri_of_a_picture_may_be_written_in_many_ways(nano: Running, cat: bytes) -> None:
    caption = nano.post("/v1/caption", {"image": data_uri(cat)}).json["caption"]
    plain = encoded(cat)
    lines = "\n".join(plain[i : i + 76] for i in range(0, len(plain), 76))
    for written in (plain, lines, plain.rstrip("="), plain.replace("+", "-").replace("/", "_"),
                    f"DATA:image/jpg;charset=x;BASE64,{plain}", f"data:;base64,{plain}"):  # fmt: skip
        assert nano.post("/v1/caption", {"image": written}).json["caption"] == caption
