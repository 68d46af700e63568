"""What the C library does with freed memory."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> None:
    """Have glibc reuse freed blocks instead of returning them: every step allocates the same large tensors again, and
    fresh pages cost a third of a step on CPUs. Elsewhere than on glibc nothing changes."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        mmap_max, trim_threshold = -4, -1  # malloc.h
        ctypes.CDLL(None).mallopt(mmap_max, 0)
        ctypes.CDLL(None).mallopt(trim_threshold, 2**31 - 1)
