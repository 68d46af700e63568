"""Retrieval in both directions over images and their captions: by ITC, and with its best results re-ranked by ITM."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..progress import bar
from .annotations import CaptionedImage
from .metrics import best_rank, recall, recall_at, reranked
from .predictions import Predictions
from .predictors import Predictor
from .report import Row
from .scores import ALL, Scores

_BATCH = 32  # images or pairs per call
_SHOWN = 3
_WAYS = {"i2t": "Texts of an image (i2t)", "t2i": "Images of a text (t2i)"}

PairScores = dict[str, np.ndarray]  # of K pairs: itm_logits (K, 2), and likelihood (K) where the score weighs it
Pairs = Callable[[int, np.ndarray], PairScores]  # a query and its best (K) -> their scores


def evaluate_retrieval(predictor: Predictor, items: Sequence[CaptionedImage], rerank: int, done: Predictions) -> Scores:
    """Return recall by ITC (the largest cosine over queries), and among the `rerank` best of every image and text by
    two sums: itm, the matching head's logit + cosine (the reference's; paper section 4.4), and match, as Match.score.
    """
    texts = [text for item in items for text in item.references]
    owner = np.repeat(np.arange(len(items)), [len(item.references) for item in items])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        features, sim = _similarity(predictor, items, texts, Path(folder))
        likely = rerank > 0 and predictor.match_weights.likelihood > 0

        def texts_of(image: int, best: np.ndarray) -> PairScores:
            return _matching(predictor, features, np.full(len(best), image), [texts[j] for j in best], likely)

        def images_of(text: int, best: np.ndarray) -> PairScores:
            return _matching(predictor, features, best, [texts[text]] * len(best), likely)

        def row_of_image(image: int, rank: int, best: np.ndarray) -> Row:
            item, found = items[image], " / ".join(texts[j] for j in best)
            title = f"texts of {item.id}"
            return Row(item.path, found, item.references, -rank, f"rank {rank + 1}", title, section=_WAYS["i2t"])

        def row_of_text(text: int, rank: int, best: np.ndarray) -> Row:
            item, seen = items[owner[text]], [items[j].path for j in best]
            return Row(item.path, "", [], -rank, f"rank {rank + 1}", f"images of: {texts[text]}", seen, _WAYS["t2i"])

        columns = {f"itc_{name}": value for name, value in recall(sim, owner).items()}
        own = owner == np.arange(len(items))[:, None]  # (images, texts)
        for way, cosine, right, pairs, row in (
            ("i2t", sim, own, texts_of, row_of_image),
            ("t2i", sim.T, own.T, images_of, row_of_text),
        ):
            ranks: dict[str, list[int]] = {}
            for query, sums in enumerate(_scores(predictor, cosine, rerank, way, done, pairs)):
                for name, scores in sums.items():
                    ranks.setdefault(name, []).append(best_rank(scores, right[query]))
                shown = next(iter(sums))
                rows.append(row(query, ranks[shown][-1], _best(sums[shown], _SHOWN)))
            if rerank:
                for name, found in ranks.items():
                    columns |= {f"{name}_{at}": value for at, value in recall_at(way, np.array(found)).items()}
    return Scores({ALL: columns}, rows, {"texts": len(texts)}, _tables(columns))


def _tables(columns: Mapping[str, float]) -> dict[str, dict[str, dict[str, float]]]:
    """Return one table per direction: recall at 1, 5 and 10 by each score."""
    found: dict[str, dict[str, dict[str, float]]] = {title: {} for title in _WAYS.values()}
    for name, value in columns.items():
        score, way, at = name.split("_")
        found[_WAYS[way]].setdefault(at, {})[score] = value
    return found


@dataclass(frozen=True)
class Candidates:
    """ITC's best candidates for each query: a text's images, or an image's texts."""

    way: np.ndarray  # (queries): t2i or i2t
    found: np.ndarray  # (queries, K), likeliest first
    own: np.ndarray  # (queries): the image that the text was written of, or the text
    cosine: np.ndarray  # (queries, K)
    itm_logits: np.ndarray  # (queries, K, 2)
    likelihood: np.ndarray | None  # (queries, K); None unless requested

    def of(self, queries: np.ndarray) -> Candidates:
        """Return those of some of the queries."""
        likelihood = None if self.likelihood is None else self.likelihood[queries]
        way, found, own = self.way[queries], self.found[queries], self.own[queries]
        return Candidates(way, found, own, self.cosine[queries], self.itm_logits[queries], likelihood)


