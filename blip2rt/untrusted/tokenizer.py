"""tokenizer.json -> a tokenizer that may be trusted with a text. Knows the library `tokenizers`, nothing about models.

The file is a stranger's. What multiplies a text (a normalizer that replaces a letter by a page, a template that repeats
it) is refused; whatever the library raises, its PanicException too, becomes a BundleError that names the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..errors import BundleError, boundary

MOST_BYTES = 256 << 20  # of a file; Gemma's has 33 MB
MOST_GROWTH = 64  # times, all normalizers or decoders together; NFKC makes at most 18 characters of one
_GROWTH = {"NFKC": 18, "NFKD": 18, "NFC": 18, "NFD": 18, "Precompiled": 4}  # by the kind of a normalizer
_PROBE = "A dog, 2 cats; Ünïcode 日本 \u200d."
_silence = threading.Lock()


def read_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of a file, without padding and truncation. Raises BundleError."""
    try:
        size = file.stat().st_size
    except OSError as error:
        raise BundleError(f"{file} is not a tokenizer: {error.strerror or error}") from None
    if size > MOST_BYTES:
        raise BundleError(f"{file} is not a tokenizer: it has {size:,} bytes, and {MOST_BYTES:,} are allowed")
    with guarded(file, "is not a tokenizer"), _silent():
        tokenizer: Tokenizer = Tokenizer.from_file(str(file))
        faults = _faults(tokenizer)
        if faults:
            raise BundleError(f"{file} is not a tokenizer to trust: {'; '.join(faults)}")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.decode(tokenizer.encode(_PROBE).ids)
    return tokenizer


@contextlib.contextmanager
def guarded(file: Path | str, what: str = "failed as a tokenizer") -> Iterator[None]:
    """Turn whatever the library raises into a BundleError with the file's name."""
    with boundary(f"{file} {what}", BundleError):
        yield


def _faults(tokenizer: Tokenizer) -> list[str]:
    """What in the tokenizer makes much of little."""
    faults = []
    for name in ("normalizer", "decoder"):
        growth = _growth(_state(getattr(tokenizer, name)))
        if growth > MOST_GROWTH:
            faults.append(f"its {name} makes up to {growth:,.0f} characters of one, and {MOST_GROWTH} are allowed")
    pieces = list(_pieces(_state(tokenizer.post_processor)))
    if sum("Sequence" in piece for piece in pieces) > 1 or len(pieces) > 64:
        faults.append("its post_processor repeats the text")
    return faults


def _state(component: Any) -> Any:
    """A component of the library as its JSON; None where there is none."""
    return None if component is None else json.loads(component.__getstate__())


def _growth(state: Any) -> float:
    """How many characters a normalizer or decoder can make of one, at most."""
    if not isinstance(state, dict):
        return 1
    kind = state.get("type")
    total = float(_GROWTH.get(str(kind), 1))
    for each in [*state.get("normalizers", ()), *state.get("decoders", ())]:
        total *= _growth(each)
    if kind == "Replace":
        pattern, content = state.get("pattern", {}), len(state.get("content", ""))
        total *= max(1, content / max(1, len(pattern["String"])) if "String" in pattern else content + 1)
    elif kind == "Prepend":
        total *= max(1, len(state.get("prepend", "")))
    return total


def _pieces(state: Any) -> Iterator[dict[str, Any]]:
    """What a post-processor lays around and between a single text."""
    if isinstance(state, dict):
        yield from state.get("single", ()) if isinstance(state.get("single"), list) else ()
        for each in state.get("processors", ()):
            yield from _pieces(each)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep stderr clean while a file is tried: Rust reports a panic there by itself, before we can say it better."""
    with _silence:
        try:
            kept = os.dup(2)
        except OSError:  # stderr is closed
            yield
            return
        try:
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
