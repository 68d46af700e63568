"""A tokenizer.json with a part that the core does not know, applied by the library `tokenizers`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from tokenizers import Encoding, Tokenizer

from ..errors import BundleError, boundary
from ..native import cached_property, fork_safe_lock, native
from .memory import require_memory

MAX_GROWTH = 64  # factor of all normalizers or all decoders; NFKC has 18
_GROWTH = {"NFKC": 18, "NFKD": 18, "NFC": 18, "NFD": 18, "Precompiled": 4}  # by type of normalizer
_silence = fork_safe_lock()
_MEMORY_RATIO = 32  # to a file's size
_PROBE = "A dog, 2 cats; Ünïcode 日本 \u200d."  # must be encoded and decoded without a fault
ABORTED = "blip2rt: error: aborted while the model was loaded, probably out of memory: close other programs\n"


class LibraryTokenizer:
    """The functions of the core's Tokenizer. Raises BundleError."""

    def __init__(self, data: bytes, file: str) -> None:
        """file: names the tokenizer in errors."""
        self._guard: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        require_memory(_MEMORY_RATIO * len(data))
        with _silent():
            self._tokenizers = [Tokenizer.from_buffer(data) for _ in range(2)]  # the other reads special tokens as text
            faults = _faults(self._tokenizers[0])
            if faults:
                raise BundleError("; ".join(faults))
            for each in self._tokenizers:
                each.no_padding()
                each.no_truncation()
            self._tokenizers[1].encode_special_tokens = True
            self.decode(self.encode([(_PROBE, False)], True), False)
        self._guard = lambda: boundary(f"{file} failed as a tokenizer", BundleError)

    def encode(self, pieces: Sequence[tuple[str, bool]], layout: bool, max_tokens: int | None = None) -> list[int]:
        """As in the core, but for texts of several pieces, which are never cut."""
        first = self._tokenizers[0]
        with self._guard():
            encodings = [self._tokenizers[plain].encode(text, add_special_tokens=False) for text, plain in pieces]
            whole = Encoding.merge(encodings, growing_offsets=True)
            if max_tokens is not None:
                added = first.num_special_tokens_to_add(False) if layout else 0
                whole.truncate(max(0, max_tokens - added))
            return list(first.post_process(whole, add_special_tokens=layout).ids)

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        with self._guard():
            return str(self._tokenizers[0].decode(list(ids), skip_special_tokens=skip_special))

    def token_bytes(self, size: int) -> list[bytes]:
        """As in the core, but half a character is U+FFFD."""
        before = next(filter(None, (self.encode([(text, False)], False) for text in ("a", "0", "the"))), [])
        start, special = len(self.decode(before, False)), {i for i, _, special in self.added_tokens if special}

        def of(i: int) -> str:
            if i in special:
                return str(self._tokenizers[0].id_to_token(i))
            return self.decode([*before, i], False)[start:]

        return [of(i).encode() for i in range(size)]

    def settled(self, ids: Sequence[int]) -> int:
        """As in the core."""
        end = len(ids)
        while end > 0 and ids[end - 1] in self._unsettled:
            end -= 1
        return end

    @cached_property
    def _unsettled(self) -> frozenset[int]:
        """The byte tokens and the special ones, if the library decodes a run of bytes as a whole."""
        first = self._tokenizers[0]
        if '"ByteFallback"' not in json.dumps(_state(first.decoder)):
            return frozenset()
        found = (first.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        special = (i for i, _, special in self.added_tokens if special)
        return frozenset((*(token for token in found if token is not None), *special))

    @property
    def added_tokens(self) -> list[tuple[int, str, bool]]:
        found = self._tokenizers[0].get_added_tokens_decoder().items()
        return sorted((i, token.content, token.special) for i, token in found)


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
            native.announce_abort(kept, ABORTED)
            yield
        finally:
            native.announce_abort(-1, "")
            os.dup2(kept, 2)
            os.close(kept)
