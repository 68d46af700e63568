"""Malformed, oversized and meaningless requests: each is rejected with a status and a message."""

import base64
import contextlib
import gzip
import json
import random
from typing import Any

import pytest
from PIL import Image

from blip2rt.serve.request_body import image_bytes
from tests.seeds import new_seed
from tests.serve.server_process import PHOTO, ServerProcess, chat, encoded, png, read_all

pytestmark = pytest.mark.long(10, "a real server process: it survives each bad request")


SEND = "send the picture as a data URI (data:image/jpeg;base64,...)"


def user(content: bytes) -> bytes:
    return b'{"messages": [{"role": "user", "content": %b}]}' % content


MALFORMED = [
    *(b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"messages": []}', b'{"messages": 3}', b"[" * 100_000, b"\0" * 100),
    *(b'{"a":' * 5000, b'{"messages": [{"role": "king", "content": "x"}]}', user(b"7"), user(b'"\\ud800"')),
    *map(user, (b'[{"type": "image_url"}]', b'[{"type": "image_url", "image_url": "photo.jpg"}]')),
    *(user(b'[{"type": "image_url", "image_url": {"url": "%b"}}]' % url) for url in (b"data:image/png", b"ftp://x/y")),
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/caption", "/v1/match", "/api/chat", "/blip2itm"])
def test_malformed_bodies_are_rejected(nano: ServerProcess, path: str) -> None:
    for body in MALFORMED:
        found = nano.post(path, body)
        if path == "/api/chat" and found.status == 200:
            assert body == b'{"messages": []}'  # Ollama: load the model
            continue
        assert found.status == 400 and found.message(path), (body[:80], found.body)
        assert path == "/api/chat" or found.error["type"] == "invalid_request_error"


def test_many_invalid_values_do_not_block_the_server(nano: ServerProcess) -> None:
    many = b",".join([b"3"] * (2 << 20))
    begun = nano.metric("process_cpu_seconds_total")
    for path, body in (
        ("/v1/chat/completions", user(b"[%b]")),
        ("/v1/match", b'{"image":"","texts":[%b]}'),
        ("/api/chat", b'{"format":{"a":[%b]}}'),
    ):
        found = nano.post(path, body % many)
        assert found.status == 400 and "commas and brackets: send fewer values" in found.message(path)
    assert nano.metric("process_cpu_seconds_total") - begun < 10
    long_chat = {"messages": [{"role": "user", "content": "Hi, a, b"}, {"role": "assistant", "content": "c"}] * 500}
    assert nano.post("/v1/chat/completions", long_chat).status == 200


def test_random_bytes_are_rejected_at_worst(nano: ServerProcess) -> None:
    rng = random.Random(new_seed())
    good = json.dumps(chat("who?", PHOTO.read_bytes()[:2000])).encode()
    for _ in range(25):
        body = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        sent = bytes(body[: rng.randrange(len(body))] if rng.random() < 0.3 else body)
        found = nano.post("/v1/chat/completions", sent)
        assert found.status in (200, 400), found.body


GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        GET + b"Bad Name: x\r\n\r\n",
        GET + b"X: " + b"x" * (32 << 20),
        GET + b"X: y\r\n" * 100_000,
        b"GET /" + b"x" * (1 << 20),
        CHUNKED + b"\r\n1\r\n{\r\n0\r\nX: " + b"x" * (32 << 20),
        b"\r\n" * (1 << 20),
        GET + b"X: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n" + GET + b"\r\n",
    ],
    ids=[
        *("garbage", "bad name", "long header", "many headers", "long URL", "long trailer", "empty lines"),
        *("whole long header", "whole long URL", "two lengths"),
    ],
)
def test_invalid_http_closes_the_connection(nano: ServerProcess, sent: bytes) -> None:
    with nano.connect() as caller:
        with contextlib.suppress(OSError):  # the server stops reading
            caller.sendall(sent)
        received = read_all(caller)
    assert received[:13] in (b"HTTP/1.1 400 ", b"")  # unread data may reset the connection
    assert received.count(b"HTTP/1.1 ") < 2


def test_compressed_bodies_are_named(nano: ServerProcess) -> None:
    found = nano.post("/v1/caption", gzip.compress(bytes(1 << 20), 0), Content_Encoding="gzip")
    assert found.status == 415 and found.error["message"] == "Content-Encoding is gzip: send the body uncompressed"


