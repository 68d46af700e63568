"""Calls of all threads that decode together: a backend whose requests share steps.

Wraps another backend, whose graphs it runs, and lends its language model to one batcher of the core. What is asked by
several threads at the same time is decoded in one batch; a text is the one that it would be alone. Knows token ids and
threads; nothing about images or text.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import backends
from .backends import OnToken, Sequences, Token, named_failure
from .bundle.manifest import LlmSpec
from .errors import OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .backends import Floats

_LONG = 3600.0  # seconds of a wait that is repeated
_HIGHEST = {"rows": 1 << 16, "positions": 2**31 - 1, "read": 1 << 16}  # what the core takes
_LISTEN = 0.2  # seconds after which the thread that tells news looks whether it is still wanted


@dataclass(frozen=True)
class Batching:
    """How much is decoded together.

    rows: answers, beams and draws that share a step, at most; what is more waits
    positions: of keys and values that they have together, at most; None: twice what the model can read
    read: positions of newcomers' prompts that one step reads beside the answers, at most
    """

    rows: int = 16
    positions: int | None = None
    read: int = 128

    def __post_init__(self) -> None:
        given = {"rows": self.rows, "positions": self.positions, "read": self.read}
        faults = [
            f"{name} is {value!r}: give a whole number from 1 to {_HIGHEST[name]:,}"
            for name, value in given.items()
            if value is not None
            and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _HIGHEST[name])
        ]
        if faults:
            raise OptionError("; ".join(faults))


class Call:
    """What one call has asked for. Any thread may use it; when nobody holds it, it is cancelled."""

    def __init__(self, submitted: Any, images: int) -> None:
        self._submitted = submitted
        self.images = images

    @property
    def done(self) -> bool:
        """Whether every text has ended."""
        return bool(self._submitted.done)

    def wait(self, seconds: float = _LONG) -> bool:
        """Wait until something is new. Return whether it is."""
        return bool(self._submitted.wait(seconds))

    def take(self) -> list[Token]:
        """The tokens that came since the last call."""
        tokens: list[Token] = self._submitted.take()
        return tokens

    def cancel(self) -> None:
        """Ask for an end within a step. What there is then is the result."""
        self._submitted.cancel()

    def results(self) -> Sequences:
        """The texts, once done. Raises BackendError where one has failed."""
        with named_failure():
            sequences: Sequences = self._submitted.results()
        return sequences

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """For each image the positions of image and prompt, and how many of them were not read again. Once done."""
        with named_failure():
            lengths: list[tuple[int, int]] = self._submitted.lengths()
        return lengths

    def cut(self, image: int, tokens: int) -> bool:
        """Whether max_time ended a text of so many tokens. Once done."""
        with named_failure():
            return bool(self._submitted.cut(image, tokens))

    def watch(self, number: int) -> None:
        self._submitted.watch(number)


class Batched(backends.Backend):
    """A backend whose generations share steps. What does not fit its pool runs alone, as without it."""

    def __init__(self, inner: backends.Backend, spec: LlmSpec, sizes: Batching, kept_bytes: int = 0) -> None:
        """kept_bytes: of keys and values that are kept for later prompts about the same image."""
        self._inner = inner
        self._spec = spec
        self._sizes = sizes
        self._positions = 2 * spec.max_positions if sizes.positions is None else sizes.positions
        self._kept_bytes = kept_bytes
        self._batcher: Any = None
        self._ending: Callable[[], object] | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._listeners: dict[int, Callable[[], None]] = {}
        self._number = 0

    def _run(self, component: str, output: str, feeds: Mapping[str, NDArray[Any]]) -> Floats:
        return self._inner._run(component, output, feeds)

    def preload(self, *components: str) -> None:
        self._inner.preload(*components)

    def vocabulary(self, tokens: list[bytes]) -> Any:
        return self._inner.vocabulary(tokens)

    def likelihoods(
        self,
        prefix_embeds: Floats,
        prompts: Sequence[list[int]],
        images: Sequence[int],
        texts: Sequence[list[int]],
    ) -> NDArray[np.float64]:
        return self._inner.likelihoods(prefix_embeds, prompts, images, texts)

    def close(self) -> None:
        if os.getpid() == self._process:  # in a fork, who holds the lock is not there
            with self._lock:
                if self._ending is not None:
                    self._ending()
                self._batcher = None
        self._inner.close()

    def generate(
        self,
        prefix_embeds: Floats,
        prompts: Sequence[list[int]],
        options: Mapping[str, Any],
        on_token: OnToken | None = None,
    ) -> Sequences:
        if not all(self._fits(prefix_embeds, prompt, options) for prompt in prompts):
            return self._inner.generate(prefix_embeds, prompts, options, on_token)
        call = self.submit(prefix_embeds, prompts, options, each_token=on_token is not None)
        if on_token is None:
            while not call.wait():
                pass
            return call.results()
        generation = Generation(call)
        while not generation.done:
            for token in generation.step():
                if on_token(*token) is False:
                    return generation.results()
        return generation.results()

    def begin(
        self, prefix_embeds: Floats, prompts: Sequence[list[int]], options: Mapping[str, Any]
    ) -> backends.Generation:
        if not all(self._fits(prefix_embeds, prompt, options) for prompt in prompts):
            return self._inner.begin(prefix_embeds, prompts, options)
        return Generation(self.submit(prefix_embeds, prompts, options, each_token=True))

    def chat(self, prefix_embeds: Floats, max_rows: int, capacity: int) -> backends.Chat:
        return Chat(self, prefix_embeds)

    def submit(
        self, prefix_embeds: Floats, prompts: Sequence[list[int]], options: Mapping[str, Any], *, each_token: bool
    ) -> Call:
        """prefix_embeds (B, Q, D), B prompts -> what comes of them. Returns at once. Raises BackendError.

        each_token: whether waiting ends at every token, and not when all has ended alone.
        """
        batcher = self._open()
        names = [hashlib.blake2b(row, digest_size=32).digest() for row in prefix_embeds] if self._kept_bytes else []
        with named_failure():
            submitted = batcher.submit(prefix_embeds, list(prompts), options, names, each_token)
        return Call(submitted, len(prompts))

    def check(self, prompt: list[int], options: Mapping[str, Any]) -> None:
        """Raise OptionError for a request about an image that no pool of these sizes could hold."""
        rows, positions = self._needs(self._spec.prefix_length, prompt, options)
        faults = []
        if rows > self._sizes.rows:
            faults.append(f"{rows} beams or captions are asked for, and {self._sizes.rows} fit")
        if positions > self._positions:
            faults.append(f"{positions} positions of keys and values are needed, and there are {self._positions}")
        whole = self._whole(self._spec.prefix_length, prompt, options)
        if whole > self._sizes.read:
            faults.append(
                f"image and prompt have {whole} positions, which this model reads at once, and a step reads "
                f"{self._sizes.read}"
            )
        if faults:
            given = "rows=..., positions=..., read=..." if whole else "rows=..., positions=..."
            raise OptionError(f"{'; '.join(faults)}: ask for less, or load(batching=Batching({given}))")

    def listen(self, call: Call, tell: Callable[[], None]) -> None:
        """Call `tell` from a thread of its own at all news of `call`, until it is done. It must be quick.

        What it raises is lost.
        """
        batcher = self._open()
        with self._lock:
            self._number += 1
            number = self._number
            if not self._listeners:
                teller = (weakref.ref(self), batcher)
                threading.Thread(target=_tell_news, args=teller, name="blip2rt-news", daemon=True).start()

            def told() -> None:
                done = call.done  # asked first: `tell` then sees all
                try:
                    tell()
                finally:
                    if done:
                        self._listeners.pop(number, None)

            self._listeners[number] = told
        call.watch(number)

    def counters(self) -> dict[str, int]:
        """What the batcher has done and has now; see docs/batching.md."""
        names = ("steps", "tokens", "requests", "waiting", "running", "rows", "positions", "hits", "misses",
                 "kept_positions", "kept_bytes")  # fmt: skip
        if self._batcher is None:
            return dict.fromkeys(names, 0)
        counters: dict[str, int] = self._batcher.counters
        return counters

    def _open(self) -> Any:
        with self._lock:
            if self._batcher is None:
                self._batcher = self._inner.batcher(
                    self._sizes.rows, self._positions, self._sizes.read, self._kept_bytes
                )
                # A thread of the core must not outlive the interpreter.
                self._ending = weakref.finalize(self, self._batcher.close)
            return self._batcher

    def _fits(self, prefix_embeds: Floats, prompt: list[int], options: Mapping[str, Any]) -> bool:
        """Whether the pool can hold what is asked about one image."""
        rows, positions = self._needs(prefix_embeds.shape[1], prompt, options)
        whole = self._whole(prefix_embeds.shape[1], prompt, options)
        return rows <= self._sizes.rows and positions <= self._positions and whole <= self._sizes.read

    def _whole(self, prefix_length: int, prompt: list[int], options: Mapping[str, Any]) -> int:
        """The positions that one step has to read together."""
        if not self._spec.bidirectional_prompt:
            return 0
        return prefix_length + len(prompt) + len(options["forced_prefix"])

    def _needs(self, prefix_length: int, prompt: list[int], options: Mapping[str, Any]) -> tuple[int, int]:
        """The rows and positions that are needed for one image."""
        drawn = options.get("do_sample", False) and options["num_beams"] == 1
        rows: int = options["num_return_sequences"] if drawn else options["num_beams"]
        read = prefix_length + len(prompt)
        own = len(options["forced_prefix"]) + rows * options["max_new_tokens"]
        return rows, max(read, 1 + own) if self._spec.encoder_decoder else read + own


def _tell_news(owner: weakref.ref[Batched], batcher: Any) -> None:
    while True:
        numbers = batcher.news(_LISTEN)
        backend = owner()
        if backend is None:
            return
        for number in numbers:
            told = backend._listeners.get(number)
            if told is not None:
                with contextlib.suppress(Exception):  # whoever listens hears of it through what it listens to
                    told()
        with backend._lock:
            if not backend._listeners:
                return
        del backend


class Generation(backends.Generation):
    """A generation whose tokens are computed whether they are taken or not; what was not taken is not in its texts."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._told: dict[tuple[int, int], list[int]] = defaultdict(list)
        self._done = self._closed = False
        self.stepped = False

    @property
    def done(self) -> bool:
        return self._done or self._closed

    def step(self) -> list[Token]:
        if self.done:
            return []
        self.stepped = True
        while not self._call.wait():
            pass
        done = self._call.done
        added = self._call.take()
        for image, draw, token in added:
            self._told[image, draw].append(token)
        if done:
            self._call.results()  # raises what has failed
            self._done = True
        return added

    def results(self) -> Sequences:
        if self._done:
            return self._call.results()
        of_image: list[list[list[int]]] = [[] for _ in range(self._call.images)]
        for image, draw in sorted(self._told):
            of_image[image].append(self._told[image, draw])
        return [[(list(tokens), 0.0) for tokens in draws or [[]]] for draws in of_image]

    def cut(self, image: int, tokens: int) -> bool:
        return self._done and self._call.cut(image, tokens)

    def close(self) -> None:
        """End it where it is."""
        self._call.cancel()
        self._closed = True


class Chat(backends.Chat):
    """A conversation that sends its history again: what is kept of it is not read again."""

    def __init__(self, backend: Batched, prefix_embeds: Floats) -> None:
        self._backend, self._prefix_embeds = backend, np.array(prefix_embeds)
        self._history: list[int] = []
        self._last: tuple[backends.Generation, list[int]] | None = None

    def ask(self, prompt: list[int], options: Mapping[str, Any]) -> backends.Generation:
        if self._last is not None:
            generation, read = self._last
            if isinstance(generation, Generation):
                generation.close()
            if getattr(generation, "stepped", True):
                self._history += read + generation.results()[0][0][0]
            self._last = None
        generation = self._backend.begin(self._prefix_embeds, [self._history + prompt], options)
        self._last = (generation, prompt + list(options["forced_prefix"]))
        return generation
