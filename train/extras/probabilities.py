"""Fit the probabilities of a bundle on unseen photographs: of phrases, sentences, labels and captions.

Each is a logistic regression of what the graphs say (engines/runtime/signals.h). Truth comes from human captions:
- phrases: the table's questions whether something is there, answered yes or no (recipes/nano/presence.py writes them);
- statements: the table's questions whether something is true, such as "is the dog swimming?", from the same script;
- sentences: an image's own captions, against captions of other images, half of them near by cosine;
- labels: the everyday ones, right if a caption of the image names them. The cosines and the label's own embedding say
  how near each is; then that is weighed beside whether the model's own caption names it;
- captions: the model's own, right if their CIDEr beside the image's captions is RIGHT_CIDER or more.
The table's questions of a number are not fitted: their frequent answers become those that a bundle chooses from.
Right and wrong phrases and sentences weigh the same in sum; labels and captions have their natural frequencies.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from blip2rt.bundle import GENERATIVE
from blip2rt.bundle.manifest import Calibration, Logistic
from blip2rt.errors import Blip2rtError
from blip2rt.native import native

from ..evaluation.annotations import CaptionedImage, VqaQuestion
from ..evaluation.metrics import caption_metrics, coco_scorers
from ..evaluation.predictors import BundlePredictor
from ..progress import bar

if TYPE_CHECKING:
    from blip2rt.native import ShortQuestion

RIGHT_CIDER = 30.0  # of a right caption, beside human captions of its image: less shares hardly a phrase with them
_RIDGE = 1e-3
_CONSTANT = 1e-6  # standard deviation below which a signal says nothing
_NEAR_SHARE = 0.1  # of the other captions are near
_MIN_EXAMPLES = 30  # of right ones, and of wrong ones
_MOST_NUMBERS = 10  # that a bundle chooses from
_DISTANT = 60  # labels of an image, at random, that stage one learns from besides the near and the named ones


@dataclass
class Examples:
    """Signals of texts and images, and whether each text is right."""

    signals: dict[str, list[float]] = field(default_factory=dict)
    right: list[int] = field(default_factory=list)

    def add(self, signals: Mapping[str, Sequence[float]], right: Sequence[int]) -> None:
        for name, values in signals.items():
            self.signals.setdefault(name, []).extend(values)
        self.right.extend(right)

    def fit(self, what: str, balanced: bool) -> tuple[Logistic, str]:
        """Return the regression, and how well it tells right from wrong. Raise Blip2rtError for too few examples."""
        right = np.array(self.right, bool)
        counts = f"{right.sum()} right and {(~right).sum()} wrong {what}"
        if min(right.sum(), (~right).sum()) < _MIN_EXAMPLES:
            raise Blip2rtError(f"{counts} are too few to fit a probability: give data for {_MIN_EXAMPLES} of each")
        columns = np.stack([np.array(values) for values in self.signals.values()], 1)
        found = fit_logistic(columns, right, balanced)
        weights = dict(zip(self.signals, np.round(found[:-1], 5).tolist(), strict=True))
        scores = _crossed(columns, right, balanced)
        level = scores > 0
        summary = (
            f"{counts}; by a fit on the other half, AUC {_auc(scores, right):.3f}, above 0.5 are "
            f"{100 * level[right].mean():.1f} % of the right and {100 * level[~right].mean():.1f} % of the wrong ones"
        )
        return Logistic(round(float(found[-1]), 5), weights), summary


def fit_logistic(
    columns: np.ndarray, right: np.ndarray, balanced: bool, ridge: float = _RIDGE, weight: np.ndarray | None = None
) -> np.ndarray:
    """Return weights and bias (K + 1) of P(right) by signals (n, K): Newton's method, ridge on standardized signals.

    balanced: right and wrong examples weigh the same in sum. weight (n): of each example, otherwise.
    """
    mean, spread = columns.mean(0), columns.std(0)
    spread[spread < _CONSTANT] = 1.0  # or the rounding of a signal that never changes would get a huge weight
    x = np.c_[(columns - mean) / spread, np.ones(len(right))]
    if weight is None:
        weight = np.where(right, 0.5 / right.mean(), 0.5 / (1 - right.mean())) if balanced else np.ones(len(right))
    weight = weight / weight.mean()
    penalty = ridge * np.diag([1.0] * len(mean) + [0.0])
    found = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ found))
        gradient = x.T @ (weight * (p - right)) / len(right) + penalty @ found
        step = np.linalg.solve((x.T * (weight * p * (1 - p))) @ x / len(right) + penalty, gradient)
        found -= step
        if np.abs(step).max() < 1e-6:
            break
    weights = found[:-1] / spread
    return np.append(weights, found[-1] - weights @ mean)


def _crossed(columns: np.ndarray, right: np.ndarray, balanced: bool) -> np.ndarray:
    """Log-odds of each half by a regression that was fitted on the other."""
    scores, first = np.zeros(len(right)), np.arange(len(right)) < len(right) // 2
    for half in (first, ~first):
        fitted = fit_logistic(columns[~half], right[~half], balanced)
        scores[half] = columns[half] @ fitted[:-1] + fitted[-1]
    return scores


def _auc(scores: np.ndarray, right: np.ndarray) -> float:
    """How often a right example has a higher score than a wrong one."""
    order = np.argsort(np.argsort(scores))
    return float((order[right].mean() - (right.sum() - 1) / 2) / max((~right).sum(), 1))


@dataclass(frozen=True)
class _Image:
    item: CaptionedImage
    features: np.ndarray  # vision_features (N, C)
    embeds: np.ndarray  # image_embeds (Q, E)


class Fitting:
    """Fits a bundle's calibration on images with captions and questions."""

    def __init__(self, model: BundlePredictor, items: Sequence[CaptionedImage], asked: Sequence[VqaQuestion]) -> None:
        self._rng, self._labels = random.Random(0), native.Labels.everyday()
        self._mean_text: tuple[float, ...] = ()
        self._model, self._items = model, self._rng.sample(list(items), len(items))
        self._asked: dict[Path, list[tuple[str, bool]]] = {}
        self._counted: dict[Path, list[tuple[str, str]]] = {}
        self._stated: dict[Path, list[tuple[ShortQuestion, bool]]] = {}
        for question in asked:
            short, answers = native.short_question(question.question), set(question.answers)
            if short is not None and short.kind == "number":
                self._counted.setdefault(question.path, []).append((short.text, question.answers[0]))
            elif short is not None and len(answers & {"yes", "no"}) == 1:
                right = ("no" if short.negated else "yes") in answers
                if short.kind == "presence":
                    self._asked.setdefault(question.path, []).append((short.text, right))
                elif short.kind == "statement":
                    self._stated.setdefault(question.path, []).append((short, right))
        old = model.bundle.manifest.calibration
        self._old_numbers = () if old is None else old.numbers
        self._generates = model.bundle.has(*GENERATIVE)

    def fit(self) -> tuple[Calibration, list[str]]:
        """Return the calibration, and a line about each part of it. Raise Blip2rtError if there is too little data."""
        model = self._model
        if self._generates:
            coco_scorers()  # says at once if it is not installed
        labels = model.matcher.label_embeds(self._labels)
        self._mean_text = tuple(np.round(labels.mean(0), 5).tolist())
        images = [self._encode(item) for item in bar(self._items, desc="images", unit="image")]
        queries = [f"query_{query}" for query in range(images[0].embeds.shape[0])]
        nearness, label_text = self._near_labels(images, labels, queries)
        generative = ["yes", "yes_blind", "phrase_likelihood"] if self._generates else []
        phrase = ["name_cosine", "base_cosine", *queries, *generative]
        sentence = ["cosine", "itm", *(["likelihood"] if self._generates else [])]
        phrases, sentences, tags, captions = Examples(), Examples(), Examples(), Examples()
        tagger = native.Tagger(self._labels, Calibration(nearness=nearness, label_text=label_text), 1, 0.0)
        rated: list[tuple[list[str], str]] = []  # captions of an image, and the model's own
        others = model.embed_text([self._rng.choice(image.item.references) for image in images])
        for number, image in enumerate(bar(images, desc="texts", unit="image")):
            pairs = self._asked.get(image.item.path, [])
            if pairs:
                phrases.add(self._signals(image, [text for text, _ in pairs], phrase), [right for _, right in pairs])
            texts = [self._rng.choice(image.item.references), *self._others(images, others, number)]
            sentences.add(self._signals(image, texts, sentence), [True, False, False])
            named = self._labels.named_in(image.item.references)
            signals: dict[str, Sequence[float]] = {"nearness": tagger.nearness(image.embeds, labels)}
            if self._generates:
                [caption] = model.pipeline.captions(image.features[None])
                signals["told"] = self._labels.named_in([caption.text])
                cosine = self._signals(image, [caption.text], ["cosine"])
                # the matching head and the likelihood added nothing
                captions.add(cosine | {"score": [caption.score]}, [False])
                rated.append((image.item.references, caption.text))
            tags.add(signals, named)
        if rated:
            captions.right = [each >= RIGHT_CIDER for each in caption_metrics(*zip(*rated, strict=True))[1]]
        fits = [phrases.fit("phrases", True), sentences.fit("sentences", True), tags.fit("labels", False)]
        fits += [captions.fit("captions", False)] if self._generates else []
        found = dict(zip(("phrase", "sentence", "label", "caption"), (each for each, _ in fits), strict=False))
        fits += [self._fit_statements(images)] if self._stated else []
        found |= {"statement": fits[-1][0]} if self._stated else {}
        numbers, counted = self._count_things(images)
        calibration = Calibration(
            **found, nearness=nearness, label_text=label_text, mean_text=self._mean_text, numbers=numbers
        )
        return calibration, [*(summary for _, summary in fits), *counted]

    def _fit_statements(self, images: Sequence[_Image]) -> tuple[Logistic, str]:
        """Return what signals of "a dog is swimming", and of "a dog", say about its truth."""
        statements, names = Examples(), ["cosine", "itm", *(["likelihood"] if self._generates else [])]
        for image in bar([each for each in images if each.item.path in self._stated], desc="statements", unit="image"):
            asked = self._stated[image.item.path]
            signals = self._signals(image, [question.text for question, _ in asked], names)
            signals["subject_cosine"] = self._signals(image, [each.subject for each, _ in asked], ["cosine"])["cosine"]
            statements.add(signals, [right for _, right in asked])
        return statements.fit("statements", True)

    def _count_things(self, images: Sequence[_Image]) -> tuple[tuple[str, ...], list[str]]:
        """Return the frequent answers to questions of a number, and how many of these get theirs by likelihood."""
        asked = [(image, *each) for image in images for each in self._counted.get(image.item.path, [])]
        times = Counter(answer for _, _, answer in asked)
        numbers = tuple(answer for answer, _ in times.most_common(_MOST_NUMBERS))
        if not self._generates or len(numbers) < 2:
            return self._old_numbers, []
        right = 0
        for image, question, answer in bar(asked, desc="numbers", unit="question"):
            logs = self._model.pipeline.judge.answer_scores(image.features[None], question, numbers)
            right += numbers[int(np.argmax(logs))] == answer
        return numbers, [
            f"{len(asked)} questions of a number; the likeliest of {', '.join(numbers)} is right for {right}"
        ]

    def _encode(self, item: CaptionedImage) -> _Image:
        features = self._model.vision_features([item.path])
        return _Image(item, features[0], self._model.embed_features(features)[0])

    def _signals(self, image: _Image, texts: Sequence[str], names: Sequence[str]) -> dict[str, list[float]]:
        features = np.repeat(image.features[None], len(texts), 0)
        return self._model.pipeline.judge.signals(features, texts, names, self._mean_text)

    def _others(self, images: Sequence[_Image], embeds: np.ndarray, number: int) -> Iterator[str]:
        """Captions of two other images: one near this image, one at random."""
        order = np.argsort(-(images[number].embeds @ embeds.T).max(0))
        order = order[order != number]
        near = order[: max(2, round(_NEAR_SHARE * len(order)))]
        for chosen in (near, order):
            yield self._rng.choice(images[self._rng.choice(chosen.tolist())].item.references)

    def _near_labels(
        self, images: Sequence[_Image], labels: np.ndarray, queries: Sequence[str]
    ) -> tuple[Logistic, tuple[float, ...]]:
        """labels (L, E) -> what cosines and the label's own embedding say about being named"""
        rng, rows, right, weight = np.random.default_rng(0), [], [], []
        for image in images:
            cosines = image.embeds @ labels.T  # (Q, L)
            named = np.array(self._labels.named_in(image.item.references), bool)
            sure = named.copy()  # the named and the near ones; others are sampled
            sure[np.argsort(-cosines.max(0))[: _DISTANT // 2]] = True
            others = rng.permutation(np.flatnonzero(~sure))[:_DISTANT]
            chosen = np.append(np.flatnonzero(sure), others)
            rows.append(np.c_[cosines.max(0)[chosen], cosines.T[chosen], labels[chosen]])
            right.append(named[chosen])
            weight.append(np.where(sure[chosen], 1.0, (~sure).sum() / len(others)))
        found = fit_logistic(
            np.concatenate(rows).astype(float), np.concatenate(right), False, weight=np.concatenate(weight)
        )
        weights, count = np.round(found, 5).tolist(), 1 + len(queries)
        nearness = Logistic(weights[-1], dict(zip(["name_cosine", *queries], weights, strict=False)))
        return nearness, tuple(weights[count:-1])
