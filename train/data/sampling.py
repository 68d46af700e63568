"""Which sample comes when: endless shuffled orders, and a weighted mixture of several sources.

Everything is a function of the seed and the step, whatever the number of processes and workers: a resumed training,
even on other machines, sees what an uninterrupted one would have seen.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

WINDOW = 16  # shards whose samples are shuffled together
_CHUNK = 1024  # steps


class ShuffledOrder:
    """Endless epochs over sum(counts) samples in blocks (shards), shuffled; samples are shuffled within WINDOW blocks.

    Every sample appears once per epoch, and only a few shards are read at a time.
    """

    def __init__(self, counts: Sequence[int], seed: tuple[int, ...]) -> None:
        self.counts, self.seed = np.asarray(counts, np.int64), seed
        self.starts = np.cumsum(self.counts) - self.counts
        self.total = int(self.counts.sum())
        self._epoch = lru_cache(maxsize=2)(self._shuffled_blocks)
        self._group = lru_cache(maxsize=2)(self._shuffled_samples)

    def __getitem__(self, position: int) -> int:
        """Return the number of the sample at `position`, counted from 0 through all epochs."""
        epoch, offset = divmod(position, self.total)
        _, ends = self._epoch(epoch)
        group = int(np.searchsorted(ends, offset, "right"))
        start = int(ends[group - 1]) if group else 0
        return int(self._group(epoch, group)[offset - start])

    def _shuffled_blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        blocks = np.random.default_rng((*self.seed, epoch)).permutation(len(self.counts))
        groups = np.split(self.counts[blocks], range(WINDOW, len(blocks), WINDOW))
        return blocks, np.cumsum([group.sum() for group in groups])

    def _shuffled_samples(self, epoch: int, group: int) -> np.ndarray:
        blocks = self._epoch(epoch)[0][group * WINDOW : (group + 1) * WINDOW]
        samples = np.concatenate([np.arange(self.starts[b], self.starts[b] + self.counts[b]) for b in blocks])
        return np.random.default_rng((*self.seed, epoch, 1 + group)).permutation(samples)


class Mixture:
    """Batches of (source, position in that source), drawn by weight."""

    def __init__(self, weights: Sequence[float], batch_size: int, seed: int) -> None:
        self.weights = np.asarray(weights, np.float64) / np.sum(weights)
        self.batch_size, self.seed = batch_size, seed
        self._before = [np.zeros(len(weights), np.int64)]  # samples drawn from each source before each chunk

    def batch(self, step: int) -> list[tuple[int, int]]:
        """Return the rows of a step over all processes, sources mixed."""
        chunk, row = divmod(step, _CHUNK)
        while len(self._before) <= chunk:
            self._before.append(self._before[-1] + self._counts(len(self._before) - 1).sum(0))
        counts = self._counts(chunk)
        first = self._before[chunk] + counts[:row].sum(0)
        rows = [(s, int(first[s]) + i) for s, count in enumerate(counts[row]) for i in range(count)]
        order = np.random.default_rng((self.seed, 3, step)).permutation(len(rows))
        return [rows[i] for i in order]

    def _counts(self, chunk: int) -> np.ndarray:
        """Return the number of rows of each source in each step of a chunk, (_CHUNK, sources)."""
        rng = np.random.default_rng((self.seed, 2, chunk))
        return rng.multinomial(self.batch_size, self.weights, _CHUNK)


def sample_images(count: int, most: int = 8) -> list[int]:
    """Return at most `most` of `count` images, evenly spread and always the same."""
    return [i * count // most for i in range(most)] if count > most else list(range(count))
