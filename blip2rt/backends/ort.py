"""ONNX Runtime, through the core. Knows sessions and tensor names.

The Python package `onnxruntime` is never imported, only its shared library is loaded: that saves 0.15 s a process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import backends
from ..batching import Batcher, Batching, Call
from ..bundle import COMPONENTS, EMBED, ENCODER, LLM, Bundle
from ..errors import BackendError, OptionError
from ..native import ForkGate, fork_safe_lock, kernel_level, named_failure, native
from ..system import usable_cpus
from ..untrusted.memory import require_address_space

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..native import GenerationOptions, Prompts
    from . import Floats, OnToken, Sequences, Token

FORKED = (
    "this process was forked after the model was loaded: load it in the child, or start processes by spawn"
    " (multiprocessing.set_start_method('spawn'))"
)


_lock = fork_safe_lock()  # while the library is loading
_opening = ForkGate()  # sessions, whose opening sets up ONNX Runtime's own globals
_runtime: Any = None


class Backend(backends.Backend):
    """A bundle's graphs, each opened at its first use."""

    devices, target, batches = ("cpu",), "ort", True

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        batching: Batching | None = None,
        cache_bytes: int = 0,
        run_timeout: float = 0,
    ) -> None:
        """threads: for each operator; None uses BLIP2RT_NUM_THREADS, or else every physical core.

        batching: decode the calls of concurrent threads in one batch. cache_bytes: of its cache of prompt prefixes.
        run_timeout: seconds that one run of a graph may take; 0: by the size of its files.
        """
        self._bundle = bundle
        self._run_timeout = run_timeout
        self._threads = num_threads() if threads is None else usable_threads(threads)
        if os.environ.get("BLIP2RT_KERNELS"):
            kernel_level()
        self._sessions: dict[str, Any] = {}
        self._generator: Any = None
        self._locks = {name: threading.Lock() for name in COMPONENTS}
        self._generator_lock = threading.Lock()

        self._process = os.getpid()
        self._closed = False
        if batching is not None and bundle.manifest.llm is not None:
            # The batcher must not keep this backend alive: its thread ends with the last reference to it.
            self.batcher = Batcher(_weakly(self._open_batcher), bundle.manifest.llm, batching, cache_bytes)

    def _open_runtime(self) -> Any:
        """The process's ONNX Runtime. None where it is not installed: the core runs the graphs itself."""
        return open_runtime() if _package_folders() else None

    def close(self) -> None:
        self._closed = True
        if os.getpid() != self._process:  # in a fork, the thread that holds a lock does not exist
            return
        if self.batcher is not None:
            self.batcher.close()
        with self._generator_lock:
            self._generator = None
        for component, lock in self._locks.items():
            with lock:
                self._sessions.pop(component, None)
        native.return_memory()

    def preload(self, *components: str) -> None:
        if not self._sessions:
            require_address_space(self._bundle.size)
        for component in components:
            if component not in self._sessions:
                begun = threading.Event()
                name = f"blip2rt-{component}"
                threading.Thread(target=self._try_session, args=(component, begun), name=name).start()
                begun.wait()  # from here on the core works without the GIL

    def generate(
        self, prefix_embeds: Floats, prompts: Prompts, options: GenerationOptions, on_token: OnToken | None = None
    ) -> Sequences:
        batcher = self._batcher_for(prefix_embeds, prompts, options)
        if batcher is not None and on_token is None:
            return batcher.generate(prefix_embeds, prompts, options)
        if batcher is not None and on_token is not None:
            generation = self.begin(prefix_embeds, prompts, options)
            while not generation.done:
                if any(on_token(*token) is False for token in generation.step()):
                    break
            return generation.results()
        generator = self.generator()
        with named_failure():
            sequences: Sequences = generator.generate(prefix_embeds, list(prompts), options, on_token)
        return sequences

    def generate_rounds(
        self, prefix_embeds: Floats, prompts: Prompts, rounds: Sequence[GenerationOptions]
    ) -> list[Sequences]:
        if self.batcher is not None:
            return super().generate_rounds(prefix_embeds, prompts, rounds)
        generator, images = self.generator(), len(prompts)
        with named_failure():
            sequences: Sequences = generator.generate_rounds(prefix_embeds, list(prompts), list(rounds))
        return [sequences[start : start + images] for start in range(0, len(sequences), images)]

    def begin(self, prefix_embeds: Floats, prompts: Prompts, options: GenerationOptions) -> backends.Generation:
        if (batcher := self._batcher_for(prefix_embeds, prompts, options)) is not None:
            return SharedGeneration(batcher.submit(prefix_embeds, prompts, options, each_token=True))
        generator = self.generator()
        with named_failure():
            return CoreGeneration(generator.begin(prefix_embeds, list(prompts), options))

    def chat(self, prefix_embeds: Floats, max_rows: int, capacity: int) -> backends.ChatSession:
        if self.batcher is not None:  # its prefix cache has the conversation
            return backends.ReplaySession(self.begin, prefix_embeds)
        generator = self.generator()
        with named_failure():
            return CoreChat(native.Chat(generator, prefix_embeds, max_rows, capacity))

    def _batcher_for(self, prefix_embeds: Floats, prompts: Prompts, options: GenerationOptions) -> Batcher | None:
        """The batcher, unless the call is too large for its pool."""
        fits = self.batcher is not None and self.batcher.fits(prefix_embeds, prompts, options)
        return self.batcher if fits else None

    def _open_batcher(self, rows: int, positions: int, read: int, kept_bytes: int) -> Any:
        generator = self.generator()
        with named_failure():
            return native.Batcher(generator, rows, positions, read, kept_bytes)

    def generator(self) -> Any:
        """The core's view of the language model's graphs. It has no state between calls, so all threads share it."""
        self._check_process()
        with self._generator_lock:
            self._check_process()  # another thread may have closed the model meanwhile
            if self._generator is None:
                spec = self._bundle.manifest.llm
                assert spec is not None
                embed, llm = self.session(EMBED), self.session(LLM)
                encoder = self.session(ENCODER) if spec.encoder_decoder else None
                for session in [*self._sessions.values()]:  # memory peaks while the language model is read at first
                    session.release_weights()
                shape = (spec.layers, spec.kv_heads, spec.head_dim, spec.hidden_size, spec.vocab_size)
                with named_failure():
                    start = spec.decoder_start_token_id or 0
                    self._generator = native.Generator(embed, llm, *shape, encoder, start)
            return self._generator

    def _run(self, component: str, output: str, feeds: Mapping[str, NDArray[Any]]) -> Floats:
        try:
            result: Floats = self.session(component).run(feeds, [output])[output]
            return result
        except MemoryError:
            raise BackendError(f"{self._bundle.graph(component)} failed: out of memory") from None
        except RuntimeError as error:
            raise BackendError(f"{self._bundle.graph(component)} failed: {error}") from error

    def _try_session(self, component: str, begun: threading.Event) -> None:
        """Open a session in advance. On failure, the caller that needs the session gets the same error."""
        try:
            with contextlib.suppress(Exception):
                self.session(component, begun)
        finally:
            begun.set()

    def _check_process(self) -> None:
        """Raise BackendError if the model is closed, or in a fork, which lacks the threads and has their locks."""
        if self._closed:
            raise BackendError(backends.CLOSED)
        if os.getpid() != self._process:
            raise BackendError(FORKED)

    def session(self, component: str, begun: threading.Event | None = None) -> Any:
        """begun: set when the core opens the session."""
        self._check_process()
        with self._locks[component]:
            self._check_process()  # another thread may have closed the model meanwhile
            if component not in self._sessions:
                graph, runtime = self._bundle.graph(component), self._open_runtime()
                title = "the core" if runtime is None else "ONNX Runtime"
                try:
                    if begun is not None:
                        begun.set()
                    with _opening:
                        self._sessions[component] = self._open_session(component, runtime)
                except MemoryError:
                    raise BackendError(f"{title} cannot load {graph}: out of memory") from None
                except RuntimeError as error:
                    raise BackendError(
                        f"{title} cannot load {graph} (check: blip2rt verify {graph.parent}): {error}"
                    ) from error
            return self._sessions[component]

    def _open_session(self, component: str, runtime: Any) -> Any:
        """runtime: None for the core. Raises RuntimeError and MemoryError."""
        return native.Session(
            runtime,
            str(self._bundle.graph(component)),
            1 if component == EMBED else self._threads,  # it copies a few rows
            files=self._bundle.readable_files(component),
            trusted=self._bundle.trusted_graphs,
            shapes=self._bundle.output_shapes(component),
            run_timeout=self._run_timeout,
        )


