"""Clients of others, as they are: the packages of OpenAI and Ollama, curl, and what home automation sends."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip2rt.serve.faults import Fault
from blip2rt.serve.ollama import _Shape
from blip2rt.serve.openai import NO_JSON
from blip2rt.text import tidy
from tests.serve.running import PHOTO, Running, data_uri, encoded

pytestmark = pytest.mark.long(15)

HELLO = "Hello! Send me a picture"


@pytest.fixture(scope="module")
def openai(nano: Running) -> Any:
    return pytest.importorskip("openai").OpenAI(base_url=f"{nano.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def ollama(nano: Running) -> Any:
    return pytest.importorskip("ollama").Client(host=nano.url)


def shown(*parts: Any) -> list[dict[str, Any]]:
    """Messages of OpenAI's: strings are texts, bytes are pictures."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else
               {"type": "image_url", "image_url": {"url": data_uri(part)}} for part in parts]  # fmt: skip
    return [{"role": "user", "content": content}]


# The package openai


def test_openai_captions_and_answers_as_the_library_does(openai: Any, model: Any, cat: bytes) -> None:
    for parts, wanted in (((cat,), model.caption(cat)), (("Describe this image.", cat), model.caption(cat)),
                          (("What animal is it?", cat), model.ask(cat, "What animal is it?"))):  # fmt: skip
        found = openai.chat.completions.create(model="nano", messages=shown(*parts))
        assert found.choices[0].message.content == wanted and found.choices[0].finish_reason == "stop"
        assert found.object == "chat.completion" and found.model == "nano" and found.id.startswith("chatcmpl-")


def test_openai_streams(openai: Any, model: Any, cat: bytes) -> None:
    stream = openai.chat.completions.create(
        model="nano", messages=shown(cat), stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == model.caption(cat, num_beams=1) == "".join(model.stream(cat))
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) > 3, "it comes in pieces"
    assert chunks[-1].choices[0].finish_reason == "stop" and last.choices == []
    whole = openai.chat.completions.create(model="nano", messages=shown(cat), extra_body={"num_beams": 1})
    assert last.usage == whole.usage and whole.choices[0].message.content == text


def test_openai_counts_real_tokens(openai: Any, model: Any, cat: bytes) -> None:
    seen: list[int] = []
    wanted = model.ask(cat, "who is it?", num_beams=1, on_token=lambda image, draw, token: seen.append(token))
    found = openai.chat.completions.create(model="nano", messages=shown(cat, "who is it?"), extra_body={"num_beams": 1})
    language = model.pipeline.language
    read = len(language.encode(language.ask_prompt("who is it?"))) + language._spec.prefix_length
    written = [token for token in seen if token not in language._spec.eos_token_ids]
    assert found.choices[0].message.content == wanted
    assert found.usage.prompt_tokens == read and found.usage.completion_tokens == len(written)
    assert found.usage.total_tokens == read + len(written)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_openai_ends_at_a_length(openai: Any, model: Any, cat: bytes, name: str) -> None:
    found = openai.chat.completions.create(model="nano", messages=shown(cat), **{name: 3})
    assert found.choices[0].finish_reason == "length" and found.usage.completion_tokens == 3
    assert found.choices[0].message.content == model.caption(cat, max_new_tokens=3)
    far = openai.chat.completions.create(model="nano", messages=shown(cat), **{name: 100_000})
    assert far.choices[0].finish_reason == "stop", "more than fits is no mistake"


@pytest.mark.parametrize("streamed", [False, True])
def test_openai_stops_before_a_word(openai: Any, model: Any, cat: bytes, streamed: bool) -> None:
    whole = model.caption(cat, num_beams=1)
    stop = whole.split()[3]
    found = openai.chat.completions.create(
        model="nano", messages=shown(cat), stop=[stop, "zebra"], stream=streamed, extra_body={"num_beams": 1}
    )
    if streamed:
        chunks = list(found)
        text, finish = "".join(c.choices[0].delta.content or "" for c in chunks), chunks[-1].choices[0].finish_reason
    else:
        text, finish = found.choices[0].message.content, found.choices[0].finish_reason
    assert text.rstrip() == whole.partition(stop)[0].rstrip() and finish == "stop"


def test_openai_samples_by_a_seed(openai: Any, cat: bytes) -> None:
    def draw(**options: Any) -> list[str]:
        found = openai.chat.completions.create(model="nano", messages=shown(cat), **options)
        assert [choice.index for choice in found.choices] == list(range(len(found.choices)))
        return [choice.message.content for choice in found.choices]

    first = draw(temperature=1.3, top_p=0.9, seed=7, n=3)
    assert first == draw(temperature=1.3, top_p=0.9, seed=7, n=3) and len(first) == 3
    assert any(draw(temperature=1.3, top_p=0.9, seed=seed, n=3) != first for seed in (8, -9))
    assert draw(temperature=0) == draw(), "nothing is drawn"
    stream = openai.chat.completions.create(
        model="nano", messages=shown(cat), temperature=1.3, top_p=0.9, seed=7, n=3, stream=True
    )
    texts = ["", "", ""]
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert [*map(tidy, texts)] == first, "a whole caption is tidied"


def test_openai_gives_the_best_of_several(openai: Any, model: Any, cat: bytes) -> None:
    found = openai.chat.completions.create(model="nano", messages=shown(cat), n=2)
    assert [choice.message.content for choice in found.choices] == model.caption(cat, num_captions=2, num_beams=3)


def test_openai_goes_on_from_what_was_said(openai: Any, model: Any, cat: bytes) -> None:
    """The conversation that is sent again reads as the library's chat does."""
    chat = model.chat(cat, num_beams=1)
    questions = ["What animal is it?", "What colour is it?", "Where is it?"]
    messages: list[dict[str, Any]] = [{"role": "system", "content": "You are a pirate."}]
    for i, question in enumerate(questions):
        messages += shown(cat, question) if i == 0 else [{"role": "user", "content": question}]
        found = openai.chat.completions.create(model="nano", messages=messages, extra_body={"num_beams": 1})
        assert found.choices[0].message.content == chat.ask(question)
        messages.append({"role": "assistant", "content": found.choices[0].message.content})


def test_openai_lists_models(openai: Any) -> None:
    assert [each.id for each in openai.models.list()] == ["nano"]
    assert openai.models.retrieve("nano").owned_by == "blip2rt"
    with pytest.raises(pytest.importorskip("openai").NotFoundError, match="no model 'gpt-9'"):
        openai.models.retrieve("gpt-9")


