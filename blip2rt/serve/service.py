"""What the routes of a server share: the model once it is loaded, its queue, and how requests are read and answered."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import StreamingResponse

from .. import bundle as contract
from ..model import Model
from .body import Intake, from_form, from_json, is_form
from .faults import Fault, bad, fault_of
from .gate import Notes
from .logs import LOG
from .media import image_bytes
from .metrics import Metrics
from .policy import HELLO, Turn
from .queueing import Work
from .settings import Settings
from .work import Answer, Job, Piece, Stop

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
_NO_TEXTS = ("image", "images", "image_url", "role", "type")  # pictures have bounds of their own


class Service:
    """One server's model and ways."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.metrics = Metrics()
        self.intake = Intake(settings.limits, self.metrics)
        self.name = model.bundle.manifest.name
        self.digest = hashlib.sha256((model.bundle.path / contract.MANIFEST).read_bytes()).hexdigest()
        self.pictures = 0 if settings.index is None else indexed(settings.index, model)
        self.created = int((model.bundle.path / contract.MANIFEST).stat().st_mtime)
        self.ready = self.ending = self.loading = False
        self._work: Work | None = None

    async def load(self) -> None:
        """Load the graphs and run each once. Raises what the model raises."""
        self._work = Work(self.model, self.settings.queue, self.settings.limits.tokens, self.metrics)
        begun = time.monotonic()
        self.loading = True
        try:
            await asyncio.to_thread(self.model.warm_up)
        finally:
            self.loading = False
        self.metrics.count(self.model.counters)
        self.ready = True
        self.metrics.ready.set(1)
        LOG.info("ready", extra={"fields": {"model": self.name, "seconds": round(time.monotonic() - begun, 2)}})

    def cut(self) -> None:
        """End what is under way."""
        if self._work is not None:
            self._work.cut()

    def close(self) -> None:
        """Let go of the threads and the model."""
        self.ready = False
        if self._work is not None:
            self._work.close()
        self.model.close()

    @property
    def work(self) -> Work:
        """The queue. Raises Fault while the model is being loaded, and when the server ends."""
        if not self.ready or self._work is None:
            raise Fault(503, "the model is being loaded: try again in a moment", "loading", retry_after=2)
        return self._work

    @property
    def can_write(self) -> bool:
        """Whether the bundle has a language model."""
        return all(map(self.model.bundle.has, contract.GENERATIVE))

    async def read(self, kind: type[M], request: Request) -> M:
        """The body of a request, JSON or where the route takes forms a form; its texts are bounded. Raises Fault."""
        self.work  # noqa: B018  # nothing is read while there is no model
        body, limits = await self.intake.read(request), self.settings.limits
        request.scope["notes"].end = self.work.end()
        found = await from_form(kind, request, body, limits.images) if is_form(request) else from_json(kind, body)
        if (size := letters(found)) > limits.prompt:
            raise bad(f"the texts have {size:,} characters, and {limits.prompt:,} are allowed: shorten them",
                      code="prompt_too_long")  # fmt: skip
        return found

    async def image(self, request: Request, reference: str | bytes, param: str = "image") -> bytes:
        """The bytes of the image that a request names, unless the client leaves or its time is over. Raises Fault."""
        found = image_bytes(reference, self.settings.media, self.settings.limits, param)
        return await unless_gone(request, self.work.until(request.scope["notes"].end, found))

    async def run(self, request: Request, function: Callable[[Stop], T]) -> T:
        """What a function of the model gives, unless the client leaves or its time is over. Raises Fault."""
        return await unless_gone(request, self.work.run(function, request.scope["notes"].end))

    async def hello(
        self, turns: Sequence[Turn[str]], options: Mapping[str, Any], stops: tuple[str, ...], streamed: bool,
        said: str = HELLO,
    ) -> Answer:  # fmt: skip
        """What is said to who shows nothing, as clients do that look whether somebody is there.

        Options are checked as if there were a picture. The model reads nothing, so words count as tokens. Raises
        Blip2rtError.
        """
        if self.can_write:
            await asyncio.to_thread(self.work.check, Job(b"", options=options, stops=stops), streamed)
        words, texts = sum(len(text.split()) for turn in turns for text in turn.texts), options.get("num_captions") or 1
        return Answer([said] * texts, ["stop"] * texts, words, len(said.split()) * texts)

    async def answer(self, request: Request, job: Job) -> Answer:
        """The texts of a job, unless the client leaves."""
        found = await unless_gone(request, self.work.answer(job, request.scope["notes"].end))
        self.note(request, job, found)
        return found

    def note(self, request: Request, job: Job, found: Answer) -> None:
        """Count what was answered, for metrics and log."""
        self.metrics.tokens.labels("prompt").inc(found.prompt_tokens)
        self.metrics.tokens.labels("completion").inc(found.completion_tokens)
        fields = request.scope["notes"].fields
        fields |= {"prompt_tokens": found.prompt_tokens, "completion_tokens": found.completion_tokens}
        if self.settings.log_prompts:
            fields |= {"question": job.question, "texts": found.texts}

    async def stream(
        self, request: Request, job: Job, lines: Lines, media_type: str = "text/event-stream"
    ) -> StreamingResponse:
        """The texts of a job as they come. What is wrong before the first piece is a status, later it is a line."""
        notes: Notes = request.scope["notes"]
        pieces = self.work.stream(job, notes.end)
        first = await unless_gone(request, anext_of(pieces))
        self.metrics.first.observe(time.monotonic() - notes.start)

        async def body() -> AsyncIterator[str]:
            piece: Piece | Answer = first
            ended = False
            try:
                for line in lines.begin():
                    yield line
                while isinstance(piece, Piece):
                    for line in lines.piece(piece):
                        yield line
                    piece = await anext_of(pieces)
                self.note(request, job, piece)
                for line in lines.end(piece):
                    yield line
                ended = True
            except Exception as error:
                fault = fault_of(error)
                if fault.status == 500:
                    LOG.exception("a stream failed", extra={"fields": {"id": notes.id}})
                notes.fields["status"] = fault.status
                ended = True
                yield lines.fault(fault)
            finally:
                if not ended:
                    notes.fields["status"] = 499
                await pieces.aclose()

        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(body(), headers=headers, media_type=media_type)