class CoreGeneration(backends.Generation):
    """The core's generation, with errors as BackendError."""

    def __init__(self, native: Any) -> None:
        self._native = native

    @property
    def done(self) -> bool:
        return bool(self._native.done)

    def step(self) -> list[Token]:
        with named_failure():
            added: list[Token] = self._native.step()
        self.stepped = True
        return added

    def results(self) -> Sequences:
        with named_failure():
            sequences: Sequences = self._native.results()
        return sequences

    def cut(self, image: int, tokens: int) -> bool:
        with named_failure():
            return bool(self._native.cut(image, tokens))

    def close(self) -> None:
        self._native.close()


class SharedGeneration(backends.Generation):
    """A generation that the batcher computes. Tokens that step() has not returned are not in its texts."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._taken: dict[tuple[int, int], list[int]] = defaultdict(list)
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
            self._taken[image, draw].append(token)
        if done:
            self._call.results()  # raises what has failed
            self._done = True
        return added

    def results(self) -> Sequences:
        if self._done:
            return self._call.results()
        of_image: list[list[list[int]]] = [[] for _ in range(self._call.images)]
        for image, draw in sorted(self._taken):
            of_image[image].append(self._taken[image, draw])
        return [[(list(tokens), 0.0) for tokens in draws or [[]]] for draws in of_image]

    def cut(self, image: int, tokens: int) -> bool:
        return self._done and self._call.cut(image, tokens)

    def close(self) -> None:
        self._call.cancel()
        self._closed = True


class CoreChat(backends.ChatSession):
    """The core's conversation, with errors as BackendError."""

    def __init__(self, native: Any) -> None:
        self._native = native

    def ask(self, prompt: list[int], options: GenerationOptions) -> CoreGeneration:
        with named_failure():
            return CoreGeneration(self._native.ask(prompt, options))


