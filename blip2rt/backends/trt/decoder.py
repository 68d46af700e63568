"""The language model on the device: its cache and buffers, and the CUDA graph of a decoding step.

A step is a CUDA graph of the plans embed and llm and up to three kernels (engines/search/kernels.cu): `scatter` writes
new keys and values into the cache unless the llm graph does so itself; `choose` advances every answer's search, with
the CPU loop's source (engines/search/search_block.h); `reorder` moves beams that changed places.
"""

import contextlib
import ctypes
import gc
import logging
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...bundle import names as graph_names
from ...errors import BackendError
from ...native import Prompts, native
from .done_flags import DoneFlags
from .lane import DeviceTensor, Lane, Plan
from .search import LAYOUT, Kernels, SearchMemory
from .sizes import Sizes, Strides

_STEP, _PROMPT = 0, 1  # profiles of the plans llm and embed
_MASKED = np.array(-1e9, np.float32)  # past_mask of an empty cache position
_log = logging.getLogger("blip2rt")


class Decoder:
    """The language model in one lane: its buffers, allocated once, and the CUDA graph of a step."""

    def __init__(self, lane: Lane, kernels: Kernels, plans: Mapping[str, Plan], sizes: Sizes) -> None:
        self.lane, self.sizes = lane, sizes
        self._kernels, self._plans = kernels, plans
        self._embed = lane.runner(plans[graph_names.EMBED], _STEP)
        self._llm_step = lane.runner(plans[graph_names.LLM], _STEP)
        self._llm_prompt = lane.runner(plans[graph_names.LLM], _PROMPT)
        if sizes.width * sizes.dtype.itemsize % 4:
            raise BackendError(
                f"an attention head of {sizes.width} {sizes.dtype} values is not a multiple of 4 bytes: export again"
            )
        strides = Strides.of(sizes)
        self._cache_stride, self._fresh_stride, self._cross_strides = strides.cache, strides.fresh, strides.cross
        self._cache = lane.buffer("cache", sizes.tensors * self._cache_stride)
        self._fresh = lane.buffer("fresh", sizes.tensors * self._fresh_stride)
        for name, stride in zip(("cross.images", "cross.rows"), self._cross_strides, strict=False):
            lane.buffer(name, sizes.tensors * stride)
        if not sizes.in_place:
            lane.tensor("mask", (sizes.rows, sizes.capacity), np.float32)
        widths = {"logits": sizes.vocab, "top.logits": sizes.k, "top.sum": 1, "step.embeds": sizes.hidden}
        for name, width in widths.items():
            lane.tensor(name, (sizes.rows, width), np.float32)
        lane.tensor("top.tokens", (sizes.rows, sizes.k), np.int64)
        for name in ("tokens", "step.last_index", "positions"):
            lane.tensor(name, (sizes.rows, 1), np.int64)
        for name in ("parents", "done", "sources", "prompt.lengths", "prompt.images"):
            lane.tensor(name, (sizes.rows, 1), np.int32)
        lane.tensor("prompt.logits", (sizes.images, sizes.vocab), np.float32)
        lane.buffer("plan", struct.calcsize(LAYOUT))
        self.done_flags = DoneFlags(lane, sizes.rows)
        self._graph: Any = None
        self._graph_key: Any = None  # of the captured graph, or of the last step enqueued without one
        self._capture_failed = False
        self._rows = self._encoder_length = 0

    # The prompts

    def encode(self, embeds: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], sources: np.ndarray[Any, Any]) -> None:
        """Run the encoder: embeds (B, S, D), mask (B, S) -> cross-attention keys and values of every row.

        sources (rows): the image of each row.
        """
        sizes, lane = self.sizes, self.lane
        assert sizes.cross is not None
        images, self._encoder_length = mask.shape
        heads, width = sizes.cross
        row_bytes = heads * self._encoder_length * width * sizes.dtype.itemsize
        small, large = lane.address("cross.images"), lane.address("cross.rows")
        self._cross_images = self._cross(small, self._cross_strides[0], images)
        self._cross_rows = self._cross(large, self._cross_strides[1], len(sources))
        encoder = lane.runner(self._plans[graph_names.ENCODER])
        inputs = {
            graph_names.INPUTS_EMBEDS: lane.upload("encoder.embeds", embeds),
            graph_names.ATTENTION_MASK: lane.upload("encoder.mask", mask),
        }
        encoder.set({**inputs, **self._cross_images})
        encoder.enqueue()
        self._cross_images[graph_names.ENCODER_MASK] = lane.upload("encoder.mask", mask)
        self._cross_rows[graph_names.ENCODER_MASK] = lane.upload("encoder.mask.rows", mask[sources])
        per_image, per_row = self._cross_strides
        self._spread(len(sources), small, large, per_image, per_row, row_bytes)

    def _spread(self, rows: int, source: int, target: int, source_stride: int, target_stride: int, size: int) -> None:
        """Copy `size` bytes of each tensor from every image to its rows."""
        lane, grid = self.lane, (rows, self.sizes.tensors)
        strides = source_stride // 4, target_stride // 4
        sources = lane.address("sources")
        self._kernels.launch("spread", grid, lane.stream, source, target, sources, *strides, ctypes.c_int(size // 4))

    def _cross(self, address: int, stride: int, rows: int) -> dict[str, DeviceTensor]:
        heads, width = self.sizes.cross or (0, 0)
        kinds = (graph_names.CROSS_KEY, graph_names.CROSS_VALUE)
        names = [name.format(layer) for layer in range(self.sizes.layers) for name in kinds]
        shape = (rows, heads, self._encoder_length, width)
        return {name: DeviceTensor(address + i * stride, shape, self.sizes.dtype) for i, name in enumerate(names)}

    def embed(self, prompts: Prompts) -> np.ndarray[Any, Any]:
        """B prompts -> their embeddings (B, S, D), S being the longest length. Padding has arbitrary values."""
        longest = max(map(len, prompts))
        if longest == 0:
            return np.zeros((len(prompts), 0, self.sizes.hidden), np.float32)
        ids = np.array([prompt + [0] * (longest - len(prompt)) for prompt in prompts], np.int64)
        outputs = self.lane.run(self._plans[graph_names.EMBED], {graph_names.TOKEN_IDS: ids}, _PROMPT)
        return self.lane.download(outputs[graph_names.TOKEN_EMBEDS])

    def read(self, embeds: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any], sources: np.ndarray[Any, Any]) -> None:
        """Read prompts: embeds (B, S, D), lengths (B) -> keys and values of every row, logits of every image.

        sources (rows) int32: the image of each row.
        """
        sizes, lane = self.sizes, self.lane
        images, length, _ = embeds.shape
        self._rows = len(sources)
        last_index = lane.upload("prompt.last_index", lengths.astype(np.int64) - 1)
        positions = np.broadcast_to(np.arange(length), (images, length))
        # An in-place cache has one row per image here. If rows are images, it is also the cache of the steps.
        separate = sizes.in_place and not np.array_equal(sources, np.arange(images))
        cache = self._in_place_cache(images, separate) if sizes.in_place else self._prompt_masks(images)
        inputs = {
            graph_names.INPUTS_EMBEDS: lane.upload("prompt.embeds", embeds),
            graph_names.POSITION_IDS: lane.upload("prompt.positions", positions),
            graph_names.LAST_INDEX: last_index,
        }
        cross = self._cross_images if sizes.cross else {}
        self._llm_prompt.set({**inputs, **cache, **cross, **self._outputs(images, length, "prompt.logits")})
        self._llm_prompt.enqueue()
        if not sizes.in_place:
            self._scatter(lane.address("mask"), last_index.address, 0, length)
        elif separate:
            size = sizes.heads * sizes.capacity * sizes.width * sizes.dtype.itemsize
            self._spread(self._rows, self._fresh, self._cache, self._fresh_stride, self._cache_stride, size)

    def _prompt_masks(self, images: int) -> dict[str, DeviceTensor]:
        """Mask out the whole cache, for the rows and for the prompts. Return the prompts' bindings."""
        sizes, lane = self.sizes, self.lane
        mask = lane.tensor("mask", (sizes.rows, sizes.capacity), np.float32)
        closed = lane.tensor("mask.closed", (images, sizes.capacity), np.float32)
        for each in (mask, closed):
            lane.cuda.fill(each.address, int(_MASKED.view(np.uint32)), each.size // 4, lane.stream)
        return {graph_names.PAST_MASK: closed, **self._past_cache(images)}

    def _past_cache(self, rows: int) -> dict[str, DeviceTensor]:
        sizes = self.sizes
        names = native.component_tensors(graph_names.LLM, sizes.layers, target="trt")[0][4:]
        shape = (rows, sizes.heads, sizes.capacity, sizes.width)
        return self._tensors(names, self._cache, self._cache_stride, shape)

    def _tensors(
        self, names: Sequence[str], start: int, stride: int, shape: tuple[int, ...]
    ) -> dict[str, DeviceTensor]:
        return {name: DeviceTensor(start + i * stride, shape, self.sizes.dtype) for i, name in enumerate(names)}

    def _in_place_cache(self, rows: int, separate: bool) -> dict[str, DeviceTensor]:
        """Bindings of a cache that the graph updates in place. separate: the prompts' cache, not the rows'."""
        sizes = self.sizes
        inputs, outputs = native.component_tensors(graph_names.LLM, sizes.layers, target="trt", in_place=True)
        start, stride = (self._fresh, self._fresh_stride) if separate else (self._cache, self._cache_stride)
        shape = (rows, sizes.heads, sizes.capacity, sizes.width)
        return self._tensors(inputs[3:], start, stride, shape) | self._tensors(outputs[4:], start, stride, shape)

    def _outputs(self, rows: int, length: int, logits: str) -> dict[str, DeviceTensor]:
        """Bindings of the outputs of a step or prompt, except an in-place cache."""
        sizes, lane = self.sizes, self.lane
        names = () if sizes.in_place else native.component_tensors(graph_names.LLM, sizes.layers, target="trt")[1][4:]
        shape = (rows, sizes.heads, length, sizes.width)
        return {
            graph_names.LOGITS: lane.tensor(logits, (rows, sizes.vocab), np.float32),
            graph_names.TOP_LOGITS: lane.tensor("top.logits", (rows, sizes.k), np.float32),
            graph_names.TOP_TOKENS: lane.tensor("top.tokens", (rows, sizes.k), np.int64),
            graph_names.LOG_SUM_EXP: lane.tensor("top.sum", (rows, 1), np.float32),
            **self._tensors(names, self._fresh, self._fresh_stride, shape),
        }

    def _scatter(self, mask: int, last_index: int, positions: int, length: int) -> None:
        """Write new keys and values into the cache: per image if last_index is given, else per row."""
        sizes, words = self.sizes, self.sizes.width * self.sizes.dtype.itemsize // 4
        sources = self.lane.address("sources") if last_index else 0
        addresses = self._fresh, self._cache, mask, sources, last_index, positions
        strides = self._fresh_stride // 4, self._cache_stride // 4
        counts = map(ctypes.c_int, (sizes.heads, length, sizes.capacity, words))
        grid = (self._rows, sizes.tensors)
        self._kernels.launch("scatter", grid, self.lane.stream, *addresses, *strides, *counts)

    # The steps

    def begin(self, search: SearchMemory, lengths: np.ndarray[Any, Any], images: np.ndarray[Any, Any]) -> None:
        """Choose the first tokens and bind the step.

        lengths (answers): prompt positions; images (answers): each answer's image.
        """
        sizes, lane, rows = self.sizes, self.lane, self._rows
        self._search = search
        lane.upload("prompt.lengths", lengths.astype(np.int32))
        first = lane.upload("prompt.images", images.astype(np.int32))
        for name, dtype in (("tokens", np.int64), ("positions", np.int64), ("parents", np.int32), ("done", np.int32)):
            tensor = lane.tensor(name, (sizes.rows,), dtype)
            lane.cuda.fill(tensor.address, 0, tensor.size // 4, lane.stream)
        self._choose(lane.address("prompt.logits"), first.address)
        step_embeds = lane.tensor("step.embeds", (rows, 1, sizes.hidden), np.float32)
        tokens = lane.tensor("tokens", (rows, 1), np.int64)
        changed = self._embed.set({graph_names.TOKEN_IDS: tokens, graph_names.TOKEN_EMBEDS: step_embeds})
        inputs = {
            graph_names.INPUTS_EMBEDS: step_embeds,
            graph_names.POSITION_IDS: lane.tensor("positions", (rows, 1), np.int64),
            graph_names.LAST_INDEX: lane.tensor("step.last_index", (rows,), np.int64),  # zeros
        }
        if sizes.in_place:
            cache = self._in_place_cache(rows, separate=False)
        else:
            mask = lane.tensor("mask", (rows, sizes.capacity), np.float32)
            cache = {graph_names.PAST_MASK: mask, **self._past_cache(rows)}
        cross = self._cross_rows if sizes.cross else {}
        changed |= self._llm_step.set({**inputs, **cache, **cross, **self._outputs(rows, 1, "logits")})
        key = (rows, search.beams, lane.version)
        if changed or key != self._graph_key:
            self.drop_graph()

    def _choose(self, prompt_logits: int = 0, images: int = 0) -> None:
        lane = self.lane
        names = "top.logits top.tokens top.sum prompt.lengths tokens positions parents done".split()
        addresses = lane.address("plan"), lane.address("logits"), prompt_logits, images, *map(lane.address, names)
        grid = (self._search.answers, 1)
        self._kernels.launch("choose", grid, lane.stream, *addresses, ctypes.c_int(self.sizes.k))

    def step(self) -> None:
        """Launch one step: enqueued the first time, captured the second time, then replayed."""
        key = (self._rows, self._search.beams, self.lane.version)
        if self._graph is not None:
            assert key == self._graph_key, "a buffer has moved since the step was captured"
            self.lane.cuda.launch_graph(self._graph, self.lane.stream)
        elif self._capture_failed or self._graph_key != key:  # TensorRT initializes in the first run with new shapes
            self._enqueue()
            self._graph_key = key
        else:
            self._capture()

    def _capture(self) -> None:
        """Capture a step and launch it. The garbage collector may free device memory, which ends a capture: retry."""
        try:
            with contextlib.suppress(BackendError):
                self._graph = self._captured()
            if self._graph is None:
                with _no_garbage_collection():
                    self._graph = self._captured()
        except BackendError as error:
            self._capture_failed = True
            _log.warning("the step cannot be captured as a CUDA graph and will be enqueued each time: %s", error)
            self._enqueue()
            return
        self.lane.cuda.launch_graph(self._graph, self.lane.stream)

    def _captured(self) -> Any:
        """The CUDA graph of a step. Raises BackendError."""
        lane, graph = self.lane, None
        for runner in (self._embed, self._llm_step):
            if not runner.capturable():
                raise BackendError(f"{runner.name}: TensorRT reports that the plan cannot be captured")
        lane.cuda.begin_capture(lane.stream)
        try:
            try:
                self._enqueue()
            finally:
                graph = lane.cuda.end_capture(lane.stream)
        except BackendError:
            if graph is not None:
                lane.cuda.destroy_graph(graph)
            raise
        return graph

    def _enqueue(self) -> None:
        sizes, lane, address = self.sizes, self.lane, self.lane.address
        self._embed.enqueue()
        self._llm_step.enqueue()
        if not sizes.in_place:
            self._scatter(address("mask"), 0, address("positions"), 1)
        self._choose()
        if self._search.beams > 1:
            words = sizes.width * sizes.dtype.itemsize // 4
            addresses = [address("plan"), self._cache, *map(address, ("parents", "prompt.lengths", "positions"))]
            counts = map(ctypes.c_int, (sizes.heads, sizes.capacity, words))
            grid = (self._rows, sizes.tensors)
            self._kernels.launch("reorder", grid, lane.stream, *addresses, self._cache_stride // 4, *counts)

    def close(self) -> None:
        """Free what the lane does not own."""
        self.drop_graph()
        self.done_flags.close()

    def drop_graph(self) -> None:
        if self._graph is not None:
            self.lane.wait()
            self.lane.cuda.destroy_graph(self._graph)
        self._graph = self._graph_key = None


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
