"""Ranges of activations: what was seen of a value while a graph ran. Knows numbers, nothing about graphs.

export.checks.calibration sees them; static.py, smoothquant.py and export.trt.precision make grids of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Range(NamedTuple):
    """What was seen of a value, in each channel, which is its last axis: (K), or (1) for all."""

    lows: np.ndarray
    highs: np.ndarray
    means: np.ndarray  # of magnitudes, over all runs
    mean: float  # magnitude, in the run where it was least

    @property
    def low(self) -> float:
        return min(float(self.lows.min()), 0.0)

    @property
    def high(self) -> float:
        return max(float(self.highs.max()), 0.0)

    def joined(self, new: Range, runs: int) -> Range:
        """Join what one more run has seen; `runs` came before it."""
        means = self.means + (new.means - self.means) / (runs + 1)
        ends = np.minimum(self.lows, new.lows), np.maximum(self.highs, new.highs)
        return Range(*ends, means, min(self.mean, new.mean))

    def over(self, scales: np.ndarray) -> Range:
        """The range of the value divided by `scales` (K)."""
        means = self.means / scales
        mean = self.mean * float(means.mean() / max(self.means.mean(), np.finfo(np.float32).tiny))
        return Range(self.lows / scales, self.highs / scales, means, mean)


Ranges = Mapping[str, Range]  # by the values' names
NO_RANGES: Ranges = {}