class Lines:
    """How a stream is written. Every route has its own."""

    def begin(self) -> list[str]:
        """What comes before the first piece."""
        return []

    def piece(self, piece: Piece) -> list[str]:
        """A part of a text."""
        raise NotImplementedError

    def end(self, found: Answer) -> list[str]:
        """What comes last."""
        raise NotImplementedError

    def fault(self, fault: Fault) -> str:
        """What is wrong, in the middle."""
        raise NotImplementedError


async def anext_of(pieces: AsyncIterator[T]) -> T:
    """The next of an iterator, as a coroutine."""
    return await pieces.__anext__()


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives; it is cancelled when the client leaves. The body must have been read. Raises Fault."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, left = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Fault(499, "the client has left", "client_gone")
        return task.result()
    finally:
        for each in (task, left):
            each.cancel()


def letters(value: object) -> int:
    """Characters of all texts in a request. What names a picture is none."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(map(letters, value))
    named = value if isinstance(value, BaseModel) else value.items() if isinstance(value, dict) else ()
    return sum(letters(each) for name, each in named if name not in _NO_TEXTS)


def given(request: BaseModel, names: Mapping[str, str]) -> dict[str, Any]:
    """The options of generation that a request names, by blip2rt's names. names: the request's -> blip2rt's."""
    return {ours: value for theirs, ours in names.items() if (value := getattr(request, theirs)) is not None}


def sampling(temperature: float | None, top_p: float | None, others: Mapping[str, Any]) -> dict[str, Any]:
    """Temperature and what goes with it -> options. Without a temperature, or with 0, no token is drawn.

    others: options that make sense only where tokens are drawn: top_k, min_p, seed.
    """
    if temperature is None and top_p is not None and top_p < 1:
        temperature = 1.0
    if not temperature:
        return {}
    drawn: dict[str, Any] = {"do_sample": True, "num_beams": 1, "temperature": max(temperature, 0.01)}
    if top_p is not None:
        drawn["top_p"] = top_p
    return {**drawn, **{name: value for name, value in others.items() if value is not None}}


def stops_of(stop: str | list[str] | None, name: str = "stop", most: int = 16) -> tuple[str, ...]:
    """A request's stop strings, or others of its kind. Raises Fault."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > most or any(not each or len(each) > 200 for each in stops):
        raise bad(f"{name}: give {most} strings at most, each of 1 to 200 characters", name)
    return stops


def folder_size(path: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def indexed(folder: Path, model: Model) -> int:
    """The pictures in an index. Raises GalleryError for what is no index, or another model's."""
    from ..gallery import Index

    with Index.open(folder, model) as index:
        return len(index)
