"""Our own routes, and curl calling them; search in an index; other base URLs, chats without pictures, wrong fields."""

import base64
import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import blip2rt
from blip2rt.errors import GalleryError
from blip2rt.gallery import Index
from blip2rt.serve.service import count_indexed
from tests.serve.server_process import (
    CAT,
    PHOTO,
    TIMEOUT,
    AppClient,
    ServerProcess,
    chat,
    encoded,
    events,
    index_of,
    parts,
    png,
)

pytestmark = pytest.mark.long(12, "a real server process: every route over a socket")
SAMPLED = {"do_sample": True, "seed": 5, "top_k": 9, "max_new_tokens": 5}


@pytest.mark.parametrize(
    "options", [SAMPLED, {**SAMPLED, "num_beams": 3}, {"early_stopping": "never", "max_new_tokens": 5}]
)
def test_options_have_the_librarys_meaning(nano: ServerProcess, model: Any, cat: bytes, options: Any) -> None:
    image = {"image": encoded(cat)}
    assert nano.post("/v1/caption", {**image, **options}).json["caption"] == model.caption(cat, **options)
    asked = nano.post("/v1/ask", {**image, "question": "who is it?", **options})
    assert asked.json["answer"] == model.ask(cat, "who is it?", **options)
    part = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    fields = {**image, **options}
    form = b"".join(part % (name.encode(), str(value).encode()) for name, value in fields.items()) + b"--b--\r\n"
    assert nano.post_form("/v1/caption", form).json["caption"] == model.caption(cat, **options)


def test_contradictory_options_are_rejected(nano: ServerProcess, cat: bytes) -> None:
    for options, message in (
        ({"do_sample": False, "temperature": 0.7}, "temperature is 0.7, but "),
        ({"do_sample": True, "temperature": 0}, "temperature is 0.0: "),
        ({"early_stopping": "often"}, "early_stopping: "),
    ):
        refused = nano.post("/v1/caption", {"image": encoded(cat), **options})
        assert refused.status == 400 and refused.error["message"].startswith(message), refused.body


@pytest.mark.parametrize(("path", "more"), [("/v1/caption", {}), ("/v1/ask", {"question": "what is it?"})])
def test_max_time_marks_the_text_as_truncated(nano: ServerProcess, cat: bytes, path: str, more: Any) -> None:
    def ended(**options: Any) -> tuple[str, bool]:
        body = {"image": encoded(cat), "min_new_tokens": 9, "num_beams": 1, **more, **options}
        found = nano.post(path, body)
        answer = events(found.body)[-1] if options.get("stream") else found.json
        assert options["max_time"] > 1 or answer["usage"]["completion_tokens"] == 1
        return answer["finish_reason"], answer["truncated"]

    assert ended(max_time=1e-9) == ended(max_time=1e-9, stream=True) == ("time", True)
    assert ended(max_time=TIMEOUT, min_new_tokens=1, max_new_tokens=1) == ("length", True)
    assert ended(max_time=TIMEOUT, min_new_tokens=1) == ("stop", False)
    found = nano.post("/v1/chat/completions", chat(cat, min_new_tokens=9, max_time=1e-9))
    assert [each["finish_reason"] for each in found.json["choices"]] == ["length"]


def test_blip2itm_returns_the_cosine(nano: ServerProcess, model: Any, cat: bytes) -> None:
    for text in ("a cat", "Seems like there is a couch ahead."):
        found = nano.post("/blip2itm", {"image": encoded(cat), "txt": text}).json
        assert set(found) == {"response"}
        cosine = (model.embed_image(cat) @ model.embed_text(text)).max()
        assert math.isclose(found["response"], cosine, abs_tol=1e-6)
        # match() encodes several phrases at once; a product of more rows adds in another order, and int8 rounds that.
        assert math.isclose(cosine, model.match(cat, text).cosine, abs_tol=2e-3)


def test_matches_equal_the_librarys(nano: ServerProcess, model: Any, cat: bytes) -> None:
    texts = ["a cat", "a dog in the snow", "a cat on a red sofa", "two men", "a street"] * 2  # more than a batch
    found = nano.post("/v1/match", {"image": encoded(cat), "texts": texts}).json["matches"]
    matches = sorted(zip(texts, model.match(cat, texts), strict=True), key=lambda pair: -pair[1].score)
    for row, (text, match) in zip(found, matches, strict=True):
        assert row.pop("text") == text
        assert row == {name: pytest.approx(value, abs=0.02) for name, value in asdict(match).items()}


