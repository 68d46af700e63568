"""Noise as large as rounding: where it changes what transformers says, transformers itself is undecided.

A tie may stand anywhere in a search, not only at its end: a beam that is left out early takes all its texts with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

TRIES = 50  # a tie falls either way half of the time; none but a failure takes them all


class Noise(transformers.LogitsProcessor):
    """Adds up to `most` to each logit, or takes it away."""

    def __init__(self, most: float) -> None:
        self.most = most

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + (torch.rand_like(scores) - 0.5) * 2 * self.most


def changes(said: Callable[[transformers.LogitsProcessorList], Any], want: Any, most: float) -> bool:
    """Whether noise of at most `most` in the logits makes `said` say anything but `want`."""
    return any(said(transformers.LogitsProcessorList([Noise(most)])) != want for _ in range(TRIES))
