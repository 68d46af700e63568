"""The data path of a bundle, in the order in which data flows through it:

    image -> pixels -> vision_features -> query_output -> prefix_embeds -> token ids -> text

Each arrow is a method of Pipeline: `prepare`, `vision_features`, `prefix_embeds`, `generate`. Images and texts are
matched in matching.py; model.py checks what callers pass, and shapes what they get.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from .backends import Backend, OnToken
from .bundle import GENERATIVE, LLM, VISION, Bundle
from .errors import CapabilityError, ImageError, OptionError
from .image import ImageLike, ImageSettings, normalize, prepare
from .language import Language
from .native import cached_property, native
from .options import Options, merge
from .pixels.feature_cache import FeatureCache
from .results import Scored, Stopwatch
from .tasks import GenerationTask, Tasks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .backends import Floats
    from .native import CallerOptions, GenerationOptions, Judge

    RGB = NDArray[np.uint8]  # (height, width, 3), resized for the graphs

BATCH = 8  # images that go through the graphs together


class Pipeline:
    """A bundle's graphs and tokenizers. Any thread may use it."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        images: ImageSettings | None = None,
        cache: FeatureCache | None = None,
        special_tokens: bool = True,
    ) -> None:
        """cache: outputs of the encoder and the Q-Former, by image. special_tokens: see model.load."""
        self.bundle, self.backend = bundle, backend
        self.images = images or ImageSettings()
        self.cache = cache or FeatureCache()
        self.special_tokens = special_tokens
        self.judges = bundle.has(*GENERATIVE) and self.judge.rates_statements  # answers questions without generating

    # image -> pixels

    def prepare(self, image: ImageLike) -> RGB:
        """Image -> RGB (height, width, 3), decoded and resized for the graphs. Raises ImageError."""
        how = self.images
        spec = self.bundle.manifest.image
        return prepare(image, spec, scaled=how.scaled_jpeg, max_pixels=how.max_pixels, color=how.color)

    def prepare_each(self, images: Sequence[ImageLike], keep_going: bool = True) -> list[Any]:
        """Images -> RGB of each, or its ImageError if `keep_going`. An object that comes twice is decoded once."""
        prepared: dict[int, RGB | ImageError] = {}
        for image in images:
            if id(image) not in prepared:
                try:
                    prepared[id(image)] = self.prepare(image)
                except ImageError as error:
                    if not keep_going:
                        raise
                    prepared[id(image)] = error
        return [prepared[id(image)] for image in images]

    # pixels -> vision_features

    def vision_features(self, prepared: Sequence[RGB]) -> Floats:
        """RGB images, at most BATCH -> vision_features (B, N, C). An array that comes twice is encoded once."""
        if self.cache.max_bytes:
            keys = [b"vision_features" + _digest(rgb) for rgb in prepared]
            return self.cache.rows(keys, lambda missing: self._encode([prepared[i] for i in missing]))
        unique = {id(rgb): rgb for rgb in prepared}
        vision_features = self._encode(list(unique.values()))
        if len(unique) == len(prepared):
            return vision_features
        row = {key: i for i, key in enumerate(unique)}
        return vision_features[[row[id(rgb)] for rgb in prepared]]

    def _encode(self, prepared: Sequence[RGB]) -> Floats:
        pixels = normalize(np.stack(prepared), self.bundle.manifest.image)  # (B, 3, H, W)
        return self.backend.vision(pixels)

    # vision_features -> query_output -> prefix_embeds

    def prefix_embeds(
        self, prepared: Sequence[RGB], questions: Sequence[str], features: Floats | None = None
    ) -> Floats:
        """RGB images and the text that the Q-Former reads with each -> prefix_embeds (B, Q, D)

        features: the images' vision_features (B, N, C), if they are known.
        """

        def compute(missing: Sequence[int]) -> Floats:
            rows = list(missing)
            vision_features = self.vision_features([prepared[i] for i in rows]) if features is None else features[rows]
            return self.judge.prefix_embeds(vision_features, [questions[i] for i in rows])

        if not self.cache.max_bytes:
            return compute(range(len(prepared)))
        texts = [b"" if self.bundle.manifest.question is None else text.encode() for text in questions]
        keys = [b"prefix_embeds" + _digest(rgb) + text for rgb, text in zip(prepared, texts, strict=True)]
        return self.cache.rows(keys, compute)

    def begin(self, rgb: RGB, task: GenerationTask, watch: Stopwatch) -> Scored | tuple[Floats, GenerationOptions]:
        """RGB image and task -> prefix_embeds (1, Q, D), and the settings with guides and the time left.

        Or its answer, if it is known without generating.
        """
        if task.short_question is not None:
            return self.short_answers(self.vision_features([rgb]), [task])[0]
        features = None if task.guides is None else self.vision_features([rgb])
        prefix_embeds = self.prefix_embeds([rgb], [task.question], features)
        return prefix_embeds, watch.remaining if features is None else task.guided(watch.remaining, [features])

    # prefix_embeds -> token ids -> text

    def generate(
        self, prepared: Sequence[RGB], task: GenerationTask, first_image: int = 0
    ) -> list[list[Scored] | None]:
        """RGB images of `prepare` -> the texts of each, best first. All are decoded in one batch.

        first_image: the number of the first image, for random draws. None: max_time passed before the first word.
        """
        watch = Stopwatch(task.settings)
        watch.lap()
        return self._generate(prepared, [task] * len(prepared), watch, first_image)

    def _generate(
        self,
        prepared: Sequence[RGB],
        tasks: Sequence[GenerationTask],
        watch: Stopwatch,
        first_image: int,
        on_token: OnToken | None = None,
    ) -> list[list[Scored] | None]:
        known = self.known_answers(prepared, tasks)
        if None not in known:
            watch.lap()
            return self._finish(known, [], watch, on_token)
        questions, embeds = [task.question for task in tasks], []
        needs_features = tasks[0].confidence or tasks[0].guides is not None
        all_features: list[Floats] = []  # if more than the Q-Former reads them
        for start in range(0, len(prepared), BATCH):
            if watch.expired:
                return [None] * len(prepared)
            chunk = slice(start, start + BATCH)
            features = self.vision_features(prepared[chunk]) if needs_features else None
            embeds.append(self.prefix_embeds(prepared[chunk], questions[chunk], features))
            all_features += [] if features is None else [features]
        watch.lap()
        if watch.expired:
            return [None] * len(prepared)
        prefix_embeds, prompts = np.concatenate(embeds), [task.prompt for task in tasks]
        settings = tasks[0].guided(watch.remaining, all_features, [prompt.text for prompt in prompts])
        # What is known is generated, too, if the batch has other questions: random draws depend on the row.
        notify = None if on_token is None else lambda i, *token: known[i] is not None or on_token(i, *token)
        texts = self.language.generate(prefix_embeds, prompts, settings, first_image, notify, tasks[0].single_line)
        if tasks[0].confidence:
            for start, features in zip(range(0, len(texts), BATCH), all_features, strict=True):
                self.add_confidence(features, texts[start : start + BATCH])
        return self._finish(known, texts, watch, on_token)

    def _finish(
        self,
        known: Sequence[Scored | None],
        generated: Sequence[list[Scored]],
        watch: Stopwatch,
        on_token: OnToken | None,
    ) -> list[list[Scored] | None]:
        """Put known answers in the place of generated ones. End the last stage."""
        texts = [generated[i] if text is None else [text] for i, text in enumerate(known)]
        if on_token is not None:
            tokens = ((i, token) for i, text in enumerate(known) if text is not None for token in text.tokens)
            for i, token in tokens:
                on_token(i, 0, token)
        watch.lap()
        return watch.timed(texts)

    def add_confidence(self, vision_features: Floats, texts: Sequence[list[Scored]]) -> None:
        """vision_features (B, N, C) and the captions of each -> set their confidence, if the bundle is calibrated"""
        if self.judge.rates_captions:
            rows = [row for row, captions in enumerate(texts) for _ in captions]
            flat = [caption for captions in texts for caption in captions]
            scores = [float(caption.score) for caption in flat]
            found = self.judge.confidence(vision_features[rows], [caption.text for caption in flat], scores)
            for caption, right in zip(flat, found, strict=True):
                caption.confidence = right

    def known_answers(self, prepared: Sequence[RGB], tasks: Sequence[GenerationTask]) -> list[Scored | None]:
        """RGB images and the task of each -> answers to short questions; None for other questions.

        An answer's score is its log-probability.
        """
        found: list[Scored | None] = [None] * len(tasks)
        asked = [i for i, task in enumerate(tasks) if task.short_question]
        for start in range(0, len(asked), BATCH):
            rows = asked[start : start + BATCH]
            features = self.vision_features([prepared[i] for i in rows])
            for i, answer in zip(rows, self.short_answers(features, [tasks[i] for i in rows]), strict=True):
                found[i] = answer
        return found

    def short_answers(self, vision_features: Floats, tasks: Sequence[GenerationTask]) -> list[Scored]:
        """vision_features (B, N, C) and tasks with a short_question -> their answers"""
        asked = [task.short_question for task in tasks if task.short_question]
        return [Scored(*answer) for answer in self.judge.short_answers(vision_features, asked)]

    def captions(self, vision_features: Floats) -> list[Scored]:
        """vision_features (B, N, C) -> the caption of each image, as the bundle writes it by default"""
        task, prefix_embeds = self.task(), self.judge.caption_prefix(vision_features)
        settings = task.guided(task.settings, [vision_features])
        texts = self.language.generate(prefix_embeds, [task.prompt] * len(prefix_embeds), settings, tidied=True)
        return [best[0] for best in texts]

    def generate_each(
        self,
        images: Iterable[ImageLike],
        tasks: Iterator[GenerationTask],
        on_token: OnToken | None = None,
        keep_going: bool = False,
    ) -> Iterator[list[Scored] | ImageError | None]:
        """Images and the task of each -> the texts of each, best first, BATCH images at a time.

        The tasks share their settings. keep_going: a bad image's error takes the place of its texts. None is that of
        `generate`.
        """
        source, start = iter(images), 0
        while chunk := list(islice(source, BATCH)):
            own = list(islice(tasks, len(chunk)))
            watch = Stopwatch(own[0].settings)
            rows = self.prepare_each(chunk, keep_going)
            watch.lap()
            good = _good(rows)
            notify = None if on_token is None else _renumbered(on_token, [start + i for i in good])
            prepared, asked = [rows[i] for i in good], [own[i] for i in good]
            yield from _filled(rows, self._generate(prepared, asked, watch, start, notify) if good else [])
            start += len(chunk)

    # vision_features of images, for matches and embeddings

    def map_features(
        self, images: Sequence[ImageLike], keep_going: bool, compute: Callable[[list[int], Floats], Iterable[Any]]
    ) -> list[Any]:
        """Images -> what `compute` returns for their numbers and vision_features (b, N, C), BATCH images at a time.

        keep_going: a bad image's error takes the place of its result.
        """
        results: list[Any] = []
        for start in range(0, len(images), BATCH):
            rows = self.prepare_each(images[start : start + BATCH], keep_going)
            good = _good(rows)
            found = compute([start + i for i in good], self.vision_features([rows[i] for i in good])) if good else []
            results += _filled(rows, found)
        return results

    def stack(self, component: str, rows: list[Floats]) -> Floats:
        """Stack rows of a component's first output. No rows are a batch of none."""
        shape = self.bundle.manifest.components[component].outputs[0].shape
        none = np.zeros([0, *(size if isinstance(size, int) else 0 for size in shape[1:])], np.float32)
        return np.stack(rows) if rows else none

    # What is generated

    def task(self, prompt: str | None = None, question: str | None = None, **options: Any) -> GenerationTask:
        """A caption's prompt, or a question, and the fields of Options -> task. Raises OptionError, CapabilityError."""
        return replace(self.task_of(prompt, question, merge(Options(), options)), single_line=True)

    def task_of(self, prompt: str | None, question: str | None, options: CallerOptions) -> GenerationTask:
        """The same from options.merge."""
        if prompt is not None and question is not None:
            raise OptionError("prompt and question are both given: a question has the bundle's own prompt")
        if question is not None:
            return self.tasks("ask").of_questions([question], options)[0]
        return self.tasks("caption").of_caption(prompt, options)

    def tasks(self, action: str) -> Tasks:
        """What makes tasks. Raises CapabilityError if the bundle cannot do `action`, such as "ask"."""
        self.require(GENERATIVE, action)
        return self._tasks

    @cached_property
    def _tasks(self) -> Tasks:
        retrieval = self.bundle.manifest.retrieval
        return Tasks(self.language, self.judge, self.judges, retrieval is not None and retrieval.pool is not None)

    def qformer_question(self, question: str) -> str:
        """The text that the Q-Former reads for a question; empty if it reads none."""
        return self.language.core.qformer_question(question)

    # What the bundle holds

    def require(self, components: Sequence[str], action: str) -> None:
        """Raise CapabilityError if the bundle lacks one of the components."""
        missing = [name for name in components if not self.bundle.has(name)]
        if missing:
            stage = 2 if missing[0] in GENERATIVE else 1
            raise CapabilityError(
                f"bundle {self.bundle.manifest.name!r} cannot {action}: it lacks {', '.join(missing)}; "
                f"export it again with a stage-{stage} checkpoint"
            )

    @cached_property
    def language(self) -> Language:
        """The language model with its tokenizer."""
        self.backend.preload(VISION, LLM)  # they open while the tokenizer is read
        return Language(self.bundle, self.backend, self.special_tokens)

    @cached_property
    def judge(self) -> Judge:
        """What weighs images against texts."""
        weak = weakref.ref(self)  # the core's objects are not searched for cycles

        def language() -> native.Language:
            pipeline = weak()
            assert pipeline is not None, "the caller holds it"
            return pipeline.language.core

        return native.Judge(self.bundle, self.backend, language, self.special_tokens)


def _good(rows: list[Any]) -> list[int]:
    """The numbers of the rows that are no ImageError."""
    return [i for i, row in enumerate(rows) if not isinstance(row, ImageError)]


def _filled(rows: list[Any], results: Iterable[Any]) -> list[Any]:
    """Replace the rows that are no ImageError by their results."""
    found = dict(zip(_good(rows), results, strict=True))
    return [found.get(i, row) for i, row in enumerate(rows)]


def _digest(rgb: RGB) -> bytes:
    """An image's key: a hash of what it shows."""
    import hashlib  # takes 3 ms and 4 MB

    return hashlib.blake2b(np.ascontiguousarray(rgb).data, digest_size=32).digest()


def _renumbered(on_token: OnToken, numbers: list[int]) -> OnToken:
    """`on_token` for images that have other numbers for the caller."""
    return lambda image, draw, token_id: on_token(numbers[image], draw, token_id)