def curl(*arguments: str, data: bytes | None = None) -> bytes:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    return subprocess.run([program, "-sS", *arguments], input=data, stdout=subprocess.PIPE, check=True).stdout


def test_curl_sends_forms_and_json(nano: ServerProcess, model: Any, cat: bytes) -> None:
    def form(path: str, *fields: str) -> Any:
        flags = [flag for field in (f"image=@{CAT}", *fields) for flag in ("-F", field)]
        return json.loads(curl(*flags, f"{nano.url}{path}"))

    assert form("/v1/caption")["caption"] == model.caption(cat)
    for question in ("what animal is it?", "WHAT colr is teh cat"):
        asked = form("/v1/ask", f"question={question}", "num_beams=1")
        assert asked["answer"] == model.ask(cat, question, num_beams=1)
    matched = form("/v1/match", "texts=a dog", "texts=a cat")
    assert [each["text"] for each in matched["matches"]] == ["a cat", "a dog"]
    body = json.dumps({"model": "nano", "images": [encoded(cat)], "stream": False}).encode()
    assert json.loads(curl("-d", "@-", f"{nano.url}/api/generate", data=body))["response"] == model.caption(cat)
    body = json.dumps({"image": encoded(cat), "stream": True}).encode()
    *pieces, last = events(curl("-N", "-d", "@-", f"{nano.url}/v1/caption", data=body))
    assert "".join(piece["text"] for piece in pieces) == last["caption"] == model.caption(cat)


def test_tags_are_those_of_the_library(nano: ServerProcess, model: Any, cat: bytes) -> None:
    for body in ({"labels": ["animal|cat", "dog", "bed"], "threshold": 0.01}, {"top": 2, "threshold": 0}):
        found = nano.post("/v1/tags", {"image": encoded(cat), **body}).json["tags"]
        want = model.tag(cat, **body)
        assert [each["label"] for each in found] == want and [each["parents"] for each in found] == [
            list(tag.parents) for tag in want
        ]
        probabilities = [tag.probability for tag in want]
        assert [each["probability"] for each in found] == pytest.approx(probabilities, abs=1e-4)
    for wrong, word in (({"labels": ["?"]}, "'?' is no label"), ({"top": 0}, "top"), ({"threshold": 2}, "threshold")):
        refused = nano.post("/v1/tags", {"image": encoded(cat), **wrong})
        assert refused.status == 400 and word in refused.error["message"], refused.body


def test_a_caption_has_its_confidence_on_request(nano: ServerProcess, model: Any, cat: bytes) -> None:
    found = nano.post("/v1/caption", {"image": encoded(cat), "scores": True}).json
    assert found["confidence"] == pytest.approx(model.caption(cat, scores=True).confidence, abs=1e-4)
    assert "confidence" not in nano.post("/v1/caption", {"image": encoded(cat)}).json


def test_existence_questions_are_judged(nano: ServerProcess, cat: bytes) -> None:
    asked = {"image": encoded(cat), "question": "Is there a cat in the picture?"}
    assert nano.post("/v1/ask", asked).json["answer"] == "yes"
    assert events(nano.post("/v1/ask", {**asked, "stream": True}).body)[0]["text"] == "yes"
    answer = nano.post("/v1/chat/completions", chat(cat, "Is there an elephant?", max_tokens=1)).json["choices"][0]
    assert answer["message"]["content"] == "no" and answer["finish_reason"] == "stop"


LATIN = os.fsdecode(b"caf\xe9.png") if sys.platform == "linux" else "cafe.png"  # a name that is not UTF-8


@pytest.fixture
def index(tiny: Any, tmp_path: Path, photo: Any) -> Path:
    """Five random pictures and the photograph."""
    pictures = {f"{i}.png": png(photo(40, 300)) for i in range(4)}
    return index_of(tiny, tmp_path, {**pictures, LATIN: png(photo(40, 300)), "photo.jpg": PHOTO.read_bytes()})


