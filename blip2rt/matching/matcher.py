"""Images and texts -> matches, probabilities, labels and guides, from vision_features on.

The core's judge computes them (engines/runtime/judge.h); this module shapes what it returns.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle import IMAGE_EMBED, RETRIEVAL
from ..errors import OptionError, check_probability, is_whole
from ..pipeline import Pipeline
from ..results import Match, MatchWeights, Scored, Tag

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..backends import Floats
    from ..native import CaptionPool, Labels
    from ..tasks import GenerationTask

    Numbers = NDArray[np.float64]


class Matcher:
    """Matches by the retrieval graphs of a bundle. Any thread may use it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.bundle = pipeline, pipeline.bundle
        self._pool: tuple[tuple[str, int], CaptionPool] | None = None  # the last one

    def image_embeds(self, vision_features: Floats) -> Floats:
        """vision_features (B, N, C) -> image_embeds (B, Q, E), rows of unit length"""
        self.pipeline.require((IMAGE_EMBED,), "embed_features")
        return self.pipeline.judge.image_embeds(vision_features)

    def embed(self, prepared: Sequence[NDArray[np.uint8]]) -> Floats:
        """RGB images of Pipeline.prepare, at most BATCH -> image_embeds (B, Q, E)"""
        return self.image_embeds(self.pipeline.vision_features(prepared))

    def text_embeds(self, texts: Sequence[str]) -> Floats:
        """T texts, at least one -> text_embeds (T, E), of unit length"""
        return self.pipeline.judge.text_embeds(texts)

    def label_embeds(self, labels: Labels) -> Floats:
        """L labels -> text_embeds (L, E). Those of the last lists are kept."""
        return self.pipeline.judge.label_embeds(labels)

    def caption_prefix(self, vision_features: Floats) -> Floats:
        """vision_features (B, N, C) -> prefix_embeds (B, Q, D) of captions"""
        return self.pipeline.judge.caption_prefix(vision_features)

    def itm_logits(self, vision_features: Floats, texts: Sequence[str]) -> Floats:
        """vision_features (B, N, C), B texts -> (B, 2), pairwise: the matching head's "no match" and "match"."""
        return self.pipeline.judge.itm_logits(vision_features, texts)

    def likelihoods(self, vision_features: Floats, texts: Sequence[str]) -> Numbers:
        """vision_features (B, N, C), B texts -> Match.likelihood (B), pairwise, whatever its weight."""
        given, without = self.pipeline.judge.likelihoods(vision_features, texts)
        return np.subtract(given, without)

    def match(self, vision_features: Floats, texts: Sequence[str]) -> list[Match]:
        """vision_features (B, N, C), B texts -> B matches, pairwise"""
        if not len(vision_features) and not texts:
            return []
        return [Match(*row) for row in self.pipeline.judge.match(vision_features, texts)]

    def judge(self, vision_features: Floats, statements: Sequence[str]) -> Numbers:
        """vision_features (B, N, C), B statements -> the calibrated probability that each is true (B), pairwise.

        A statement is a phrase ("a cat"), a sentence, or a question whether something is there ("is there a cat?").
        Raises CapabilityError if the bundle is not calibrated.
        """
        return np.array(self.pipeline.judge.probabilities(vision_features, statements))

    @property
    def is_calibrated(self) -> bool:
        """Whether the bundle has a calibration of matches."""
        return self.pipeline.judge.rates_statements

    @property
    def rates_captions(self) -> bool:
        """Whether the bundle has a calibration of captions."""
        return self.pipeline.judge.rates_captions

    def require_confidence(self) -> None:
        """Raise CapabilityError if the bundle has no calibration of captions."""
        self.pipeline.judge.require_confidence()

    def confidence(self, vision_features: Floats, captions: Sequence[Scored]) -> list[float | None]:
        """vision_features (B, N, C), B captions -> the calibrated probability that each is right (B), pairwise.

        None for a caption without words. Raises CapabilityError if the bundle has no calibration of captions.
        """
        scores = [float(caption.score) for caption in captions]
        return self.pipeline.judge.confidence(vision_features, [caption.text for caption in captions], scores)

    def tagger(self, labels: Sequence[str] | Labels | None, top: int, threshold: float) -> Tagger:
        """What Model.tag does to vision_features. Raises OptionError and CapabilityError before any image is read."""
        from .labels import as_labels

        self.pipeline.judge.require_statements("label images")
        return Tagger(self.pipeline, as_labels(labels), top, threshold)

    def with_pool(self, task: GenerationTask, pool: str | None) -> GenerationTask:
        """Let a pool of captions guide a task: a file, the bundle's (None), or "none".

        Raises OptionError and CapabilityError.
        """
        if pool is None:
            return task
        return replace(task, guides=None) if pool == "none" else self._guided_by(task, pool)

    def _guided_by(self, task: GenerationTask, path: str) -> GenerationTask:
        from .pool import read_pool  # few callers have one

        self.pipeline.require(RETRIEVAL, "guide captions by a pool")
        self.pipeline.language.core.need_guidable(task.prompt)
        key = os.fspath(path), os.stat(path).st_mtime_ns if os.path.exists(path) else 0
        if self._pool is None or self._pool[0] != key:
            self._pool = key, read_pool(path, self.pipeline)
        pool, judge = self._pool[1], self.pipeline.judge
        return replace(task, guides=lambda vision_features, _: judge.caption_guides(vision_features, pool))

    @property
    def weights(self) -> MatchWeights:
        """How Match.score weighs its parts."""
        self.pipeline.require(RETRIEVAL, "match")
        spec = self.bundle.manifest.retrieval
        assert spec is not None, "the reader checks that retrieval comes with its components"
        return MatchWeights(spec.temperature, spec.itm_weight, spec.likelihood_weight)

    def scores(self, itm_logits: NDArray[Any], cosine: NDArray[Any], likelihood: Numbers | None = None) -> Numbers:
        """itm_logits (B, 2), cosine (B), and likelihoods (B) if they have a weight -> Match.score (B)"""
        if likelihood is None and self.weights.likelihood:
            raise OptionError("likelihood is missing, and Match.score weighs it: pass what likelihoods returns")
        return self.weights.scores(itm_logits, cosine, likelihood)


class Tagger:
    """Labels images from one list. Any thread may use it."""

    def __init__(self, pipeline: Pipeline, labels: Labels, top: int, threshold: float) -> None:
        """top: most labels of an image. threshold: their least probability. Raises OptionError and CapabilityError."""
        if not is_whole(top, 1, None):
            raise OptionError(f"top is {top!r}: give a number of labels, 1 or more")
        check_probability(threshold, "threshold")
        self._pipeline = pipeline
        self._tagger = pipeline.judge.tagger(labels, min(top, len(labels)), threshold)
        self._names = [(name, tuple(parents)) for name, parents, _ in labels.entries]

    def tags(self, vision_features: Floats) -> list[list[Tag]]:
        """vision_features (B, N, C) -> the labels of each image, likeliest first"""
        captions = self._pipeline.captions(vision_features) if self._tagger.reads_captions else []
        found = self._pipeline.judge.tags(self._tagger, vision_features, captions)
        return [[Tag(self._names[i][0], chance, self._names[i][1]) for i, chance in tags] for tags in found]
