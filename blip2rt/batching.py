"""Requests that share steps: the batcher that decodes the calls of all threads together, and its settings.

Knows token ids and threads. Does not know images or text.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from .bundle.manifest import LlmSpec
from .errors import OptionError, is_whole
from .native import Sequences, Token, named_failure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .native import GenerationOptions, Prompts, Submitted

    Floats: TypeAlias = NDArray[np.float32]

LONG_WAIT = 3600.0  # seconds; callers repeat it
_COUNTERS = "steps tokens requests waiting running rows positions hits misses kept_positions kept_bytes".split()
_MAXIMUM = {"rows": 1 << 16, "positions": 2**31 - 1, "read": 1 << 16}  # what the core takes
_POLL = 0.2  # seconds after which the listening thread checks whether the batcher still exists


@dataclass(frozen=True)
class Batching:
    """Sizes of a batch.

    rows: answers, beams and draws that share a step; further requests wait
    positions: size of the pool of keys and values; None: twice the model's longest text
    read: positions of new prompts that one step reads beside the answers
    """

    rows: int = 16
    positions: int | None = None
    read: int = 128

    def __post_init__(self) -> None:
        given = [(name, getattr(self, name), most) for name, most in _MAXIMUM.items()]
        faults = [
            f"{name} is {value!r}: give a whole number from 1 to {most:,}"
            for name, value, most in given
            if value is not None and not is_whole(value, 1, most)
        ]
        if faults:
            raise OptionError("; ".join(faults))


class Call:
    """The requests of one call. Any thread may use it. Dropping it cancels them."""

    def __init__(self, submitted: Submitted, images: int) -> None:
        self._submitted = submitted
        self.images = images

    @property
    def done(self) -> bool:
        """Whether every text has ended."""
        return self._submitted.done

    def wait(self, seconds: float = LONG_WAIT) -> bool:
        """Wait for new tokens or the end. Return whether there are any, or it has ended."""
        return self._submitted.wait(seconds)

    def take(self) -> list[Token]:
        """The tokens that have arrived since the last call."""
        return self._submitted.take()

    def cancel(self) -> None:
        """End within a step. The results are what exists by then."""
        self._submitted.cancel()

    def results(self) -> Sequences:
        """The texts, once done. Raises BackendError if one has failed."""
        with named_failure():
            return self._submitted.results()

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """For each image the positions of image and prompt, and how many of them were cached. Once done."""
        with named_failure():
            return self._submitted.lengths()

    def cut(self, image: int, tokens: int) -> bool:
        """Whether max_time ended a text of `tokens` tokens. Once done."""
        with named_failure():
            return self._submitted.cut(image, tokens)

    def watch(self, number: int) -> None:
        """Report progress to the core's Batcher.news under this number."""
        self._submitted.watch(number)


class KnownCall(Call):
    """A call whose answer is known from the start."""

    def __init__(self, token_ids: Sequence[int], score: float) -> None:
        self._tokens, self._score, self._taken = list(token_ids), score, False

    done = True
    lengths: ClassVar = [(0, 0)]

    def wait(self, seconds: float = LONG_WAIT) -> bool:
        return True

    def take(self) -> list[Token]:
        taken, self._taken = self._taken, True
        return [] if taken else [(0, 0, token) for token in self._tokens]

    def cancel(self) -> None:
        pass

    def results(self) -> Sequences:
        return [[(self._tokens, self._score)]]

    def cut(self, image: int, tokens: int) -> bool:
        return False


