"""Images and texts -> matches, probabilities, short answers, labels and guides, from vision_features on.

The core weighs what the graphs say (engines/runtime); this module runs them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..bundle import RETRIEVAL
from ..bundle.manifest import Calibration
from ..errors import CapabilityError, OptionError
from ..language import Prompt
from ..native import cached_property, named_failure, native
from ..pipeline import Pipeline
from ..results import Match, MatchWeights, Scored
from .evidence import Evidence

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..backends import Floats
    from ..native import Calibrator, CaptionPool, GenerationOptions, Guide, Labels, ShortQuestion, Signals
    from ..tasks import GenerationTask
    from .tagger import Tagger


class Matcher(Evidence):
    """Matches by the retrieval graphs of a bundle. Any thread may use it."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline)
        self._pool: tuple[tuple[str, int], CaptionPool] | None = None  # the last one

    def match(self, vision_features: Floats, texts: Sequence[str]) -> list[Match]:
        """vision_features (B, N, C), B texts -> B matches, pairwise"""
        if not len(vision_features) and not texts:
            return []
        self.pipeline.require(RETRIEVAL, "match")
        signals = self.measure(self._calibrator.match_signals(texts), vision_features)
        return [Match(*row) for row in self._calibrator.matches(signals)]

    def judge(self, vision_features: Floats, statements: Sequence[str]) -> NDArray[np.float64]:
        """vision_features (B, N, C), B statements -> the calibrated probability that each is true (B), pairwise.

        A statement is a phrase ("a cat"), a sentence, or a question whether something is there ("is there a cat?").
        Raises CapabilityError if the bundle is not calibrated.
        """
        self.require_calibration("judge statements")
        phrases = [native.phrase_of(statement) or statement for statement in statements]
        signals = self.measure(self._calibrator.statement_signals(phrases), vision_features)
        return np.array(self._calibrator.probabilities(signals))

    def signals(
        self, vision_features: Floats, texts: Sequence[str], names: Sequence[str], mean_text: Sequence[float] = ()
    ) -> dict[str, list[float]]:
        """vision_features (B, N, C), B texts -> signals of engines/runtime/signals.h by name, pairwise (B)

        mean_text (E): see bundle.manifest.Calibration.
        """
        signals = self.measure(native.Signals(texts, names, mean_text), vision_features)
        return {name: signals.values(name) for name in names}

    def short_question(self, question: str, settings: GenerationOptions) -> ShortQuestion | None:
        """Read a question that short_answers answers; None for others."""
        return self._calibrator.short_question(question, settings)

    def short_answers(self, vision_features: Floats, asked: Sequence[ShortQuestion]) -> list[tuple[str, float]]:
        """vision_features (B, N, C), B short questions -> the answer to each and its log-probability, pairwise"""

        def score(image: int, question: str, answers: Sequence[str]) -> list[float]:
            tokens = self.pipeline.question_tokens([self.pipeline.qformer_question(question)])
            prefix_embeds = self.backend.prefix_embeds(vision_features[image : image + 1], tokens)
            scores: list[float] = self.answer_scores(prefix_embeds, [question], answers)[0].tolist()
            return scores

        def measure(signals: Signals, images: Sequence[int]) -> None:
            self.measure(signals, vision_features[images])

        return self._calibrator.short_answers(asked, measure, score)

    @property
    def is_calibrated(self) -> bool:
        """Whether the bundle has a calibration of matches."""
        return self.bundle.manifest.retrieval is not None and self._calibrator.rates_statements

    @property
    def rates_captions(self) -> bool:
        """Whether the bundle has a calibration of captions."""
        return self.bundle.manifest.retrieval is not None and self._calibrator.rates_captions

    def require_confidence(self) -> None:
        """Raise CapabilityError if the bundle has no calibration of captions."""
        if not self.rates_captions:
            raise self._uncalibrated("tell how likely a caption is right")

    def confidence(self, vision_features: Floats, captions: Sequence[Scored]) -> NDArray[np.float64]:
        """vision_features (B, N, C), B captions -> the calibrated probability that each is right (B), pairwise.

        Raises CapabilityError if the bundle has no calibration of captions.
        """
        self.require_confidence()
        texts, scores = [caption.text for caption in captions], [float(caption.score) for caption in captions]
        signals = self.measure(self._calibrator.caption_signals(texts, scores), vision_features)
        return np.array(self._calibrator.confidence(signals))

    def tagger(self, labels: Sequence[str] | Labels | None, top: int, threshold: float) -> Tagger:
        """What Model.tag does to vision_features. Raises OptionError and CapabilityError before any image is read."""
        calibration = self.require_calibration("label images")
        if not self._calibrator.rates_labels:
            raise self._uncalibrated("label images")
        from .tagger import Tagger, as_labels

        return Tagger(self, as_labels(labels), calibration, top, threshold)

    def with_pool(self, task: GenerationTask, pool: str | os.PathLike[str] | Literal[False] | None) -> GenerationTask:
        """Let a pool of captions guide a task: a file, the bundle's (None), or none (False).

        Raises OptionError and CapabilityError.
        """
        if pool is None:
            return task
        return self._guided_by(task, pool) if pool else replace(task, guides=None)

    def _guided_by(self, task: GenerationTask, path: str | os.PathLike[str]) -> GenerationTask:
        from .pool import read_pool  # few callers have one

        self.pipeline.require(RETRIEVAL, "guide captions by a pool")
        self.pipeline.language.core.need_guidable(task.prompt)
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
            vocabulary = language.vocabulary if native.asks_for_plural(question) else None
            asked = language.encode_more(Prompt(f" {question}"))
            return self._own_pool.answer_guide(embeds, question, asked, vocabulary)

        with named_failure():
            return [*map(guide, self.image_embeds(vision_features), questions)]

    def guides(self, pool: CaptionPool, vision_features: Floats, _questions: Sequence[str] = ()) -> list[Guide]:
        """vision_features (B, N, C) -> the guide of each image's caption"""
        end = self.pipeline.language.spec.eos_token_ids[0]
        with named_failure():
            return [pool.guide(embeds, end) for embeds in self.image_embeds(vision_features)]

    @cached_property
    def _own_pool(self) -> CaptionPool:
        assert self._spec.pool is not None
        with named_failure():
            return native.CaptionPool(str(self.bundle.file(self._spec.pool)))

    def require_calibration(self, action: str) -> Calibration:
        """Return the calibration of matches. Raises CapabilityError."""
        self.pipeline.require(RETRIEVAL, action)
        calibration = self.bundle.manifest.calibration
        if calibration is None or not self._calibrator.rates_statements:
            raise self._uncalibrated(action)
        return calibration

    def _uncalibrated(self, action: str) -> CapabilityError:
        return CapabilityError(
            f"bundle {self.bundle.manifest.name!r} cannot {action}: its manifest has no calibration of this that this "
            "blip2rt knows; blip2rt-train calibrate adds it"
        )

    @cached_property
    def _calibrator(self) -> Calibrator:
        return native.Calibrator(self._spec, self.bundle.manifest.calibration)

    @property
    def weights(self) -> MatchWeights:
        """How Match.score weighs its parts."""
        self.pipeline.require(RETRIEVAL, "match")
        return MatchWeights(self._spec.temperature, self._spec.itm_weight, self._spec.likelihood_weight)

    def scores(
        self, itm_logits: NDArray[Any], cosine: NDArray[Any], likelihood: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """itm_logits (B, 2), cosine (B), and likelihoods (B) if they have a weight -> Match.score (B)"""
        if likelihood is None and self.weights.likelihood:
            raise OptionError("likelihood is missing, and Match.score weighs it: pass what likelihoods returns")
        return self.weights.scores(itm_logits, cosine, likelihood)
