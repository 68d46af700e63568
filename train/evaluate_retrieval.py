"""Retrieval both ways over a set of images and their captions: by ITC, and with the best of it ordered again by ITM.

Knows a predictor's features and scores, nothing about how they are made.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .annotations import Captioned
from .predictions import Predictions
from .predictors import Predictor
from .report import Row
from .retrieval import best_rank, recall, recall_at, reranked
from .scores import ALL, Scores

_BATCH = 32  # images or pairs that go through the model together
_SHOWN = 3

Pairs = Callable[[int, np.ndarray], np.ndarray]  # a query and its best (K) -> itm_logits (K, 2)


def evaluate_retrieval(predictor: Predictor, items: Sequence[Captioned], rerank: int, kept: Predictions) -> Scores:
    """Recall by ITC (the largest cosine over queries), and by ITM's logit + cosine among the `rerank` best of every
    image and every text (the reference's sum; paper section 4.4)."""
    texts = [text for item in items for text in item.references]
    owner = np.repeat(np.arange(len(items)), [len(item.references) for item in items])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        features, sim = _similarity(predictor, items, texts, Path(folder))

        def texts_of(image: int, best: np.ndarray) -> np.ndarray:
            return predictor.itm_logits(np.repeat(features[image : image + 1], len(best), 0), [texts[j] for j in best])

        def images_of(text: int, best: np.ndarray) -> np.ndarray:
            return predictor.itm_logits(features[best], [texts[text]] * len(best))

        ranks = []
        for image, scores in enumerate(_scores(sim, rerank, "i2t", kept, texts_of)):
            ranks.append(best_rank(scores, owner == image))
            said = " / ".join(texts[j] for j in _best(scores, _SHOWN))
            item, shown = items[image], f"rank {ranks[-1] + 1}"
            rows.append(Row(item.path, said, item.references, -ranks[-1], shown, f"texts of {item.id}"))
        found = recall_at("i2t", np.array(ranks))
        ranks = []
        for text, scores in enumerate(_scores(sim.T, rerank, "t2i", kept, images_of)):
            ranks.append(best_rank(scores, np.arange(len(items)) == owner[text]))
            first = [items[j].path for j in _best(scores, _SHOWN)]
            path, shown = items[owner[text]].path, f"rank {ranks[-1] + 1}"
            rows.append(Row(path, "", [], -ranks[-1], shown, f"images of: {texts[text]}", first))
        found |= recall_at("t2i", np.array(ranks))
    columns = {f"itc_{name}": value for name, value in recall(sim, owner).items()}
    if rerank:
        columns |= {f"itm_{name}": value for name, value in found.items()}
    return Scores({ALL: columns}, rows, {"texts": len(texts)})


def _similarity(
    predictor: Predictor, items: Sequence[Captioned], texts: Sequence[str], folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """vision_features (images, N, C), on the disk, and the cosine (images, texts) of the best query."""
    text_embeds = np.concatenate(
        [predictor.embed_text(texts[i : i + _BATCH]) for i in tqdm(range(0, len(texts), _BATCH), desc="texts")]
    )
    sim = np.empty((len(items), len(texts)), np.float32)
    features: np.ndarray | None = None
    with tqdm(total=len(items), desc="images", unit="img") as bar:
        for start in range(0, len(items), _BATCH):
            part = predictor.vision_features([item.path for item in items[start : start + _BATCH]])
            if features is None:
                shape = (len(items), *part.shape[1:])
                features = np.memmap(folder / "vision_features", np.float32, "w+", shape=shape)
            features[start : start + len(part)] = part
            embeds = predictor.embed_features(part)
            sim[start : start + len(part)] = [(each @ text_embeds.T).max(0) for each in embeds]
            bar.update(len(part))
    assert features is not None
    return features, sim


def _scores(sim: np.ndarray, rerank: int, way: str, kept: Predictions, pairs: Pairs) -> Iterator[np.ndarray]:
    """The scores (N) of every query in sim (queries, N): by ITC, the best of them with ITM."""
    for query, row in enumerate(tqdm(sim, desc=f"re-ranking, {way}", unit="query", disable=not rerank)):
        if not rerank:
            yield row
            continue
        id = f"{way} {query}"
        if id not in kept.found:
            best = _best(row, rerank)
            logits = [pairs(query, best[i : i + _BATCH])[:, 1] for i in range(0, len(best), _BATCH)]
            kept.add([id], [{"best": best.tolist(), "itm": np.concatenate(logits).tolist()}])
        said = kept.found[id]
        yield reranked(row, np.array(said["best"]), np.array(said["itm"]))


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` highest of scores (N), highest first."""
    return np.argsort(-scores, kind="stable")[:count]
