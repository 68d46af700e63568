"""TensorRT: runs a bundle of the target trt on an NVIDIA GPU.

Plans come from the cache; a missing one is built first, which takes minutes and is logged. Each call runs in a lane,
which owns device memory that later calls reuse; concurrent calls use one lane each.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import backends
from ...bundle import EMBED, ENCODER, LLM, Bundle
from ...errors import BackendError
from ...native import native
from . import builder, plans
from . import cuda as cuda_module
from .cache import PlanCache, default_folder
from .cuda import Cuda
from .decoder import Decoder
from .generation import DecoderLane, ImageGroup, LanePool, PlanGeneration
from .lane import Plan
from .plan_check import PlanCheck
from .plans import PlanSizes
from .search import Kernels
from .sizes import Sizes, check_capacity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...native import GenerationOptions, Prompts
    from .. import Floats, OnToken, Sequences

_log = logging.getLogger("blip2rt")


class Backend(backends.Backend):
    """One bundle's plans on the first GPU."""

    devices, target = ("cuda",), "trt"

    def __init__(self, bundle: Bundle, *, plan_sizes: PlanSizes | None = None) -> None:
        """plan_sizes: the sizes that plans are built for; None means PlanSizes().

        Raises BackendError if TensorRT, cuda-bindings, the driver, a GPU or memory is missing, and OptionError for
        invalid sizes.
        """
        plans.check_target(bundle)
        self._bundle = bundle
        self._plan_sizes = plans.resolve(bundle, plan_sizes or PlanSizes())
        self._trt = plans.runner(bundle)
        self._cuda = Cuda(*cuda_module.load_bindings())
        self._cache = PlanCache(default_folder())
        gpu, llm = plans.this_gpu(self._trt), bundle.manifest.llm
        check = PlanCheck(self._trt, self._cuda, 0 if llm is None else llm.vocab_size)
        self._files = {component: self._ensure_plan(component, gpu, check) for component in bundle.manifest.components}
        self._logger = builder.logger(self._trt)  # TensorRT does not keep it alive
        self._runtime = builder.create(self._logger, self._trt.Runtime)
        self._plans: dict[str, Plan] = {}
        self._kernels: Kernels | None = None
        self._lanes = LanePool(self._cuda)
        self._lock = threading.RLock()
        self._closed = False
        # Free the memory of a garbage-collected model. At process exit the driver does.
        weakref.finalize(self, self._lanes.close).atexit = False

    def close(self) -> None:
        """See backends.Backend. A running generation continues to its end and frees its memory then."""
        self._closed = True
        self._lanes.close()
        with self._lock:
            self._plans.clear()
            self._kernels = None

    def generate(
        self, prefix_embeds: Floats, prompts: Prompts, options: GenerationOptions, on_token: OnToken | None = None
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

    def begin(self, prefix_embeds: Floats, prompts: Prompts, options: GenerationOptions) -> PlanGeneration:
        sizes = self._sizes()
        group_size, options = self._group_size(sizes, prefix_embeds, prompts, options)
        forced = options.forced_prefix
        decoder_prefix = [sizes.start, *forced] if sizes.cross else forced
        groups = []
        for start in range(0, len(prompts), group_size):
            chunk = slice(start, start + group_size)
            group_options = options.changed(first_image=options.first_image + start)
            counted = [] if sizes.cross else self._counted_prompts(prefix_embeds.shape[1], prompts[chunk], options)
            batch = native.SearchBatch(len(prompts[chunk]), decoder_prefix, sizes.vocab, group_options, counted)
            groups.append(ImageGroup(start, batch, prefix_embeds[chunk], list(prompts[chunk])))
        return PlanGeneration(self._lanes, self._decoder, groups, forced, options.vocabulary)

    def chat(self, prefix_embeds: Floats, max_rows: int, capacity: int) -> backends.ChatSession:
        """See backends.Backend. The plans' capacity applies, even if the language model allows more."""
        check_capacity(self._sizes(), max_rows, prefix_embeds.shape[1], 1)
        return backends.ReplaySession(self.begin, prefix_embeds)

    def _counted_prompts(self, positions: int, prompts: Prompts, options: GenerationOptions) -> list[list[int]]:
        """Tokens before each answer that penalties count: image and prompt, or none."""
        if not options.counts_prompt:
            return []
        image = options.image_token_id
        return [[image] * (positions if image >= 0 else 0) + prompt for prompt in prompts]

    def _group_size(
        self, sizes: Sizes, prefix_embeds: Floats, prompts: Prompts, options: GenerationOptions
    ) -> tuple[int, GenerationOptions]:
        """How many images run at once, and the checked options. Raises OptionError if not even one fits the plans."""
        try:
            batch = native.SearchBatch(min(len(prompts), 1), [], sizes.vocab, options)
        except RuntimeError as error:
            raise BackendError(f"generation failed: {error}") from error
        search, forced = batch.plan, batch.options.forced_prefix
        rows_per_image = search["beams"] * max(len(search["images"]), 1)
        if prompts:
            longest = max(map(len, prompts)) + prefix_embeds.shape[1]
            decoder_length = len(forced) + (1 if sizes.cross else longest)
            check_capacity(sizes, rows_per_image, decoder_length, search["max_new_tokens"])
            check_capacity(sizes, rows_per_image, longest, 0)  # an encoder reads as many positions
        return max(1, min(sizes.images, sizes.rows // rows_per_image)), batch.options

    def _run(self, component: str, output: str, feeds: Mapping[str, NDArray[Any]]) -> Floats:
        """See backends.Backend. Runs at most max_batch rows at a time."""
        rows = len(next(iter(feeds.values())))
        with self._lanes.lane() as lane:
            plan, max_batch = self._plan(component), self._plan_sizes.max_batch
            outputs = []
            for start in range(0, rows, max_batch):
                chunk = {name: array[start : start + max_batch] for name, array in feeds.items()}
                outputs.append(lane.download(lane.run(plan, chunk)[output]))
        return np.concatenate(outputs)

    # Plans, kernels, decoders

    def _ensure_plan(self, component: str, gpu: str, check: PlanCheck) -> Path:
        """The file of the component's plan, built and checked if it is missing. Building takes minutes."""

        def report(text: str) -> None:
            warn = "building" in text or "not tested" in text
            (_log.warning if warn else _log.info)("TensorRT plan of %s", text)

        sizes = self._plan_sizes
        return plans.ensure(self._trt, self._bundle, component, sizes, gpu, self._cache, report, check_plan=check)

    def _plan(self, component: str) -> Plan:
        """The component's plan, loaded on first use. Raises BackendError if the model is closed."""
        with self._lock:
            if self._closed:
                raise BackendError(backends.CLOSED)
            if component not in self._plans:
                self._plans[component] = Plan(self._trt, self._runtime, self._files[component], component, self._logger)
            return self._plans[component]

    def _sizes(self) -> Sizes:
        return plans.language_sizes(self._bundle, self._plan_sizes)

    def _open_kernels(self) -> Kernels:
        with self._lock:
            if self._kernels is None:
                self._kernels = Kernels.compiled(self._cuda, self._cache)
            return self._kernels

    def _decoder(self, lane: DecoderLane) -> Decoder:
        """The lane's decoder, created at its first generation."""
        if lane.decoder is None:
            names = [EMBED, LLM]
            if self._bundle.has(ENCODER):
                names.append(ENCODER)
            loaded = {name: self._plan(name) for name in names}
            lane.decoder = Decoder(lane, self._open_kernels(), loaded, self._sizes())
        return lane.decoder
