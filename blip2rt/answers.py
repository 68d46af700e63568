"""Requests that are handed in and answered as it goes: for a server, whose callers share steps.

    model = blip2rt.load(batching=True)
    answer = model.submit(Request("photo.jpg", question="what colour is the dog?"))
    for piece in answer: ...           # in a thread
    async for piece in answer: ...     # in an event loop
    answer.result()                    # the whole, with scores

Knows tokens, text and threads; nothing about images.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .batching import Batched, Call
from .bundle import GENERATIVE
from .errors import BackendError, OptionError
from .language import Language
from .options import Options
from .pipeline import Pipeline
from .results import Scored, Stopwatch, finish_reason

if TYPE_CHECKING:
    from .image import ImageLike

Finish = Literal["stop", "length", "time", "cancelled"]


@dataclass(frozen=True)
class Request:
    """What is asked about an image, or without one about the words alone.

    image: None: the words alone
    prompt: words that the text goes on from; None is the bundle's own
    question: put into the bundle's template; prompt and question exclude each other
    options: those of `caption`, or of `ask` with a question; by default greedy
    """

    image: ImageLike | None = None
    prompt: str | None = None
    question: str | None = None
    options: Options = field(default_factory=lambda: Options(num_beams=1))


@dataclass(frozen=True)
class Usage:
    """Tokens that an answer took."""

    prompt: int  # positions of image and prompt
    kept: int  # those of them that had been read for an earlier request
    answer: int  # of all texts; a stop token does not count


class Answer:
    """What comes of a request. Any thread may use it. When nobody holds or is told of it, it is cancelled.

    Iterating, with `for` or `async for`, gives pieces of the text as they come; joined they are the text. With beams,
    and with several captions, the first text comes in one piece at the end. One iteration is enough for all pieces.
    """

    def __init__(
        self,
        backend: Batched,
        language: Language,
        call: Call,
        settings: Mapping[str, Any],
        on_news: Callable[[Answer], object] | None = None,
    ) -> None:
        """on_news: see Model.submit."""
        self._language, self._call, self._settings, self._backend = language, call, settings, backend
        self._stream = language.text_stream(settings)
        self._said = 0  # characters of the pieces
        self._ended = self._cancelled = False
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        if on_news is not None:
            backend.listen(call, lambda: self._tell(on_news))

    def _tell(self, on_news: Callable[[Answer], object]) -> None:
        if self._failure is not None:
            return
        try:
            on_news(self)
        except Exception as error:  # noqa: BLE001  # it is this request's alone, whatever it is
            if not self._failed():  # take() raises what the request itself has failed with, and so does result()
                self._failure = error
                self.cancel()

    def _failed(self) -> bool:
        try:
            if self._call.done:
                self._call.results()
        except BackendError:
            return True
        return False

    @property
    def done(self) -> bool:
        """Whether the text has ended; result() then waits for nothing."""
        return self._call.done

    def cancel(self) -> None:
        """End the text within a step; what there is then is the result."""
        self._cancelled = self._cancelled or not self._call.done
        self._call.cancel()

    def take(self) -> list[str]:
        """The pieces that came since the last call, without waiting. Raises what has gone wrong with this request."""
        with self._lock:
            done = self._call.done  # asked first: what is taken is then all
            pieces = []
            for _image, _draw, token_id in self._call.take():
                if self._settings["num_return_sequences"] == 1:
                    pieces.append(self._stream.push(token_id))
            self._said += sum(map(len, pieces))
            if done and not self._ended:
                self._ended = True
                pieces.append(self._scored()[0].text[self._said :])
        return [piece for piece in pieces if piece]

    def __iter__(self) -> Iterator[str]:
        try:
            while not self._ended:
                self._call.wait()
                yield from self.take()
        except GeneratorExit:
            self.cancel()
            raise

    async def __aiter__(self) -> AsyncIterator[str]:
        """Pieces, in an event loop. Leaving the loop cancels."""
        import asyncio  # takes its time: only where it is used

        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            loop.call_soon_threadsafe(news.set)

        self._backend.listen(self._call, tell)
        try:
            while not self._ended:
                await news.wait()
                news.clear()
                for piece in self.take():
                    yield piece
        finally:
            if not self._call.done:
                self.cancel()

    def result(self, timeout: float | None = None) -> list[Scored]:
        """Wait for the texts: the best first; draws in the order drawn. Raises what has gone wrong.

        timeout: seconds, after which TimeoutError is raised; the request goes on.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while not self._call.done:
            if end is None:
                self._call.wait()
            elif time.monotonic() > end:
                raise TimeoutError(f"no answer within {timeout} seconds")
            else:
                self._call.wait(max(0.0, end - time.monotonic()))
        return self._scored()

    @property
    def finish(self) -> Finish:
        """Why the first text ended. Once done."""
        ended = finish_reason(self._texts()[0], self._settings)
        return "cancelled" if self._cancelled and ended == "stop" else ended

    @property
    def usage(self) -> Usage:
        """The tokens that it took. Once done."""
        [(prompt, kept)] = self._call.lengths
        return Usage(prompt, kept, sum(len(token_ids) for token_ids, _score in self._call.results()[0]))

    def _scored(self) -> list[Scored]:
        if self._failure is not None:
            raise BackendError(f"on_news failed: {self._failure!r}") from self._failure
        return self._texts()

    def _texts(self) -> list[Scored]:
        return self._language.scored(self._call.results(), self._settings, cut=self._call.cut)[0]


def submit(pipeline: Pipeline, request: Request, on_news: Callable[[Answer], object] | None) -> Answer:
    """Queue a request at the pipeline's backend; see Model.submit."""
    pipeline.require(GENERATIVE, "submit")
    if not isinstance(request, Request) or not isinstance(request.options, Options):
        raise OptionError("submit takes a blip2rt.answers.Request, whose options are blip2rt.Options")
    backend, language = pipeline.backend, pipeline.language
    if not isinstance(backend, Batched):
        raise OptionError("this model decodes each call by itself: load(batching=True) to submit requests")
    task = pipeline.task_of(request.prompt, request.question, request.options)
    prompt_ids = language.encode(task.prompt)
    backend.check(prompt_ids, task.settings)
    watch = Stopwatch(task.settings)
    if request.image is not None:
        prefix_embeds = pipeline.prefix_embeds([pipeline.prepare(request.image)], [task.question])
    elif prompt_ids:
        prefix_embeds = pipeline.no_prefix
    else:
        raise OptionError("a request has neither an image nor a prompt: give one of them")
    call = backend.submit(prefix_embeds, [prompt_ids], watch.remaining, each_token=True)
    return Answer(backend, language, call, task.settings, on_news)
