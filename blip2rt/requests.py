"""Submitted requests and their results, for servers: a request is decoded in one batch with others.

model = blip2rt.load(batching=True)
answer = model.submit(Request("photo.jpg", question="what colour is the dog?"))
for piece in answer: ...           # in a thread
async for piece in answer: ...     # in an event loop
answer.result()                    # the whole text, with its score
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from .batching import LONG_WAIT, Batcher, Call, KnownCall
from .bundle import GENERATIVE
from .errors import BackendError, OptionError
from .language import Language
from .options import Options, merge
from .pipeline import Pipeline
from .results import Scored, Stopwatch, finish_reason

if TYPE_CHECKING:
    from .image import ImageLike
    from .native import GenerationOptions

Finish = Literal["stop", "length", "time", "cancelled"]


@dataclass(frozen=True)
class Request:
    """A question about an image, or a prompt to continue.

    image: None: text only
    prompt: words that the text continues; None is the bundle's own
    question: put into the bundle's template; give either a prompt or a question
    options: those of `caption`, or of `ask` with a question
    """

    image: ImageLike | None = None
    prompt: str | None = None
    question: str | None = None
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class Usage:
    """The tokens of a request."""

    prompt: int  # positions of image and prompt
    kept: int  # those of them that were in the cache
    answer: int  # of all texts, without stop tokens


class Answer:
    """The result of a request, as it is computed. Any thread may use it. Dropping it cancels the request.

    Iterate, with `for` or `async for`, over the pieces of the text. With beams, a piece comes once all beams agree on
    it, and the rest at the end; with several captions, the first text at the end. An answer can be iterated once.
    """

    def __init__(
        self,
        batcher: Batcher,
        language: Language,
        call: Call,
        settings: GenerationOptions,
        on_news: Callable[[Answer], object] | None = None,
        tidied: bool = False,
    ) -> None:
        """on_news: see Model.submit. tidied: on a single line, as captions are."""
        self._language, self._call, self._settings, self._batcher = language, call, settings, batcher
        self._tidied, self._stream = tidied, language.text_stream(settings, tidied)
        self._shown = 0  # characters of the pieces
        self._ended = self._cancelled = False
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        if on_news is not None:
            batcher.listen(call, lambda: self._tell(on_news))

    def _tell(self, on_news: Callable[[Answer], object]) -> None:
        if self._failure is not None:
            return
        try:
            on_news(self)
        except Exception as error:  # noqa: BLE001  # any error ends only this request
            if not self._failed():  # take() raises the request's own error, which result() raises again
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
        """Whether the text has ended, so that result() does not wait."""
        return self._call.done

    def cancel(self) -> None:
        """End the text within a step. The result is what exists by then."""
        self._cancelled = self._cancelled or not self._call.done
        self._call.cancel()

    def take(self) -> list[str]:
        """The pieces that have arrived since the last call, without waiting. Raises the request's error."""
        with self._lock:
            done = self._call.done  # read first: take() then returns everything
            pieces = []
            for _image, _draw, token_id in self._call.take():
                if self._settings.num_return_sequences == 1:
                    pieces.append(self._stream.push(token_id))
            self._shown += sum(map(len, pieces))
            if done and not self._ended:
                self._ended = True
                pieces.append(self._scored()[0].text[self._shown :])
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
        import asyncio  # slow to import

        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            loop.call_soon_threadsafe(news.set)

        self._batcher.listen(self._call, tell)
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
        """Wait for the texts: the best first; draws in the order drawn. Raises the request's error.

        timeout: seconds, after which TimeoutError is raised; the request continues.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not self._call.done:
            if (left := end - time.monotonic()) < 0:
                raise TimeoutError(f"no answer within {timeout} seconds")
            self._call.wait(min(left, LONG_WAIT))
        return self._scored()

    @property
    def finish(self) -> Finish:
        """Why the first text ended. Call it when done."""
        ended = finish_reason(self._texts()[0], self._settings)
        return "cancelled" if self._cancelled and ended == "stop" else ended

    @property
    def usage(self) -> Usage:
        """The tokens of the request. Call it when done."""
        [(prompt, kept)] = self._call.lengths
        return Usage(prompt, kept, sum(len(token_ids) for token_ids, _score in self._call.results()[0]))

    def _scored(self) -> list[Scored]:
        if self._failure is not None:
            raise BackendError(f"on_news failed: {self._failure!r}") from self._failure
        return self._texts()

    def _texts(self) -> list[Scored]:
        return self._language.scored(self._call.results(), self._settings, self._tidied, self._call.cut)[0]


def submit(pipeline: Pipeline, request: Request, on_news: Callable[[Answer], object] | None) -> Answer:
    """Queue a request at the pipeline's backend; see Model.submit."""
    pipeline.require(GENERATIVE, "submit")
    if not isinstance(request, Request) or not isinstance(request.options, Options):
        raise OptionError("submit takes a blip2rt.requests.Request, whose options are blip2rt.Options")
    batcher, language = pipeline.backend.batcher, pipeline.language
    if batcher is None:
        raise OptionError("this model decodes each call by itself: load(batching=True) to submit requests")
    task = pipeline.task_of(request.prompt, request.question, merge(request.options, {}))
    prompt_ids = language.encode(task.prompt)
    batcher.check(prompt_ids, task.settings)
    watch = Stopwatch(task.settings)
    if request.image is not None:
        rgb = pipeline.prepare(request.image)
        begun = pipeline.begin(rgb, task, watch)
    elif prompt_ids:
        begun = np.zeros((1, 0, language.spec.hidden_size), np.float32), watch.remaining
    else:
        raise OptionError("a request has neither an image nor a prompt: give one of them")
    settings = task.settings
    if isinstance(begun, Scored):
        call: Call = KnownCall(begun.tokens, begun.score)
        settings = settings.changed(max_new_tokens=len(begun.tokens) + 1)  # the limit does not cut it
    else:
        call = batcher.submit(begun[0], [prompt_ids], begun[1], each_token=True)
    tidied = task.single_line and request.image is not None  # as Model.caption does
    return Answer(batcher, language, call, settings, on_news, tidied)