def candidates(
    predictor: Predictor, items: Sequence[CaptionedImage], count: int, asking: int, likely: bool = False
) -> Candidates:
    """Return the `count` best images of the first text of each of the first `asking` images, among all.

    likely: compute likelihoods, also of each image's best texts: a text's prior matters only between texts.
    """
    texts = [item.references[0] for item in items]
    with tempfile.TemporaryDirectory() as folder:
        features, sim = _similarity(predictor, items, texts, Path(folder))
        ways = {"t2i": sim.T} | ({"i2t": sim} if likely else {})
        queries = [(way, i, row) for way, rows in ways.items() for i, row in enumerate(rows[:asking])]
        best = np.stack([_best(row, count) for _, _, row in queries])
        scored = []
        for (way, i, _), found in bar(
            zip(queries, best, strict=True), total=len(queries), desc="matching", unit="query"
        ):
            images, of = (found, np.full(count, i)) if way == "t2i" else (np.full(count, i), found)
            scored.append(_matching(predictor, features, images, [texts[j] for j in of], likely))
    way, own, cosine = (np.array(column) for column in zip(*queries, strict=True))
    by_name = {name: np.stack([each[name] for each in scored]) for name in scored[0]}
    return Candidates(
        way, best, own, np.take_along_axis(cosine, best, 1), by_name["itm_logits"], by_name.get("likelihood")
    )


def _similarity(
    predictor: Predictor, items: Sequence[CaptionedImage], texts: Sequence[str], folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Return vision_features (images, N, C), on disk, and the cosine (images, texts) of the best query."""
    text_embeds = np.concatenate(
        [predictor.embed_text(texts[i : i + _BATCH]) for i in bar(range(0, len(texts), _BATCH), desc="texts")]
    )
    sim = np.empty((len(items), len(texts)), np.float32)
    features: np.ndarray | None = None
    with bar(total=len(items), desc="images", unit="img") as shown:
        for start in range(0, len(items), _BATCH):
            part = predictor.vision_features([item.path for item in items[start : start + _BATCH]])
            if features is None:
                shape = (len(items), *part.shape[1:])
                features = np.memmap(folder / "vision_features", np.float32, "w+", shape=shape)
            features[start : start + len(part)] = part
            embeds = predictor.embed_features(part)
            sim[start : start + len(part)] = [(each @ text_embeds.T).max(0) for each in embeds]
            shown.update(len(part))
    assert features is not None
    return features, sim


def _matching(
    predictor: Predictor, features: np.ndarray, images: np.ndarray, texts: Sequence[str], likely: bool
) -> PairScores:
    """Score K pairs: features (images, N, C) by index, and texts. likely: compute the texts' likelihoods too."""
    ways = {"itm_logits": predictor.itm_logits} | ({"likelihood": predictor.likelihoods} if likely else {})
    parts = [slice(start, start + _BATCH) for start in range(0, len(texts), _BATCH)]
    return {
        name: np.concatenate([ask(features[images[part]], texts[part]) for part in parts]) for name, ask in ways.items()
    }


def _scores(
    predictor: Predictor, sim: np.ndarray, rerank: int, way: str, done: Predictions, pairs: Pairs
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the scores (N) of every query in sim (queries, N): by ITC, or of its best re-ranked by each of the sums."""
    if rerank:
        todo = done.share([query for query in range(len(sim)) if f"{way} {query}" not in done.found])
        for query in bar(todo, desc=f"re-ranking, {way}", unit="query"):
            best = _best(sim[query], rerank)
            scored = {name: values.tolist() for name, values in pairs(query, best).items()}
            done.add([f"{way} {query}"], [{"best": best.tolist(), **scored}])
        done.complete()
    for query, row in enumerate(sim):
        if not rerank:
            yield {"itc": row}
            continue
        found = {name: np.array(values) for name, values in done.found[f"{way} {query}"].items()}
        best, logits, weights = found["best"], found["itm_logits"], predictor.match_weights
        match = weights.scores(logits, row[best], found["likelihood"] if weights.likelihood else None)
        sums = {"itm": logits[:, 1] + row[best], "match": match}
        yield {name: reranked(row, best, scores) for name, scores in sums.items()}


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` highest of scores (N), highest first."""
    return np.argsort(-scores, kind="stable")[:count]
