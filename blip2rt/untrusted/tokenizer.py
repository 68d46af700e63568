"""Load an untrusted tokenizer.json with the library `tokenizers`.

Files that could blow up a short text are rejected: normalizers that replace a letter by a page, templates that repeat
the text. Any exception of the library, a Rust panic included, becomes a BundleError that names the file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..bundle.regular_files import read_bounded
from ..errors import BundleError, boundary
from ..native import fork_safe_lock, native
from .memory import require_memory

MAX_BYTES = 256 << 20  # of a file; Gemma's has 33 MB
MAX_GROWTH = 64  # factor of all normalizers or all decoders; NFKC has 18
_GROWTH = {"NFKC": 18, "NFKD": 18, "NFC": 18, "NFD": 18, "Precompiled": 4}  # by type of normalizer
_PROBE = "A dog, 2 cats; Ünïcode 日本 \u200d."
_silence = fork_safe_lock()
MEMORY_RATIO = 32  # to a file's size; nano's tokenizer takes 25
ABORTED = "blip2rt: error: aborted while the model was loaded, probably out of memory: close other programs\n"


def read_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of a file, without padding and truncation. Raises BundleError."""
    try:
        data = read_bounded(file, MAX_BYTES)
    except OSError as error:
        raise BundleError(f"{file} is not a tokenizer: {error.strerror or error}") from None
    require_memory(MEMORY_RATIO * len(data))
    with guarded(file, "is not a tokenizer"), _silent():
        tokenizer: Tokenizer = Tokenizer.from_buffer(data)
        faults = _faults(tokenizer)
        if faults:
            raise BundleError(f"{file} is not a safe tokenizer: {'; '.join(faults)}")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.decode(tokenizer.encode(_PROBE).ids)
    return tokenizer


@contextlib.contextmanager
def guarded(file: Path | str, what: str = "failed as a tokenizer") -> Iterator[None]:
    """Turn any exception of the library into a BundleError with the file's name."""
    with boundary(f"{file} {what}", BundleError):
        yield


def _faults(tokenizer: Tokenizer) -> list[str]:
    """Parts of a tokenizer that can blow up a short text."""
    faults = []
    for name in ("normalizer", "decoder"):
        growth = _growth(_state(getattr(tokenizer, name)))
        if growth > MAX_GROWTH:
            faults.append(f"its {name} turns one character into up to {growth:,.0f}, more than {MAX_GROWTH}")
    pieces = list(_pieces(_state(tokenizer.post_processor)))
    if sum("Sequence" in piece for piece in pieces) > 1 or len(pieces) > 64:
        faults.append("its post_processor repeats the text")
    return faults


def _state(component: Any) -> Any:
    """A component's JSON; None if there is no component."""
    return None if component is None else json.loads(component.__getstate__())


def _growth(state: Any) -> float:
    """The maximum number of characters that a normalizer or decoder makes of one."""
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
    """The pieces that a post-processor makes of a single text."""
    if isinstance(state, dict):
        yield from state.get("single", ()) if isinstance(state.get("single"), list) else ()
        for each in state.get("processors", ()):
            yield from _pieces(each)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Silence standard error, where Rust reports a panic before we can. If the process aborts, one line says so."""
    with _silence:
        try:
            kept = os.dup(2)
        except OSError:  # closed
            yield
            return
        try:
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), 2)
            native().announce_abort(kept, ABORTED)
            yield
        finally:
            native().announce_abort(-1, "")
            os.dup2(kept, 2)
            os.close(kept)
