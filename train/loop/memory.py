"""Memory settings of the C library."""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Let glibc reuse freed blocks instead of returning them; does nothing without glibc.

    Every step allocates the same large tensors, and on a CPU fresh pages cost a third of a step.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        mmap_max, trim_threshold = -4, -1  # malloc.h
        ctypes.CDLL(None).mallopt(mmap_max, 0)
        ctypes.CDLL(None).mallopt(trim_threshold, 2**31 - 1)
