"""How much likelier the language model finds a text after an image than without one.

That is log p(text | image) - log p(text). Without the second term short and common texts would win for every image (Lin
et al. 2024, "Revisiting the Role of Language Priors in Vision-Language Models"). p(text) is computed after the mean
prefix_embeds of photographs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .backends import Floats
    from .language import Language

_CACHE_SIZE = 4096  # texts whose likelihood without an image is cached


class Likelihood:
    """Likelihoods of texts, by a bundle's language model. Any thread may use it."""

    def __init__(self, language: Language, mean_prefix: Floats, max_tokens: int) -> None:
        """mean_prefix (1, Q, D) takes the place of no image. max_tokens: longer texts are truncated."""
        self._language = language
        self._mean_prefix = mean_prefix
        self._max_tokens = max_tokens
        self._cache: dict[bytes, float] = {}  # by the text's hash: texts may be long

    def gains(self, prefix_embeds: Floats, images: Sequence[int], texts: Sequence[str]) -> NDArray[np.float64]:
        """prefix_embeds (I, Q, D), B texts, the image of each -> log p(text | image) - log p(text) (B)"""
        names = {text: hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest() for text in texts}
        cached = {text: self._cache.get(name) for text, name in names.items()}
        new = [text for text, score in cached.items() if score is None]
        rows = [*images, *[len(prefix_embeds)] * len(new)]
        prefixes = np.concatenate([prefix_embeds, self._mean_prefix]) if new else prefix_embeds
        scores = self._language.likelihoods(prefixes, rows, [*texts, *new], self._max_tokens)
        found = dict(zip(new, scores[len(texts) :].tolist(), strict=True))
        self._store({names[text]: score for text, score in found.items()})
        return scores[: len(texts)] - np.array([found[text] if text in found else cached[text] for text in texts])

    def _store(self, found: dict[bytes, float]) -> None:
        if len(self._cache) + len(found) > _CACHE_SIZE:
            self._cache = {}
        self._cache.update(found)
