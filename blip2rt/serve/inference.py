"""Run the model for a request: caption or answer, token counts, stop strings, and cancellation between steps.

The only module of the server that uses the model's internals. Does not know about HTTP or other requests.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from .. import backends
from ..bundle import GENERATIVE
from ..errors import CapabilityError
from ..language import Prompt
from ..loading import load
from ..native import native
from ..options import Options, merge
from ..pipeline import BATCH
from ..results import FinishReason, Scored, Stopwatch, finish_reason
from ..structured import Form, Picture, answers_of, fill_form
from .admission import CancelEvent
from .settings import Settings

if TYPE_CHECKING:
    from ..language import Language
    from ..model import Model
    from ..tasks import GenerationTask, Tasks

T = TypeVar("T")


def open_model(bundle: str | None, settings: Settings, **keywords: Any) -> Model:
    """Open the server's model. Parallel requests share decoding steps if the backend can; special tokens are text."""
    can_batch = backends.get(keywords.get("backend", backends.DEFAULT)).batches
    keywords |= {"batching": can_batch and settings.queue.parallel != 1, "cache_bytes": settings.cache_bytes}
    return load(bundle, special_tokens=False, max_pixels=settings.limits.pixels, **keywords)


def shares_steps(model: Model) -> bool:
    """Whether requests from several threads are decoded together."""
    return model.pipeline.backend.batcher is not None


def can_chat(model: Model) -> bool:
    """Whether the model can continue a conversation."""
    try:
        model.pipeline.require(GENERATIVE, "chat")
        model.pipeline.language.need_chat()
    except CapabilityError:
        return False
    return True


def batches(items: Sequence[T], cancelled: CancelEvent) -> Iterator[Sequence[T]]:
    """Yield BATCH items at a time until cancelled."""
    for start in range(0, len(items), BATCH):
        if cancelled.is_set():
            return
        yield items[start : start + BATCH]


@dataclass(frozen=True)
class TextJob:
    """A text to generate for an image."""

    image: bytes
    question: str | None = None  # None: a caption
    prompt: str | None = None  # words that a caption continues
    history: tuple[tuple[str, str], ...] = ()  # questions and answers before the question
    options: Mapping[str, Any] = field(default_factory=dict)  # of blip2rt.Options
    stop_strings: tuple[str, ...] = ()  # the text ends before the first of them
    form: Form | None = None  # the text is JSON that fills it; options and stop strings do not apply
    rated: bool = False  # also tell how likely the caption is right

    @property
    def answers(self) -> int:
        """How many texts the model reads or writes."""
        return 1 if self.form is None else answers_of(self.form)


@dataclass(frozen=True)
class Piece:
    """A piece of one of the texts."""

    index: int
    text: str


@dataclass(frozen=True)
class Answer:
    """The texts of a job and their token counts."""

    texts: list[str]
    finish: Sequence[FinishReason]  # per text
    prompt_tokens: int  # positions of image and words
    completion_tokens: int  # of all texts
    confidence: float | None = None  # that the first text, a caption, is right; None: not asked for

    @property
    def finish_reasons(self) -> list[str]:
        """Why each text ended, for OpenAI's and Ollama's clients, which only know "stop" and "length"."""
        return ["length" if each == "time" else each for each in self.finish]


def generate(
    model: Model, job: TextJob, max_tokens: int, cancelled: CancelEvent, emit: Callable[[Piece], None] | None = None
) -> Answer:
    """Generate the texts of a job, or what there is of them when cancelled. Raises Blip2rtError.

    max_tokens: upper limit per text. emit: receives pieces as they come.
    """
    if job.form is not None:
        return _fill(model, job, job.form, cancelled, emit)
    if job.history and not can_chat(model):
        job = replace(job, history=())
    task, ids = prepare(model, job, max_tokens)
    pipeline, language, settings = model.pipeline, model.pipeline.language, task.settings
    prompt_tokens = language.spec.prefix_length + len(ids) + len(settings.forced_prefix)
    watch = Stopwatch(settings)
    image = pipeline.prepare(job.image)
    begun = pipeline.begin(image, task, watch)
    if isinstance(begun, Scored):
        if emit is not None:
            emit(Piece(0, begun.text))
        return Answer([begun.text], ["stop"], prompt_tokens, len(begun.tokens))
    if cancelled.is_set():
        return Answer([], [], prompt_tokens, 0)
    prefix_embeds, guided = begun
    generation = pipeline.backend.begin(prefix_embeds, [ids], guided)
    if shares_steps(model):
        cancelled.on_set(generation.close)  # with beams, step() returns only when they agree
    streams = [language.text_stream(settings, task.single_line) for _ in range(settings.num_return_sequences)]
    output = TextOutput(streams, job.stop_strings + (tuple(language.core.next_question) if job.history else ()), emit)
    while not generation.done and not cancelled.is_set() and not all(output.stopped):
        for _image, draw, token_id in generation.step():
            output.push(draw, token_id)
    sequences = generation.results()
    timed_out = generation.cut if settings.max_time < math.inf and generation.done else None
    [scored] = language.scored(sequences, settings, task.single_line, timed_out)
    texts = output.finish([each.text for each in scored])
    ended = zip(scored, output.stopped, strict=True)
    reasons: list[FinishReason] = ["stop" if stopped else finish_reason(each, settings) for each, stopped in ended]
    if job.rated and job.question is None:
        pipeline.add_confidence(pipeline.vision_features([image]), [scored[:1]])
    tokens = sum(len(token_ids) for token_ids, _ in sequences[0])
    return Answer(texts, reasons, prompt_tokens, tokens, scored[0].confidence if scored else None)


