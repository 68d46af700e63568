"""Recall of image-text retrieval.

`t2i_r@k`: share of texts whose image is among their k best; `i2t_r@k`: share of images with one of their texts there.
"""

import numpy as np

RANKS = (1, 5, 10)


def recall(sim: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """Return recall in per cent from sim (images, texts); owner (texts) is each text's image.

    Ties rank in order, as in a sorted list, so a constant model scores by chance. NaN ranks last.
    """
    sim = np.where(np.isnan(sim), -np.inf, sim)
    texts, images = np.arange(len(owner)), np.arange(len(sim))
    own = sim[owner, texts]
    image_rank = ((sim > own) | ((sim == own) & (images[:, None] < owner))).sum(0)
    text_rank = np.array([best_rank(row, owner == image) for image, row in enumerate(sim)])
    return recall_at("t2i", image_rank) | recall_at("i2t", text_rank)


def best_rank(scores: np.ndarray, own: np.ndarray) -> int:
    """Return how many of scores (N) are above the best of the `own` ones (N, bool); N without any."""
    order = np.argsort(-scores, kind="stable")
    found = np.flatnonzero(own[order])
    return int(found[0]) if len(found) else len(scores)


def recall_at(name: str, ranks: np.ndarray) -> dict[str, float]:
    """Return the shares of ranks, counted from 0, below 1, 5 and 10, in per cent."""
    return {f"{name}_r@{k}": 100.0 * float((ranks < k).mean()) for k in RANKS}


def reranked(sim: np.ndarray, best: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Return scores (N) of one query: `sums` (K) for `best` (K), and the rest below them in the order of sim (N)."""
    scores = sim.astype(np.float64) - 1e6
    scores[best] = sums
    return scores
