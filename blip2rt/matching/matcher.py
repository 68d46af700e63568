"""Images and texts -> matches and embeddings, from vision_features on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import bundle as contract
from ..bundle.manifest import Calibration, RetrievalSpec
from ..errors import CapabilityError, OptionError
from ..native import cached_property, named_failure, native
from ..pipeline import BATCH, Pipeline
from ..results import Match, MatchWeights, Scored
from ..text import Prompt, open_qformer_tokenizer
from .calibration import COSINE, ITM, LABEL_SIGNALS, LIKELIHOOD, SCORE, computes, probabilities
from .likelihood import Likelihood
from .signals import Signals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..backends import Floats
    from ..native import CaptionPool, Guide, QFormerTokenizer
    from ..tasks import GenerationTask
    from .labels import Label
    from .tagger import Tagger


_PRIOR_WEIGHT = 0.5  # of an answer's likelihood without the image; the best of 0, 0.3, 0.5, 0.7, 1 on COCO's questions
_LABEL_LISTS = 4  # whose embeddings are kept


class Matcher:
    """The retrieval graphs of a bundle. Any thread may use it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.backend, self.bundle = pipeline, pipeline.backend, pipeline.bundle
        self._label_embeds: dict[tuple[str, ...], Floats] = {}
        self._pool: tuple[tuple[str, int], CaptionPool] | None = None  # the last one

    def match(self, vision_features: Floats, texts: Sequence[str]) -> list[Match]:
        """vision_features (B, N, C), B texts -> B matches, pairwise"""
        if not len(vision_features) and not texts:
            return []
        signals = self.signals(vision_features, texts)
        log_odds, cosine = signals[ITM], signals[COSINE]
        likelihood = signals[LIKELIHOOD] if self.weights.likelihood else None
        itm = 1 / (1 + np.exp(-log_odds))
        probability = itm if self._calibration is None else self._probabilities(signals, texts)
        score = self.scores(np.stack([0 * log_odds, log_odds], -1), cosine, likelihood)
        likelihoods = [None] * len(texts) if likelihood is None else likelihood.tolist()
        rows = zip(probability.tolist(), cosine.tolist(), score.tolist(), likelihoods, itm.tolist(), strict=True)
        return [Match(*row) for row in rows]

    def signals(self, vision_features: Floats, texts: Sequence[str]) -> Signals:
        """vision_features (B, N, C), B texts -> their signals, pairwise, which a calibration weighs"""
        calibration = self.bundle.manifest.calibration
        return Signals(self, vision_features, texts, mean_text=() if calibration is None else calibration.mean_text)

    def judge(self, vision_features: Floats, statements: Sequence[str]) -> NDArray[np.float64]:
        """vision_features (B, N, C), B statements -> the calibrated probability that each is true (B), pairwise.

        A statement is a phrase ("a cat"), a sentence, or a question whether something is there ("is there a cat?").
        Raises CapabilityError if the bundle is not calibrated.
        """
        self.require_calibration("judge statements")
        phrases = [native().phrase_of(statement) or statement for statement in statements]
        return self._probabilities(self.signals(vision_features, phrases), phrases)

    def short_answers(self, vision_features: Floats, asked: Sequence[str]) -> list[tuple[str, float]]:
        """vision_features (B, N, C), what B questions ask -> the answer to each and its log-probability, pairwise.

        A phrase asks whether it is there, a text that ends with a question mark for one of the calibration's numbers.
        """
        found: dict[int, tuple[str, float]] = {}
        rows = [row for row, text in enumerate(asked) if not text.endswith("?")]
        for row, yes in zip(rows, self.judge(vision_features[rows], [asked[row] for row in rows]), strict=True):
            found[row] = ("yes", float(np.log(yes))) if yes > 0.5 else ("no", float(np.log(1 - yes)))
        rows = [row for row in range(len(asked)) if row not in found]
        if rows:
            questions, words = [asked[row] for row in rows], self.require_calibration("count").numbers
            tokens = self.pipeline.question_tokens(list(map(self.pipeline.qformer_question, questions)))
            prefix_embeds = self.backend.prefix_embeds(vision_features[rows], tokens)
            logs = self.answer_scores(prefix_embeds, questions, words)
            logs -= np.logaddexp.reduce(logs, axis=1, keepdims=True)  # one of them is right
            found |= {row: (words[each.argmax()], float(each.max())) for row, each in zip(rows, logs, strict=True)}
        return [found[row] for row in range(len(asked))]

    def answer_scores(
        self, prefix_embeds: Floats, questions: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.float64]:
        """prefix_embeds (B, Q, D), B questions, A answers -> how likely each answer is (B, A)

        That is log p(answer | image, question), less a part of what it is behind the mean_prefix, if there is one.
        """
        language, prior = self.pipeline.language, self.mean_prefix
        if prior is None:
            return language.answer_likelihoods(prefix_embeds, questions, answers)
        count = len(questions)
        both = np.concatenate([prefix_embeds, np.repeat(prior, count, axis=0)])
        found = language.answer_likelihoods(both, [*questions, *questions], answers)
        return found[:count] - _PRIOR_WEIGHT * found[count:]

    @property
    def is_calibrated(self) -> bool:
        """Whether the bundle has a calibration of matches."""
        return self._calibration is not None

    @property
    def rates_captions(self) -> bool:
        """Whether the bundle has a calibration of captions."""
        calibration = self.bundle.manifest.calibration
        return calibration is not None and calibration.caption is not None and computes(calibration.caption)

    def require_confidence(self) -> None:
        """Raise CapabilityError if the bundle has no calibration of captions."""
        if not self.rates_captions:
            raise self._uncalibrated("tell how likely a caption is right")

    def confidence(self, vision_features: Floats, captions: Sequence[Scored]) -> NDArray[np.float64]:
        """vision_features (B, N, C), B captions -> the calibrated probability that each is right (B), pairwise.

        Raises CapabilityError if the bundle has no calibration of captions.
        """
        self.require_confidence()
        calibration = self.bundle.manifest.calibration
        assert calibration is not None and calibration.caption is not None
        signals = self.signals(vision_features, [caption.text for caption in captions])
        signals[SCORE] = np.array([caption.score for caption in captions], np.float64)
        return probabilities(calibration.caption, signals)

    def tagger(self, labels: Sequence[str | Label] | None, top: int, threshold: float) -> Tagger:
        """What Model.tag does to vision_features. Raises OptionError and CapabilityError before any image is read."""
        calibration = self.require_calibration("label images")
        if calibration.label is None or not {*calibration.label.weights} <= LABEL_SIGNALS:
            raise self._uncalibrated("label images")
        from .labels import as_labels, everyday
        from .tagger import Tagger

        return Tagger(self, calibration.label, everyday() if labels is None else as_labels(labels), top, threshold)

    def with_pool(self, task: GenerationTask, pool: str | os.PathLike[str] | Literal[False] | None) -> GenerationTask:
        """Let a pool of captions guide a task: a file, the bundle's (None), or none (False).

        Raises OptionError and CapabilityError.
        """
        if pool is None:
            return task
        return self._guided_by(task, pool) if pool else replace(task, guides=None)

    def _guided_by(self, task: GenerationTask, path: str | os.PathLike[str]) -> GenerationTask:
        from .pool import read_pool  # few callers have one

        self.pipeline.require(contract.RETRIEVAL, "guide captions by a pool")
        if task.prompt.text:
            raise OptionError("a pool guides whole captions: leave out the prompt, or the pool")
        if not task.settings["eos_token_ids"]:
            raise OptionError("a pool guides captions that end with a token, which this model has not: leave it out")
        if self.bundle.manifest.target != "ort":
            raise OptionError("a pool guides searches on the CPU: leave it out with TensorRT")
        key = os.fspath(path), os.stat(path).st_mtime_ns if os.path.exists(path) else 0
        if self._pool is None or self._pool[0] != key:
            self._pool = key, read_pool(path, self)
        return replace(task, guides=partial(self.guides, self._pool[1]))

    def own_guides(self, vision_features: Floats, _questions: Sequence[str] = ()) -> list[Guide]:
        """vision_features (B, N, C) -> what the bundle's pool says about each image"""
        return self.guides(self._own_pool, vision_features)

    def answer_guides(self, vision_features: Floats, questions: Sequence[str]) -> list[Guide]:
        """vision_features (B, N, C), B questions -> what the bundle's pool says about each answer, pairwise"""
        language = self.pipeline.language

        def guide(embeds: Floats, question: str) -> Guide:
            vocabulary = language.vocabulary if native().asks_for_plural(question) else None
            asked = language.encode_more(Prompt(f" {question}"))
            return self._own_pool.answer_guide(embeds, question, asked, vocabulary)

        with named_failure():
            return [*map(guide, self.image_embeds(vision_features), questions)]

    def guides(self, pool: CaptionPool, vision_features: Floats, _questions: Sequence[str] = ()) -> list[Guide]:
        """vision_features (B, N, C) -> the guide of each image's caption"""
        end = self.pipeline.language.end_token
        with named_failure():
            return [pool.guide(embeds, end) for embeds in self.image_embeds(vision_features)]

    @cached_property
    def _own_pool(self) -> CaptionPool:
        assert self._spec.pool is not None
        with named_failure():
            return native().CaptionPool(str(self.bundle.file(self._spec.pool)))

    def caption_tokens(self, caption: str) -> list[int]:
        """The tokens of a caption, as the language model would write it."""
        return self.pipeline.language.encode_more(Prompt(caption))

    def label_embeds(self, names: tuple[str, ...]) -> Floats:
        """Names of labels -> text_embeds (L, E). Those of the last lists are kept."""
        embeds = self._label_embeds.get(names)
        if embeds is None:
            embeds = np.stack(self.text_embeds([native().without_article(name) for name in names]))
            kept = list(self._label_embeds.items())[1 - _LABEL_LISTS :]
            self._label_embeds = {**dict(kept), names: embeds}
        return embeds

    def require_calibration(self, action: str) -> Calibration:
        """Return the calibration of matches. Raises CapabilityError."""
        self.pipeline.require(contract.RETRIEVAL, action)
        if self._calibration is None:
            raise self._uncalibrated(action)
        return self._calibration

    def _uncalibrated(self, action: str) -> CapabilityError:
        return CapabilityError(
            f"bundle {self.bundle.manifest.name!r} cannot {action}: its manifest has no calibration of this that this "
            "blip2rt knows; blip2rt-train calibrate adds it"
        )

    def _probabilities(self, signals: Signals, texts: Sequence[str]) -> NDArray[np.float64]:
        """The signals of B images and texts -> the calibrated probability that each text is true (B)"""
        calibration = self.require_calibration("judge texts")
        found = np.empty(len(texts))
        short = list(map(native().is_phrase, texts))
        for regression, wanted in ((calibration.phrase, True), (calibration.sentence, False)):
            rows = [row for row, each in enumerate(short) if each == wanted]
            if rows:
                assert regression is not None
                found[rows] = probabilities(regression, signals.of(rows))
        return found

    @cached_property
    def _calibration(self) -> Calibration | None:
        """The bundle's calibration, if it has one for texts, of signals that this version computes."""
        calibration = self.bundle.manifest.calibration
        if calibration is None or calibration.phrase is None or calibration.sentence is None:
            return None
        return calibration if computes(calibration.phrase) and computes(calibration.sentence) else None

    @property
    def weights(self) -> MatchWeights:
        """How Match.score weighs its parts."""
        self.pipeline.require(contract.RETRIEVAL, "match")
        return MatchWeights(self._spec.temperature, self._spec.itm_weight, self._spec.likelihood_weight)

    def scores(
        self, itm_logits: NDArray[Any], cosine: NDArray[Any], likelihood: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """itm_logits (B, 2), cosine (B), and likelihoods (B) if they have a weight -> Match.score (B)"""
        if likelihood is None and self.weights.likelihood:
            raise OptionError("likelihood is missing, and Match.score weighs it: pass what likelihoods returns")
        return self.weights.scores(itm_logits, cosine, likelihood)

    def likelihoods(self, vision_features: Floats, texts: Sequence[str]) -> NDArray[np.float64]:
        """vision_features (B, N, C), B texts -> Match.likelihood (B), pairwise, whatever its weight."""
        self._require_likelihood("tell how likely a text is")
        prefix_embeds, images = self._shared_prefixes(vision_features)
        return self._likelihood.gains(prefix_embeds, images, list(map(self.tokenizer.written, texts)))

    def yes_odds(
        self, vision_features: Floats, questions: Sequence[str]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """vision_features (B, N, C), B questions -> log p(yes) - log p(no), with the image and without (B), pairwise.

        Raises CapabilityError without a language model or retrieval.mean_prefix.
        """
        self._require_likelihood("weigh yes against no")
        prefix_embeds, images = self._shared_prefixes(vision_features)
        return self._likelihood.yes_odds(prefix_embeds, images, questions)

    def _shared_prefixes(self, vision_features: Floats) -> tuple[Floats, list[int]]:
        """vision_features (B, N, C) -> prefix_embeds (I, Q, D), one for equal neighbours, and the row of each"""
        same = [i > 0 and np.array_equal(vision_features[i - 1], row) for i, row in enumerate(vision_features)]
        images: list[int] = (np.cumsum(np.logical_not(same)) - 1).tolist()
        return self.caption_prefix(vision_features[np.logical_not(same)]), images

    def caption_prefix(self, vision_features: Floats) -> Floats:
        """vision_features (B, N, C) -> prefix_embeds (B, Q, D) of captions"""
        self.pipeline.require(contract.GENERATIVE, "make prefix_embeds")
        prompt = self.pipeline.language.caption_prompt(None).whole
        questions = self.pipeline.question_tokens([prompt] * len(vision_features))
        return self.backend.prefix_embeds(vision_features, questions)

    def itm_logits(self, vision_features: Floats, texts: Sequence[str]) -> Floats:
        """vision_features (B, N, C), B texts -> (B, 2), pairwise: the matching head's "no match" and "match"."""
        self.pipeline.require(contract.RETRIEVAL, "match")
        return self.backend.itm_logits(vision_features, *self.tokenizer.encode(texts))

    def image_embeds(self, vision_features: Floats) -> Floats:
        """vision_features (B, N, C) -> image_embeds (B, Q, E), rows of unit length"""
        self.pipeline.require((contract.IMAGE_EMBED,), "embed_features")
        return self.backend.image_embeds(vision_features)

    def embed(self, prepared: Sequence[NDArray[np.uint8]]) -> Floats:
        """RGB images of Pipeline.prepare, at most BATCH -> image_embeds (B, Q, E)"""
        return self.image_embeds(self.pipeline.vision_features(prepared))

    def text_embeds(self, texts: Sequence[str]) -> list[Floats]:
        """Texts -> (E,) of each, of unit length"""
        chunks = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        return [row for chunk in chunks for row in self.backend.text_embeds(*self.tokenizer.encode(chunk))]

    @cached_property
    def tokenizer(self) -> QFormerTokenizer:
        """The Q-Former's tokenizer."""
        return open_qformer_tokenizer(self.bundle.file(self._spec.tokenizer), self._spec, self.pipeline.special_tokens)

    def _require_likelihood(self, action: str) -> None:
        self.pipeline.require((*contract.RETRIEVAL, *contract.GENERATIVE), action)
        if self._spec.mean_prefix is None:
            raise CapabilityError(
                f"bundle {self.bundle.manifest.name!r} cannot {action}: it lacks retrieval.mean_prefix; "
                "blip2rt-train calibrate adds it"
            )

    @cached_property
    def mean_prefix(self) -> Floats | None:
        """The mean prefix_embeds of photographs (1, Q, D), in place of no image; None if the bundle has none."""
        retrieval, llm = self.bundle.manifest.retrieval, self.bundle.manifest.llm
        if retrieval is None or retrieval.mean_prefix is None or llm is None:
            return None
        mean = np.fromfile(self.bundle.file(retrieval.mean_prefix), "<f4").astype(np.float32)
        return mean.reshape(1, llm.prefix_length, llm.hidden_size)

    @cached_property
    def _likelihood(self) -> Likelihood:
        assert self.mean_prefix is not None
        return Likelihood(self.pipeline.language, self.backend, self.mean_prefix, self._spec.max_text_length)

    @property
    def _spec(self) -> RetrievalSpec:
        spec = self.bundle.manifest.retrieval
        assert spec is not None, "the reader checks that retrieval comes with its components"
        return spec