def _fill(
    model: Model, job: TextJob, form: Form, cancelled: CancelEvent, emit: Callable[[Piece], None] | None
) -> Answer:
    picture = Picture(model, job.image, cancelled.is_set)
    text = json.dumps(fill_form(picture, form, job.question), ensure_ascii=False, allow_nan=False)
    if emit is not None:
        emit(Piece(0, text))
    return Answer([text], ["stop"], picture.prompt_tokens, picture.completion_tokens)


def prepare(model: Model, job: TextJob, max_tokens: int) -> tuple[GenerationTask, list[int]]:
    """Return the task of a job, and the token ids of its prompt with the history. Raises Blip2rtError."""
    action = "caption" if job.question is None else "ask"
    tasks, language, spec = model.pipeline.tasks(action), model.pipeline.language, model.pipeline.language.spec
    question = None if job.question is None else tasks.plain(job.question)
    prompt = language.caption_prompt(job.prompt) if question is None else language.ask_prompt(question)
    ids = language.encode(prompt)
    options = dict(job.options)
    default = model.bundle.manifest.decoding.get(action)
    length = options.get("max_new_tokens")
    if length is None:
        length = max(default.max_new_tokens if default else max_tokens, options.get("min_new_tokens") or 1)
    forced = len(language.forced_prefix(merge(Options(), options), bool(prompt.whole)))
    room = spec.max_positions - (1 if spec.encoder_decoder else spec.prefix_length + len(ids)) - forced
    history = _encode_history(language, tasks, job.history, room - min(length, max_tokens))
    if history:
        ids = history + language.encode_more(prompt._replace(before=f" {prompt.before}"))
        # The question's first word may take one more token after other text.
        room = spec.max_positions - spec.prefix_length - len(ids) - forced - 1
    options["max_new_tokens"] = max(1, min(length, max_tokens, room))
    if job.stop_strings:
        options["stop_strings"] = list(job.stop_strings)
    settings = language.settings(action, merge(Options(), options), [prompt], len(history))
    return tasks.checked(prompt, question, settings), ids


def _encode_history(language: Language, tasks: Tasks, history: Sequence[tuple[str, str]], room: int) -> list[int]:
    """Encode the newest questions and answers that fit into `room` tokens, as a chat does."""
    fitting: list[int] = []
    later: list[int] = []  # the turns so far, encoded as a continuation
    for question, answer in reversed(history):
        prompt = language.ask_prompt(tasks.plain(question))
        answered = language.encode_more(Prompt(text=f" {answer}")) + later
        ids = language.encode(prompt) + answered
        if len(ids) + 1 >= room:
            break
        fitting, later = ids, language.encode_more(prompt._replace(before=f" {prompt.before}")) + answered
    return fitting


class TextOutput:
    """The texts of one generation: emits their pieces and cuts them before their first stop string."""

    def __init__(
        self, streams: Sequence[Any], stop_strings: Sequence[str], emit: Callable[[Piece], None] | None
    ) -> None:
        """streams: a TextStream for each text."""
        self._streams, self._emit = streams, emit
        self._cuts = [native.StopCut(stop_strings) for _ in streams]
        self._streamed = emit is not None or bool(stop_strings)

    @property
    def stopped(self) -> list[bool]:
        """Whether a stop string has ended each text."""
        return [cut.stopped for cut in self._cuts]

    def push(self, index: int, token_id: int) -> None:
        """Add a token to a text."""
        if self._streamed and not self._cuts[index].stopped:
            self._send(index, self._cuts[index].push(self._streams[index].push(token_id)))

    def finish(self, texts: Sequence[str]) -> list[str]:
        """Return the complete texts up to their stop strings. Emits what is left."""
        ended = [cut.finish(text) for cut, text in zip(self._cuts, texts, strict=True)]
        for i, (_, piece) in enumerate(ended):
            self._send(i, piece)
        return [text for text, _ in ended]

    def _send(self, index: int, piece: str) -> None:
        if piece and self._emit is not None:
            self._emit(Piece(index, piece))
