"""Ollama's routes, as its clients call them: pictures are base64 beside the words, a stream is a JSON object a line."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..version import __version__
from .faults import Fault, bad
from .openai import NO_JSON, ImageInput, Pictured, embed
from .policy import HELLO, Turn, read
from .service import Lines, Service, folder_size, sampling, stops_of
from .work import Answer, Job, Piece


class ModelOptions(BaseModel):
    """Ollama's options that mean something here; others are passed over."""

    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = None  # 0 and below: all tokens
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = None
    num_predict: int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = Field(default=None, ge=0)  # 0: none


class Common(BaseModel):
    """What generate and chat share."""

    model: str | None = None
    stream: bool | None = None
    options: ModelOptions | None = None
    format: str | dict[str, Any] | None = None


class GenerateRequest(Common):
    """POST /api/generate."""

    prompt: str | None = None
    images: list[str] | None = None


class ChatMessage(BaseModel):
    """One message of a chat."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: list[str] | None = None


class ChatRequest(Common):
    """POST /api/chat."""

    messages: list[ChatMessage] = Field(default_factory=list, max_length=1000)


class ShowRequest(BaseModel):
    """POST /api/show."""

    model: str | None = None
    name: str | None = None


class EmbedRequest(BaseModel):
    """POST /api/embed. An input {"image": base64} is a picture."""

    model: str | None = None
    input: Annotated[str | ImageInput | list[str | ImageInput], Pictured]


def routes(service: Service) -> list[Route]:
    """The routes, for a service."""
    name = f"{service.name}:latest"
    size = folder_size(service.model.bundle.path)

    async def generate(request: Request) -> Response:
        asked = await service.read(GenerateRequest, request)
        turns = [Turn("user", (asked.prompt or "",), tuple(asked.images or ()))]
        load_only = not asked.prompt and not asked.images
        return await _answered(request, asked, turns, _Shape(name, "response", load_only), load_only)

    async def chat(request: Request) -> Response:
        asked = await service.read(ChatRequest, request)
        turns = [Turn(each.role, (each.content or "",), tuple(each.images or ())) for each in asked.messages]
        return await _answered(request, asked, turns, _Shape(name, "message", not turns), not turns)

    async def _answered(
        request: Request, asked: Common, turns: list[Turn[str]], shape: _Shape, load_only: bool
    ) -> Response:
        options = asked.options or ModelOptions.model_validate({})
        if asked.format:
            raise bad(NO_JSON.format("format", "it"), "format", "unsupported_value")
        pictures = sum(len(turn.images) for turn in turns)
        if pictures > service.settings.limits.images:
            raise bad(f"images: more than {service.settings.limits.images} pictures: send fewer", "images")
        chosen, stops, streamed = _options(options), stops_of(options.stop), asked.stream is not False
        reading = read(turns, service.work.chats)
        if reading.image is None:
            found = await service.hello(turns, chosen, stops, streamed, "" if load_only else HELLO)
            if not streamed:
                return JSONResponse(shape.whole(found))
            lines = [*(shape.piece(Piece(0, text)) for text in found.texts if text), shape.end(found)]
            return Response("".join(line for each in lines for line in each), media_type="application/x-ndjson")
        image = await service.image(request, reading.image, "images")
        request.scope["notes"].fields["images"] = pictures
        job = Job(image, reading.question, None, reading.history, chosen, stops)
        if streamed:
            return await service.stream(request, job, shape, "application/x-ndjson")
        return JSONResponse(shape.whole(await service.answer(request, job)))

    async def tags(_: Request) -> Response:
        return JSONResponse({"models": [_entry(service, name, size)]})

    async def running(_: Request) -> Response:
        entry = {**_entry(service, name, size), "expires_at": "9999-12-31T23:59:59Z", "size_vram": 0}
        return JSONResponse({"models": [entry] if service.ready else []})

    async def show(request: Request) -> Response:
        await service.read(ShowRequest, request)
        return JSONResponse(_shown(service, size))

    async def version(_: Request) -> Response:
        return JSONResponse({"version": __version__})

    async def embeddings(request: Request) -> Response:
        asked, begun = await service.read(EmbedRequest, request), time.monotonic()
        inputs = asked.input if isinstance(asked.input, list) else [asked.input]
        vectors, tokens = ([], 0) if asked.input in ("", []) else await embed(service, request, inputs)
        nanoseconds = int(1e9 * (time.monotonic() - begun))
        found = [[float(value) for value in each] for each in vectors]
        return JSONResponse({"model": name, "embeddings": found, "total_duration": nanoseconds, "load_duration": 0,
                             "prompt_eval_count": tokens})  # fmt: skip

    return [
        Route("/api/generate", generate, methods=["POST"]),
        Route("/api/chat", chat, methods=["POST"]),
        Route("/api/embed", embeddings, methods=["POST"]),
        Route("/api/tags", tags),
        Route("/api/ps", running),
        Route("/api/show", show, methods=["POST"]),
        Route("/api/version", version),
    ]


def _options(options: ModelOptions) -> dict[str, object]:
    seed = None if options.seed is None or options.seed < 0 else options.seed
    top_k = None if options.top_k is None else max(options.top_k, 0)
    chosen = sampling(options.temperature, options.top_p, {"top_k": top_k, "min_p": options.min_p, "seed": seed})
    if options.num_predict is not None and options.num_predict > 0:
        chosen["max_new_tokens"] = options.num_predict
    if options.repeat_penalty:
        chosen["repetition_penalty"] = options.repeat_penalty
    return chosen


def _details(service: Service) -> dict[str, Any]:
    bundle = service.model.bundle
    part = bundle.manifest.components.get("llm") or next(iter(bundle.manifest.components.values()))
    return {"parent_model": "", "format": "onnx", "family": "blip2", "families": ["blip2"], "parameter_size": "",
            "quantization_level": part.precision}  # fmt: skip


def _entry(service: Service, name: str, size: int) -> dict[str, Any]:
    return {"name": name, "model": name, "modified_at": _moment(service.created), "size": size,
            "digest": service.digest, "details": _details(service)}  # fmt: skip


def _shown(service: Service, size: int) -> dict[str, Any]:
    manifest = service.model.bundle.manifest
    able = ["completion", "vision"] if service.can_write else []
    able += ["embedding"] if service.model.bundle.has("text_embed") else []
    info: dict[str, Any] = {"general.architecture": "blip2", "general.basename": manifest.name, "blip2.bytes": size}
    if manifest.llm is not None:
        info["blip2.context_length"] = manifest.llm.max_positions
        info["blip2.embedding_length"] = manifest.llm.hidden_size
    licences = "\n".join(sorted({f"{source.part}: {source.licence}" for source in manifest.sources}))
    return {"modelfile": f"# the bundle {manifest.name} of blip2rt", "parameters": "",
            "template": manifest.prompts.get("ask", ""), "license": licences, "details": _details(service),
            "model_info": info, "capabilities": able, "modified_at": _moment(service.created)}  # fmt: skip


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


class _Shape(Lines):
    """An answer as Ollama's objects: `response` of generate, `message` of chat."""

    def __init__(self, name: str, key: Literal["response", "message"], load_only: bool) -> None:
        self._name, self._key, self._begun, self._first = name, key, time.monotonic(), 0.0
        self._load_only = load_only

    def whole(self, found: Answer) -> dict[str, Any]:
        return self._last(found, found.texts[0] if found.texts else "")

    def piece(self, piece: Piece) -> list[str]:
        self._first = self._first or time.monotonic()
        return [self._line({**self._head(piece.text), "done": False})]

    def end(self, found: Answer) -> list[str]:
        return [self._line(self._last(found, ""))]

    def fault(self, fault: Fault) -> str:
        return self._line(fault.body("/api/"))

    def _head(self, text: str) -> dict[str, Any]:
        said: Any = text if self._key == "response" else {"role": "assistant", "content": text}
        return {"model": self._name, "created_at": _moment(time.time()), self._key: said}

    def _last(self, found: Answer, text: str) -> dict[str, Any]:
        now = time.monotonic()
        first = self._first or self._begun
        reason = "load" if self._load_only else (found.reasons or ["stop"])[0]
        return {
            **self._head(text), "done": True, "done_reason": reason, "total_duration": int(1e9 * (now - self._begun)),
            "load_duration": 0, "prompt_eval_count": found.prompt_tokens,
            "prompt_eval_duration": int(1e9 * (first - self._begun)), "eval_count": found.completion_tokens,
            "eval_duration": max(1, int(1e9 * (now - first))),
        }  # fmt: skip

    @staticmethod
    def _line(line: dict[str, Any]) -> str:
        return json.dumps(line, ensure_ascii=False) + "\n"
