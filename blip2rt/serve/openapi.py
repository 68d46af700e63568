"""What the routes take, as OpenAPI 3.1. The requests' classes say it; this page only lists them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..version import __version__
from . import ollama, openai, own, search

_POSTS: dict[str, tuple[type[BaseModel], str, bool]] = {  # path -> request, what it does, whether it takes forms
    "/v1/chat/completions": (openai.ChatRequest, "Caption the last picture, or answer the last question", False),
    "/v1/embeddings": (openai.EmbeddingsRequest, "Texts and pictures as vectors", False),
    "/v1/caption": (own.CaptionRequest, "Describe a picture", True),
    "/v1/ask": (own.AskRequest, "Answer a question about a picture", True),
    "/v1/match": (own.MatchRequest, "Tell how well texts describe a picture, the best first", True),
    "/v1/search": (search.SearchRequest, "Find pictures of the index by a text or a picture", True),
    "/blip2itm": (own.ItmRequest, "The cosine between a picture and a text", False),
    "/api/generate": (ollama.GenerateRequest, "Ollama's generate", False),
    "/api/chat": (ollama.ChatRequest, "Ollama's chat", False),
    "/api/embed": (ollama.EmbedRequest, "Ollama's embeddings", False),
    "/api/show": (ollama.ShowRequest, "What the model is", False),
}
_GETS = {
    "/v1/models": "The model",
    "/v1/models/{name}": "The model, by its name",
    "/api/tags": "The model, as Ollama lists it",
    "/api/ps": "The loaded model, as Ollama lists it",
    "/api/version": "blip2rt's version",
    "/health": "200 while the server lives",
    "/ready": "200 when the model is loaded, 503 before",
    "/metrics": "Metrics for Prometheus",
}


def document(keys: bool) -> dict[str, Any]:
    """The document. keys: whether an API key is needed."""
    template = "#/components/schemas/{model}"
    names, schemas = models_json_schema([(kind, "validation") for kind, _, _ in _POSTS.values()], ref_template=template)
    paths: dict[str, Any] = {}
    for path, (kind, about, forms) in _POSTS.items():
        schema = {"schema": names[kind, "validation"]}
        content = {"application/json": schema, **({"multipart/form-data": schema} if forms else {})}
        answers = {"200": {"description": "The answer"}, "default": _fault(path)}
        body = {"required": True, "content": content}
        paths[path] = {"post": {"summary": about, "requestBody": body, "responses": answers}}
    for path, about in _GETS.items():
        named = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}] * ("{" in path)
        paths[path] = {"get": {"summary": about, "parameters": named,
                               "responses": {"200": {"description": about}, "default": _fault(path)}}}  # fmt: skip
    text = {"type": "string"}
    error = {"type": "object", "properties": {"message": text, "type": text, "code": text,
                                              "param": {"type": ["string", "null"]}}}  # fmt: skip
    components: dict[str, Any] = {
        "schemas": {
            **schemas.get("$defs", {}), "Error": {"type": "object", "properties": {"error": error}},
            "OllamaError": {"type": "object", "properties": {"error": text}},
        }
    }  # fmt: skip
    document: dict[str, Any] = {
        "openapi": "3.1.0", "info": {"title": "blip2rt", "version": __version__}, "paths": paths,
        "components": components,
    }  # fmt: skip
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _fault(path: str) -> dict[str, Any]:
    """What a route answers where something is wrong."""
    whose, name = ("Ollama", "OllamaError") if path.startswith("/api/") else ("OpenAI", "Error")
    return {"description": f"What is wrong, in {whose}'s format",
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}  # fmt: skip
