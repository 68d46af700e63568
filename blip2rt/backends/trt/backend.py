"""TensorRT: a bundle of the target trt on an NVIDIA GPU. Knows plans and tensor names, nothing about images or text.

Plans come from the cache. A missing one is built first, which takes minutes and is said. A call runs in a lane with
memory of its own, which is kept for the next call: calls from several threads at once take as many lanes.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import backends
from ... import bundle as contract
from ...bundle import Bundle
from ...errors import BackendError, OptionError
from ...native import native
from . import builder, plans
from . import cuda as cuda_module
from .cache import PlanCache, default_folder
from .cuda import Cuda
from .decoder import Decoder
from .generation import Chat, DecoderLane, Generation, Lanes, Part
from .lane import Plan
from .plans import PlanSizes
from .search import Kernels
from .sizes import Sizes, check_room
from .trial import Trial

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .. import Floats, OnToken, Sequences

_log = logging.getLogger("blip2rt")


class Backend(backends.Backend):
    """One bundle's plans on the first GPU."""

    def __init__(self, bundle: Bundle, *, device: str = "cuda", engines: PlanSizes | None = None) -> None:
        """engines: the sizes that plans are built for; None is PlanSizes().

        Raises BackendError where TensorRT, cuda-bindings, the driver, the GPU or memory are lacking, OptionError for
        a device or sizes that make no sense.
        """
        if device != "cuda":
            raise OptionError(f"device is {device!r}: the backend trt runs on cuda")
        plans.check_target(bundle)
        self._bundle = bundle
        self._plan_sizes = plans.resolve(bundle, engines or PlanSizes())
        self._trt = plans.runner()
        self._cuda = Cuda(*cuda_module.load_bindings())
        self._cache = PlanCache(default_folder())
        gpu, llm = plans.this_gpu(self._trt), bundle.manifest.llm
        trial = Trial(self._trt, self._cuda, 0 if llm is None else llm.vocab_size)
        self._files = {component: self._built(component, gpu, trial) for component in bundle.manifest.components}
        self._logger = builder.logger(self._trt)  # TensorRT does not keep it alive
        self._runtime = builder.made(self._logger, self._trt.Runtime)
        self._plans: dict[str, Plan] = {}
        self._kernels: Kernels | None = None
        self._lanes = Lanes(self._cuda)
        self._lock = threading.RLock()
        self._closed = False
        # A model that nobody holds any more gives its memory back. At the process's end the driver does.
        weakref.finalize(self, self._lanes.close).atexit = False

    def close(self) -> None:
        """See backends.Backend. A generation under way goes on to its end, and gives back then what it holds."""
        self._closed = True
        self._lanes.close()
        with self._lock:
            self._plans.clear()
            self._kernels = None

    def generate(
        self,
        prefix_embeds: Floats,
        prompts: Sequence[list[int]],
        options: Mapping[str, Any],
        on_token: OnToken | None = None,
    ) -> Sequences:
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

    def begin(self, prefix_embeds: Floats, prompts: Sequence[list[int]], options: Mapping[str, Any]) -> Generation:
        sizes, forced = self._sizes(), list(options.get("forced_prefix", []))
        given = [sizes.start, *forced] if sizes.cross else forced
        first = options.get("first_image", 0)
        together = self._together(sizes, prefix_embeds, prompts, given, options)
        parts = []
        for start in range(0, len(prompts), together):
            chunk = slice(start, start + together)
            part_options = {**options, "first_image": first + start}
            before = [] if sizes.cross else self._read(prefix_embeds.shape[1], prompts[chunk], options)
            batch = native().SearchBatch(len(prompts[chunk]), given, sizes.vocab, part_options, before)
            parts.append(Part(start, batch, prefix_embeds[chunk], list(prompts[chunk])))
        return Generation(self._lanes, self._decoder, parts, forced, options.get("vocabulary"))

    def chat(self, prefix_embeds: Floats, max_rows: int, capacity: int) -> Chat:
        """See backends.Backend. The plans' own capacity holds, whatever the language model allows."""
        check_room(self._sizes(), max_rows, prefix_embeds.shape[1], 1)
        return Chat(self.begin, prefix_embeds)

    def _read(self, positions: int, prompts: Sequence[list[int]], options: Mapping[str, Any]) -> list[list[int]]:
        """What the options count besides the answer of each image: image and prompt, or nothing."""
        if not options.get("counts_prompt", False):
            return []
        image = options.get("image_token_id", -1)
        return [[image] * (positions if image >= 0 else 0) + prompt for prompt in prompts]

    def vocabulary(self, tokens: list[bytes]) -> Any:
        return native().Vocabulary(tokens)

    def _together(
        self,
        sizes: Sizes,
        prefix_embeds: Floats,
        prompts: Sequence[list[int]],
        given: list[int],
        options: Mapping[str, Any],
    ) -> int:
        """How many images run at once. Raises OptionError where the plans are too small even for one."""
        try:
            search = native().SearchBatch(min(len(prompts), 1), given, sizes.vocab, options).plan
        except RuntimeError as error:
            raise BackendError(f"generation failed: {error}") from error
        rows_each = search["beams"] * max(len(search["images"]), 1)
        if prompts:
            longest = max(map(len, prompts)) + prefix_embeds.shape[1]
            check_room(sizes, rows_each, len(given) + (0 if sizes.cross else longest), search["max_new_tokens"])
            check_room(sizes, rows_each, longest, 0)  # an encoder reads as many
        return max(1, min(sizes.images, sizes.rows // rows_each))

    def _run(self, component: str, output: str, feeds: Mapping[str, NDArray[Any]]) -> Floats:
        """See backends.Backend. Runs in parts of as many rows as the plan takes."""
        rows = len(next(iter(feeds.values())))
        with self._lanes.lend() as lane:
            plan, most = self._plan(component), self._plan_sizes.max_batch
            parts = []
            for start in range(0, rows, most):
                part = {name: array[start : start + most] for name, array in feeds.items()}
                parts.append(lane.download(lane.run(plan, part)[output]))
        return np.concatenate(parts)

    # Plans, kernels, decoders

    def _built(self, component: str, gpu: str, trial: Trial) -> Path:
        """The file of the component's plan. Building takes minutes, and is said; what was built is tested."""

        def say(text: str) -> None:
            loud = "building" in text or "not tested" in text
            (_log.warning if loud else _log.info)("TensorRT plan of %s", text)

        return plans.ensure(self._trt, self._bundle, component, self._plan_sizes, gpu, self._cache, say, trial=trial)

    def _plan(self, component: str) -> Plan:
        """The component's plan, loaded at its first use. Raises BackendError: the model is closed."""
        with self._lock:
            if self._closed:
                raise BackendError(backends.CLOSED)
            if component not in self._plans:
                self._plans[component] = Plan(self._trt, self._runtime, self._files[component], component, self._logger)
            return self._plans[component]

    def _sizes(self) -> Sizes:
        return plans.language_sizes(self._bundle, self._plan_sizes)

    def _open_kernels(self) -> Kernels:
        """The kernels, compiled once for this GPU and kept beside the plans."""
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

    def _decoder(self, lane: DecoderLane) -> Decoder:
        """The lane's decoder, made at its first generation."""
        if lane.decoder is None:
            names = [contract.EMBED, contract.LLM]
            if self._bundle.has(contract.ENCODER):
                names.append(contract.ENCODER)
            loaded = {name: self._plan(name) for name in names}
            lane.decoder = Decoder(lane, self._open_kernels(), loaded, self._sizes())
        return lane.decoder