def test_openai_embeds_texts_and_pictures(openai: Any, model: Any, cat: bytes) -> None:
    inputs = ["a cat on a towel", "two men play tennis", data_uri(cat)]
    found = openai.embeddings.create(model="nano", input=inputs)  # the package asks for base64
    vectors = np.array([each.embedding for each in found.data])
    np.testing.assert_allclose(vectors[:2], model.embed_text(inputs[:2]), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[2] @ vectors[0] > vectors[2] @ vectors[1]
    plain = openai.embeddings.create(model="nano", input=inputs[0], encoding_format="float")
    np.testing.assert_allclose(plain.data[0].embedding, model.embed_text(inputs[0]), atol=1e-6)
    assert plain.usage.prompt_tokens == 7  # [CLS] a cat on a towel [SEP]


def test_openai_gets_errors_of_its_own_kinds(openai: Any, cat: bytes) -> None:
    package = pytest.importorskip("openai")
    create = openai.chat.completions.create
    for more, message in (({"response_format": {"type": "json_object"}}, "json_object is not supported"),
                          ({"temperature": 9}, "temperature: Input should be less than or equal to 2"),
                          ({"tool_choice": "required", "tools": []}, "calls no tools"),
                          ({"n": 1000}, "n is 1000: give 8 at most"),
                          ({"stop": ["a"] * 17}, "stop: give 16")):  # fmt: skip
        with pytest.raises(package.BadRequestError, match=message):
            create(model="nano", messages=shown(cat), **more)
    with pytest.raises(package.BadRequestError, match="is not an image: give one of") as raised:
        create(model="nano", messages=shown(b"no image at all"))
    assert raised.value.code == "invalid_image" and raised.value.type == "invalid_request_error"
    with pytest.raises(package.BadRequestError, match="a part of type 'input_audio' cannot be read"):
        create(model="nano", messages=[{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}])


# The package ollama


def test_ollama_generates(ollama: Any, model: Any, cat: bytes) -> None:
    found = ollama.generate(model="nano", prompt="Describe the image.", images=[cat])
    assert found.response == model.caption(cat) and found.done and found.done_reason == "stop"
    assert found.eval_count > 3 and found.prompt_eval_count == 16 and found.total_duration > 0
    asked = ollama.generate(model="nano:latest", prompt="What animal is it?", images=[str(PHOTO)],
                            options={"num_predict": 2, "temperature": 0})  # fmt: skip
    assert asked.response == model.ask(cat, "What animal is it?", max_new_tokens=2) and asked.eval_count <= 2


def test_ollama_streams(ollama: Any, model: Any, cat: bytes) -> None:
    chunks = list(ollama.generate(model="nano", images=[cat], stream=True))
    assert "".join(chunk.response for chunk in chunks) == model.caption(cat, num_beams=1) and len(chunks) > 4
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    said = list(ollama.chat(model="nano", messages=[{"role": "user", "content": "who?", "images": [cat]}], stream=True))
    assert "".join(chunk.message.content for chunk in said) == model.ask(cat, "who?", num_beams=1)


def test_ollama_chats(ollama: Any, model: Any, cat: bytes) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?", "images": [cat]}]
    found = ollama.chat(model="nano", messages=messages)
    assert found.message.content == model.ask(cat, "What is it?") and found.message.role == "assistant"
    hello = ollama.chat(model="nano", messages=[{"role": "user", "content": "Hi"}])
    assert hello.message.content.startswith(HELLO)


def test_ollama_finds_the_model(ollama: Any, model: Any) -> None:
    [listed] = ollama.list().models
    assert listed.model == "nano:latest" and listed.size > 50e6 and len(listed.digest) == 64
    shown = ollama.show("nano")
    assert set(shown.capabilities) == {"completion", "vision", "embedding"}
    assert shown.modelinfo["blip2.context_length"] == 1024 and shown.details.family == "blip2"
    assert [each.model for each in ollama.ps().models] == ["nano:latest"]
    assert ollama.generate(model="nano").done_reason == "load", "which loads a model, there"
    vectors = ollama.embed(model="nano", input=["a cat", "a dog"]).embeddings
    np.testing.assert_allclose(vectors, model.embed_text(["a cat", "a dog"]), atol=1e-6)


def test_ollama_gets_errors(ollama: Any, cat: bytes) -> None:
    package = pytest.importorskip("ollama")

    def refused(**more: Any) -> tuple[int, Any]:
        with pytest.raises(package.ResponseError) as raised:
            ollama.generate(**{"model": "nano", "prompt": "who?", "images": [cat], **more})
        return raised.value.status_code, raised.value.error

    assert refused(format="json") == (400, NO_JSON.format("format", "it"))
    assert refused(images=[cat] * 65) == (400, "images: more than 64 pictures: send fewer")
    assert refused(options={"top_p": 3}) == (400, "options.top_p: Input should be less than or equal to 1")
    with pytest.raises(package.ResponseError) as raised:
        ollama.pull("nano")
    assert (raised.value.status_code, raised.value.error) == (404, "there is no /api/pull: /docs lists what there is")


@pytest.mark.parametrize("key", ["response", "message"])
def test_ollama_gets_the_error_of_a_stream(key: Any) -> None:
    """Its client reads each line, and raises the text under "error"."""
    line = _Shape("nano", key, False).fault(Fault(504, "too late: ask for less", "deadline_exceeded"))
    assert line.endswith("\n") and json.loads(line) == {"error": "too late: ask for less"}
    package = pytest.importorskip("ollama")
    assert package.ResponseError(json.loads(line)["error"]).error == "too late: ask for less"


def test_ollamas_ways_to_say_nothing(ollama: Any, model: Any, cat: bytes) -> None:
    """An empty text has no embedding, 0 is no penalty, and the best of all tokens are all."""
    assert ollama.embed(model="nano", input="").embeddings == ollama.embed(model="nano", input=[]).embeddings == []
    for penalty in (0, 1):
        found = ollama.generate(model="nano", images=[cat], options={"repeat_penalty": penalty})
        assert found.response == model.caption(cat)
    drawn = {"temperature": 1.0, "seed": 3}
    found = ollama.generate(model="nano", images=[cat], options={**drawn, "top_k": -1})
    assert found.response == model.caption(cat, do_sample=True, top_k=0, **drawn)


# curl, which sends what Ollama's pages show without a content type of JSON


def curl(*arguments: str, data: bytes | None = None) -> bytes:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    return subprocess.run([program, "-sS", *arguments], input=data, stdout=subprocess.PIPE, check=True).stdout


def test_curl_sends_files_and_json(nano: Running, model: Any, cat: bytes) -> None:
    assert json.loads(curl("-F", f"image=@{PHOTO}", f"{nano.url}/v1/caption"))["caption"] == model.caption(cat)
    asked = curl(
        "-F", f"image=@{PHOTO}", "-F", "question=what animal is it?", "-F", "num_beams=1", f"{nano.url}/v1/ask"
    )
    assert json.loads(asked)["answer"] == model.ask(cat, "what animal is it?", num_beams=1)
    matched = json.loads(curl("-F", f"image=@{PHOTO}", "-F", "text=a dog", "-F", "text=a cat", f"{nano.url}/v1/match"))
    assert [each["text"] for each in matched["matches"]] == ["a cat", "a dog"]
    body = json.dumps({"model": "nano", "images": [encoded(cat)], "stream": False}).encode()
    assert json.loads(curl("-d", "@-", f"{nano.url}/api/generate", data=body))["response"] == model.caption(cat)


def test_curl_streams(nano: Running, model: Any, cat: bytes) -> None:
    body = json.dumps({"image": encoded(cat), "stream": True}).encode()
    lines = curl("-N", "-d", "@-", f"{nano.url}/v1/caption", data=body).decode().strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    *pieces, last = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(piece["text"] for piece in pieces) == last["caption"] == model.caption(cat, num_beams=1)


# Requests of home automation, word for word in their form


def frames(cat: bytes, count: int) -> list[bytes]:
    """JPEGs of a camera, of which the last one is the photograph."""
    made = []
    for shade in range(count - 1):
        stream = io.BytesIO()
        Image.new("RGB", (320, 180), (40 * shade, 90, 120)).save(stream, "JPEG")
        made.append(stream.getvalue())
    return [*made, cat]


def test_frigate(nano: Running, model: Any, cat: bytes) -> None:
    """A long instruction and several frames with low detail; context from /v1/models."""
    prompt = (
        "Analyze the sequence of images containing the cat. Focus on the likely intent or behavior of the cat based on "
        "its actions and movement, rather than describing its appearance or the surroundings. Consider what the cat is "
        "doing, why, and what it might do next."
    )
    content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
    content += [
        {"type": "image_url", "image_url": {"url": data_uri(frame), "detail": "low"}} for frame in frames(cat, 5)
    ]
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": content}]}
    found = nano.post("/v1/chat/completions", body, Authorization="Bearer sk-none").json
    assert found["choices"][0]["message"]["content"] == model.caption(cat)
    assert nano.get("/v1/models").json["data"][0]["max_model_len"] == 1024
    schema = {"type": "json_schema", "json_schema": {"name": "review", "strict": True, "schema": {"type": "object"}}}
    assert nano.post("/v1/chat/completions", {**body, "response_format": schema}).error["param"] == "response_format"


def test_frigate_by_ollama(nano: Running, model: Any, cat: bytes) -> None:
    content = "Describe the cat in the images.\n[img]\n[img]"
    images = [encoded(each) for each in frames(cat, 2)]
    body = {"model": "llava", "messages": [{"role": "user", "content": content, "images": images}],
            "stream": False, "think": False,
            "options": {"temperature": 0, "repeat_penalty": 1.0, "presence_penalty": 0.3, "num_ctx": 4096}}  # fmt: skip
    assert nano.post("/api/show", {"model": "llava"}).status == 200, "which it does at its start"
    assert nano.post("/api/chat", body).json["message"]["content"] == model.caption(cat)


def test_home_assistants_llm_vision(nano: Running, model: Any, cat: bytes) -> None:
    """Its set-up sends words alone; its pictures have labels before them and the question behind."""
    hello = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
             "max_completion_tokens": 1, "temperature": 0.5}  # fmt: skip
    found = nano.post("/v1/chat/completions", hello).json
    assert found["choices"][0]["message"]["content"].startswith(HELLO) and found["usage"]["completion_tokens"] > 5
    content: list[dict[str, Any]] = []
    for i, frame in enumerate(frames(cat, 3)):
        content += [{"type": "text", "text": f"Image {i + 1}:"},
                    {"type": "image_url", "image_url": {"url": data_uri(frame), "detail": "high"}}]  # fmt: skip
    content.append({"type": "text", "text": "What animal is in the picture?"})
    messages = [{"role": "system", "content": [{"type": "text", "text": "Your task is to analyze images."}]},
                {"role": "user", "content": content}]  # fmt: skip
    body = {"model": "gpt-4o-mini", "messages": messages, "max_completion_tokens": 3000, "temperature": 0, "top_p": 0.9}
    found = nano.post("/v1/chat/completions", body).json
    assert found["choices"][0]["message"]["content"] == model.ask(cat, "What animal is in the picture?")