def _weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that does not keep its object alive."""
    weak = weakref.WeakMethod(method)

    def call(*arguments: Any) -> Any:
        strong = weak()
        assert strong is not None, "the caller holds the object"
        return strong(*arguments)

    return call


def num_threads() -> int:
    """The number in BLIP2RT_NUM_THREADS, at most one per core; 0 if unset: ONNX Runtime chooses. Raises OptionError."""
    value = os.environ.get("BLIP2RT_NUM_THREADS", "")
    if not value:
        return 0
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 1024:
        raise OptionError(f"BLIP2RT_NUM_THREADS is {value!r}: give a number of threads from 1 to 1024, or unset it")
    return usable_threads(int(value), "BLIP2RT_NUM_THREADS")


def usable_threads(threads: int, name: str = "threads") -> int:
    """`threads`, at most one per logical core, with a warning once. More only wait for each other."""
    if threads <= cores():
        return threads
    _warn_once(f"{name} is {threads}, but this machine has {cores()} cores: using {cores()}")
    return cores()


@functools.cache
def _warn_once(message: str) -> None:
    logging.getLogger("blip2rt").warning(message)


def cores() -> int:
    """The number of logical cores available to this process."""
    return len(usable_cpus())


def open_runtime() -> Any:
    """The process's one ONNX Runtime environment. Raises BackendError."""
    global _runtime
    with _lock:
        if _runtime is None:
            library = find_library()
            try:
                _runtime = native.Runtime(str(library))
            except RuntimeError as error:
                raise BackendError(f"cannot load ONNX Runtime from {library}: {error}") from error
    return _runtime


def find_library() -> Path:
    """The shared library inside the installed wheel (onnxruntime or onnxruntime-gpu). Raises BackendError."""
    folders = _package_folders()
    if not folders:
        raise BackendError("ONNX Runtime is not installed: pip install onnxruntime")
    patterns = {"win32": "onnxruntime.dll", "darwin": "libonnxruntime*.dylib"}
    pattern = patterns.get(sys.platform, "libonnxruntime.so*")
    for folder in folders:
        found = sorted((Path(folder) / "capi").glob(pattern))
        if found:
            return found[0]
    raise BackendError(f"the installed onnxruntime has no capi/{pattern}: pip install --force-reinstall onnxruntime")


def _package_folders() -> list[str]:
    """The folders of the package onnxruntime; none if it is not installed."""
    spec = importlib.util.find_spec("onnxruntime")  # finds, does not import
    return [] if spec is None else list(spec.submodule_search_locations or [])
