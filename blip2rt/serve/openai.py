"""OpenAI's routes: chat completions, models, embeddings. Fields that mean nothing to BLIP-2 are passed over."""

from __future__ import annotations

import base64
import json
import time
import uuid
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .faults import Fault, bad
from .policy import Turn, read
from .service import Lines, Service, given, sampling, stops_of
from .work import Answer, Job, Piece, Stop, batches

NO_JSON = (
    "{} is not supported: BLIP-2 writes captions and short answers, no JSON. Leave {} out, or ask for each field alone"
)


class ImageUrl(BaseModel):
    """A data URI, or an address that the server may fetch."""

    url: str


class Part(BaseModel):
    """A part of a message."""

    type: str
    text: str | None = None
    image_url: ImageUrl | str | None = None


class ChatMessage(BaseModel):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None


class StreamOptions(BaseModel):
    """How a stream ends."""

    include_usage: bool | None = None


class ResponseFormat(BaseModel):
    """Text alone."""

    type: str = "text"


class ChatRequest(BaseModel):
    """POST /v1/chat/completions. The last picture is asked about; docs/serve.md says how words are read."""

    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = None
    n: int | None = Field(default=None, ge=1)
    response_format: ResponseFormat | None = None
    tool_choice: Any = None
    # What OpenAI has not: fields of blip2rt.Options.
    num_beams: int | None = Field(default=None, ge=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    length_penalty: float | None = None
    min_new_tokens: int | None = Field(default=None, ge=0)
    no_repeat_ngram_size: int | None = Field(default=None, ge=0)
    max_time: float | None = Field(default=None, ge=0)


class ImageInput(BaseModel):
    """An input of embeddings that is a picture."""

    image: str


def _pictured(value: Any) -> Any:
    """Strings that are data URIs of pictures -> pictures."""
    if isinstance(value, list):
        return [_pictured(each) for each in value]
    return {"image": value} if isinstance(value, str) and value[:11].lower() == "data:image/" else value


Pictured = BeforeValidator(_pictured)


class EmbeddingsRequest(BaseModel):
    """POST /v1/embeddings. Texts; strings that are data URIs of pictures, or {"image": ...}, are pictures."""

    model: str | None = None
    input: Annotated[str | ImageInput | list[str | ImageInput | int | list[int]], Pictured]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


_SAME = ("num_beams", "repetition_penalty", "length_penalty", "min_new_tokens", "no_repeat_ngram_size", "max_time")


def routes(service: Service) -> list[Route]:
    """The routes, for a service."""

    async def chat(request: Request) -> Response:
        asked = await service.read(ChatRequest, request)
        turns = _turns(asked, service)
        options, stops = _options(asked, service), stops_of(asked.stop)
        reading = read(turns, service.work.chats)
        shape = _Shape(service.name, asked)
        if reading.image is None:
            return _said(await service.hello(turns, options, stops, bool(asked.stream)), shape, bool(asked.stream))
        image = await service.image(request, reading.image, "messages")
        request.scope["notes"].fields["images"] = sum(len(turn.images) for turn in turns)
        job = Job(image, reading.question, None, reading.history, options, stops)
        if asked.stream:
            return await service.stream(request, job, shape)
        found = await service.answer(request, job)
        return JSONResponse(shape.whole(found))

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(service)]})

    async def one_model(request: Request) -> Response:
        name = request.path_params["name"]
        if name != service.name:
            raise Fault(404, f"no model {name[:100]!r}: this server has {service.name!r}", "model_not_found", "model")
        return JSONResponse(_model(service))

    async def embeddings(request: Request) -> Response:
        asked = await service.read(EmbeddingsRequest, request)
        inputs = asked.input if isinstance(asked.input, list) else [asked.input]
        vectors, tokens = await embed(service, request, inputs)
        if asked.dimensions is not None and vectors and asked.dimensions != len(vectors[0]):
            raise bad(f"dimensions: this model's embeddings have {len(vectors[0])}", "dimensions")
        data = [{"object": "embedding", "index": i, "embedding": _written(vector, asked.encoding_format)}
                for i, vector in enumerate(vectors)]  # fmt: skip
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": service.name, "usage": usage})

    return [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", one_model),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
    ]


async def embed(service: Service, request: Request, inputs: list[Any]) -> tuple[list[np.ndarray], int]:
    """Texts and pictures -> their vectors, and the tokens of the texts. A picture's is the mean of its queries'."""
    if not inputs or len(inputs) > service.settings.limits.embeddings:
        raise bad(f"input: give 1 to {service.settings.limits.embeddings} inputs", "input")
    if any(isinstance(each, int | list) for each in inputs):
        raise bad("input: give texts, not tokens: this model has a tokenizer of its own", "input")
    if sum(isinstance(each, ImageInput) for each in inputs) > service.settings.limits.images:
        raise bad(f"input: more than {service.settings.limits.images} pictures: send fewer", "input")
    images = {i: await service.image(request, each.image, "input")
              for i, each in enumerate(inputs) if isinstance(each, ImageInput)}  # fmt: skip
    texts = {i: each for i, each in enumerate(inputs) if i not in images}
    if any(not text.strip() for text in texts.values()):
        raise bad("input: a text is empty", "input")
    request.scope["notes"].fields["images"] = len(images)

    def compute(stop: Stop) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for places in batches(list(texts), stop):
            found |= zip(places, service.model.embed_text([texts[i] for i in places]), strict=True)
        for places in batches(list(images), stop):
            means = service.model.embed_image([images[i] for i in places]).mean(axis=1)  # (B, E)
            found |= zip(places, means / np.linalg.norm(means, axis=1, keepdims=True), strict=True)
        return found

    vectors = await service.run(request, compute)
    encoded = [service.model.matcher.tokenizer.encode(list(texts.values()))] if texts else []
    tokens = sum(int(mask.sum()) for _, mask in encoded)
    service.metrics.tokens.labels("prompt").inc(tokens)
    return [vectors[i] for i in range(len(inputs))], tokens


