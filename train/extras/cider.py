"""CIDEr of a caption against the references of its image, as a training reward (Vedantam et al. 2015, CIDEr-D).

Document frequencies come from all references given at the start, so that captions can be scored one at a time.
"""

import math
from collections import Counter
from collections.abc import Sequence

_ORDERS = 4
_SIGMA = 6.0  # of the length penalty

Grams = Counter[tuple[str, ...]]


class CiderReward:
    """references[image]: the token strings (tokens joined by single spaces) of each image."""

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        counts = [[_grams(text) for text in texts] for texts in references]
        self._frequency = Counter(gram for texts in counts for gram in set().union(*texts))
        self._log_images = math.log(len(counts))
        self._references = [[self._vector(grams) for grams in texts] for texts in counts]

    def __call__(self, image: int, text: str) -> float:
        """Return CIDEr-D of token string `text`: 0 to 10, pycocoevalcap's value for this image."""
        vector, norms, length = self._vector(_grams(text))
        total = 0.0
        for reference, reference_norms, reference_length in self._references[image]:
            products = [0.0] * _ORDERS
            for gram, value in vector.items():
                other = reference.get(gram, 0.0)
                products[len(gram) - 1] += min(value, other) * other
            closeness = math.exp(-((length - reference_length) ** 2) / (2 * _SIGMA**2))
            total += closeness * sum(
                product / (norm * other) if norm and other else 0.0
                for product, norm, other in zip(products, norms, reference_norms, strict=True)
            )
        return 10.0 * total / _ORDERS / len(self._references[image])

    def _vector(self, grams: Grams) -> tuple[dict[tuple[str, ...], float], list[float], int]:
        """Return tf-idf of each n-gram, the norm of each order, and the number of bigrams (CIDEr's length)."""
        vector = {
            gram: count * (self._log_images - math.log(max(1, self._frequency[gram]))) for gram, count in grams.items()
        }
        squares = [0.0] * _ORDERS
        for gram, value in vector.items():
            squares[len(gram) - 1] += value**2
        length = sum(count for gram, count in grams.items() if len(gram) == 2)
        return vector, [math.sqrt(square) for square in squares], length


def _grams(text: str) -> Grams:
    words = text.split()
    return Counter(
        tuple(words[i : i + order]) for order in range(1, _ORDERS + 1) for i in range(len(words) - order + 1)
    )
