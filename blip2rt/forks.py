"""Locks and lazy values that a fork finds usable while another thread is using them."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class cached_property(functools.cached_property[T]):  # like the one of functools
    """functools.cached_property without the lock of Python 3.10 and 3.11, which a fork would leave locked."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        super().__init__(function)
        self.lock = contextlib.nullcontext()


def fork_safe_lock() -> threading.Lock:
    """Return a lock that a fork waits for: the child finds it free, and what it protects in order."""
    lock = threading.Lock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock
