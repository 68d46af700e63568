"""Our own routes, and curl calling them and Ollama's."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from dataclasses import asdict
from typing import Any

import pytest

from tests.serve.server_process import CAT, TIMEOUT, ServerProcess, chat, encoded, events

pytestmark = pytest.mark.long(8, "a real server process: every route over a socket")
SAMPLED = {"do_sample": True, "seed": 5, "top_k": 9, "max_new_tokens": 5}


@pytest.mark.parametrize("options", [SAMPLED, {**SAMPLED, "num_beams": 3}, {"early_stopping": "never"}])
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
        assert math.isclose(found["response"], model.match(cat, text).cosine, abs_tol=1e-6)


def test_matches_equal_the_librarys(nano: ServerProcess, model: Any, cat: bytes) -> None:
    texts = ["a cat", "a dog in the snow", "a cat on a red sofa", "two men", "a street"] * 2
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
    asked = form("/v1/ask", "question=what animal is it?", "num_beams=1")
    assert asked["answer"] == model.ask(cat, "what animal is it?", num_beams=1)
    matched = form("/v1/match", "text=a dog", "text=a cat")
    assert [each["text"] for each in matched["matches"]] == ["a cat", "a dog"]
    body = json.dumps({"model": "nano", "images": [encoded(cat)], "stream": False}).encode()
    assert json.loads(curl("-d", "@-", f"{nano.url}/api/generate", data=body))["response"] == model.caption(cat)
    body = json.dumps({"image": encoded(cat), "stream": True}).encode()
    *pieces, last = events(curl("-N", "-d", "@-", f"{nano.url}/v1/caption", data=body))
    assert "".join(piece["text"] for piece in pieces) == last["caption"] == model.caption(cat)


def test_tags_are_those_of_the_library(nano: ServerProcess, model: Any, cat: bytes) -> None:
    for body in ({}, {"labels": ["animal|cat", "dog", "bed"], "threshold": 0.01}, {"top": 2, "threshold": 0}):
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
