"""How much likelier the language model finds a text behind an image than behind none.

That is log p(text | image) - log p(text). Without the second term short and common texts would win for every image (Lin
et al. 2024, "Revisiting the Role of Language Priors in Vision-Language Models"). p(text) is that behind the mean
prefix_embeds of photographs. Knows prefixes and texts; nothing of images or scores.
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

_KEPT = 4096  # texts, whose likelihood without an image is kept


class Likelihood:
    """What a bundle's language model says of texts. Any thread may use it."""

    def __init__(self, language: Language, mean_prefix: Floats, most_tokens: int) -> None:
        """mean_prefix (1, Q, D) stands for no image. most_tokens: longer texts are cut."""
        self._language = language
        self._mean_prefix = mean_prefix
        self._most_tokens = most_tokens
        self._kept: dict[bytes, float] = {}  # by the text's hash: texts may be long

    def gains(self, prefix_embeds: Floats, images: Sequence[int], texts: Sequence[str]) -> NDArray[np.float64]:
        """prefix_embeds (I, Q, D), B texts, the image of each -> log p(text | image) - log p(text) (B)"""
        names = {text: hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest() for text in texts}
        alone = {text: self._kept.get(name) for text, name in names.items()}
        new = [text for text, known in alone.items() if known is None]
        rows = [*images, *[len(prefix_embeds)] * len(new)]
        prefixes = np.concatenate([prefix_embeds, self._mean_prefix]) if new else prefix_embeds
        said = self._language.likelihoods(prefixes, rows, [*texts, *new], self._most_tokens)
        found = dict(zip(new, said[len(texts) :].tolist(), strict=True))
        self._keep({names[text]: said_alone for text, said_alone in found.items()})
        return said[: len(texts)] - np.array([found[text] if text in found else alone[text] for text in texts])

    def _keep(self, found: dict[bytes, float]) -> None:
        if len(self._kept) + len(found) > _KEPT:
            self._kept = {}
        self._kept.update(found)
