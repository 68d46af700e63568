"""The path of the data: image -> pixels -> vision_features -> prefix_embeds -> token ids -> text, and image and text ->
match.

Reads top to bottom as the data flows. Knows the order of things; image, text, language and the backend know how each is
done. What a caller may give, and what a call returns, is model's.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from . import bundle as contract
from .backends import Backend, OnToken
from .bundle import Bundle
from .bundle.manifest import RetrievalSpec
from .errors import CapabilityError, ImageError, OptionError
from .feature_cache import Kept
from .image import MAX_PIXELS, ImageLike, normalize, prepare
from .language import Language, Scored, Timings
from .likelihood import Likelihood
from .options import Options, merge
from .text import Prompt, QFormerTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .backends import Floats

BATCH = 8  # images that go through the graphs together


@dataclass(frozen=True)
class Match:
    """How well a text describes an image."""

    probability: float  # of "match", by the image-text matching head; 0 to 1
    cosine: float  # between the text's embedding and the nearest query's; -1 to 1
    score: float  # all as logits: itm_weight * log(p / (1 - p)) + cosine / temperature + likelihood_weight * likelihood
    likelihood: float | None = None  # log p(text | image) - log p(text), by the language model; None: it has no weight


@dataclass(frozen=True)
class Weights:
    """What Match.score is made of."""

    temperature: float
    itm: float = 1.0
    likelihood: float = 0.0

    def scores(self, itm_logits: Floats, cosine: Floats, likelihood: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """itm_logits (..., 2), cosine (...), likelihood (...) where it has a weight -> Match.score (...)"""
        log_odds = itm_logits[..., 1].astype(np.float64) - itm_logits[..., 0]
        scores: NDArray[np.float64] = self.itm * log_odds + cosine / self.temperature
        return scores if likelihood is None else scores + self.likelihood * likelihood


@dataclass(frozen=True)
class Intake:
    """How images and texts are taken; see model.load."""

    scaled_jpeg: bool = False
    max_pixels: int = MAX_PIXELS
    special_tokens: bool = True
    color: str = "rgb"


@dataclass(frozen=True)
class Task:
    """What is to be said of images, checked."""

    prompt: Prompt  # what the language model reads
    read: str  # what the Q-Former reads, where it reads
    settings: Mapping[str, Any]  # of the backend's generation


class Stopwatch:
    """Times the stages of images that go together, and tells what is left of max_time."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._laps = [time.perf_counter()]

    def lap(self) -> None:
        """End a stage: image, encoder, text."""
        self._laps.append(time.perf_counter())

    @property
    def left(self) -> dict[str, Any]:
        """The settings, with so much of max_time as is left."""
        settings = dict(self._settings)
        if "max_time" in settings:
            settings["max_time"] = max(0.0, settings["max_time"] - (time.perf_counter() - self._laps[0]))
        return settings

    def timed(self, best: Sequence[list[Scored]]) -> list[list[Scored]]:
        """The texts of all images, each with its share of the stages' times."""
        timings = Timings(*(round(1000 * seconds / len(best), 3) for seconds in np.diff(self._laps).tolist()))
        return [[Scored(*each, each.tokens, each.truncated, timings) for each in texts] for texts in best]


