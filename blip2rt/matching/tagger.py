"""Labels of images: how near each is to the image, and whether the image's caption names it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import OptionError, check_probability, is_whole
from ..results import Tag
from .calibration import NAME_COSINE, NEARNESS, QUERY_COSINE, TOLD, probabilities
from .labels import Label, named_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..backends import Floats
    from ..bundle.manifest import Logistic
    from .matcher import Matcher


class Tagger:
    """Labels images from one list. Any thread may use it."""

    def __init__(
        self, matcher: Matcher, regression: Logistic, labels: Sequence[Label], top: int, threshold: float
    ) -> None:
        """regression: of signals. top: most labels of an image. threshold: their least probability."""
        if not is_whole(top, 1, None):
            raise OptionError(f"top is {top!r}: give a number of labels, 1 or more")
        check_probability(threshold, "threshold")
        self._matcher, self._regression, self._labels = matcher, regression, tuple(labels)
        self._top, self._threshold = top, threshold
        self._names = tuple(label.name for label in labels)

    def tags(self, vision_features: Floats) -> list[list[Tag]]:
        """vision_features (B, N, C) -> the labels of each image, likeliest first"""
        signals = {NEARNESS: self.nearness(self._matcher.image_embeds(vision_features))}
        if TOLD in self._regression.weights:
            signals[TOLD] = np.stack([named_labels([each], self._labels) for each in self.captions(vision_features)])
        return list(map(self._choose, probabilities(self._regression, signals)))

    def nearness(self, image_embeds: Floats) -> NDArray[np.float64]:
        """image_embeds (B, Q, E) -> the nearness of each label (B, L): its largest cosine if that was not fitted"""
        embeds, calibration = self._matcher.label_embeds(self._names), self._matcher.bundle.manifest.calibration
        cosines = np.einsum("bqe,le->bql", image_embeds, embeds)
        if calibration is None or calibration.nearness is None:
            return cosines.max(axis=1).astype(np.float64)
        weights = calibration.nearness.weights
        each = np.array([weights.get(f"{QUERY_COSINE}{query}", 0.0) for query in range(cosines.shape[1])])
        near = weights.get(NAME_COSINE, 0.0) * cosines.max(axis=1) + np.einsum("q,bql->bl", each, cosines)
        return np.asarray(near + embeds @ np.array(calibration.label_text), np.float64)

    def captions(self, vision_features: Floats) -> list[str]:
        """vision_features (B, N, C) -> the caption of each image, as the bundle writes it by default"""
        pipeline = self._matcher.pipeline
        task, prefix_embeds = pipeline.task(), self._matcher.caption_prefix(vision_features)
        settings = task.guided(task.settings, [vision_features])
        texts = pipeline.language.generate(prefix_embeds, [task.prompt] * len(prefix_embeds), settings)
        return [best[0].text for best in texts]

    def _choose(self, probability: NDArray[np.float64]) -> list[Tag]:
        """The probability of each label (L) -> the labels of an image"""
        likely = np.flatnonzero(probability >= self._threshold)
        order = likely[np.argsort(-probability[likely], kind="stable")]
        implied = {parent for i in order for parent in self._labels[i].parents}
        tags = (Tag(self._names[i], float(probability[i]), self._labels[i].parents) for i in order)
        return [tag for tag in tags if tag not in implied][: self._top]
