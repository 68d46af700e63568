"""What the graphs say about texts and images, computed when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..native import native
from . import calibration as names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..backends import Floats
    from .matcher import Matcher

    Numbers: TypeAlias = NDArray[np.float64]


class Signals(dict[str, "Numbers"]):
    """The signals of B images and texts, pairwise: name -> (B) float64. Each is computed by its first lookup."""

    def __init__(
        self,
        matcher: Matcher,
        vision_features: Floats,
        texts: Sequence[str],
        image_embeds: Floats | None = None,
        mean_text: Sequence[float] = (),
    ) -> None:
        """vision_features (B, N, C), image_embeds (B, Q, E); mean_text (E): see bundle.manifest.Calibration."""
        super().__init__()
        self._matcher, self._features, self._texts = matcher, vision_features, list(texts)
        self._image_embeds, self._mean_text = image_embeds, mean_text

    def __missing__(self, name: str) -> Numbers:
        matcher, features, texts, core = self._matcher, self._features, self._texts, native()
        if name == names.ITM:
            logits = matcher.itm_logits(features, texts).astype(np.float64)
            self[name] = logits[:, 1] - logits[:, 0]
        elif name == names.COSINE:
            self[name] = self._cosines(texts).max(axis=1)
        elif name == names.NAME_COSINE or name.startswith(names.QUERY_COSINE):
            cosines = self._cosines([core.without_article(text) if core.is_phrase(text) else text for text in texts])
            self[names.NAME_COSINE] = cosines.max(axis=1)
            self.update({f"{names.QUERY_COSINE}{query}": column for query, column in enumerate(cosines.T)})
        elif name == names.BASE_COSINE:
            self[name] = (self.image_embeds @ np.array(self._mean_text)).mean(axis=1)
        elif name == names.LIKELIHOOD:
            self[name] = matcher.likelihoods(features, texts)
        elif name == names.PHRASE_LIKELIHOOD:
            phrases = list(map(core.with_article, texts))
            self[name] = self[names.LIKELIHOOD] if phrases == texts else matcher.likelihoods(features, phrases)
        elif name in (names.YES, names.YES_BLIND):
            questions = [core.question_of(core.with_article(text)) for text in texts]
            self[names.YES], self[names.YES_BLIND] = matcher.yes_odds(features, questions)
        else:
            assert name == names.WORDS, f"no signal of texts and images is called {name}"
            self[name] = np.array([len(text.split()) for text in texts], np.float64)
        return self[name]

    @property
    def image_embeds(self) -> Floats:
        """(B, Q, E)"""
        if self._image_embeds is None:
            self._image_embeds = self._matcher.image_embeds(self._features)
        return self._image_embeds

    def _cosines(self, texts: Sequence[str]) -> Numbers:
        """Texts -> their cosines with each query of their images (B, Q)"""
        text_embeds = np.stack(self._matcher.text_embeds(texts))  # (B, E)
        return np.einsum("bqe,be->bq", self.image_embeds, text_embeds).astype(np.float64)

    def of(self, rows: Sequence[int]) -> Signals:
        """Those of some of the pairs, with what has been computed."""
        texts, embeds = [self._texts[row] for row in rows], self._image_embeds
        part = Signals(self._matcher, self._features[rows], texts, None if embeds is None else embeds[rows])
        part._mean_text = self._mean_text
        part.update({name: values[rows] for name, values in self.items()})
        return part