def test_pictures_are_found_by_text_and_by_picture(index: Path, tiny: Any, app: Callable[..., AppClient]) -> None:
    server = app("--index", index)

    def search(**body: Any) -> Any:
        return server.post("/v1/search", body).json["hits"]

    assert server.get("/ready").json["pictures"] == 6
    found = search(text="a dog runs", n=6)
    with Index.open(index, blip2rt.load(tiny.path)) as opened:
        expected = opened.search("a dog runs", 6)
    names = [os.fsencode(hit.name).decode("utf-8", "backslashreplace") for hit in expected]  # JSON is UTF-8
    assert [hit["name"] for hit in found] == names
    assert [hit["score"] for hit in found] == pytest.approx([hit.score for hit in expected])
    for hit in found:
        data = base64.b64decode(hit["thumbnail"].removeprefix("data:image/jpeg;base64,"))
        assert max(Image.open(io.BytesIO(data)).size) <= 256
    [similar] = search(image=encoded(PHOTO.read_bytes()), n=1, thumbnails=False)
    assert similar["name"] == "photo.jpg" and "thumbnail" not in similar
    assert all(0 <= hit["probability"] <= 1 for hit in search(text="a dog", n=2, rerank=4))
    for body in ({}, {"text": "a", "image": "b"}, {"text": "?!"}, {"text": "a", "n": 0}, {"image": "x", "rerank": 3}):
        assert server.post("/v1/search", body).status == 400, body
    assert str(index) not in server.post("/v1/search", {"text": "a dog"}).body.decode(), "no path of this machine"
    with pytest.raises(GalleryError, match="'tiny'"):
        count_indexed(index, blip2rt.load())
    server = app()
    assert server.post("/v1/search", {"text": "a"}).error["code"] == "no_index"
    assert server.get("/ready").json["pictures"] == 0


def test_base_urls(nano: ServerProcess, model: Any, cat: bytes) -> None:
    package = pytest.importorskip("openai")
    messages = [{"role": "user", "content": parts(cat)}]
    clients = [package.OpenAI(base_url=f"{nano.url}{path}", api_key="none") for path in ("", "/v1/v1")]
    for client in clients:
        found = client.chat.completions.create(model="nano", messages=messages)
        assert found.choices[0].message.content == model.caption(cat)
    assert [each.id for each in clients[0].models.list()] == ["nano"] == [clients[0].models.retrieve("nano").id]
    assert pytest.importorskip("ollama").Client(host=f"{nano.url}/v1").list().models[0].model == "nano:latest"
    assert nano.get("/v1/nothing").status == nano.get("/nothing").status == 404


def test_fields_that_say_no_limit(nano: ServerProcess, model: Any, cat: bytes) -> None:
    body = {"messages": [{"role": "user", "content": parts(cat)}], "max_tokens": -1, "stop": ""}
    assert nano.post("/v1/chat/completions", body).json["choices"][0]["message"]["content"] == model.caption(cat)
    assert nano.post("/v1/chat/completions", {**body, "max_tokens": 0}).error["param"] == "max_tokens"


@pytest.mark.parametrize("text", ["Create a title for: a dog runs on grass", "What is the capital of France?"])
def test_requests_without_a_picture(nano: ServerProcess, text: str) -> None:
    """Only a greeting gets a reply; a fixed text is never the answer to anything else."""
    found = nano.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]})
    assert found.status == 400 and found.error["code"] == "image_missing" and "send one" in found.error["message"]
    assert nano.post("/api/generate", {"prompt": text}).status == 400
    for greeting in ("Hi", "hello there!", "test", ""):
        assert nano.post("/v1/chat/completions", {"messages": [{"role": "user", "content": greeting}]}).status == 200


def test_every_wrong_field_is_named(nano: ServerProcess, cat: bytes) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": 5}]}]
    found = nano.post("/v1/chat/completions", {"messages": messages, "temperature": "warm", "n": 0})
    message = found.error["message"]
    assert found.status == 400 and found.error["param"] == "messages.0.content.0.text", message
    for part in ("messages.0.content.0.text: give a valid string", "temperature: give a valid", "n: give a value"):
        assert part in message
    assert encoded(cat)[:20] not in message
