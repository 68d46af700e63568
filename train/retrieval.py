"""Recall of image-text retrieval from a similarity matrix. Knows numbers only."""

from __future__ import annotations

import numpy as np

RANKS = (1, 5, 10)


def recall(sim: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """Recall in percent from sim (images, texts); owner (texts) is each text's image.

    `t2i_r@k`: texts whose image is among their k best; `i2t_r@k`: images with one of their texts among their k best.
    """
    texts = np.arange(len(owner))
    image_rank = (sim > sim[owner, texts]).sum(0)
    text_rank = np.full(len(sim), len(owner))
    order = np.argsort(-sim, axis=1, kind="stable")
    for image, row in enumerate(order):
        own = np.flatnonzero(owner[row] == image)
        text_rank[image] = own[0] if len(own) else len(owner)
    found = {f"t2i_r@{k}": 100.0 * float((image_rank < k).mean()) for k in RANKS}
    return found | {f"i2t_r@{k}": 100.0 * float((text_rank < k).mean()) for k in RANKS}
