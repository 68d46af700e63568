"""TensorRT: a bundle of the target trt on an NVIDIA GPU. Knows engines and tensor names, nothing about images or text.

Engines come from the cache, and are built first where they are missing, which takes minutes and is said. A call runs in
a lane (blip2rt.backends.trt.lane) with memory of its own, which is kept for the next: calls from several threads at
once take as many lanes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import bundle as contract
from ...bundle import Bundle
from ...errors import BackendError, OptionError
from ...native import native
from .. import Graphs
from . import builder, plans
from . import cuda as cuda_module
from .cache import EngineCache, default_folder
from .cuda import Cuda
from .decoder import Decoder, Kernels, Sizes, check_room
from .lane import Engine, Lane
from .loop import DeviceGeneration

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]
    Sequences = list[list[tuple[list[int], float]]]

_log = logging.getLogger("blip2rt")


class Backend(Graphs):
    """One bundle's engines on the first GPU."""

    def __init__(
        self, bundle: Bundle, threads: int | None = None, device: str | None = None,
        engines: plans.Options | None = None,
    ) -> None:  # fmt: skip
        """`engines`: what they are built for.

        Raises BackendError: TensorRT, cuda-bindings, the driver, the GPU or memory are lacking; OptionError: options
        that make no sense.
        """
        if device not in (None, "cuda"):
            raise OptionError(f"device is {device!r}: the backend trt runs on cuda")
        del threads  # of the CPU: nothing runs there
        plans.check_target(bundle)
        self._bundle = bundle
        self._options = plans.resolve(bundle, engines or plans.Options())
        self._trt = builder.load_tensorrt()
        self._cuda = Cuda(*cuda_module.load_bindings())
        self._cache = EngineCache(default_folder())
        gpu = plans.this_gpu(self._trt)
        self._plans = {component: self._built(component, gpu) for component in bundle.manifest.components}
        self._logger = builder.logger(self._trt)  # which TensorRT does not keep
        self._runtime = self._trt.Runtime(self._logger)
        self._engines: dict[str, Engine] = {}
        self._kernels: Kernels | None = None
        self._lanes = _Lanes(self._cuda)
        self._lock = threading.RLock()

    def preload(self, *components: str) -> None:
        """Nothing: engines are loaded one after the other, on the device that runs them."""

    def generate(
        self, prefix_embeds: Floats, prompts: Sequence[list[int]], options: dict[str, Any],
        on_token: Callable[[int, int, int], object] | None = None,
    ) -> Sequences:  # fmt: skip
        generation = self.begin(prefix_embeds, prompts, options)
        try:
            if on_token is None:
                generation.run()
            while not generation.done:
                for token in generation.step():
                    if on_token is not None and on_token(*token) is False:
                        return generation.results()
            return generation.results()
        finally:
            generation.close()

    def begin(self, prefix_embeds: Floats, prompts: Sequence[list[int]], options: dict[str, Any]) -> Generation:
        sizes = self._sizes()
        given = [sizes.start, *options.get("forced_prefix", [])] if sizes.cross else options.get("forced_prefix", [])
        searched = native().SearchBatch
        vocab = sizes.vocab
        first = options.get("first_image", 0)
        try:
            plan = searched(min(len(prompts), 1), given, vocab, options).plan
        except RuntimeError as error:
            raise BackendError(f"generation failed: {error}") from error
        rows_each = plan["beams"] * max(len(plan["images"]), 1)
        if prompts:
            longest = max(map(len, prompts)) + prefix_embeds.shape[1]
            check_room(sizes, rows_each, len(given) + (0 if sizes.cross else longest), plan["max_new_tokens"])
            check_room(sizes, rows_each, longest, 0)  # of an encoder too
        together = max(1, min(sizes.images, sizes.rows // rows_each))  # images
        parts = []
        for start in range(0, len(prompts), together):
            chunk = slice(start, start + together)
            batch = searched(len(prompts[chunk]), given, vocab, {**options, "first_image": first + start})
            parts.append((start, batch, prefix_embeds[chunk], list(prompts[chunk])))
        return Generation(self, parts, list(options.get("forced_prefix", [])), options.get("vocabulary"))

    def chat(self, prefix_embeds: Floats, max_rows: int, capacity: int) -> Chat:
        del capacity  # the engines' own holds
        check_room(self._sizes(), max_rows, prefix_embeds.shape[1], 1)
        return Chat(self, prefix_embeds)

    def vocabulary(self, tokens: list[bytes]) -> Any:
        return native().Vocabulary(tokens)

    # Engines, lanes, decoders

    def _built(self, component: str, gpu: str) -> Any:
        """The component's plan. Building takes minutes, and is said."""

        def say(text: str) -> None:
            (_log.warning if "building" in text else _log.info)("TensorRT engine of %s", text)

        return plans.ensure(self._trt, self._bundle, component, self._options, gpu, self._cache, say)

    def _engine(self, component: str) -> Engine:
        with self._lock:
            if component not in self._engines:
                self._engines[component] = Engine(self._trt, self._runtime, self._plans[component], component)
            return self._engines[component]

    def _sizes(self) -> Sizes:
        options = self._options
        assert options.capacity is not None
        rows = options.max_batch * options.max_beams
        return Sizes.of(self._bundle.manifest, options.max_batch, rows, options.capacity)

    def _open_kernels(self) -> Kernels:
        """Compiled once for this GPU, and kept beside the engines."""
        with self._lock:
            if self._kernels is None:
                source, headers = native().kernels()
                architecture = "sm_{}{}".format(*self._cuda.compute_capability)
                origin = {"compiler": self._cuda.compiler, "architecture": architecture, "sources": [source, headers]}
                path = self._cache.find("kernels", origin)
                if path is None:
                    code = self._cuda.compile(source, headers, architecture)
                    path = self._cache.store("kernels", origin, code)
                self._kernels = Kernels(self._cuda, path.read_bytes())
            return self._kernels

    def decoder(self, lane: _Lane) -> Decoder:
        """The lane's decoder, made at its first generation."""
        if lane.decoder is None:
            names = [contract.EMBED, contract.LLM]
            if self._bundle.has(contract.ENCODER):
                names.append(contract.ENCODER)
            engines = {name: self._engine(name) for name in names}
            lane.decoder = Decoder(lane, self._open_kernels(), engines, self._sizes())
        return lane.decoder

    @property
    def lanes(self) -> _Lanes:
        return self._lanes

    def _run(self, component: str, output: str, feeds: dict[str, Any]) -> Floats:
        """In parts of as many rows as the engine takes."""
        rows = len(next(iter(feeds.values())))
        with self._lanes.lend() as lane:
            engine, most = self._engine(component), self._options.max_batch
            parts = []
            for start in range(0, rows, most):
                part = {name: array[start : start + most] for name, array in feeds.items()}
                parts.append(lane.download(lane.run(engine, part)[output]))
        return np.concatenate(parts)


class _Lane(Lane):
    """A lane and the decoder in it."""

    decoder: Decoder | None = None

    def close(self) -> None:
        with contextlib.suppress(BackendError):  # after a failure the device may refuse everything
            if self.decoder is not None:
                self.decoder.drop_graph()
            super().close()


class _Lanes:
    """Lanes that are free, and new ones where none is."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._free: list[_Lane] = []
        self._lock = threading.Lock()

    def take(self) -> _Lane:
        self._cuda.activate()
        with self._lock:
            return self._free.pop() if self._free else _Lane(self._cuda)

    def give_back(self, lane: _Lane) -> None:
        with self._lock:
            self._free.append(lane)

    @contextlib.contextmanager
    def lend(self) -> Iterator[_Lane]:
        """A lane that was in use when something failed is not used again."""
        lane = self.take()
        try:
            yield lane
        except BaseException:
            lane.close()
            raise
        self.give_back(lane)


class Generation:
    """A generation under way, in parts of as many images as the engines take at once: one part after the other."""

    def __init__(self, backend: Backend, parts: Sequence[Any], given: list[int], vocabulary: Any) -> None:
        self._backend, self._parts, self._given, self._vocabulary = backend, parts, given, vocabulary
        self._current = 0
        self._running: DeviceGeneration | None = None
        self._lane: _Lane | None = None
        self._give_back: Any = None
        self.stepped = False

    @property
    def done(self) -> bool:
        return self._current == len(self._parts)

    def run(self) -> None:
        """To the end."""
        while not self.done:
            with self._failing():
                self._open().run()
            self._next()

    def step(self) -> list[tuple[int, int, int]]:
        if self.done:
            return []
        with self._failing():
            running = self._open()
            self.stepped = True
            added = running.step()
        start = self._parts[self._current][0]
        if running.done:
            self._next()
        return [(start + image, draw, token) for image, draw, token in added]

    def results(self) -> Sequences:
        return [image for part in self._parts for image in part[1].results()]

    def close(self) -> None:
        """Ends it where it is: its lane is free again."""
        if self._give_back is not None:
            self._give_back()
        self._lane = self._running = self._give_back = None
        self._current = len(self._parts)

    def _open(self) -> DeviceGeneration:
        if self._lane is None:
            lanes = self._backend.lanes
            self._lane = lanes.take()
            self._give_back = weakref.finalize(self, lanes.give_back, self._lane)  # should nobody run it to its end
        if self._running is None:
            _start, batch, prefix, prompts = self._parts[self._current]
            decoder = self._backend.decoder(self._lane)
            self._running = DeviceGeneration(decoder, batch, prefix, prompts, self._given, self._vocabulary)
        return self._running

    def _next(self) -> None:
        self._running = None
        self._current += 1
        if self.done:
            self.close()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """A lane in which something failed is not used again."""
        try:
            yield
        except BaseException:
            if self._give_back is not None and self._lane is not None:
                self._give_back.detach()
                self._lane.close()
            self._lane = self._running = self._give_back = None
            self._current = len(self._parts)
            raise


class Chat:
    """A conversation. The engines' cache holds one generation: what was said is read again with each question."""

    def __init__(self, backend: Backend, prefix_embeds: Floats) -> None:
        self._backend, self._prefix = backend, prefix_embeds
        self._said: list[int] = []
        self._last: tuple[Generation, list[int]] | None = None

    def ask(self, prompt: list[int], options: dict[str, Any]) -> Generation:
        said = list(self._said)
        if self._last is not None:
            generation, read = self._last
            generation.close()
            if generation.stepped:  # one that never was, was never asked
                said += read + generation.results()[0][0][0]
        begun = self._backend.begin(self._prefix, [said + prompt], options)
        self._said, self._last = said, (begun, prompt + options.get("forced_prefix", []))
        return begun