def test_large_headers_and_small_chunks_are_accepted(nano: ServerProcess, cat: bytes) -> None:
    assert nano.get("/health", X="x" * 60_000).status == 200
    body = json.dumps({"image": encoded(cat)}).encode()
    with nano.connect(CHUNKED + b"\r\n") as caller:
        caller.sendall(b"".join(b"1\r\n%c\r\n" % letter for letter in body) + b"0\r\nX: y\r\n\r\n")
        assert caller.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("chunked", [False, True])
def test_offers_to_upgrade_are_ignored(nano: ServerProcess, cat: bytes, chunked: bool) -> None:
    """As Java's client sends them. Two requests arrive in pieces, one behind the other."""
    rng = random.Random(new_seed())
    body = json.dumps({"image": encoded(cat), "num_beams": 1}).encode()
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAA\r\nUpgrade: h2c\r\n"
    sent = b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\n" + offer + length + b"\r\n\r\n" + framed
    sent += b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\n" + offer + b"Connection: close\r\n\r\n"
    with nano.connect() as caller:
        while sent:
            size = rng.choice([1, 7, 100, 5000, len(sent)])
            caller.sendall(sent[:size])
            sent = sent[size:]
        received = read_all(caller)
    assert received.count(b"HTTP/1.1 200 ") == 1 and received.count(b"HTTP/1.1 405 ") == 1, received[:500]
    assert nano.post("/v1/caption", body).json["caption"].encode() in received


def test_broken_forms_are_rejected(nano: ServerProcess) -> None:
    for kind, body in (
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"--b\r\nnonsense"),
        ("multipart/form-data; boundary=b", b"--another\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--"),
        ("multipart/form-data; boundary=b", b""),
    ):
        found = nano.post("/v1/caption", body, Content_Type=kind)
        assert found.status == 400 and found.error["message"], (body, found.body)
    assert nano.wait_for_log("Expected boundary", logger="python_multipart.multipart"), "the parser logs JSON, too"
    assert not nano.other_lines


def test_wrong_fields_are_named(nano: ServerProcess, cat: bytes) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="%b"; filename="x.jpg"\r\n\r\nx\r\n'
    found = nano.post_form("/v1/ask", part % b"image" * 2 + part % b"question" + b"--b--\r\n")
    assert found.status == 400 and found.error["message"] == "image: the form has it 2 times: send it once"
    for path, body, place in (
        ("/v1/caption", {"image": 3}, "image"),
        ("/v1/caption", {"image": "", "bad_words": {}}, "bad_words"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
    ):
        found = nano.post(path, body)
        assert found.status == 400 and found.error["param"] == place, found.body
        assert found.message(path).startswith(f"{place}: give a valid"), found.body
    body = {"image": encoded(cat), "min_new_tokens": 5, "max_new_tokens": 2}
    assert "min_new_tokens is 5, more than max_new_tokens, 2" in nano.post("/v1/caption", body).error["message"]
    for path, more, place in (
        ("/v1/ask", {"question": " "}, "question"),
        ("/v1/match", {"texts": ["?!"]}, "texts"),
        ("/v1/match", {}, "texts"),
        ("/blip2itm", {"txt": "?!"}, "txt"),
    ):
        found = nano.post(path, {"image": encoded(cat), **more})
        assert found.status == 400 and found.error["param"] == place


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("data:image/png,%41%41", "the data URI is not base64"),
        ("data:image/png;base64", "the image is empty"),
        ("data:text/html;base64,%41", "the image is not base64"),
        *((text, "the image is not base64") for text in ("photo.jpg!", "ä", "a", "gopher://127.0.0.1/")),
        *((text, "the image is empty") for text in ("", "====")),
        *((url, "URLs are not fetched") for url in ("HTTP://127.0.0.1/a.png", "https://a.org/a.png", "file:///etc/a")),
    ],
)
def test_pictures_are_bytes_or_base64(nano: ServerProcess, reference: str, message: str) -> None:
    content = [{"type": "image_url", "image_url": {"url": reference}}]
    for path, body, param in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": content}]}, "messages"),
        ("/v1/caption", {"image": reference}, "image"),
        ("/api/generate", {"prompt": "what is it?", "images": [reference]}, ""),
        ("/blip2itm", {"image": reference, "txt": "a"}, "image"),
    ):
        found = nano.post(path, body)
        assert found.status == 400 and found.message(path) == f"{message}: {SEND}", path
        assert not param or (found.error["code"], found.error["param"]) == ("invalid_image", param)


