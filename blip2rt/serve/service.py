"""What all routes share: a Service holds the model and its queue, a Call handles one request."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ..bundle import MANIFEST
from ..model import Model
from ..pipeline import BATCH
from ..version import __version__
from .admission import AdmissionQueue, CancelEvent
from .chat_prompt import GREETING, Conversation, text_job
from .errors import CLIENT_GONE, ApiError, api_error, bad_request, client_gone
from .inference import Answer, Piece, TextJob, generate, shares_steps
from .logs import LOG
from .metrics import Metrics
from .middleware import RequestContext
from .request_body import BodyReader, count_characters, is_form, parse_form, parse_json
from .settings import Settings

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
_PARALLEL_SHARED, _PARALLEL_SEPARATE = 8, 2  # requests that run together: sharing decoding steps, or not
_SILENCE_SECONDS = 5.0  # proxies close a connection on which nothing comes
_COLD = 0.1  # up to this temperature, sampling would only be greedy search, which beam search is better than
_SAMPLED_NGRAM = 4  # tokens that a sampled text does not repeat: without beams, some texts loop


class Service:
    """A model with its settings, queue and metrics."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.metrics = Metrics()
        self.bodies = BodyReader(settings.limits, self.metrics)
        manifest = model.bundle.path / MANIFEST
        self.name = model.bundle.manifest.name
        self.metrics.add_model(__version__, model=self.name, target=model.bundle.manifest.target)
        self.digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
        self.created = int(manifest.stat().st_mtime)
        self.pictures = 0 if settings.index is None else count_indexed(settings.index, model)
        self.ready = self.ending = self.loading = False
        self._queue: AdmissionQueue | None = None

    async def load(self) -> None:
        """Load the graphs and run each once. Raises what the model raises."""
        limits = self.settings.queue
        parallel = limits.parallel or (_PARALLEL_SHARED if shares_steps(self.model) else _PARALLEL_SEPARATE)
        self._queue = AdmissionQueue(parallel, limits, self.metrics)
        start, self.loading = time.monotonic(), True
        try:
            await asyncio.to_thread(self.model.warm_up)
        finally:
            self.loading = False
        self.metrics.add_model_counters(self.model.counters)
        self.ready = True
        self.metrics.ready.set(1)
        LOG.info("ready", extra={"fields": {"model": self.name, "seconds": round(time.monotonic() - start, 2)}})

    def abort(self) -> None:
        """Fail running and waiting requests."""
        if self._queue is not None:
            self._queue.abort()

    def close(self) -> None:
        """Release the threads and the model."""
        self.ready = False
        if self._queue is not None:
            self._queue.close()
        self.model.close()

    @property
    def queue(self) -> AdmissionQueue:
        """The request queue. Raises ApiError until the model is loaded."""
        if not self.ready or self._queue is None:
            raise ApiError(503, "the model is being loaded: try again in a moment", "loading", retry_after=2)
        return self._queue


class AnswerWriter:
    """Formats an answer, whole or as server-sent events. Each API has its own."""

    media_type = "text/event-stream"
    comment = ": waiting\n\n"  # keeps a connection open; clients skip it
    greeting = GREETING

    def whole(self, answer: Answer) -> dict[str, Any]:
        """Return the JSON of an answer that is not streamed."""
        raise NotImplementedError

    def begin(self) -> list[str]:
        """Return what a stream sends before the first piece."""
        return []

    def piece(self, piece: Piece) -> list[str]:
        """Return what a stream sends for a piece of text."""
        raise NotImplementedError

    def end(self, answer: Answer) -> list[str]:
        """Return what a stream sends last."""
        raise NotImplementedError

    def error(self, error: ApiError) -> str:
        """Return what a stream sends when it fails."""
        return self.line(error.body())

    def line(self, value: dict[str, Any]) -> str:
        """Return an object as an event."""
        return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


