"""Our routes: caption, ask, match, and matching as robots call it. JSON or a form; a field is blip2rt.Options'."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..image import load_rgb
from .faults import Fault, bad
from .openai import usage_of
from .service import Lines, Service, given, sampling, stops_of
from .work import Answer, Job, Piece, Stop, batches

_OPTIONS = {
    name: name for name in (
        "num_captions", "num_beams", "max_new_tokens", "min_new_tokens", "length_penalty", "early_stopping",
        "repetition_penalty", "no_repeat_ngram_size", "forced_prefix", "max_time", "do_sample",
    )
}  # fmt: skip
_DRAWN = {name: name for name in ("temperature", "top_k", "top_p", "min_p", "seed")}


class TextRequest(BaseModel):
    """What caption and ask share. image: a data URI, base64, or in a form a file."""

    image: str | bytes
    stream: bool = False
    num_captions: int | None = Field(default=None, ge=1)
    num_beams: int | None = Field(default=None, ge=1)
    max_new_tokens: int | None = Field(default=None, ge=1)
    min_new_tokens: int | None = Field(default=None, ge=0)
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    repetition_penalty: float | None = Field(default=None, gt=0)
    no_repeat_ngram_size: int | None = Field(default=None, ge=0)
    bad_words: str | list[str] | None = None
    forced_prefix: str | None = None
    stop_strings: str | list[str] | None = None
    max_time: float | None = Field(default=None, ge=0)
    do_sample: bool | None = None
    temperature: float | None = Field(default=None, ge=0)
    top_k: int | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, ge=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)


class CaptionRequest(TextRequest):
    """POST /v1/caption. prompt: words that the caption goes on from."""

    prompt: str | None = None


class AskRequest(TextRequest):
    """POST /v1/ask."""

    question: str


class MatchRequest(BaseModel):
    """POST /v1/match. One text or several."""

    image: str | bytes
    text: str | list[str] = Field(default_factory=list)
    texts: str | list[str] = Field(default_factory=list)


class ItmRequest(BaseModel):
    """POST /blip2itm, as robots call BLIP-2's matching."""

    image: str
    txt: str


def routes(service: Service) -> list[Route]:
    """The routes, for a service."""

    async def caption(request: Request) -> Response:
        asked = await service.read(CaptionRequest, request)
        return await _answered(request, asked, "caption", None, asked.prompt)

    async def ask(request: Request) -> Response:
        asked = await service.read(AskRequest, request)
        if not asked.question.strip():
            raise bad("question: it is empty: ask something, as in 'what colour is the dog?'", "question")
        return await _answered(request, asked, "answer", asked.question, None)

    async def _answered(
        request: Request, asked: TextRequest, key: str, question: str | None, prompt: str | None
    ) -> Response:
        most = service.settings.limits.texts
        for name in ("num_captions", "num_beams"):
            if (getattr(asked, name) or 1) > most:
                raise bad(f"{name} is {getattr(asked, name)}: give {most} at most", name)
        others = {"top_k": asked.top_k, "min_p": asked.min_p, "seed": asked.seed}
        drawn = given(asked, _DRAWN) if asked.do_sample else sampling(asked.temperature, asked.top_p, others)
        options = drawn | given(asked, _OPTIONS)
        options["bad_words"] = stops_of(asked.bad_words, "bad_words", 256)
        stops = stops_of(asked.stop_strings, "stop_strings")
        job = Job(await service.image(request, asked.image), question, prompt, (), options, stops)
        if asked.stream:
            return await service.stream(request, job, _Shape(key))
        return JSONResponse(_Shape(key).whole(await service.answer(request, job)))

    async def match(request: Request) -> Response:
        asked = await service.read(MatchRequest, request)
        texts = [text for each in (asked.text, asked.texts) for text in ([each] if isinstance(each, str) else each)]
        if not texts or len(texts) > service.settings.limits.embeddings:
            raise bad(f"text: give 1 to {service.settings.limits.embeddings} texts", "text")
        image = await service.image(request, asked.image)

        def compute(stop: Stop) -> list[dict[str, Any]]:
            model = service.model
            features = model.vision_features(image)[None]
            found: list[dict[str, Any]] = []
            for chunk in batches(texts, stop):
                matches = model.match_features(np.repeat(features, len(chunk), axis=0), chunk)
                found += [{"text": text, **asdict(match)} for text, match in zip(chunk, matches, strict=True)]
            return found

        _check_words(texts, "text")
        matches = await service.run(request, compute)
        return JSONResponse({"matches": sorted(matches, key=lambda each: -each["score"])})

    async def itm(request: Request) -> Response:
        asked = await service.read(ItmRequest, request)
        _check_words([asked.txt], "txt")
        image = await service.image(request, asked.image)

        def compute(stop: Stop) -> float:
            model, limits = service.model, service.settings.limits
            picture: Any = image
            if service.settings.blip2itm_bgr:
                picture = Image.merge("RGB", load_rgb(image, max_pixels=limits.pixels).split()[::-1])
            embeds = model.embed_image(picture)
            return 0.0 if stop.is_set() else float((embeds @ model.embed_text(asked.txt)).max())

        return JSONResponse({"response": await service.run(request, compute)})

    return [
        Route("/v1/caption", caption, methods=["POST"]),
        Route("/v1/ask", ask, methods=["POST"]),
        Route("/v1/match", match, methods=["POST"]),
        Route("/blip2itm", itm, methods=["POST"]),
    ]


def _check_words(texts: Sequence[str], field: str) -> None:
    if not all(any(map(str.isalnum, text)) for text in texts):
        raise bad(f"{field}: it has no words: say what the picture may show, as in 'a dog on grass'", field)


class _Shape(Lines):
    """An answer as ours: {"caption": ...} or {"answer": ...}, all texts where several were asked for, usage."""

    def __init__(self, key: str) -> None:
        self._key = key

    def whole(self, found: Answer) -> dict[str, Any]:
        several = {f"{self._key}s": found.texts} if len(found.texts) > 1 else {}
        text, finish = (found.texts[0], found.finish[0]) if found.texts else ("", "stop")
        ended = {"finish_reason": finish, "truncated": finish != "stop"}
        return {self._key: text, **several, **ended, "usage": usage_of(found)}

    def piece(self, piece: Piece) -> list[str]:
        return [self._line({"index": piece.index, "text": piece.text})]

    def end(self, found: Answer) -> list[str]:
        return [self._line(self.whole(found)), "data: [DONE]\n\n"]

    def fault(self, fault: Fault) -> str:
        return self._line(fault.body())

    @staticmethod
    def _line(line: dict[str, Any]) -> str:
        return f"data: {json.dumps(line, ensure_ascii=False)}\n\n"