class Pipeline:
    """A bundle's graphs and words, in the order in which data goes through them."""

    def __init__(
        self, bundle: Bundle, backend: Backend, intake: Intake | None = None, kept: Kept | None = None
    ) -> None:
        """kept: what is known of images that came before."""
        self.bundle = bundle
        self._kept = Kept() if kept is None else kept
        self._manifest = bundle.manifest
        self._backend = backend
        self._intake = Intake() if intake is None else intake

    # Image -> text

    def _generate_each(
        self,
        images: Iterable[ImageLike],
        prompts: Iterator[tuple[Prompt, str]],
        settings: Mapping[str, Any],
        on_token: OnToken | None,
        keep_going: bool,
        tidied: bool = False,
    ) -> Iterator[list[Scored] | ImageError]:
        """Generate the texts of each image, best first, BATCH images at a time.

        prompts: for each image, what the language model reads and what the Q-Former reads.
        keep_going: a bad image's error takes the place of its texts. tidied: texts are on a single line.
        """
        source = iter(images)
        done = 0
        while chunk := list(islice(source, BATCH)):
            texts = list(islice(prompts, len(chunk)))
            watch = Stopwatch(settings)
            prepared = self._prepare_each(chunk, keep_going)
            watch.lap()
            good = [i for i, rgb in enumerate(prepared) if not isinstance(rgb, ImageError)]
            results: list[Any] = list(prepared)
            if good:
                prefix_embeds = self._prefix_embeds([results[i] for i in good], [texts[i][1] for i in good])
                watch.lap()
                tell = None if on_token is None else _renumbered(on_token, [done + i for i in good])
                prompts_of_good = [texts[i][0] for i in good]
                best = self._language.generate(prefix_embeds, prompts_of_good, watch.left, done, tell, tidied)
                watch.lap()
                for i, scored in zip(good, watch.timed(best), strict=True):
                    results[i] = scored
            yield from results
            done += len(chunk)

    def _prepare(self, images: Sequence[ImageLike]) -> list[NDArray[np.uint8]]:
        """Images -> RGB (height, width, 3) each. Raises ImageError."""
        return [rgb for rgb in self._prepare_each(images, False) if not isinstance(rgb, ImageError)]

    def _prepare_each(self, images: Sequence[ImageLike], keep_going: bool) -> list[NDArray[np.uint8] | ImageError]:
        """Images -> RGB (height, width, 3) each, or its error. An object that is given twice is decoded once."""
        done: dict[int, NDArray[np.uint8] | ImageError] = {}
        for image in images:
            if id(image) not in done:
                try:
                    done[id(image)] = self.prepare(image)
                except ImageError as error:
                    if not keep_going:
                        raise
                    done[id(image)] = error
        return [done[id(image)] for image in images]

    def _vision_features(self, prepared: Sequence[NDArray[np.uint8]]) -> Floats:
        """RGB images -> vision_features (B, N, C). An array that is given twice goes through the encoder once."""
        spec = self._manifest.image
        if self._kept.most_bytes:
            names = [b"vision_features" + _digest(rgb) for rgb in prepared]
            return self._kept.rows(
                names, lambda new: self._backend.vision(normalize(np.stack([prepared[i] for i in new]), spec))
            )
        unique = {id(rgb): rgb for rgb in prepared}
        vision_features = self._backend.vision(normalize(np.stack(list(unique.values())), spec))
        if len(unique) == len(prepared):
            return vision_features
        row = {key: i for i, key in enumerate(unique)}
        return vision_features[[row[id(rgb)] for rgb in prepared]]

    def _prefix_embeds(self, prepared: Sequence[NDArray[np.uint8]], read: Sequence[str]) -> Floats:
        """RGB images, and the text that the Q-Former reads with each -> prefix_embeds (B, Q, D)"""

        def make(numbers: Sequence[int]) -> Floats:
            tokenizer = self._question_tokenizer
            question = None if tokenizer is None else tokenizer.encode([read[i] for i in numbers])
            return self._backend.prefix_embeds(self._vision_features([prepared[i] for i in numbers]), question)

        if not self._kept.most_bytes:
            return make(range(len(prepared)))
        of_text = [b"" if self._manifest.question is None else text.encode() for text in read]
        names = [b"prefix_embeds" + _digest(rgb) + text for rgb, text in zip(prepared, of_text, strict=True)]
        return self._kept.rows(names, make)

    def _read_question(self, question: str) -> str:
        """What the Q-Former reads of a question; nothing where it reads none."""
        spec = self._manifest.question
        return "" if spec is None else spec.prompt.replace("{}", question.strip())

    # The same in steps, for who decodes ahead and chooses what goes through the graphs together

    def task(self, prompt: str | None = None, question: str | None = None, **options: Any) -> Task:
        """A caption's prompt, or a question, and the fields of Options -> Task. Raises OptionError, CapabilityError."""
        self._need(contract.GENERATIVE, "caption" if question is None else "ask")
        if prompt is not None and question is not None:
            raise OptionError("prompt and question are both given: a question has the bundle's own prompt")
        language = self._language
        text = language.caption_prompt(prompt) if question is None else language.ask_prompt(question)
        settings = language.settings("caption" if question is None else "ask", merge(Options(), options), [text])
        return Task(text, text.whole if question is None else self._read_question(question), settings)

    def prepare(self, image: ImageLike) -> NDArray[np.uint8]:
        """Image -> RGB (height, width, 3), decoded and resized for the graphs. Raises ImageError."""
        intake = self._intake
        how: dict[str, Any] = {"scaled": intake.scaled_jpeg, "max_pixels": intake.max_pixels, "color": intake.color}
        return prepare(image, self._manifest.image, **how)

    def generate(self, prepared: Sequence[NDArray[np.uint8]], task: Task, first_image: int = 0) -> list[list[Scored]]:
        """RGB images of `prepare` -> the texts of each, best first. The loop takes them all at once.

        first_image: the number that draws know the first image by.
        """
        watch = Stopwatch(task.settings)
        watch.lap()
        embeds = [
            self._prefix_embeds(prepared[start : start + BATCH], [task.read] * len(prepared[start : start + BATCH]))
            for start in range(0, len(prepared), BATCH)
        ]
        watch.lap()
        prompts = [task.prompt] * len(prepared)
        best = self._language.generate(np.concatenate(embeds), prompts, watch.left, first_image, tidied=True)
        watch.lap()
        return watch.timed(best)

    def features(self, prepared: Sequence[NDArray[np.uint8]]) -> Floats:
        """RGB images of `prepare`, BATCH at most -> vision_features (B, N, C)"""
        return self._vision_features(prepared)

    def embed(self, prepared: Sequence[NDArray[np.uint8]]) -> Floats:
        """RGB images of `prepare`, BATCH at most -> image_embeds (B, Q, E)"""
        return self.embed_features(self._vision_features(prepared))

    # Image and text -> match

    def _features_each(self, images: Sequence[ImageLike]) -> Iterator[Floats]:
        """Images -> vision_features (b, N, C), BATCH images at a time."""
        for start in range(0, len(images), BATCH):
            yield self._vision_features(self._prepare(images[start : start + BATCH]))

    def _each_good(self, images: Sequence[ImageLike], work: Callable[[list[int], Floats], Iterable[Any]]) -> list[Any]:
        """What `work` makes of the numbers and vision_features (b, N, C) of BATCH images at a time, or their errors."""
        results: list[Any] = []
        for start in range(0, len(images), BATCH):
            rows: list[Any] = list(self._prepare_each(images[start : start + BATCH], True))
            good = [i for i, rgb in enumerate(rows) if not isinstance(rgb, ImageError)]
            if good:
                made = work([start + i for i in good], self._vision_features([rows[i] for i in good]))
                for i, each in zip(good, made, strict=True):
                    rows[i] = each
            results += rows
        return results

    def match_features(self, vision_features: Floats, texts: Sequence[str]) -> list[Match]:
        """vision_features (B, N, C), B texts -> B matches, pairwise"""
        if not len(vision_features) and not texts:
            return []
        itm_logits = self.itm_logits(vision_features, texts)  # (B, 2)
        image_embeds = self._backend.image_embeds(vision_features)  # (B, Q, E)
        text_embeds = self._backend.text_embeds(*self._qformer_tokenizer.encode(texts))  # (B, E)
        cosine = np.einsum("bqe,be->bq", image_embeds, text_embeds).max(axis=1)  # (B,)
        probability = 1 / (1 + np.exp(itm_logits[:, 0].astype(np.float64) - itm_logits[:, 1]))
        likelihood = self.likelihoods(vision_features, texts) if self.match_weights.likelihood else None
        columns = [probability, cosine, self.match_scores(itm_logits, cosine, likelihood)]
        columns += [] if likelihood is None else [likelihood]
        return [Match(*map(float, row)) for row in zip(*columns, strict=True)]

    @property
    def match_weights(self) -> Weights:
        """What Match.score is made of."""
        self._need(contract.RETRIEVAL, "match")
        return Weights(self._retrieval.temperature, self._retrieval.itm_weight, self._retrieval.likelihood_weight)

    def match_scores(
        self, itm_logits: Floats, cosine: Floats, likelihood: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """itm_logits (B, 2), cosine (B), and likelihoods (B) where match_weights has one -> Match.score (B)"""
        if likelihood is None and self.match_weights.likelihood:
            raise OptionError("likelihood is missing, which Match.score weighs here: give what likelihoods returns")
        return self.match_weights.scores(itm_logits, cosine, likelihood)

    def likelihoods(self, vision_features: Floats, texts: Sequence[str]) -> NDArray[np.float64]:
        """vision_features (B, N, C), B texts -> (B), pairwise: Match.likelihood, whatever its weight."""
        self._need((*contract.RETRIEVAL, *contract.GENERATIVE), "tell how likely a text is")
        if self._retrieval.mean_prefix is None:
            raise CapabilityError(
                f"bundle {self._manifest.name!r} cannot tell how likely a text is: it lacks retrieval.mean_prefix; "
                "blip2rt-train calibrate adds it"
            )
        same = [i > 0 and np.array_equal(vision_features[i - 1], vision_features[i]) for i in range(len(texts))]
        images = np.cumsum(np.logical_not(same)) - 1  # an image whose texts follow each other is read once
        prefix_embeds = self.caption_prefix(vision_features[np.logical_not(same)])
        return self._likelihood.gains(prefix_embeds, images.tolist(), list(map(self._qformer_tokenizer.written, texts)))

    def caption_prefix(self, vision_features: Floats) -> Floats:
        """vision_features (B, N, C) -> (B, Q, D): the prefix_embeds that captions are written behind."""
        self._need(contract.GENERATIVE, "make prefix_embeds")
        tokenizer, prompt = self._question_tokenizer, self._language.caption_prompt(None).whole
        question = None if tokenizer is None else tokenizer.encode([prompt] * len(vision_features))
        return self._backend.prefix_embeds(vision_features, question)

    @cached_property
    def _likelihood(self) -> Likelihood:
        llm, retrieval = self._manifest.llm, self._retrieval
        assert llm is not None and retrieval.mean_prefix is not None
        mean = np.fromfile(self.bundle.file(retrieval.mean_prefix), "<f4").astype(np.float32)
        mean_prefix = mean.reshape(1, llm.prefix_length, llm.hidden_size)
        return Likelihood(self._language, mean_prefix, retrieval.max_text_length)

    def itm_logits(self, vision_features: Floats, texts: Sequence[str]) -> Floats:
        """vision_features (B, N, C), B texts -> (B, 2), pairwise: the matching head's "no match" and "match"."""
        self._need(contract.RETRIEVAL, "match")
        return self._backend.itm_logits(vision_features, *self._qformer_tokenizer.encode(texts))

    def embed_features(self, vision_features: Floats) -> Floats:
        """vision_features (B, N, C) -> (B, Q, E): what embed_image makes of their images."""
        self._need((contract.IMAGE_EMBED,), "embed_features")
        return self._backend.image_embeds(vision_features)

    # What the bundle holds

    def _need(self, components: Sequence[str], what: str) -> None:
        """Raise CapabilityError where the bundle lacks one of the components."""
        missing = [name for name in components if not self.bundle.has(name)]
        if missing:
            stage = 2 if missing[0] in contract.GENERATIVE else 1
            raise CapabilityError(
                f"bundle {self._manifest.name!r} cannot {what}: it lacks {', '.join(missing)}; "
                f"export it again with a stage-{stage} checkpoint"
            )

    @cached_property
    def _language(self) -> Language:
        self._backend.preload(contract.VISION, contract.LLM)  # they open while the tokenizer is read
        return Language(self.bundle, self._backend, self._intake.special_tokens)

    @cached_property
    def _qformer_tokenizer(self) -> QFormerTokenizer:
        file, spec = self.bundle.file(self._retrieval.tokenizer), self._retrieval
        return QFormerTokenizer(file, spec, self._intake.special_tokens)

    @cached_property
    def _question_tokenizer(self) -> QFormerTokenizer | None:
        spec = self._manifest.question
        if spec is None:
            return None
        return QFormerTokenizer(self.bundle.file(spec.tokenizer), spec, self._intake.special_tokens)

    @property
    def _retrieval(self) -> RetrievalSpec:
        spec = self._manifest.retrieval
        assert spec is not None, "reading the bundle checks that retrieval comes with its components"
        return spec


def _digest(rgb: NDArray[np.uint8]) -> bytes:
    """What names an image by what it shows."""
    return hashlib.blake2b(np.ascontiguousarray(rgb).data, digest_size=32).digest()


def _renumbered(on_token: OnToken, numbers: list[int]) -> OnToken:
    """on_token for images that have other numbers for the caller."""
    return lambda image, draw, token_id: on_token(numbers[image], draw, token_id)
