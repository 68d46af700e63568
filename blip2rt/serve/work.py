"""What a model does for requests: answers with the tokens counted, in threads, behind a queue that has an end.

The one module that knows how a model is asked. Knows nothing of HTTP. A request waits for a place, is worked on in a
thread, and gives the place back when the thread is free; who leaves sets `stop`, which every step looks at.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import time
from asyncio import FIRST_COMPLETED
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .. import bundle as contract
from ..errors import CapabilityError
from ..model import load
from ..options import Options, merge
from ..text import Prompt, TextStream
from .faults import Fault
from .policy import StopAt
from .settings import Queue

if TYPE_CHECKING:
    from ..language import Language
    from ..model import Model
    from .metrics import Metrics

T = TypeVar("T")
_ALONE = 2  # requests that are computed at the same time where they share no steps
_TOGETHER = 8  # and where they do


SHARES = "batching" in inspect.signature(load).parameters  # whether requests can share steps, and what is seen is kept


def open_model(bundle: str | None, *, parallel: int, cache: int, **keywords: Any) -> Model:
    """The model of a server. Special tokens of callers are text.

    parallel: requests at a time, 0: as fits the model; where it is not 1, they share steps, on a CPU.
    cache: bytes of what is kept of pictures and prompts.
    """
    if SHARES:
        keywords["cache_bytes"] = cache
        keywords["batching"] = (
            parallel != 1 and keywords.get("backend", "ort") == "ort" and keywords.get("device") != "cuda"
        )
    return load(bundle, special_tokens=False, **keywords)


class Stop(threading.Event):
    """Set when the work is wanted no more. Steps look at it; what waits is told."""

    def __init__(self) -> None:
        super().__init__()
        self._then: list[Callable[[], object]] = []

    def then(self, function: Callable[[], object]) -> None:
        """Call a function when this is set, in the thread that sets it; at once where it is set. It must be quick."""
        self._then.append(function)
        if self.is_set():
            function()

    def set(self) -> None:
        super().set()
        for function in self._then:
            function()


@dataclass(frozen=True)
class Job:
    """A text to write about an image."""

    image: bytes
    question: str | None = None  # None: a caption
    prompt: str | None = None  # of a caption: words that it goes on from
    history: tuple[tuple[str, str], ...] = ()  # questions and answers before the question
    options: Mapping[str, Any] = field(default_factory=dict)  # of blip2rt.Options
    stops: tuple[str, ...] = ()  # the text ends before the first of them


class Piece(NamedTuple):
    """A part of one of the texts, as it comes."""

    index: int
    text: str


@dataclass(frozen=True)
class Answer:
    """The texts of a job, and what they cost."""

    texts: list[str]
    finish: list[str]  # of each: "stop", or "length" where max_new_tokens ended it
    prompt_tokens: int  # positions of the image and the words
    completion_tokens: int  # of all texts


def answer(model: Model, job: Job, most: int, stop: Stop, tell: Callable[[Piece], None] | None) -> Answer:
    """Write the texts of a job. most: tokens of a text, at most. tell: gets pieces as they come; None: beams are taken.

    Returns what there is where `stop` was set. Raises Blip2rtError.
    """
    model._need(contract.GENERATIVE, "caption" if job.question is None else "ask")
    language = model._language
    prompt, ids, settings = _prepared(model, job, most, tell is not None)
    read = prompt.whole if job.question is None else model._read_question(job.question)
    prefix_embeds = model._prefix_embeds(model._prepare([job.image]), [read])
    forced: list[int] = settings["forced_prefix"]
    prompt_tokens = language._spec.prefix_length + len(ids) + len(forced)
    if stop.is_set():
        return Answer([], [], prompt_tokens, 0)
    generation = model._backend.begin(prefix_embeds, [ids], settings)
    if (close := getattr(generation, "close", None)) is not None:
        stop.then(close)  # with beams, requests that share steps tell nothing until the end
    said = _Said(language, forced, job.stops, settings["num_return_sequences"], tell)
    while not generation.done and not stop.is_set():
        for _image, draw, token_id in generation.step():
            said.push(draw, token_id)
        if said.all_found:
            break
    sequences = generation.results()[0]
    texts, finish = said.end([forced + token_ids for token_ids, _ in sequences])
    for i, (token_ids, _) in enumerate(sequences):
        if finish[i] != "stop" and len(token_ids) < settings["max_new_tokens"]:
            finish[i] = "stop"
    return Answer(texts, finish, prompt_tokens, sum(len(token_ids) for token_ids, _ in sequences))


def _prepared(model: Model, job: Job, most: int, streamed: bool) -> tuple[Prompt, list[int], dict[str, Any]]:
    """What the language model reads, and the settings of its generation."""
    language, spec = model._language, model._language._spec
    asked = job.question is not None
    prompt = language.caption_prompt(job.prompt) if job.question is None else language.ask_prompt(job.question)
    ids, options = language.encode(prompt), dict(job.options)
    if streamed:
        options = {"num_beams": 1, **options}
    task = "ask" if asked else "caption"
    default = model.bundle.manifest.decoding.get(task)
    wanted = options.get("max_new_tokens")
    if wanted is None:
        wanted = max(default.max_new_tokens if default else most, options.get("min_new_tokens") or 1)
    room = spec.max_positions - (1 if spec.encoder_decoder else spec.prefix_length + len(ids))
    said = _history_ids(language, job.history, room - min(wanted, most)) if asked else []
    if said:
        ids = said + language.encode_more(prompt._replace(before=f" {prompt.before}"))
        room = spec.max_positions - spec.prefix_length - len(ids)
    options["max_new_tokens"] = max(1, min(wanted, most, room))
    if job.stops:
        options["stop_strings"] = list(job.stops)
    settings = language.settings(task, merge(Options(), options), [prompt], len(said))
    return prompt, ids, settings


def _history_ids(language: Language, history: Sequence[tuple[str, str]], room: int) -> list[int]:
    """The newest questions and answers that fit into `room` tokens, as a chat reads them."""
    for first in range(len(history)):
        ids: list[int] = []
        for question, said in history[first:]:
            prompt = language.ask_prompt(question)
            ids += language.encode_more(prompt._replace(before=f" {prompt.before}")) if ids else language.encode(prompt)
            ids += language.encode_more(Prompt(text=f" {said}"))
        if len(ids) + 1 < room:
            return ids
    return []


class _Said:
    """The texts of a generation as they come: pieces for who listens, ended at stop strings."""

    def __init__(
        self, language: Language, forced: list[int], stops: Sequence[str], texts: int,
        tell: Callable[[Piece], None] | None,
    ) -> None:  # fmt: skip
        self._tell, self._stops, self._language = tell, stops, language
        listens = texts if tell is not None or stops else 0
        self._streams = [TextStream(language._tokenizer, forced) for _ in range(listens)]
        self._cuts = [StopAt(stops) for _ in range(texts)]
        self._given = [""] * texts

    def push(self, draw: int, token_id: int) -> None:
        if self._streams:
            self._give(draw, self._cuts[draw].push(self._streams[draw].push(token_id)))

    @property
    def all_found(self) -> bool:
        return all(cut.found for cut in self._cuts)

    def end(self, sequences: list[list[int]]) -> tuple[list[str], list[str]]:
        """All tokens of each text -> the texts, and why each has ended, as far as it is known here."""
        texts, finish = [], []
        for i, token_ids in enumerate(sequences):
            cut = StopAt(self._stops)
            text = cut.push(self._language._tokenizer.decode(token_ids))
            text = (text + cut.end()).rstrip()
            texts.append(text)
            finish.append("stop" if cut.found else "length")
            self._give(i, text[len(self._given[i]) :])
        return texts, finish

    def _give(self, index: int, text: str) -> None:
        if text and self._tell is not None:
            self._given[index] += text
            self._tell(Piece(index, text))


class _Slots:
    """Places that are taken in the order of asking. None is lost where who waits leaves."""

    def __init__(self, places: int, tell: Callable[[int], None]) -> None:
        """tell: is told how many wait, when that changes."""
        self.free, self.waiters = places, deque[asyncio.Future[None]]()
        self._tell = tell

    async def take(self, wait: Callable[[asyncio.Future[None]], Awaitable[None]]) -> None:
        """Wait for a place, as long as `wait` does."""
        if self.free and not self.waiters:
            self.free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self.waiters.append(turn)
        self._tell(len(self.waiters))
        try:
            await wait(turn)
        except BaseException:
            if turn.done():
                self.give()
            else:
                self.waiters.remove(turn)
                self._tell(len(self.waiters))
            raise

    def give(self) -> None:
        """Give a place back, to who has waited longest."""
        if not self.waiters:
            self.free += 1
            return
        self.waiters.popleft().set_result(None)
        self._tell(len(self.waiters))


class Work:
    """The requests of one model: who is worked on, who waits, who is sent away."""

    def __init__(self, model: Model, queue: Queue, most_tokens: int, metrics: Metrics) -> None:
        """Must be called where the event loop runs."""
        self.model = model
        self._queue, self._most, self._metrics = queue, most_tokens, metrics
        self.parallel = queue.parallel or (_TOGETHER if SHARES else _ALONE)
        self._threads = ThreadPoolExecutor(self.parallel, "blip2rt-work")
        self._slots = _Slots(self.parallel, metrics.waiting.set)
        self.running = 0
        self._cut: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._seconds = 1.0  # that a request takes, lately

    def cut(self) -> None:
        """End what is under way, and let nobody begin: the server's time is over."""
        if not self._cut.done():
            self._cut.set_result(None)

    def close(self) -> None:
        """Wait for no one: what runs ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._slots.waiters)

    @property
    def chats(self) -> bool:
        """Whether the model goes on from what was said."""
        try:
            self.model._need(contract.GENERATIVE, "chat")
            self.model._language.need_chat()
        except CapabilityError:
            return False
        return True

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, by the language model's tokenizer."""
        return len(self.model._language.encode_more(Prompt(text=text)))

    async def answer(self, job: Job) -> Answer:
        """The texts of a job, when all are there. Raises Fault and Blip2rtError."""
        return await self.run(lambda stop: answer(self.model, job, self._most, stop, None))

    async def run(self, function: Callable[[Stop], T]) -> T:
        """Call a function of the model in a thread, when its turn has come. Cancelling this sets its Event."""
        stop, end = Stop(), time.monotonic() + self._queue.deadline
        future = await self._start(function, stop, end)
        try:
            await self._within(future, end)
            return future.result()
        finally:
            stop.set()

    async def stream(self, job: Job) -> AsyncGenerator[Piece | Answer, None]:
        """Pieces of the texts as they come, and the Answer at the end. Leaving the loop ends the generation."""
        stop, end, loop = Stop(), time.monotonic() + self._queue.deadline, asyncio.get_running_loop()
        pieces: deque[Piece] = deque()
        came = asyncio.Event()

        def take(piece: Piece) -> None:
            pieces.append(piece)
            came.set()

        def tell(piece: Piece) -> None:
            loop.call_soon_threadsafe(take, piece)

        future = await self._start(lambda stop: answer(self.model, job, self._most, stop, tell), stop, end)
        future.add_done_callback(lambda _: came.set())
        try:
            while pieces or not future.done():
                if not pieces:
                    came.clear()
                    await self._within(asyncio.ensure_future(came.wait()), end)
                while pieces:
                    yield pieces.popleft()
            yield future.result()
        finally:
            stop.set()

    async def _within(self, future: asyncio.Future[Any], end: float) -> None:
        """Wait for a future until then. Raises Fault where it is not done, or the server ends before."""
        await asyncio.wait({future, self._cut}, timeout=max(end - time.monotonic(), 0), return_when=FIRST_COMPLETED)
        if future.done():
            return
        if isinstance(future, asyncio.Task):
            future.cancel()
        if self._cut.done():
            raise Fault(503, "the server is being stopped: try again later", "ending", retry_after=10)
        self._metrics.refused.labels("deadline").inc()
        raise Fault(504, f"no answer within {self._queue.deadline:g} seconds: ask for less, or try again later",
                    "deadline_exceeded", retry_after=1)  # fmt: skip

    async def _start(self, function: Callable[[Stop], T], stop: Stop, end: float) -> asyncio.Future[T]:
        """Wait for a place and begin. Raises Fault where too many wait, or the wait is too long."""
        if self._slots.free == 0 and self.waiting >= self._queue.waiting:
            ahead = math.ceil(self._seconds * (self.waiting + 1) / self.parallel)
            self._metrics.refused.labels("queue").inc()
            raise Fault(429, f"{self.waiting} requests wait already: try again later", "queue_full",
                        retry_after=max(1, min(ahead, 60)))  # fmt: skip
        await self._slots.take(lambda turn: self._within(turn, end))
        begun = time.monotonic()
        self.running += 1
        self._metrics.running.set(self.running)
        future = asyncio.get_running_loop().run_in_executor(self._threads, function, stop)
        future.add_done_callback(lambda done: self._finished(done, begun))
        return future

    def _finished(self, future: asyncio.Future[Any], begun: float) -> None:
        self._slots.give()
        self.running -= 1
        self._metrics.running.set(self.running)
        self._seconds += 0.2 * (time.monotonic() - begun - self._seconds)
        if not future.cancelled():
            future.exception()  # who has left does not ask for it
