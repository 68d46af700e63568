"""Recall of image-text retrieval. Knows numbers only.

`t2i_r@k`: of 100 texts, how many have their image among their k best; `i2t_r@k`: images with one of their texts so.
"""

from __future__ import annotations

import numpy as np

RANKS = (1, 5, 10)


def recall(sim: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """Recall in percent from sim (images, texts); owner (texts) is each text's image. Of equal ones the first is best,
    as in a sorted list: who finds all alike finds by chance. What is no number is below all."""
    sim = np.where(np.isnan(sim), -np.inf, sim)
    texts, images = np.arange(len(owner)), np.arange(len(sim))
    own = sim[owner, texts]
    image_rank = ((sim > own) | ((sim == own) & (images[:, None] < owner))).sum(0)
    text_rank = np.array([best_rank(row, owner == image) for image, row in enumerate(sim)])
    return recall_at("t2i", image_rank) | recall_at("i2t", text_rank)


def best_rank(scores: np.ndarray, own: np.ndarray) -> int:
    """How many of scores (N) are above the best of those that are `own` (N, bool); N where there is none."""
    order = np.argsort(-scores, kind="stable")
    found = np.flatnonzero(own[order])
    return int(found[0]) if len(found) else len(scores)


def recall_at(name: str, ranks: np.ndarray) -> dict[str, float]:
    """Shares of ranks, counted from 0, below 1, 5 and 10, in percent."""
    return {f"{name}_r@{k}": 100.0 * float((ranks < k).mean()) for k in RANKS}


def reranked(sim: np.ndarray, best: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Scores (N) of one query: those of `best` (K) are `sums` (K); the others follow in the order of sim (N)."""
    scores = sim.astype(np.float64) - 1e6
    scores[best] = sums
    return scores
