"""Other people's clients: the packages openai and ollama, and the requests of home automation."""

import json
from typing import Any

import pytest
from PIL import Image

from blip2rt.serve.errors import ApiError
from blip2rt.serve.protocols.ollama import ModelOptions, _options, _Writer
from tests.serve.server_process import CAT, ServerProcess, encoded, parts, png

pytestmark = pytest.mark.long(12, "clients' own libraries against a real server")

GREETING = "Hello! Send me a picture"
CHAT = "/v1/chat/completions"
GREEDY = {"extra_body": {"num_beams": 1}}


@pytest.fixture(scope="module")
def openai(nano: ServerProcess) -> Any:
    return pytest.importorskip("openai").OpenAI(base_url=f"{nano.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def create(openai: Any) -> Any:
    """A function: parts of a message, or messages, -> a chat completion."""

    def create(*contents: Any, messages: Any = None, **options: Any) -> Any:
        messages = messages or [{"role": "user", "content": parts(*contents)}]
        return openai.chat.completions.create(model="nano", messages=messages, **options)

    return create


@pytest.fixture(scope="module")
def ollama(nano: ServerProcess) -> Any:
    return pytest.importorskip("ollama").Client(host=nano.url)


def text_of(completion: Any) -> str:
    return str(completion.choices[0].message.content)


def test_openai_captions_and_answers(create: Any, model: Any, cat: bytes) -> None:
    for contents, expected in (
        ((cat,), model.caption(cat)),
        (("Describe this image.", cat), model.caption(cat)),
        (("What animal is it?", cat), model.ask(cat, "What animal is it?")),
    ):
        found = create(*contents)
        assert text_of(found) == expected and found.choices[0].finish_reason == "stop"
        assert found.object == "chat.completion" and found.model == "nano" and found.id.startswith("chatcmpl-")


def test_openai_streams(create: Any, model: Any, cat: bytes) -> None:
    *chunks, last = list(create(cat, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == model.caption(cat) == "".join(model.stream(cat))
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) > 3, "several pieces"
    assert chunks[-1].choices[0].finish_reason == "stop" and last.choices == []
    whole = create(cat)
    assert last.usage == whole.usage and text_of(whole) == text


def test_openai_counts_tokens(create: Any, model: Any, cat: bytes) -> None:
    seen: list[int] = []
    expected = model.ask(cat, "who is it?", num_beams=1, on_token=lambda image, draw, token: seen.append(token))
    found = create(cat, "who is it?", **GREEDY)
    language = model.pipeline.language
    read = len(language.encode(language.ask_prompt("who is it?"))) + language.spec.prefix_length
    written = len([token for token in seen if token not in language.spec.eos_token_ids])
    assert text_of(found) == expected
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (read, written)
    assert found.usage.total_tokens == read + written


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_openai_limits_the_length(create: Any, model: Any, cat: bytes, name: str) -> None:
    found = create(cat, **{name: 3})
    assert found.choices[0].finish_reason == "length" and found.usage.completion_tokens == 3
    assert text_of(found) == model.caption(cat, max_new_tokens=3)
    assert create(cat, **{name: 100_000}).choices[0].finish_reason == "stop", "more than fits is accepted"


@pytest.mark.parametrize("streamed", [False, True])
def test_openai_stops_at_strings(create: Any, model: Any, cat: bytes, streamed: bool) -> None:
    whole = model.caption(cat, num_beams=1)
    stop = whole.split()[3]
    found = create(cat, stop=[stop, "zebra"], stream=streamed, **GREEDY)
    if streamed:
        chunks = list(found)
        text, finish = "".join(c.choices[0].delta.content or "" for c in chunks), chunks[-1].choices[0].finish_reason
    else:
        text, finish = text_of(found), found.choices[0].finish_reason
    assert text.rstrip() == whole.partition(stop)[0].rstrip() and finish == "stop"


def test_openai_samples_with_a_seed(create: Any, cat: bytes) -> None:
    def draw(**options: Any) -> list[str]:
        found = create(cat, **options)
        assert [choice.index for choice in found.choices] == list(range(len(found.choices)))
        return [choice.message.content for choice in found.choices]

    sampled: dict[str, Any] = {"temperature": 1.3, "top_p": 0.9, "seed": 7, "n": 3}
    first = draw(**sampled)
    assert first == draw(**sampled) and len(first) == 3
    assert any(draw(**{**sampled, "seed": seed}) != first for seed in (8, -9))
    assert draw(temperature=0) == draw(temperature=0.1) == draw(), "low temperatures do not sample"
    texts = ["", "", ""]
    for chunk in create(cat, stream=True, **sampled):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == first


def test_openai_returns_the_best_of_several(create: Any, model: Any, cat: bytes) -> None:
    found = create(cat, n=2)
    assert [choice.message.content for choice in found.choices] == model.caption(cat, num_captions=2, num_beams=3)


def test_openai_continues_a_conversation(create: Any, model: Any, cat: bytes) -> None:
    chat = model.chat(cat, num_beams=1)
    messages: list[dict[str, Any]] = [{"role": "system", "content": "You are a pirate."}]
    for i, question in enumerate(("What animal is it?", "What colour is it?", "Where is it?")):
        messages.append({"role": "user", "content": question if i else parts(cat, question)})
        answer = text_of(create(messages=messages, **GREEDY))
        assert answer == chat.ask(question)
        messages.append({"role": "assistant", "content": answer})


def test_an_answer_ends_before_a_next_question(create: Any, cat: bytes) -> None:
    """After questions and answers, nano continues with a question of its own."""
    said = [("What animal is it?", "cat"), ("Is there a dog?", "no"), ("What colour is it?", None)]
    messages: list[dict[str, Any]] = []
    for question, answer in said:
        messages.append({"role": "user", "content": question if messages else parts(cat, question)})
        messages += [{"role": "assistant", "content": answer}] * (answer is not None)
    assert "Question" not in text_of(create(messages=messages))


def test_openai_lists_models(openai: Any) -> None:
    assert [each.id for each in openai.models.list()] == ["nano"]
    assert openai.models.retrieve("nano").owned_by == "blip2rt"
    with pytest.raises(pytest.importorskip("openai").NotFoundError, match="no model 'gpt-9'"):
        openai.models.retrieve("gpt-9")


def test_openai_raises_its_own_errors(create: Any, cat: bytes) -> None:
    bad_request = pytest.importorskip("openai").BadRequestError
    for more, message in (
        ({"response_format": {"type": "xml"}}, "response_format.type: "),
        ({"temperature": 9}, "temperature: give a value less than or equal to 2"),
        ({"tool_choice": "required", "tools": []}, "tools has no such function"),
        ({"n": 1000}, "n is 1000: give 8 at most"),
        ({"stop": ["a"] * 17}, "stop: give 16"),
    ):
        with pytest.raises(bad_request, match=message):
            create(cat, **more)
    with pytest.raises(bad_request) as raised:
        create(b"no image at all")
    assert raised.value.code == "invalid_image" and raised.value.type == "invalid_request_error"
    audio = [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]
    with pytest.raises(bad_request, match="a part of type 'input_audio' cannot be read"):
        create(messages=audio)


def test_ollama_generates(ollama: Any, model: Any, cat: bytes) -> None:
    found = ollama.generate(model="nano", prompt="Describe the image.", images=[cat])
    assert found.response == model.caption(cat) and found.done and found.done_reason == "stop"
    assert found.eval_count > 3 and found.prompt_eval_count == 16 and found.total_duration > 0
    options: dict[str, Any] = {"num_predict": 2, "temperature": 0}
    asked = ollama.generate(model="nano:latest", prompt="What animal is it?", images=[str(CAT)], options=options)
    assert asked.response == model.ask(cat, "What animal is it?", max_new_tokens=2) and asked.eval_count <= 2
    for penalty in (0, 1):  # 0 is off
        found = ollama.generate(model="nano", images=[cat], options={"repeat_penalty": penalty})
        assert found.response == model.caption(cat)
    sampled = {"temperature": 0.5, "seed": 3}  # hotter, the last bits of a logit would decide
    found = ollama.generate(model="nano", images=[cat], options={**sampled, "top_k": -1})  # -1: all tokens
    assert found.response == model.caption(cat, do_sample=True, top_k=0, no_repeat_ngram_size=4, **sampled)
    seeds = [_options(ModelOptions(temperature=1, seed=seed)).get("seed") for seed in (-1, 0, 1)]
    assert seeds == [None, 0, 1]


def test_ollama_streams(ollama: Any, model: Any, cat: bytes) -> None:
    chunks = list(ollama.generate(model="nano", images=[cat], stream=True))
    assert "".join(chunk.response for chunk in chunks) == model.caption(cat) and len(chunks) > 4
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    said = list(ollama.chat(model="nano", messages=[{"role": "user", "content": "who?", "images": [cat]}], stream=True))
    assert "".join(chunk.message.content for chunk in said) == model.ask(cat, "who?")


def test_ollama_chats(ollama: Any, model: Any, cat: bytes) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?", "images": [cat]}]
    found = ollama.chat(model="nano", messages=messages)
    assert found.message.content == model.ask(cat, "What is it?") and found.message.role == "assistant"
    hello = ollama.chat(model="nano", messages=[{"role": "user", "content": "Hi"}])
    assert hello.message.content.startswith(GREETING)


def test_ollama_describes_the_model(ollama: Any, model: Any) -> None:
    [listed] = ollama.list().models
    assert listed.model == "nano:latest" and listed.size > 50e6 and len(listed.digest) == 64
    shown = ollama.show("nano")
    assert set(shown.capabilities) == {"completion", "vision"}
    assert shown.modelinfo["blip2.context_length"] == 1024 and shown.details.family == "blip2"
    assert ollama.generate(model="nano").done_reason == "load"


def test_ollama_raises_its_own_errors(ollama: Any, cat: bytes) -> None:
    package = pytest.importorskip("ollama")
    for more, message in (
        ({"format": {"not": {}}}, "format: $: not is not supported: leave it out, or allow null"),
        ({"images": [cat] * 65}, "images: more than 64 pictures: send fewer"),
        ({"options": {"top_p": 3}}, "options.top_p: give a value less than or equal to 1"),
    ):
        with pytest.raises(package.ResponseError) as raised:
            ollama.generate(**{"model": "nano", "prompt": "who?", "images": [cat], **more})
        assert (raised.value.status_code, raised.value.error) == (400, message)
    with pytest.raises(package.ResponseError) as raised:
        ollama.pull("nano")
    assert (raised.value.status_code, raised.value.error) == (404, "there is no /api/pull: /docs lists all routes")


def test_ollama_stream_errors_are_lines() -> None:
    """The client reads each line, and raises the text under "error"."""
    line = _Writer.error(_Writer.__new__(_Writer), ApiError(504, "too late: ask for less", "deadline_exceeded"))
    assert line.endswith("\n") and json.loads(line) == {"error": "too late: ask for less"}
    package = pytest.importorskip("ollama")
    assert package.ResponseError(json.loads(line)["error"]).error == "too late: ask for less"


# Requests of home automation, word for word.


def frames(cat: bytes, count: int) -> list[bytes]:
    """Pictures of a camera; the last one is the photograph."""
    return [*(png(Image.new("RGB", (320, 180), (40 * shade, 90, 120))) for shade in range(count - 1)), cat]


def test_frigate_with_openai(nano: ServerProcess, model: Any, cat: bytes) -> None:
    """A long instruction and several frames with low detail; the context length from /v1/models."""
    prompt = (
        "Analyze the sequence of images containing the cat. Focus on the likely intent or behavior of the cat based on "
        "its actions and movement, rather than describing its appearance or the surroundings. Consider what the cat is "
        "doing, why, and what it might do next."
    )
    content = [*parts(prompt), *parts(*frames(cat, 5), detail="low")]
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": content}]}
    found = nano.post(CHAT, body, Authorization="Bearer sk-none").json
    assert found["choices"][0]["message"]["content"] == model.caption(cat)
    assert nano.get("/v1/models").json["data"][0]["max_model_len"] == 1024


def test_frigate_with_ollama(nano: ServerProcess, model: Any, cat: bytes) -> None:
    images = [encoded(each) for each in frames(cat, 2)]
    message = {"role": "user", "content": "Describe the cat in the images.\n[img]\n[img]", "images": images}
    options = {"temperature": 0, "repeat_penalty": 1.0, "presence_penalty": 0.3, "num_ctx": 4096}
    body = {"model": "llava", "messages": [message], "stream": False, "think": False, "options": options}
    assert nano.post("/api/show", {"model": "llava"}).status == 200, "at its start"
    assert nano.post("/api/chat", body).json["message"]["content"] == model.caption(cat)


def test_home_assistant_llm_vision(nano: ServerProcess, model: Any, cat: bytes) -> None:
    """Its setup sends only words; later, images follow their labels and the question comes last."""
    common = {"model": "gpt-4o-mini", "temperature": 0.5}
    hello = {**common, "messages": [{"role": "user", "content": parts("Hi")}], "max_completion_tokens": 1}
    found = nano.post(CHAT, hello).json
    assert found["choices"][0]["message"]["content"].startswith(GREETING) and found["usage"]["completion_tokens"] > 5
    content = [
        part for i, frame in enumerate(frames(cat, 3)) for part in parts(f"Image {i + 1}:", frame, detail="high")
    ]
    content += parts("What animal is in the picture?")
    messages = [{"role": "system", "content": parts("Your task is to analyze images.")}]
    messages += [{"role": "user", "content": content}]
    body = {**common, "messages": messages, "max_completion_tokens": 3000, "temperature": 0, "top_p": 0.9}
    found = nano.post(CHAT, body).json
    assert found["choices"][0]["message"]["content"] == model.ask(cat, "What animal is in the picture?")


def test_photoprism(nano: ServerProcess, model: Any, cat: bytes) -> None:
    prompt = (
        "Create a caption with exactly one sentence in the active voice that describes the main visual content. "
        "Begin with the main subject and clear action. Avoid text formatting, meta-language, and filler words."
    )
    options = {"temperature": 0.01, "stop": ["\n\n"], "seed": 3}
    body = {"id": "b5f5ff92", "model": "gemma3:latest", "prompt": prompt, "suffix": "", "stream": False}
    body |= {"options": options, "images": [encoded(cat)]}
    found = nano.post("/api/generate", body).json
    assert found["response"] == model.caption(cat) and found["done"] is True
