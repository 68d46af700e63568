"""JSON answers: the requests of Frigate, LLM Vision and PhotoPrism, and the clients' own helpers for schemas."""

import json
from typing import Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field

from blip2rt.serve.chat_prompt import described_form, schema_like
from blip2rt.serve.errors import ApiError
from blip2rt.structured import Form, fill
from tests.serve.server_process import ServerProcess, encoded, parts

pytestmark = pytest.mark.long(12, "clients' own libraries against a real server")

CHAT = "/v1/chat/completions"


class Animal(BaseModel):
    """What a client asks for."""

    species: str = Field(description="What animal is it?")
    colour: Literal["black", "white", "brown"]
    indoors: bool = Field(description="Whether the picture was taken indoors")
    count: int = Field(ge=0, le=9, description="The number of animals")


def content_of(found: Any) -> Any:
    return json.loads(found.json["choices"][0]["message"]["content"])


def text_schema(least: int | None = None, most: int | None = None, **more: Any) -> dict[str, Any]:
    limits = {"minLength": least, "maxLength": most}
    return {"type": "string", **{name: value for name, value in limits.items() if value is not None}, **more}


FRIGATE = {  # frigate/data_processing/post/types.py, ReviewMetadata, as pydantic writes it
    "title": "ReviewMetadata",
    "type": "object",
    "properties": {
        "observations": {
            "type": "array",
            "items": text_schema(20, 200),
            "minItems": 3,
            "maxItems": 8,
            "title": "Observations",
            "description": "List what was observed in all frames, in their order.",
        },
        "scene": text_schema(150, 600, title="Scene", description="What happens from start to end, as a narrative."),
        "title": text_schema(None, 80, title="Title", description="A title of the activity."),
        "shortSummary": text_schema(70, 140, title="Shortsummary", description="The activity in a short summary."),
        "confidence": {"type": "number", "minimum": 0.0, "maximum": 1.0, "description": "A decimal from 0.0 to 1.0."},
        "potential_threat_level": {
            "type": "integer",
            "minimum": 0,
            "maximum": 2,
            "description": "Threat level: 0 = normal, 1 = suspicious, 2 = critical threat.",
        },
        "other_concerns": {
            "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}],
            "default": None,
            "description": "Concerns of the user that are observed.",
        },
    },
    "required": ["observations", "scene", "title", "shortSummary", "confidence", "potential_threat_level"],
    "additionalProperties": False,
}


MANY_CHOICES = {"properties": {f"colour {i}": {"enum": [f"shade {j}" for j in range(64)]} for i in range(5)}}


def test_frigate_reviews(nano: ServerProcess, model: Any, cat: bytes) -> None:
    """Provider openai: a long prompt, frames with low detail, a strict schema; provider ollama: no limits."""
    prompt = "Your task is to analyze images of a security camera in order.\n## Objects in Scene\n- cat\n"
    messages = [{"role": "user", "content": parts(prompt, cat, cat, detail="low")}]
    wanted = {"type": "json_schema", "json_schema": {"name": "review_metadata", "strict": True, "schema": FRIGATE}}
    review = content_of(nano.post(CHAT, {"model": "gpt-4o", "messages": messages, "response_format": wanted}))
    jsonschema.validate(review, FRIGATE)
    assert review == fill(model, cat, FRIGATE)
    assert review["title"] == model.caption(cat) and review["potential_threat_level"] == 0
    assert review["observations"][0] == model.caption(cat) and review["other_concerns"] is None
    bare = {name: {"type": FRIGATE["properties"][name]["type"]} for name in ("scene", "confidence")}  # type: ignore[index]
    schema = {"type": "object", "properties": bare, "required": ["scene"]}
    body = {"model": "m", "prompt": prompt, "images": [encoded(cat)], "format": schema, "stream": False}
    found = json.loads(nano.post("/api/generate", body).json["response"])
    assert found["scene"] == model.caption(cat) and 0 < found["confidence"] < 1


def test_llm_vision_structures(nano: ServerProcess, cat: bytes) -> None:
    """Text after labelled images, a temperature, and a user's schema that became strict."""
    schema = {
        "type": "object",
        "properties": {
            "title": {"type": "string", "description": "Event title"},
            "description": {"type": "string"},
            "animals": {"type": "integer", "description": "How many animals are there?"},
            "kind": {"type": "string", "enum": ["person", "animal", "vehicle"]},
        },
        "additionalProperties": False,
    }
    content = parts("Image 1:", cat, "Describe the event.", detail="high")
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}], "temperature": 0.5}
    wanted = {"type": "json_schema", "json_schema": {"name": "response", "schema": schema, "strict": True}}
    event = content_of(nano.post(CHAT, {**body, "max_completion_tokens": 3000, "response_format": wanted}))
    jsonschema.validate(event, schema)
    assert set(event) == {"title", "description", "animals", "kind"} and event["animals"] == 1
    assert event["kind"] == "animal"


def test_photoprism_labels(nano: ServerProcess, cat: bytes) -> None:
    """Ollama: an example in the prompt and format "json"."""
    example = '{"labels":[{"name":"sunset","confidence":0.72,"topicality":0.64}]}'
    prompt = f"Return label objects with name (single-word noun), confidence and topicality. Respond like {example}."
    options = {"temperature": 0.1, "top_p": 0.9, "stop": ["\n\n"]}
    body = {"model": "gemma3", "prompt": prompt, "system": "Output JSON.", "format": "json", "options": options}
    found = nano.post("/api/generate", {**body, "suffix": "", "stream": False, "images": [encoded(cat)]}).json
    labels = json.loads(found["response"])["labels"]
    assert "cat" in [label["name"] for label in labels] and all(0 <= label["confidence"] <= 1 for label in labels)


