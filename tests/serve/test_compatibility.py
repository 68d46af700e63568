"""What clients send beside plain requests: other base URLs and bodies, OpenAI's responses, chats without pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.serve.server_process import ServerProcess, data_uri, encoded, parts

pytestmark = pytest.mark.long(8, "a real server process: other servers' requests, byte for byte")


@pytest.fixture(scope="module")
def openai(nano: ServerProcess) -> Any:
    return pytest.importorskip("openai").OpenAI(base_url=f"{nano.url}/v1", api_key="none", max_retries=0)


def shown(cat: bytes, *texts: str) -> list[dict[str, Any]]:
    """Input of the responses API: one message with a picture."""
    content = [{"type": "input_text", "text": text} for text in texts]
    return [{"role": "user", "content": [*content, {"type": "input_image", "image_url": data_uri(cat)}]}]


def test_responses(openai: Any, model: Any, cat: bytes) -> None:
    found = openai.responses.create(model="nano", input=shown(cat), instructions="Be brief.")
    assert found.output_text == model.caption(cat) and found.status == "completed"
    found = openai.responses.create(model="nano", input=shown(cat, "What animal is it?"), temperature=0)
    assert found.output_text == model.ask(cat, "What animal is it?") and found.usage.output_tokens > 0
    cut = openai.responses.create(model="nano", input=shown(cat), max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_responses_stream(openai: Any, model: Any, cat: bytes) -> None:
    with openai.responses.stream(model="nano", input=shown(cat)) as stream:
        events = list(stream)
        assert stream.get_final_response().output_text == model.caption(cat)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == model.caption(cat) and len(deltas) > 3
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "text.format"),
    ],
)
def test_responses_name_the_field(nano: ServerProcess, cat: bytes, more: dict[str, Any], param: str) -> None:
    found = nano.post("/v1/responses", {"input": shown(cat), **more})
    assert found.status == 400 and found.error["param"] == param


def test_base_urls(nano: ServerProcess, model: Any, cat: bytes) -> None:
    package = pytest.importorskip("openai")
    messages = [{"role": "user", "content": parts(cat)}]
    azure = package.AzureOpenAI(azure_endpoint=nano.url, api_key="none", api_version="2024-10-21", max_retries=0)
    clients = [azure, *(package.OpenAI(base_url=f"{nano.url}{path}", api_key="none") for path in ("", "/v1/v1"))]
    for client in clients:
        found = client.chat.completions.create(model="nano", messages=messages)
        assert found.choices[0].message.content == model.caption(cat)
    assert [each.id for each in clients[1].models.list()] == ["nano"] == [clients[1].models.retrieve("nano").id]
    assert pytest.importorskip("ollama").Client(host=f"{nano.url}/v1").list().models[0].model == "nano:latest"
    assert nano.get("/v1/nothing").status == nano.get("/nothing").status == 404


def test_azure_key(start: Any) -> None:
    server = start("--api-key", "secret")
    assert server.get("/models").status == server.get("/models", api_key="wrong").status == 401
    assert server.get("/models", api_key="secret").status == 200


def test_image_as_the_body(nano: ServerProcess, model: Any, cat: bytes) -> None:
    """As `curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg'` sends it; other fields are in the query."""
    kind = {"Content_Type": "image/jpeg"}
    assert nano.post("/v1/caption", cat, **kind).json["caption"] == model.caption(cat)
    greedy = nano.post("/v1/ask?question=who+is+it%3F&num_beams=1", cat, **kind)
    assert greedy.json["answer"] == model.ask(cat, "who is it?", num_beams=1)
    assert nano.post("/v1/match?text=a+cat", cat, **kind).json["matches"][0]["text"] == "a cat"
    assert nano.post("/v1/caption?num_beams=x", cat, **kind).error["param"] == "num_beams"
    assert nano.post("/v1/ask", cat, **kind).error["message"] == "question: it is missing: send it"
    assert nano.post("/v1/embeddings", cat, **kind).status == 415


def test_embeddings(nano: ServerProcess, model: Any) -> None:
    texts = ["a cat", "a dog"]
    expected = model.embed_text(texts)
    found = nano.post("/v1/embeddings", {"input": [{"text": text} for text in texts]}).json["data"]
    np.testing.assert_allclose([each["embedding"] for each in found], expected, atol=1e-6)
    found = nano.post("/api/embeddings", {"model": "nano", "prompt": texts[1]}).json["embedding"]
    np.testing.assert_allclose(found, expected[1], atol=1e-6)
    tokens = nano.post("/v1/embeddings", {"input": [[1, 2, 3]]})
    assert tokens.status == 400 and "check_embedding_ctx_length=False" in tokens.error["message"]


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
    for part in (
        "messages.0.content.0.text: give a valid string",
        "temperature: give a valid number",
        "n: give a value greater",
    ):
        assert part in message
    assert encoded(cat)[:20] not in message