def _written(vector: np.ndarray, encoding: str) -> Any:
    if encoding == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
    return [float(value) for value in vector]


def _model(service: Service) -> dict[str, Any]:
    spec = service.model.bundle.manifest.llm
    length = {} if spec is None else {"max_model_len": spec.max_positions}
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "blip2rt", **length}


def _turns(asked: ChatRequest, service: Service) -> list[Turn[str]]:
    """Messages -> turns. Raises Fault for what this server cannot do."""
    if asked.response_format is not None and asked.response_format.type != "text":
        told = NO_JSON.format(f"response_format {asked.response_format.type[:50]}", "it")
        raise bad(told, "response_format", "unsupported_value")
    if asked.tool_choice not in (None, "none", "auto"):
        raise bad("tool_choice: this model calls no tools: leave it out", "tool_choice", "unsupported_value")
    turns = []
    for number, message in enumerate(asked.messages):
        said = message.content or []
        parts = [Part(type="text", text=said)] if isinstance(said, str) else said
        texts, images = [], []
        for part in parts:
            if part.type in ("text", "input_text", "output_text", "refusal"):
                texts.append(part.text or "")
            elif part.type in ("image_url", "input_image") and part.image_url is not None:
                images.append(part.image_url.url if isinstance(part.image_url, ImageUrl) else part.image_url)
            else:
                raise bad(f"messages.{number}: a part of type {part.type[:50]!r} cannot be read: send text and "
                          "image_url", "messages", "unsupported_value")  # fmt: skip
        turns.append(Turn(message.role, tuple(texts), tuple(images)))
    if sum(len(turn.images) for turn in turns) > service.settings.limits.images:
        raise bad(f"messages: more than {service.settings.limits.images} pictures: send fewer", "messages")
    return turns


def _options(asked: ChatRequest, service: Service) -> dict[str, Any]:
    most = service.settings.limits.texts
    for name in ("n", "num_beams"):
        if (getattr(asked, name) or 1) > most:
            raise bad(f"{name} is {getattr(asked, name)}: give {most} at most", name)
    seed = None if asked.seed is None else asked.seed % 2**63
    options = sampling(asked.temperature, asked.top_p, {"top_k": asked.top_k, "min_p": asked.min_p, "seed": seed})
    options |= given(asked, {name: name for name in _SAME})
    if (asked.n or 1) > 1:
        options["num_captions"] = asked.n
        if not options.get("do_sample"):
            options.setdefault("num_beams", max(asked.n or 1, 3))
    if wanted := asked.max_completion_tokens or asked.max_tokens:
        options["max_new_tokens"] = wanted
    return options


def _said(found: Answer, shape: _Shape, streamed: bool) -> Response:
    """The response to who shows nothing."""
    if not streamed:
        return JSONResponse(shape.whole(found))
    lines = [*shape.begin(), *(line for i, text in enumerate(found.texts) for line in shape.piece(Piece(i, text))),
             *shape.end(found)]  # fmt: skip
    return Response("".join(lines), media_type="text/event-stream")


class _Shape(Lines):
    """An answer as OpenAI's objects."""

    def __init__(self, name: str, asked: ChatRequest) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
        self._texts = asked.n or 1
        self._usage = bool(asked.stream_options and asked.stream_options.include_usage)

    def whole(self, found: Answer) -> dict[str, Any]:
        choices = [
            {"index": i, "message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": None,
             "finish_reason": reason}
            for i, (text, reason) in enumerate(zip(found.texts, found.reasons, strict=True))
        ]  # fmt: skip
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage_of(found)}

    def begin(self) -> list[str]:
        return [self._chunk(i, {"role": "assistant", "content": ""}) for i in range(self._texts)]

    def piece(self, piece: Piece) -> list[str]:
        return [self._chunk(piece.index, {"content": piece.text})]

    def end(self, found: Answer) -> list[str]:
        lines = [self._chunk(i, {}, finish) for i, finish in enumerate(found.reasons)]
        if self._usage:
            lines.append(self._line([], usage_of(found)))
        return [*lines, "data: [DONE]\n\n"]

    def fault(self, fault: Fault) -> str:
        return f"data: {json.dumps(fault.body())}\n\n"

    def _chunk(self, index: int, delta: dict[str, Any], finish: str | None = None) -> str:
        return self._line([{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}], None)

    def _line(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> str:
        own = {"usage": usage} if self._usage else {}
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": choices, **own}
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def usage_of(found: Answer) -> dict[str, int]:
    """OpenAI's counts of tokens."""
    total = found.prompt_tokens + found.completion_tokens
    return {"prompt_tokens": found.prompt_tokens, "completion_tokens": found.completion_tokens, "total_tokens": total}
