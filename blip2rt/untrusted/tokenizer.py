"""Load an untrusted tokenizer.json, with the core or, if it has a part that the core does not know, with `tokenizers`.

Files that could blow up a short text are rejected: normalizers that replace a letter by a page, templates that repeat
the text. Any fault becomes a BundleError that names the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from ..bundle.regular_files import read_bounded
from ..errors import BundleError, boundary
from ..native import native
from .memory import require_memory

MAX_BYTES = 256 << 20  # of a file; Gemma's has 33 MB
_PROBE = "A dog, 2 cats; Ünïcode 日本 \u200d."
_MEMORY_RATIO = 20  # to a file's size, at most: a list of numbers takes 12 bytes for two


class Tokenizer(Protocol):
    """The core's tokenizer, or the library behind the same functions; _native.pyi documents them."""

    def encode(self, pieces: Sequence[tuple[str, bool]], layout: bool, max_tokens: int | None = None) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special: bool) -> str: ...
    def token_bytes(self, size: int) -> list[bytes]: ...
    def settled(self, ids: Sequence[int]) -> int: ...
    @property
    def added_tokens(self) -> list[tuple[int, str, bool]]: ...


def read_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of a file, without padding and truncation. Raises BundleError."""
    try:
        data = read_bounded(file, MAX_BYTES)
    except OSError as error:
        raise BundleError(f"{file} is not a tokenizer: {error.strerror or error}") from None
    require_memory(_MEMORY_RATIO * len(data))
    with guarded(file, "is not a tokenizer"):
        try:
            tokenizer = native().Tokenizer(data)
        except NotImplementedError:
            from .library_tokenizer import LibraryTokenizer  # an import that most bundles never need

            return LibraryTokenizer(data, _PROBE, str(file))
        tokenizer.decode(tokenizer.encode([(_PROBE, False)], True), False)
    return tokenizer


@contextlib.contextmanager
def guarded(file: Path | str, what: str = "failed as a tokenizer") -> Iterator[None]:
    """Turn any exception about a tokenizer into a BundleError with the file's name."""
    with boundary(f"{file} {what}", BundleError):
        yield
