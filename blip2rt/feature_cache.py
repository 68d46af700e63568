"""What was computed of images, by what they show. The least recently used goes first.

Knows arrays, bytes and threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .backends import Floats


class Kept:
    """Arrays by name, of at most so many bytes together. Any thread may use it; 0 bytes keep nothing."""

    def __init__(self, most_bytes: int = 0) -> None:
        self.most_bytes = most_bytes
        self.hits = self.misses = self.bytes = 0
        self._arrays: OrderedDict[bytes, Floats] = OrderedDict()
        self._lock = threading.Lock()
        # One thread computes at a time: others may find what they want afterwards. What it computes may need rows too.
        self._making = threading.RLock()

    def rows(self, names: Sequence[bytes], make: Callable[[list[int]], Floats]) -> Floats:
        """Names -> their arrays, stacked.

        make: numbers of names that are not kept -> their arrays, stacked. A name that comes twice is made once.
        """
        found = self._find(names)
        self._count(names, found)
        if any(name not in found for name in names):
            with self._making:
                found |= self._find([name for name in names if name not in found])
                first = {name: i for i, name in reversed(list(enumerate(names))) if name not in found}
                numbers = sorted(first.values())
                if numbers:
                    for i, array in zip(numbers, make(numbers), strict=True):
                        found[names[i]] = array.copy()
                        self._keep(names[i], found[names[i]])
        return np.stack([found[name] for name in names])

    def _find(self, names: Sequence[bytes]) -> dict[bytes, Floats]:
        with self._lock:
            found = {name: self._arrays[name] for name in names if name in self._arrays}
            for name in found:
                self._arrays.move_to_end(name)
        return found

    def _count(self, names: Sequence[bytes], found: dict[bytes, Floats]) -> None:
        with self._lock:
            hits = sum(name in found for name in names)
            self.hits += hits
            self.misses += len(names) - hits

    def _keep(self, name: bytes, array: Floats) -> None:
        if array.nbytes > self.most_bytes:
            return
        with self._lock:
            self._arrays[name] = array
            self.bytes += array.nbytes
            while self.bytes > self.most_bytes:
                self.bytes -= self._arrays.popitem(last=False)[1].nbytes
