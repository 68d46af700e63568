"""Signals of texts and images -> calibrated probabilities. Knows numbers, no graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..bundle.manifest import Logistic

    Numbers = NDArray[np.float64]

# What a logistic regression may weigh, each (B) for B pairs of text and image.
COSINE = "cosine"  # of the text's embedding and the nearest query's
ITM = "itm"  # log-odds of the matching head
LIKELIHOOD = "likelihood"  # log p(text | image) - log p(text)
NAME_COSINE = "name_cosine"  # cosine of a phrase without its article
QUERY_COSINE = "query_"  # with a number: the same with one query
BASE_COSINE = "base_cosine"  # mean over all queries for labels in general: some images are near every text
PHRASE_LIKELIHOOD = "phrase_likelihood"  # likelihood of a phrase with its article
YES = "yes"  # log p(yes) - log p(no), asked whether it is there
YES_BLIND = "yes_blind"  # the same without the image
NEARNESS = "nearness"  # of a label: its weighed cosines, and how often labels like it are named
TOLD = "told"  # 1 if the image's caption names a label, else 0
WORDS = "words"  # number of words
SCORE = "score"  # of a generated text: its log-probability per token
_SIGNALS = {COSINE, ITM, LIKELIHOOD, NAME_COSINE, BASE_COSINE, PHRASE_LIKELIHOOD, YES, YES_BLIND, WORDS, SCORE}
LABEL_SIGNALS = {NEARNESS, TOLD}


def computes(regression: Logistic) -> bool:
    """Whether this version knows all signals that a regression weighs."""
    return all(name in _SIGNALS or name.startswith(QUERY_COSINE) for name in regression.weights)


def probabilities(regression: Logistic, signals: Mapping[str, Any]) -> Numbers:
    """Signals (B) by name -> P (B) float64"""
    total = sum((weight * signals[name] for name, weight in regression.weights.items()), regression.bias)
    return np.asarray(1 / (1 + np.exp(-np.clip(total, -500, 500))), np.float64)
