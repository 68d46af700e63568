"""Dropout that depends on a row's number in the whole batch and on the place within the row, and on nothing else.

However a batch is padded or divided among processes and micro-batches, each row then drops the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_STEP = 0x9E3779B9 - 2**32  # odd, as int32: consecutive numbers become distant ones


@dataclass(frozen=True)
class RowNoise:
    """The random numbers of B rows: keys (B) int32 of each, and batch () int32, which all rows share."""

    keys: torch.Tensor
    batch: torch.Tensor

    @staticmethod
    def of_rows(seed: int, rows: torch.Tensor) -> RowNoise:
        """rows (B): their numbers in the whole batch."""
        batch = _hashed(torch.tensor(seed % 2**31, dtype=torch.int32, device=rows.device))
        return RowNoise(_hashed(batch + rows.int() * _STEP), batch)

    def at(self, place: int) -> RowNoise:
        """Numbers of the same rows for another pass, layer or tensor, independent of those here."""
        return RowNoise(_hashed(self.keys + place * 0x632BE5), self.batch)

    def copies(self, rows: torch.Tensor, numbers: torch.Tensor) -> RowNoise:
        """Copy number `numbers` (T) of each of `rows` (T); all of them are independent."""
        return RowNoise(_hashed(self.keys[rows] + numbers.int() * _STEP), self.batch)

    def order(self, count: int) -> torch.Tensor:
        """Return `count` positions in a random order, which is that of the whole batch."""
        return _hashed(self.batch + _numbers(count, self.batch.device)).argsort(stable=True)

    def drop(self, x: torch.Tensor, share: float) -> torch.Tensor:
        """Set a share of x (B, ...) to 0, and scale the rest so that the mean stays."""
        keys = self.keys
        for size in x.shape[1:]:
            keys = _hashed(keys[..., None] + _numbers(size, x.device))
        return torch.where(keys >= int(share * 2**31), x / (1 - share), 0)


def _numbers(count: int, device: torch.device) -> torch.Tensor:
    return torch.arange(1, count + 1, dtype=torch.int32, device=device) * _STEP


def _hashed(keys: torch.Tensor) -> torch.Tensor:
    """int32 -> [0, 2**31), as lowbias32 of Wellons, "Prospecting for Hash Functions"; `x ^ x >> n` clears the sign."""
    keys = (keys ^ keys >> 16) * 0x7FEB352D
    keys = (keys ^ keys >> 15) * (0x846CA68B - 2**32)
    return keys ^ keys >> 16
