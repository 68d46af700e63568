"""A cache of what was computed for images, by content. The least recently used entry goes first.

Knows arrays, bytes and threads.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..backends import Floats


class FeatureCache:
    """Arrays by key, at most `max_bytes` together. Any thread may use it; 0 bytes disable it."""

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self.hits = self.misses = self.bytes = 0
        self._arrays: OrderedDict[bytes, Floats] = OrderedDict()
        self._process = os.getpid()
        self._lock = threading.Lock()
        # One thread computes at a time, so that others find its results. Computing may look up other rows.
        self._computing = threading.RLock()

    def rows(self, keys: Sequence[bytes], compute: Callable[[list[int]], Floats]) -> Floats:
        """Keys -> their arrays, stacked.

        compute: numbers of missing keys -> their arrays, stacked. A key that comes twice is computed once.
        """
        if os.getpid() != self._process:  # in a fork, a thread that holds the lock does not exist
            return compute(list(range(len(keys))))
        found = self._find(keys)
        self._count(keys, found)
        if any(key not in found for key in keys):
            with self._computing:
                found |= self._find([key for key in keys if key not in found])
                first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in found}
                numbers = sorted(first.values())
                if numbers:
                    for i, array in zip(numbers, compute(numbers), strict=True):
                        found[keys[i]] = array.copy()
                        self._store(keys[i], found[keys[i]])
        return np.stack([found[key] for key in keys])

    def _find(self, keys: Sequence[bytes]) -> dict[bytes, Floats]:
        with self._lock:
            found = {key: self._arrays[key] for key in keys if key in self._arrays}
            for key in found:
                self._arrays.move_to_end(key)
        return found

    def _count(self, keys: Sequence[bytes], found: dict[bytes, Floats]) -> None:
        with self._lock:
            hits = sum(key in found for key in keys)
            self.hits += hits
            self.misses += len(keys) - hits

    def _store(self, key: bytes, array: Floats) -> None:
        if array.nbytes > self.max_bytes:
            return
        with self._lock:
            self._arrays[key] = array
            self.bytes += array.nbytes
            while self.bytes > self.max_bytes:
                self.bytes -= self._arrays.popitem(last=False)[1].nbytes
