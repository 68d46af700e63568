"""Measured ranges of activations.

checks/calibration.py measures them; smoothquant.py and trt/precision.py choose quantization grids by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Range(NamedTuple):
    """Statistics of a value for each channel of its last axis: arrays (K), or (1) for all channels together."""

    lows: np.ndarray
    highs: np.ndarray
    means: np.ndarray  # of magnitudes, over all runs
    mean: float  # of magnitudes, in the run with the lowest mean

    @property
    def low(self) -> float:
        return min(float(self.lows.min()), 0.0)

    @property
    def high(self) -> float:
        return max(float(self.highs.max()), 0.0)

    def merge(self, new: Range, runs: int) -> Range:
        """Add the range of one more run to that of `runs` earlier ones."""
        means = self.means + (new.means - self.means) / (runs + 1)
        lows, highs = np.minimum(self.lows, new.lows), np.maximum(self.highs, new.highs)
        return Range(lows, highs, means, min(self.mean, new.mean))

    def divide(self, scales: np.ndarray) -> Range:
        """Return the range of the value divided by `scales` (K)."""
        means = self.means / scales
        mean = self.mean * float(means.mean() / max(self.means.mean(), np.finfo(np.float32).tiny))
        return Range(self.lows / scales, self.highs / scales, means, mean)


Ranges = Mapping[str, Range]  # by the values' names
NO_RANGES: Ranges = {}