def test_base64_has_many_spellings() -> None:
    data = bytes(range(256))
    plain, urlsafe = (encode(data).decode() for encode in (base64.b64encode, base64.urlsafe_b64encode))
    texts = [plain, plain.rstrip("="), urlsafe, f" {plain[:99]}\r\n{plain[99:]}\n"]
    texts += [f"{start}{plain}" for start in ("DATA:image/jpg;charset=x;BASE64,", "data:;base64,")]
    assert {image_bytes(text, "image") for text in texts} == {data}


def test_unknown_paths_and_methods_are_rejected(nano: ServerProcess) -> None:
    assert nano.get("/nothing").error["message"] == "there is no /nothing: /docs lists all routes"
    assert nano.get("/v1/caption").status == 405 and nano.get("/v1/caption").error["code"] == "method_not_allowed"
    assert nano.get("/../pyproject.toml").status == nano.get("/v1/models/").status == 404
    assert nano.post("/v1/caption/", {}).error["code"] == "not_found"


@pytest.mark.parametrize("streamed", [False, True])
def test_limits_hold_without_an_image(nano: ServerProcess, streamed: bool) -> None:
    for more in ({"n": 150_000}, {"num_beams": 9}, {"stop": ["x"] * 17}, {"stop": "x" * 201}):
        found = nano.post("/v1/chat/completions", chat("Hi", **more, stream=streamed))
        assert found.status == 400 and found.error["type"] == "invalid_request_error", (more, found.body[:200])
    found = nano.post("/v1/chat/completions", chat("Hi there", n=8)).json
    assert len(found["choices"]) == 8 and found["usage"]["prompt_tokens"] == 2, "words: the model reads nothing"
    more = {"options": {"stop": ["x"] * 17}, "stream": streamed}
    assert nano.post("/api/chat", {"messages": [{"role": "user", "content": "Hi"}], **more}).status == 400
    assert nano.post("/api/generate", more).status == 400


def test_bodies_and_images_are_limited(limited: ServerProcess, small: bytes) -> None:
    for size in (60_000, 500_000):
        found = limited.post("/v1/caption", json.dumps({"image": "A" * size}).encode())
        assert found.status == 413 and found.error["code"] == "body_too_large"
    with limited.connect(CHUNKED + b"\r\n") as caller:
        caller.sendall((b"2000\r\n" + b"x" * 0x2000 + b"\r\n") * 10 + b"0\r\n\r\n")
        assert caller.recv(100).startswith(b"HTTP/1.1 413")
    large = encoded(png(Image.new("L", (101, 100))))
    message = limited.post("/v1/caption", {"image": large}).error["message"]
    assert "more than 10,000" in message and "--max-pixels N" in message
    assert limited.post("/v1/caption", {"image": encoded(small)}).status == 200
    assert limited.metric("blip2rt_body_bytes") == 0


def test_texts_are_limited(limited: ServerProcess, small: bytes) -> None:
    image: dict[str, Any] = {"image": encoded(small)}
    assert limited.post("/v1/ask", {**image, "question": "w" * 301}).error["code"] == "prompt_too_long"
    assert limited.post("/v1/ask", {**image, "question": "w" * 300}).status == 200
    half, long = "w " * 76, "w" * 301
    for path, body in (
        *(("/v1/caption", {name: long}) for name in ("prompt", "forced_prefix")),
        *(("/v1/caption", {name: [half, half]}) for name in ("bad_words", "stop_strings")),
        ("/v1/caption", {"prompt": half, "forced_prefix": half}),
        ("/v1/ask", {"question": half, "bad_words": half}),
        ("/v1/match", {"texts": [half, half]}),
        ("/blip2itm", {"txt": long}),
        ("/v1/chat/completions", chat(half, half)),
        ("/v1/chat/completions", chat(half, small, stop=[half])),
        ("/v1/chat/completions", {"messages": [{"role": "system", "content": long}]}),
        ("/api/generate", {"prompt": half, "options": {"stop": half}}),
        ("/api/chat", {"messages": [{"role": "user", "content": half}] * 2}),
        ("/api/chat", {"format": {"properties": {"image": {"description": long}}}}),
        ("/api/chat", {"format": {"properties": {long: {}}}}),
    ):
        found = limited.post(path, {**image, **body})
        assert found.status == 400 and "characters, and 300 are allowed" in found.message(path), (path, found.body)
    found = limited.post("/v1/caption", {**image, "bad_words": ["a"] * 257})
    assert found.error["message"].startswith("bad_words: give 256 strings at most")