def test_openai_parses_and_calls_tools(nano: ServerProcess, model: Any, cat: bytes) -> None:
    package = pytest.importorskip("openai")
    client = package.OpenAI(base_url=f"{nano.url}/v1", api_key="none", max_retries=0)
    messages = [{"role": "user", "content": parts("Which animal?", cat)}]
    found = client.chat.completions.parse(model="nano", messages=messages, response_format=Animal)
    animal = found.choices[0].message.parsed
    assert (animal.species, animal.colour, animal.count) == (model.ask(cat, "What animal is it?"), "white", 1)
    assert found.usage.completion_tokens > 0 and found.choices[0].finish_reason == "stop"
    tools = [package.pydantic_function_tool(Animal)]
    choice = {"type": "function", "function": {"name": "Animal"}}
    called = client.chat.completions.create(model="nano", messages=messages, tools=tools, tool_choice=choice)
    [call] = called.choices[0].message.tool_calls
    assert Animal.model_validate_json(call.function.arguments) == animal and call.function.name == "Animal"
    assert called.choices[0].message.content is None and called.choices[0].finish_reason == "tool_calls"
    stream = client.chat.completions.create(
        model="nano", messages=messages, tools=tools, tool_choice="required", stream=True
    )
    deltas = [chunk.choices[0].delta for chunk in stream]
    arguments = "".join(call.function.arguments for delta in deltas for call in delta.tool_calls or [])
    assert Animal.model_validate_json(arguments) == animal
    plain = client.chat.completions.create(model="nano", messages=messages, tools=tools, tool_choice="auto")
    assert plain.choices[0].message.tool_calls is None and plain.choices[0].message.content


def test_ollama_formats(nano: ServerProcess, model: Any, cat: bytes) -> None:
    client = pytest.importorskip("ollama").Client(host=nano.url)
    message = {"role": "user", "content": "Describe it.", "images": [cat]}
    schema = Animal.model_json_schema()
    found = client.chat(model="nano", messages=[message], format=schema)
    assert Animal.model_validate_json(found.message.content).species == model.ask(cat, "What animal is it?")
    pieces = client.chat(model="nano", messages=[message], format=schema, stream=True)
    assert "".join(piece.message.content for piece in pieces) == found.message.content
    asked = client.generate(model="nano", prompt="What animal is it?", images=[cat], format="json")
    assert json.loads(asked.response) == {"answer": model.ask(cat, "What animal is it?")}


def test_formats_of_other_clients(nano: ServerProcess, model: Any, cat: bytes) -> None:
    body = {"messages": [{"role": "user", "content": parts(cat)}]}
    for name in ("schema", "value"):  # llama.cpp, huggingface_hub
        wanted = {"type": "json_object", name: {"type": "object", "properties": {"animal": {"type": "string"}}}}
        assert content_of(nano.post(CHAT, {**body, "response_format": wanted})) == {"animal": "cat"}
    plain = content_of(nano.post(CHAT, {**body, "response_format": {"type": "json_object"}}))
    assert plain["caption"] == model.caption(cat) and plain["labels"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, "", "type 'x'"),
        ({"response_format": {"type": "json_object"}, "n": 2}, "n", "one JSON object"),
        ({"tool_choice": "sometimes"}, "tool_choice", "none, auto, required"),
        (
            {"tool_choice": "required", "tools": [{"function": {"name": "f", "parameters": {"not": {}}}}]},
            "tools: f",
            "$: not",
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": MANY_CHOICES}}}, "", "320 answers, and"),
    ],
    ids=str,
)
def test_wrong_schemas_are_named(nano: ServerProcess, cat: bytes, body: Any, param: str, message: str) -> None:
    found = nano.post(CHAT, {"messages": [{"role": "user", "content": parts("x", cat)}], **body})
    assert found.status == 400 and found.error["param"] == (param or "response_format")
    assert message in found.error["message"]


def test_a_greeting_is_no_json(nano: ServerProcess) -> None:
    hello = {"messages": [{"role": "user", "content": "Hi"}], "response_format": {"type": "json_object"}}
    assert nano.post(CHAT, hello).error["code"] == "image_missing"


def test_a_lone_surrogate_is_answered(nano: ServerProcess, cat: bytes) -> None:
    body = {"model": "m", "images": [encoded(cat)], "stream": False, "format": {"const": "\ud800"}}
    assert nano.post("/api/generate", body).status in (200, 400)


def test_examples_become_schemas() -> None:
    assert schema_like({"a": 1, "b": [0.5], "c": True, "d": "x", "e": None, "f": [], "g": 7.5}) == {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}},
            "c": {"type": "boolean"},
            "d": {"type": "string"},
            "e": {"type": "null"},
            "f": {"type": "array", "items": {"type": "string"}},
            "g": {"type": "number"},
        },
    }
    found = [('{} {x} {"a": 1}', "Is it?"), ("Describe.", None), ("Is it?", "Is it?"), ("{" * 30, None)]
    names = [names_of(described_form([text], question, "format")) for text, question in found]
    assert names == [["a"], ["caption", "labels"], ["answer"], ["caption", "labels"]]
    with pytest.raises(ApiError, match="deeper than 16 levels"):
        described_form(['{"a":' * 600 + "1" + "}" * 600], None, "format")
    schema = json.dumps({"type": "object", "properties": {"mood": {"type": "string"}}})
    assert names_of(described_form(["Follow this schema: " + schema, "Go on."], None, "format")) == ["mood"]


def names_of(form: Form) -> list[str]:
    return [name for name, _ in getattr(form, "properties")]  # noqa: B009  # any form
