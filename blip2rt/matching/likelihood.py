"""What the language model says of a text and an image: how likely the text is, and whether it says yes to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..text import Prompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..backends import Backend, Floats
    from ..language import Language

_CACHE_SIZE = 8192  # values without an image that are cached
_ANSWERS = (" yes", " no")


class Likelihood:
    """Compares what the language model says with an image and without one. Any thread may use it.

    The mean prefix_embeds of photographs take the place of no image. Without the comparison, short and common texts
    would win for every image (Lin et al. 2024, "Revisiting the Role of Language Priors in Vision-Language Models").
    """

    def __init__(self, language: Language, backend: Backend, mean_prefix: Floats, max_tokens: int) -> None:
        """mean_prefix (1, Q, D). max_tokens: longer texts are truncated."""
        self._language, self._backend = language, backend
        self._mean_prefix = mean_prefix
        self._max_tokens = max_tokens
        self._cache: dict[bytes, float] = {}  # by a hash: texts may be long

    def gains(self, prefix_embeds: Floats, images: Sequence[int], texts: Sequence[str]) -> NDArray[np.float64]:
        """prefix_embeds (I, Q, D), B texts, the image of each -> log p(text | image) - log p(text) (B)"""

        def scores(prefixes: Floats, rows: list[int], some: list[str]) -> NDArray[np.float64]:
            return self._language.likelihoods(prefixes, rows, some, self._max_tokens)

        given, without = self._compare(b"text ", scores, prefix_embeds, images, texts)
        return given - without

    def yes_odds(
        self, prefix_embeds: Floats, images: Sequence[int], questions: Sequence[str]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """prefix_embeds (I, Q, D), B questions, the image of each -> log p(yes) - log p(no) with and without it (B)"""
        language = self._language
        answers = [language.encode_more(Prompt(answer)) for answer in _ANSWERS]

        def scores(prefixes: Floats, rows: list[int], some: list[str]) -> NDArray[np.float64]:
            asked = [language.encode(language.ask_prompt(question)) for question in some]
            shared: list[int] = _shared(asked) if language.reads_prompt_as_text and len(some) > 2 else []
            if shared:  # read once for each image; what follows it is in both texts, and cancels out
                texts = [[*ids[len(shared) :], *answer] for ids in asked for answer in answers]
                owners = [row for row in rows for _ in answers]
                logs = self._backend.likelihoods(prefixes, [shared] * len(prefixes), owners, texts)
            else:
                each = [number for number in range(len(some)) for _ in answers]
                logs = self._backend.likelihoods(prefixes[rows], asked, each, answers * len(some))
            return logs[::2] - logs[1::2]

        return self._compare(b"question ", scores, prefix_embeds, images, questions)

    def _compare(
        self,
        kind: bytes,
        scores: Callable[[Floats, list[int], list[str]], NDArray[np.float64]],
        prefix_embeds: Floats,
        images: Sequence[int],
        texts: Sequence[str],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Score texts with their images and without one, in one run; the latter are cached."""
        names = {text: _digest(kind, text) for text in texts}
        cached = {text: self._cache.get(name) for text, name in names.items()}
        new = [text for text, score in cached.items() if score is None]
        rows = [*images, *[len(prefix_embeds)] * len(new)]
        prefixes = np.concatenate([prefix_embeds, self._mean_prefix]) if new else prefix_embeds
        found = scores(prefixes, rows, [*texts, *new])
        without = dict(zip(new, found[len(texts) :].tolist(), strict=True))
        self._store({names[text]: score for text, score in without.items()})
        return found[: len(texts)], np.array([without.get(text, cached[text]) for text in texts], np.float64)

    def _store(self, found: dict[bytes, float]) -> None:
        if len(self._cache) + len(found) > _CACHE_SIZE:
            self._cache = {}
        self._cache.update(found)


def _digest(kind: bytes, text: str) -> bytes:
    import hashlib  # takes 3 ms and 4 MB

    return hashlib.blake2b(kind + text.encode(errors="surrogatepass"), digest_size=16).digest()


def _shared(lists: Sequence[list[int]]) -> list[int]:
    """The longest common beginning of lists."""
    first, last = min(lists), max(lists)
    same = (n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(same, min(len(first), len(last)))]
