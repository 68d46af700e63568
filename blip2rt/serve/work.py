"""What a model does for a request: its texts, the tokens counted, ended within a step when nobody wants them.

The one module that knows how a model is asked. Knows nothing of HTTP and of other requests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from .. import backends
from .. import bundle as contract
from ..loading import load
from ..options import Options, merge
from ..pipeline import BATCH
from ..results import FinishReason, Stopwatch, finish_reason
from ..text import Prompt, TextStream
from .policy import StopAt

if TYPE_CHECKING:
    from ..language import Language
    from ..model import Model

T = TypeVar("T")


def open_model(bundle: str | None, *, parallel: int, cache: int, **keywords: Any) -> Model:
    """The model of a server. Special tokens of callers are text.

    parallel: requests at a time, 0: as fits the model; where it is not 1, they share steps, on a CPU.
    cache: bytes of what is kept of pictures and prompts.
    """
    batching = parallel != 1 and backends.get(keywords.get("backend", backends.DEFAULT)).batches
    return load(bundle, special_tokens=False, batching=batching, cache_bytes=cache, **keywords)


def shares_steps(model: Model) -> bool:
    """Whether requests of several threads are decoded together."""
    return hasattr(model.pipeline.backend, "submit")


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


def batches(items: Sequence[T], stop: Stop) -> Iterator[Sequence[T]]:
    """BATCH items at a time, as long as somebody waits for them."""
    for start in range(0, len(items), BATCH):
        if stop.is_set():
            return
        yield items[start : start + BATCH]


@dataclass(frozen=True)
class Job:
    """A text to write about an image."""

    image: bytes
    question: str | None = None  # None: a caption
    prompt: str | None = None  # of a caption: words that it goes on from
    history: tuple[tuple[str, str], ...] = ()  # questions and answers before the question
    options: Mapping[str, Any] = field(default_factory=dict)  # of blip2rt.Options
    stops: tuple[str, ...] = ()  # the text ends before the first of them


@dataclass(frozen=True)
class Piece:
    """A part of one of the texts, as it comes."""

    index: int
    text: str


@dataclass(frozen=True)
class Answer:
    """The texts of a job, and what they cost."""

    texts: list[str]
    finish: Sequence[FinishReason]  # of each
    prompt_tokens: int  # positions of the image and the words
    completion_tokens: int  # of all texts

    @property
    def reasons(self) -> list[str]:
        """Why each text ended, in the words of others' clients, which know "stop" and "length"."""
        return ["length" if each == "time" else each for each in self.finish]


def answer(model: Model, job: Job, most: int, stop: Stop, tell: Callable[[Piece], None] | None) -> Answer:
    """Write the texts of a job. most: tokens of a text, at most. tell: gets pieces as they come; None: beams are taken.

    Returns what there is where `stop` was set. Raises Blip2rtError.
    """
    model.pipeline.require(contract.GENERATIVE, "caption" if job.question is None else "ask")
    language = model.pipeline.language
    prompt, ids, settings = prepared(model, job, most, tell is not None)
    watch = Stopwatch(settings)
    read = prompt.whole if job.question is None else model.pipeline.qformer_question(job.question)
    prefix_embeds = model.pipeline.prefix_embeds(model.pipeline.prepare_each([job.image]), [read])
    forced: list[int] = settings["forced_prefix"]
    prompt_tokens = language._spec.prefix_length + len(ids) + len(forced)
    if stop.is_set():
        return Answer([], [], prompt_tokens, 0)
    generation = model.pipeline.backend.begin(prefix_embeds, [ids], watch.remaining)
    if shares_steps(model) and (close := getattr(generation, "close", None)) is not None:
        stop.then(close)  # with beams, such a generation tells nothing until the end
    tidied = job.question is None and tell is None
    said = _Said(language, forced, job.stops, settings["num_return_sequences"], tell)
    while not generation.done and not stop.is_set():
        for _image, draw, token_id in generation.step():
            said.push(draw, token_id)
        if said.all_found:
            break
    sequences = generation.results()
    timed = "max_time" in settings and generation.done
    [scored] = language.scored(sequences, settings, tidied, generation.cut if timed else None)
    texts, at_stop = said.end([each.text for each in scored])
    finish: list[FinishReason] = [
        "stop" if stopped else finish_reason(each, settings) for each, stopped in zip(scored, at_stop, strict=True)
    ]
    return Answer(texts, finish, prompt_tokens, sum(len(token_ids) for token_ids, _ in sequences[0]))


def prepared(model: Model, job: Job, most: int, streamed: bool) -> tuple[Prompt, list[int], dict[str, Any]]:
    """What the language model reads, and the settings of its generation."""
    language, spec = model.pipeline.language, model.pipeline.language._spec
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
    forced = len(language.forced_prefix(merge(Options(), options), bool(prompt.whole)))
    room = spec.max_positions - (1 if spec.encoder_decoder else spec.prefix_length + len(ids)) - forced
    said = _history_ids(language, job.history, room - min(wanted, most)) if asked else []
    if said:
        ids = said + language.encode_more(prompt._replace(before=f" {prompt.before}"))
        # Its first word may be a token more by itself.
        room = spec.max_positions - spec.prefix_length - len(ids) - forced - 1
    options["max_new_tokens"] = max(1, min(wanted, most, room))
    if job.stops:
        options["stop_strings"] = list(job.stops)
    settings = language.settings(task, merge(Options(), options), [prompt], len(said))
    return prompt, ids, settings


def _history_ids(language: Language, history: Sequence[tuple[str, str]], room: int) -> list[int]:
    """The newest questions and answers that fit into `room` tokens, as a chat reads them."""
    fitting: list[int] = []
    later: list[int] = []  # as they stand behind others
    for question, said in reversed(history):
        prompt = language.ask_prompt(question)
        answered = language.encode_more(Prompt(text=f" {said}")) + later
        ids = language.encode(prompt) + answered
        if len(ids) + 1 >= room:
            break
        fitting, later = ids, language.encode_more(prompt._replace(before=f" {prompt.before}")) + answered
    return fitting


class _Said:
    """The texts of a generation as they come: pieces for who listens, ended at stop strings."""

    def __init__(
        self, language: Language, forced: list[int], stops: Sequence[str], texts: int,
        tell: Callable[[Piece], None] | None,
    ) -> None:  # fmt: skip
        self._tell, self._stops = tell, stops
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

    def end(self, texts: Sequence[str]) -> tuple[list[str], list[bool]]:
        """The whole texts -> the texts up to their stop strings, and whether each has met one."""
        ended, found = [], []
        for i, whole in enumerate(texts):
            cut = StopAt(self._stops)
            text = cut.push(whole)
            text = (text + cut.end()).rstrip()
            ended.append(text)
            found.append(cut.found)
            self._give(i, text[len(self._given[i]) :])
        return ended, found

    def _give(self, index: int, text: str) -> None:
        if text and self._tell is not None:
            self._given[index] += text
            self._tell(Piece(index, text))
