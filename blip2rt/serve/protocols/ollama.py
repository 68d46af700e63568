"""Ollama's API: images are base64 beside the text, and a stream has one JSON object per line."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from typing import Any, Literal

from pydantic import BaseModel, Field

from ...bundle import GENERATIVE
from ...version import __version__
from ..chat_prompt import GREETING, Conversation, JsonFormat, Turn, form_of
from ..endpoints import Endpoint
from ..errors import ApiError
from ..inference import Answer, Piece
from ..service import AnswerWriter, Call, Service, sampling_options, string_list


class ModelOptions(BaseModel):
    """Ollama's options that mean something here; the others are ignored."""

    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = None  # 0 and below: all tokens
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = None
    num_predict: int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = Field(default=None, ge=0)  # 0: off


class TextRequest(BaseModel):
    """What generate and chat have in common."""

    model: str | None = None
    stream: bool | None = None
    options: ModelOptions | None = None
    format: str | dict[str, Any] | None = None


class GenerateRequest(TextRequest):
    """POST /api/generate."""

    prompt: str | None = None
    images: list[str] | None = None


class ChatMessage(BaseModel):
    """One message of a chat."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: list[str] | None = None


class ChatRequest(TextRequest):
    """POST /api/chat."""

    messages: list[ChatMessage] = Field(default_factory=list, max_length=1000)


class ShowRequest(BaseModel):
    """POST /api/show."""

    model: str | None = None
    name: str | None = None


async def _generate(call: Call, body: GenerateRequest) -> Any:
    turns = [Turn("user", (body.prompt or "",), tuple(body.images or ()))]
    load_only = not body.prompt and not body.images
    return await _respond(call, body, turns, _Writer(call.service, "response", load_only))


async def _chat(call: Call, body: ChatRequest) -> Any:
    turns = [Turn(each.role, (each.content or "",), tuple(each.images or ())) for each in body.messages]
    return await _respond(call, body, turns, _Writer(call.service, "message", not turns))


async def _respond(call: Call, body: TextRequest, turns: list[Turn], writer: _Writer) -> Any:
    json, options = None, body.options or ModelOptions()
    if body.format:
        json = JsonFormat("format", None if body.format == "json" else form_of(body.format, "format"))
    chat = Conversation(turns, _options(options), string_list(options.stop), json, "images")
    return await call.chat(chat, writer, body.stream is not False)


async def _tags(call: Call) -> Any:
    return {"models": [_model_info(call.service)]}


async def _show(call: Call, _: ShowRequest) -> Any:
    service, bundle = call.service, call.model.bundle
    manifest = bundle.manifest
    capabilities = ["completion", "vision"] * bundle.has(*GENERATIVE)
    info: dict[str, Any] = {"general.architecture": "blip2", "general.basename": manifest.name}
    info["blip2.bytes"] = _folder_bytes(service)
    if manifest.llm is not None:
        info["blip2.context_length"] = manifest.llm.max_positions
        info["blip2.embedding_length"] = manifest.llm.hidden_size
    return {
        "modelfile": f"# the bundle {manifest.name} of blip2rt",
        "parameters": "",
        "template": manifest.prompts.get("ask", ""),
        "license": "\n".join(sorted({f"{source.part}: {source.licence}" for source in manifest.sources})),
        "details": _details(service),
        "model_info": info,
        "capabilities": capabilities,
        "modified_at": _timestamp(service.created),
    }


async def _version(_: Call) -> Any:
    return {"version": __version__}


ENDPOINTS = [
    Endpoint("/api/generate", _generate, GenerateRequest, "Ollama's generate"),
    Endpoint("/api/chat", _chat, ChatRequest, "Ollama's chat"),
    Endpoint("/api/tags", _tags, summary="The model, as Ollama lists it"),
    Endpoint("/api/show", _show, ShowRequest, "Describe the model"),
    Endpoint("/api/version", _version, summary="The version of blip2rt"),
]


def _options(options: ModelOptions) -> dict[str, Any]:
    seed = None if options.seed is None or options.seed < 0 else options.seed
    top_k = None if options.top_k is None else max(options.top_k, 0)
    chosen = sampling_options(options.temperature, options.top_p, top_k=top_k, min_p=options.min_p, seed=seed)
    if options.num_predict is not None and options.num_predict > 0:
        chosen["max_new_tokens"] = options.num_predict
    if options.repeat_penalty:
        chosen["repetition_penalty"] = options.repeat_penalty
    return chosen


def _tag(service: Service) -> str:
    return f"{service.name}:latest"


def _folder_bytes(service: Service) -> int:
    return sum(file.stat().st_size for file in service.model.bundle.path.iterdir() if file.is_file())


def _details(service: Service) -> dict[str, Any]:
    components = service.model.bundle.manifest.components
    part = components.get("llm") or next(iter(components.values()))
    names = {"parent_model": "", "format": "onnx", "family": "blip2", "families": ["blip2"], "parameter_size": ""}
    return {**names, "quantization_level": part.precision}


def _model_info(service: Service) -> dict[str, Any]:
    name, modified = _tag(service), _timestamp(service.created)
    info = {"name": name, "model": name, "modified_at": modified, "size": _folder_bytes(service)}
    return {**info, "digest": service.digest, "details": _details(service)}


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


def _nanoseconds(seconds: float) -> int:
    return int(1e9 * seconds)


class _Writer(AnswerWriter):
    """Writes Ollama's objects: the text is `response` for generate, and in `message` for chat."""

    media_type = "application/x-ndjson"
    comment = ""  # a line has to be an object

    def __init__(self, service: Service, key: Literal["response", "message"], load_only: bool) -> None:
        self._name, self._key, self._load_only = _tag(service), key, load_only
        self.greeting = "" if load_only else GREETING
        self._start = self._first_piece = time.monotonic()

    def whole(self, answer: Answer) -> dict[str, Any]:
        return self._last(answer, answer.texts[0] if answer.texts else "")

    def piece(self, piece: Piece) -> list[str]:
        if self._first_piece == self._start:
            self._first_piece = time.monotonic()
        return [self.line({**self._head(piece.text), "done": False})]

    def end(self, answer: Answer) -> list[str]:
        return [self.line(self._last(answer, ""))]

    def error(self, error: ApiError) -> str:
        return self.line(error.body("/api/"))

    def line(self, value: dict[str, Any]) -> str:
        return json.dumps(value, ensure_ascii=False) + "\n"

    def _head(self, text: str) -> dict[str, Any]:
        content: Any = text if self._key == "response" else {"role": "assistant", "content": text}
        return {"model": self._name, "created_at": _timestamp(time.time()), self._key: content}

    def _last(self, answer: Answer, text: str) -> dict[str, Any]:
        now = time.monotonic()
        return {
            **self._head(text),
            "done": True,
            "done_reason": "load" if self._load_only else (answer.finish_reasons or ["stop"])[0],
            "total_duration": _nanoseconds(now - self._start),
            "load_duration": 0,
            "prompt_eval_count": answer.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(self._first_piece - self._start),
            "eval_count": answer.completion_tokens,
            "eval_duration": max(1, _nanoseconds(now - self._first_piece)),
        }