def test_photoprism(nano: Running, model: Any, cat: bytes) -> None:
    prompt = (
        "Create a caption with exactly one sentence in the active voice that describes the main visual content. "
        "Begin with the main subject and clear action. Avoid text formatting, meta-language, and filler words."
    )
    body = {"id": "b5f5ff92", "model": "gemma3:latest", "prompt": prompt, "suffix": "", "stream": False,
            "options": {"temperature": 0.01, "stop": ["\n\n"], "seed": 3}, "images": [encoded(cat)]}  # fmt: skip
    found = nano.post("/api/generate", body).json
    assert found["response"] == model.caption(cat, num_beams=1) and found["done"] is True
    labels = nano.post("/api/generate", {**body, "system": "Output concise JSON.", "format": "json"})
    assert labels.status == 400 and "ask for each field alone" in labels.ollama_error


def test_robots_matching(nano: Running, model: Any, cat: bytes) -> None:
    for text in ("a cat", "Seems like there is a couch ahead."):
        found = nano.post("/blip2itm", {"image": encoded(cat), "txt": text}).json
        assert set(found) == {"response"}
        assert math.isclose(found["response"], model.match(cat, text).cosine, abs_tol=1e-6)
    found = nano.post("/blip2itm", {"image": encoded(cat), "txt": "?!"})
    assert found.status == 400 and found.error["message"].startswith("txt: it has no words")


def test_matches_are_those_of_the_model(nano: Running, model: Any, cat: bytes) -> None:
    texts = ["a cat", "a dog in the snow", "a cat on a red sofa", "two men", "a street"] * 2
    found = nano.post("/v1/match", {"image": encoded(cat), "texts": texts}).json["matches"]
    want = [{"text": text, **asdict(match)} for text, match in zip(texts, model.match(cat, texts), strict=True)]
    for got, each in zip(found, sorted(want, key=lambda each: -each["score"]), strict=True):
        assert got == {name: pytest.approx(value, abs=0.02) for name, value in each.items()}
