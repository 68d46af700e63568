"""Detect ties: if noise as small as rounding changes what transformers generates, the result is not decided.

A tie may occur anywhere in a search, not only at its end: dropping a beam early drops all its continuations.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers

TRIES = 50  # a tie falls either way half of the time, so only a real difference survives all of them


class LogitNoise(transformers.LogitsProcessor):
    """Adds uniform noise of at most `size` to each logit."""

    def __init__(self, size: float) -> None:
        self.size = size

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + (torch.rand_like(scores) - 0.5) * 2 * self.size


def is_tie(generate: Callable[[transformers.LogitsProcessorList], Any], want: Any, size: float) -> bool:
    """Whether noise of at most `size` in the logits makes `generate` return anything but `want`."""
    return any(generate(transformers.LogitsProcessorList([LogitNoise(size)])) != want for _ in range(TRIES))