class Batcher:
    """The core's batcher, opened at its first request. Any thread may use it."""

    def __init__(self, open_batcher: Callable[..., Any], spec: LlmSpec, sizes: Batching, kept_bytes: int) -> None:
        """open_batcher(rows, positions, read, kept_bytes) -> the core's Batcher, see engines/loop/batcher.h.

        kept_bytes: size of the cache of prompt prefixes.
        """
        self._open_batcher = open_batcher
        self._spec = spec
        self._sizes = sizes
        self._positions = 2 * spec.max_positions if sizes.positions is None else sizes.positions
        self._kept_bytes = kept_bytes
        self._native: Any = None
        self._closing: Callable[[], object] | None = None
        self._lock = threading.Lock()
        self._listeners: dict[int, Callable[[], None]] = {}
        self._number = 0

    def close(self) -> None:
        """End the core's thread. Requests that have not ended fail."""
        with self._lock:
            if self._closing is not None:
                self._closing()
            self._native = None

    def generate(self, prefix_embeds: Floats, prompts: Prompts, options: GenerationOptions) -> Sequences:
        """prefix_embeds (B, Q, D), B prompts -> Sequences"""
        call = self.submit(prefix_embeds, prompts, options, each_token=False)
        while not call.wait():
            pass
        return call.results()

    def submit(self, prefix_embeds: Floats, prompts: Prompts, options: GenerationOptions, *, each_token: bool) -> Call:
        """prefix_embeds (B, Q, D), B prompts -> a call, at once. Raises BackendError.

        each_token: whether Call.wait returns at every token, or only when all texts have ended.
        """
        import hashlib  # takes 3 ms and 4 MB

        batcher = self._open()
        names = [hashlib.blake2b(row, digest_size=32).digest() for row in prefix_embeds] if self._kept_bytes else []
        with named_failure():
            submitted = batcher.submit(prefix_embeds, list(prompts), options, names, each_token)
        return Call(submitted, len(prompts))

    def check(self, prompt: list[int], options: GenerationOptions) -> None:
        """Raise OptionError for a request about an image that never fits the pool."""
        faults = self._faults(self._spec.prefix_length, prompt, options)
        if faults:
            raise OptionError(f"{'; '.join(faults)}: ask for less, or load(batching=Batching(rows=..., positions=...))")

    def listen(self, call: Call, tell: Callable[[], None]) -> None:
        """Call `tell` on all progress of `call` until it is done, from a separate thread. It must be quick.

        Its exceptions are ignored.
        """
        if isinstance(call, KnownCall):
            with contextlib.suppress(Exception):
                tell()
            return
        batcher = self._open()
        with self._lock:
            self._number += 1
            number = self._number
            if not self._listeners:
                arguments = (weakref.ref(self), batcher)
                threading.Thread(target=_notify_listeners, args=arguments, name="blip2rt-news", daemon=True).start()

            def notify() -> None:
                done = call.done  # read first: `tell` then sees everything
                try:
                    tell()
                finally:
                    if done:
                        self._listeners.pop(number, None)

            self._listeners[number] = notify
        call.watch(number)

    def counters(self) -> dict[str, int]:
        """The core's counters; see docs/batching.md."""
        counters: dict[str, int] = dict.fromkeys(_COUNTERS, 0) if self._native is None else self._native.counters
        return counters

    def fits(self, prefix_embeds: Floats, prompts: Prompts, options: GenerationOptions) -> bool:
        """Whether the pool can hold the request about each image."""
        return not any(self._faults(prefix_embeds.shape[1], prompt, options) for prompt in prompts)

    def _open(self) -> Any:
        with self._lock:
            if self._native is None:
                self._native = self._open_batcher(self._sizes.rows, self._positions, self._sizes.read, self._kept_bytes)
                # A thread of the core must not outlive the interpreter.
                self._closing = weakref.finalize(self, self._native.close)
            return self._native

    def _faults(self, prefix_length: int, prompt: list[int], options: GenerationOptions) -> list[str]:
        """The reasons why a request about one image never fits the pool."""
        drawn = options.do_sample and options.num_beams == 1
        rows = options.num_return_sequences if drawn else options.num_beams
        read = prefix_length + len(prompt)
        own = len(options.forced_prefix) + rows * options.max_new_tokens
        positions = max(read, 1 + own) if self._spec.encoder_decoder else read + own
        faults = []
        if rows > self._sizes.rows:
            faults.append(f"{rows} beams or captions are asked for, and {self._sizes.rows} fit")
        if positions > self._positions:
            faults.append(f"{positions} positions of keys and values are needed, and there are {self._positions}")
        return faults


def _notify_listeners(owner: weakref.ref[Batcher], batcher: Any) -> None:
    while True:
        numbers = batcher.news(_POLL)
        alive = owner()
        if alive is None:
            return
        for number in numbers:
            notify = alive._listeners.get(number)
            if notify is not None:
                with contextlib.suppress(Exception):  # the listener gets the error from its request
                    notify()
        with alive._lock:
            if not alive._listeners:
                return
        del alive