class Call:
    """One request: reads its body and images, runs the model, and stops when the client disconnects."""

    def __init__(self, service: Service, request: Request) -> None:
        self.service, self.request = service, request
        self.model, self.limits = service.model, service.settings.limits
        self.context: RequestContext = request.scope["context"]

    async def read(self, kind: type[M]) -> M:
        """Read the body, JSON or a form, and limit the length of its texts. Raises ApiError."""
        queue = self.service.queue  # read nothing until the model is loaded
        body = await self.service.bodies.read(self.request)
        self.context.deadline = queue.deadline()
        if is_form(self.request):
            parsed = await parse_form(kind, self.request, body, self.limits.images)
        else:
            parsed = parse_json(kind, body)
        if (size := count_characters(parsed)) > self.limits.prompt_chars:
            message = f"the texts have {size:,} characters, and {self.limits.prompt_chars:,} are allowed: shorten them"
            raise bad_request(message, code="prompt_too_long")
        return parsed

    def limit_sequences(self, body: BaseModel, *names: str) -> None:
        """Raise ApiError if a request asks for too many answers or beams. names: of its fields."""
        for name in names:
            if (getattr(body, name) or 1) > self.limits.sequences:
                raise bad_request(f"{name} is {getattr(body, name)}: give {self.limits.sequences} at most", name)

    async def run(self, function: Callable[[CancelEvent], T], answers: int = 1) -> T:
        """Run a function of the model in the queue's threads. Raises ApiError.

        answers: how many texts the model reads or writes for it.
        """
        return await self._unless_gone(self.service.queue.run(function, self.context.deadline, _size(answers)))

    async def chat(self, chat: Conversation, writer: AnswerWriter, stream: bool) -> Response:
        """Answer a conversation. Raises ApiError. A greeting without an image gets the writer's greeting."""
        images = sum(len(turn.images) for turn in chat.turns)
        if images > self.limits.images:
            message = f"{chat.images_field}: more than {self.limits.images} pictures: send fewer"
            raise bad_request(message, chat.images_field)
        job = text_job(chat)
        if job is None:
            return self._greet(chat, writer, stream)
        if chat.json is not None and job.answers > self.limits.inputs:
            message = f"{chat.json.name}: it takes {job.answers:,} answers, and {self.limits.inputs} are allowed"
            raise bad_request(f"{message}: ask for fewer fields or choices", chat.json.name, "schema_too_long")
        self.context.log_fields["images"] = images
        return await self.respond(job, writer, stream)

    def _greet(self, chat: Conversation, writer: AnswerWriter, stream: bool) -> Response:
        """Reply to a client that only checks whether the server answers. `usage` counts words: the model reads none."""
        texts = [writer.greeting] * (chat.options.get("num_captions") or 1)
        words = sum(len(text.split()) for text in chat.texts)
        answer = Answer(texts, ["stop"] * len(texts), words, len(writer.greeting.split()) * len(texts))
        if not stream:
            return JSONResponse(writer.whole(answer))
        pieces = [line for i, text in enumerate(texts) if text for line in writer.piece(Piece(i, text))]
        return Response("".join([*writer.begin(), *pieces, *writer.end(answer)]), media_type=writer.media_type)

    async def respond(self, job: TextJob, writer: AnswerWriter, stream: bool) -> Response:
        """Generate the texts of a job and return them, whole or as a stream. Raises ApiError and Blip2rtError."""
        work = partial(generate, self.model, job, self.limits.new_tokens)
        if stream:
            return await self._stream(job, work, writer)
        answer = await self.run(work, job.answers)
        self._record(job, answer)
        return JSONResponse(writer.whole(answer))

    async def _stream(
        self, job: TextJob, work: Callable[[CancelEvent, Callable[[Piece], None]], Answer], writer: AnswerWriter
    ) -> StreamingResponse:
        """Errors set the status if they come before the headers, which wait for the first piece, up to a limit."""
        pieces = self.service.queue.stream(work, self.context.deadline, _size(job.answers))
        arriving = asyncio.ensure_future(_next(pieces))
        try:
            await self._unless_gone(asyncio.wait({arriving}, timeout=_SILENCE_SECONDS))
            if arriving.done():
                arriving.result()
        except BaseException:
            await _abandon(arriving, pieces)
            raise

        async def body() -> AsyncIterator[str]:
            nonlocal arriving
            self.context.log_fields["status"] = CLIENT_GONE  # unless it ends
            try:
                for line in writer.begin():
                    yield line
                while True:
                    while not (await asyncio.wait({arriving}, timeout=_SILENCE_SECONDS))[0]:
                        if writer.comment:
                            yield writer.comment
                    piece = arriving.result()
                    self._observe_first_piece()
                    if isinstance(piece, Answer):
                        break
                    for line in writer.piece(piece):
                        yield line
                    arriving = asyncio.ensure_future(_next(pieces))
                self._record(job, piece)
                for line in writer.end(piece):
                    yield line
                del self.context.log_fields["status"]
            except Exception as error:
                failure = api_error(error)
                if failure.status == 500:
                    LOG.exception("a stream failed", extra={"fields": {"id": self.context.id}})
                self.context.log_fields["status"] = failure.status
                yield writer.error(failure)
            finally:
                await _abandon(arriving, pieces)

        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(body(), headers=headers, media_type=writer.media_type)

    def _observe_first_piece(self) -> None:
        if self.context.first_piece is None:
            self.context.first_piece = time.monotonic()
            self.service.metrics.first_piece.observe(self.context.first_piece - self.context.start)

    def _record(self, job: TextJob, answer: Answer) -> None:
        """Add an answer to metrics and log."""
        self.service.metrics.tokens.labels("prompt").inc(answer.prompt_tokens)
        self.service.metrics.tokens.labels("completion").inc(answer.completion_tokens)
        fields = self.context.log_fields
        fields |= {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
        if self.service.settings.log_prompts:
            fields |= {"question": job.question, "texts": answer.texts}

    async def _unless_gone(self, work: Awaitable[T]) -> T:
        """Await work; cancel it if the client disconnects. The body must have been read. Raises ApiError."""

        async def disconnected() -> None:
            while (await self.request.receive())["type"] != "http.disconnect":
                pass

        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise client_gone()
            return task.result()
        finally:
            task.cancel()
            gone.cancel()


def _size(answers: int) -> int:
    """How many short requests so many answers take the time of."""
    return -(-answers // BATCH)


async def _abandon(arriving: asyncio.Future[T], pieces: AsyncGenerator[T, None]) -> None:
    """Cancel the work behind a stream whose client has stopped reading."""
    arriving.cancel()
    await asyncio.wait({arriving})
    if not arriving.cancelled():
        arriving.exception()  # mark it as retrieved
    await pieces.aclose()


async def _next(pieces: AsyncIterator[T]) -> T:
    """Return the next item, as a coroutine that a task can run."""
    return await pieces.__anext__()


def given_options(request: BaseModel, names: Sequence[str]) -> dict[str, Any]:
    """Return the named fields that a request sets."""
    return {name: value for name in names if (value := getattr(request, name)) is not None}


def sampling_options(temperature: float | None, top_p: float | None, **others: Any) -> dict[str, Any]:
    """Convert OpenAI's and Ollama's sampling to options. Without a temperature, or with a low one, nothing is sampled.

    others: options that only sampling uses: top_k, min_p, seed.
    """
    if temperature is None and top_p is not None and top_p < 1:
        temperature = 1.0
    if not temperature or temperature <= _COLD:
        return {}
    options = {"do_sample": True, "num_beams": 1, "temperature": temperature, "top_p": top_p, **others}
    options["no_repeat_ngram_size"] = _SAMPLED_NGRAM
    return {name: value for name, value in options.items() if value is not None}


def string_list(value: str | list[str] | None, name: str = "stop", limit: int = 16) -> tuple[str, ...]:
    """Return a field's strings, such as stop strings. Raises ApiError."""
    strings = tuple(each for each in ([value] if isinstance(value, str) else value or []) if each)  # "" is no limit
    if len(strings) > limit or any(len(each) > 200 for each in strings):
        raise bad_request(f"{name}: give {limit} strings at most, each of 200 characters at most", name)
    return strings


def count_indexed(folder: Path, model: Model) -> int:
    """Count the pictures in an index. Raises GalleryError if it is not an index, or another model's."""
    from ..gallery import Index

    with Index.open(folder, model) as index:
        return len(index)
