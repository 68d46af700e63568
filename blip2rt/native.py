"""Import blip2rt._native, the C++ core (engines/), and declare its types; locks that survive a fork."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from .errors import BackendError, OptionError
from .install_hints import pip_install
from .system import at_fork

if TYPE_CHECKING:
    from . import _native

    CallerOptions: TypeAlias = _native.CallerOptions
    CaptionPool: TypeAlias = _native.CaptionPool
    GenerationOptions: TypeAlias = _native.GenerationOptions
    Guide: TypeAlias = _native.Guide
    Judge: TypeAlias = _native.Judge
    Labels: TypeAlias = _native.Labels
    LlmTokenizer: TypeAlias = _native.LlmTokenizer
    QFormerTokenizer: TypeAlias = _native.QFormerTokenizer
    ShortQuestion: TypeAlias = _native.ShortQuestion
    Submitted: TypeAlias = _native.Submitted
    TextStream: TypeAlias = _native.TextStream
    Tokenizer: TypeAlias = _native.Tokenizer
    Vocabulary: TypeAlias = _native.Vocabulary


T = TypeVar("T")
Token: TypeAlias = tuple[int, int, int]  # number of the image, number of the draw, token id
Prompts: TypeAlias = Sequence[list[int]]  # the token ids of each
Sequences: TypeAlias = list[list[tuple[list[int], float]]]  # for each image its best: new token ids, score


def _load() -> Any:
    """Return blip2rt._native. A source folder without it uses the installed package's."""
    name = "blip2rt._native"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
    folders = [str(Path(entry or ".") / "blip2rt") for entry in sys.path]
    spec = importlib.machinery.PathFinder.find_spec(name, folders)
    if spec is None or spec.loader is None:
        raise BackendError(f"blip2rt's native core is not built for this Python: {pip_install()}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return sys.modules.setdefault(name, module)


class _Core:
    """The module blip2rt._native, which the first use of a name loads."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_load(), name)


if TYPE_CHECKING:
    native = _native
else:
    native = _Core()


@contextlib.contextmanager
def named_failure() -> Iterator[None]:
    """Turn the core's errors during a generation into BackendError."""
    try:
        yield
    except MemoryError:
        raise BackendError("generation failed: out of memory: ask for fewer tokens, beams or images") from None
    except RuntimeError as error:
        raise BackendError(f"generation failed: {error}") from error


def require_processor() -> None:
    """Raise BackendError on a processor on which importing NumPy would end the process. A missing core passes."""
    try:
        missing = native.missing_instructions()
    except (BackendError, ImportError):
        return  # reported where the core is needed
    if missing:
        raise BackendError(
            f"this processor has no {missing}, which NumPy and ONNX Runtime need: use one made after 2008"
        )


def kernel_level() -> str:
    """The highest instruction set of the core's kernels: BLIP2RT_KERNELS, or the best one. Raises OptionError."""
    value, levels = os.environ.get("BLIP2RT_KERNELS", ""), native.kernel_levels()
    if value and value not in levels:
        fix = f"give one that this processor supports ({', '.join(levels)}), or unset it"
        raise OptionError(f"BLIP2RT_KERNELS is {value!r}: {fix}")
    return value or levels[0]


# Forks


class cached_property(functools.cached_property[T]):  # like the one of functools
    """functools.cached_property without the lock of Python 3.10 and 3.11, which a fork would leave locked."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        super().__init__(function)
        self.lock = contextlib.nullcontext()


def fork_safe_lock() -> threading.Lock:
    """Return a lock that a fork waits for: the child finds it free, and what it protects in order."""
    lock = threading.Lock()
    at_fork(lock.acquire, lock.release)
    return lock


class ForkGate:
    """Work of any number of threads that a fork waits for, because a child would find the library's locks taken."""

    def __init__(self) -> None:
        self._free, self._working = threading.Condition(threading.Lock()), 0
        at_fork(self._wait, self._free.release)

    def _wait(self) -> None:
        self._free.acquire()
        while self._working:
            self._free.wait()

    def __enter__(self) -> None:
        with self._free:
            self._working += 1

    def __exit__(self, *_: object) -> None:
        with self._free:
            self._working -= 1
            self._free.notify_all()
