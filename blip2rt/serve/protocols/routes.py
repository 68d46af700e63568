"""Our own API: caption, ask, match, search, and matching as robots call it. Options are named as in blip2rt.Options.

To add a route: write a request model and a handler, and add an Endpoint to ENDPOINTS below.
"""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import asdict
from itertools import takewhile
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from ...errors import ImageError
from ...image import load_rgb
from ..endpoints import Endpoint
from ..errors import ApiError, bad_request
from ..inference import Answer, CancelEvent, Piece, TextJob, batches
from ..request_body import image_bytes
from ..service import AnswerWriter, Call, given_options, sampling_options, string_list
from .openai import usage

THUMBNAIL_SIDE = 256  # pixels of the longer side
_MAX_BAD_WORDS = 256
_MAX_LABELS = 10_000
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")
_OPTIONS = (
    "num_captions num_beams max_new_tokens min_new_tokens length_penalty early_stopping repetition_penalty "
    "no_repeat_ngram_size forced_prefix max_time do_sample"
).split()


class TextRequest(BaseModel):
    """What caption and ask have in common. image: a data URI, base64, or in a form a file."""

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
    max_time: float | None = Field(default=None, gt=0)
    do_sample: bool | None = None
    temperature: float | None = Field(default=None, ge=0)
    top_k: int | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, ge=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)


class CaptionRequest(TextRequest):
    """POST /v1/caption. prompt: words that the caption continues. scores: also return its confidence."""

    prompt: str | None = None
    scores: bool = False


class AskRequest(TextRequest):
    """POST /v1/ask."""

    question: str


class TagsRequest(BaseModel):
    """POST /v1/tags. labels: to choose from; by default about 1,200 everyday ones."""

    image: str | bytes
    labels: str | list[str] = Field(default_factory=list)
    top: int = Field(10, ge=1, le=1000)
    threshold: float = Field(0.3, ge=0, le=1)


class MatchRequest(BaseModel):
    """POST /v1/match. One text or several."""

    image: str | bytes
    texts: str | list[str]


class ItmRequest(BaseModel):
    """POST /blip2itm, as robots call BLIP-2's matching."""

    image: str
    txt: str


class SearchRequest(BaseModel):
    """POST /v1/search. Either a text or an image. rerank: how many of the best are scored by the matching head."""

    text: str | None = None
    image: str | bytes | None = None
    n: int = Field(10, ge=1, le=100)
    rerank: int = Field(0, ge=0, le=100)
    thumbnails: bool = True


async def _caption(call: Call, body: CaptionRequest) -> Any:
    return await _respond(call, body, "caption", None, body.prompt)


async def _ask(call: Call, body: AskRequest) -> Any:
    if not body.question.strip():
        raise bad_request("question: it is empty: ask something, as in 'what colour is the dog?'", "question")
    return await _respond(call, body, "answer", body.question, None)


async def _respond(call: Call, body: TextRequest, key: str, question: str | None, prompt: str | None) -> Any:
    call.limit_sequences(body, "num_captions", "num_beams")
    if body.do_sample:
        options = given_options(body, _SAMPLING)
    else:
        options = sampling_options(body.temperature, body.top_p, top_k=body.top_k, min_p=body.min_p, seed=body.seed)
    options |= given_options(body, _OPTIONS)
    options["bad_words"] = string_list(body.bad_words, "bad_words", _MAX_BAD_WORDS)
    stops = string_list(body.stop_strings, "stop_strings")
    rated = getattr(body, "scores", False)
    if rated:
        call.model.matcher.require_confidence()
    job = TextJob(image_bytes(body.image, "image"), question, prompt, (), options, stops, rated=rated)
    return await call.respond(job, _TextWriter(key), body.stream)


async def _tags(call: Call, body: TagsRequest) -> Any:
    labels = [body.labels] if isinstance(body.labels, str) else body.labels
    if len(labels) > _MAX_LABELS:
        raise bad_request(f"labels: there are {len(labels):,}: give at most {_MAX_LABELS:,}", "labels")
    tagger = call.model.matcher.tagger(labels or None, body.top, body.threshold)
    image = image_bytes(body.image, "image")

    def compute(cancelled: CancelEvent) -> list[dict[str, Any]]:
        features = call.model.vision_features(image)[None]
        [tags] = [[]] if cancelled.is_set() else tagger.tags(features)
        return [{"label": str(tag), "probability": tag.probability, "parents": list(tag.parents)} for tag in tags]

    return {"tags": await call.run(compute)}


async def _match(call: Call, body: MatchRequest) -> Any:
    texts = [body.texts] if isinstance(body.texts, str) else body.texts
    if not texts or len(texts) > call.limits.inputs:
        raise bad_request(f"texts: give 1 to {call.limits.inputs} texts", "texts")
    _check_words(texts, "texts")
    image = image_bytes(body.image, "image")

    def compute(cancelled: CancelEvent) -> list[dict[str, Any]]:
        features = call.model.vision_features(image)[None]
        rows: list[dict[str, Any]] = []
        for batch in batches(texts, cancelled):
            matches = call.model.match_features(np.repeat(features, len(batch), axis=0), batch)
            rows += [{"text": text, **asdict(match)} for text, match in zip(batch, matches, strict=True)]
        return rows

    matches = await call.run(compute, len(texts))
    return {"matches": sorted(matches, key=lambda row: -row["score"])}


async def _itm(call: Call, body: ItmRequest) -> Any:
    _check_words([body.txt], "txt")
    image = image_bytes(body.image, "image")

    def compute(cancelled: CancelEvent) -> float:
        picture: Any = image
        if call.service.settings.blip2itm_bgr:
            picture = Image.merge("RGB", load_rgb(image, max_pixels=call.limits.pixels).split()[::-1])
        embeds = call.model.embed_image(picture)
        return 0.0 if cancelled.is_set() else float((embeds @ call.model.embed_text(body.txt)).max())

    return {"response": await call.run(compute)}


async def _search(call: Call, body: SearchRequest) -> Any:
    folder = call.service.settings.index
    if folder is None:
        raise ApiError(501, "this server has no index: start it with --index", "no_index")
    if (body.text is None) == (body.image is None):
        raise bad_request("text, image: give one of them", "text")
    query: Any = body.text if body.image is None else image_bytes(body.image, "image")

    def compute(cancelled: CancelEvent) -> list[dict[str, Any]]:
        from ...gallery import Index

        with Index.open(folder, call.model) as index:  # per request: its database belongs to one thread
            by_image = body.image is not None
            hits = index.search(query, body.n, image=by_image, rerank=body.rerank, cancelled=cancelled.is_set)
        rows = []
        for hit in takewhile(lambda _: not cancelled.is_set(), hits):
            name = os.fsencode(hit.name).decode("utf-8", "backslashreplace")  # JSON is UTF-8
            row: dict[str, Any] = {"name": name, "score": hit.score}
            if hit.probability is not None:
                row["probability"] = hit.probability
            if body.thumbnails:
                row["thumbnail"] = _thumbnail(hit, call.limits.pixels)
            rows.append(row)
        return rows

    return {"hits": await call.run(compute)}


ENDPOINTS = [
    Endpoint("/v1/caption", _caption, CaptionRequest, "Describe a picture", forms=True),
    Endpoint("/v1/ask", _ask, AskRequest, "Answer a question about a picture", forms=True),
    Endpoint("/v1/tags", _tags, TagsRequest, "Label a picture", forms=True),
    Endpoint("/v1/match", _match, MatchRequest, "Rank texts by how well they describe a picture", forms=True),
    Endpoint("/v1/search", _search, SearchRequest, "Search the index by a text or a picture", forms=True),
    Endpoint("/blip2itm", _itm, ItmRequest, "The cosine between a picture and a text"),
]


def _check_words(texts: Sequence[str], param: str) -> None:
    if not all(any(map(str.isalnum, text)) for text in texts):
        raise bad_request(f"{param}: it has no words: describe a picture, as in 'a dog on grass'", param)


def _thumbnail(hit: Any, max_pixels: int) -> str | None:
    """Return a small JPEG as a data URI, or None if the picture is no longer readable."""
    from ...gallery.tar_samples import picture_at

    try:
        image = load_rgb(picture_at(hit.path, hit.offset, hit.length), THUMBNAIL_SIDE, max_pixels)
    except (ImageError, OSError):
        return None
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


class _TextWriter(AnswerWriter):
    """Writes {"caption": ...} or {"answer": ...}, with all texts if there are several, and usage."""

    def __init__(self, key: str) -> None:
        self._key = key

    def whole(self, answer: Answer) -> dict[str, Any]:
        several = {f"{self._key}s": answer.texts} if len(answer.texts) > 1 else {}
        text, finish = (answer.texts[0], answer.finish[0]) if answer.texts else ("", "stop")
        ended = {"finish_reason": finish, "truncated": finish != "stop"}
        rated = {} if answer.confidence is None else {"confidence": answer.confidence}
        return {self._key: text, **several, **rated, **ended, "usage": usage(answer)}

    def piece(self, piece: Piece) -> list[str]:
        return [self.line({"index": piece.index, "text": piece.text})]

    def end(self, answer: Answer) -> list[str]:
        return [self.line(self.whole(answer)), "data: [DONE]\n\n"]
