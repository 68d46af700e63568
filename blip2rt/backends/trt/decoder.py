"""The language model on the device: its cache and buffers, and the graph of a step.

A step is one graph of embed, llm and three kernels (engines/search/kernels.cu). `scatter` writes the new keys and
values into the cache, where the llm's graph does not do so itself. `choose` takes a step of every answer's search
(engines/search/search_block.h, the source of the CPU's loop too). `reorder` moves the beams that changed places. Knows
rows, slots of the cache and kernels; not when a text is done.
"""

from __future__ import annotations

import ctypes
import logging
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ... import bundle as contract
from ...errors import BackendError
from .lane import DeviceTensor, Lane, Plan
from .search import LAYOUT, Kernels, SearchMemory
from .sizes import Sizes, Strides

_STEP, _PROMPT = 0, 1  # profiles of the plans of llm and embed
_MASKED = np.array(-1e9, np.float32)  # past_mask of a slot that holds nothing
_log = logging.getLogger("blip2rt")


class Decoder:
    """The language model in one lane: its buffers, allocated once, and the graph of its step."""

    def __init__(self, lane: Lane, kernels: Kernels, plans: Mapping[str, Plan], sizes: Sizes) -> None:
        self.lane, self.sizes = lane, sizes
        self._kernels, self._plans = kernels, plans
        self._embed = lane.runner(plans[contract.EMBED], _STEP)
        self._llm_step = lane.runner(plans[contract.LLM], _STEP)
        self._llm_prompt = lane.runner(plans[contract.LLM], _PROMPT)
        if sizes.width * sizes.dtype.itemsize % 4:
            raise BackendError(
                f"heads of {sizes.width} {sizes.dtype} numbers are no whole words of 4 bytes: export anew"
            )
        strides = Strides.of(sizes)
        self._cache_stride, self._fresh_stride, self._cross_strides = strides.cache, strides.fresh, strides.cross
        self._cache = lane.buffer("cache", sizes.tensors * self._cache_stride)
        self._fresh = lane.buffer("fresh", sizes.tensors * self._fresh_stride)
        for name, stride in zip(("cross.images", "cross.rows"), self._cross_strides, strict=False):
            lane.buffer(name, sizes.tensors * stride)
        if not sizes.in_place:
            lane.tensor("mask", (sizes.rows, sizes.capacity), np.float32)
        for name, numbers, dtype in (
            ("logits", sizes.vocab, np.float32), ("tokens", 1, np.int64),
            ("top.logits", sizes.k, np.float32), ("top.tokens", sizes.k, np.int64), ("top.sum", 1, np.float32),
            ("step.embeds", sizes.hidden, np.float32), ("step.last_index", 1, np.int64), ("positions", 1, np.int64),
            ("parents", 1, np.int32), ("done", 1, np.int32), ("sources", 1, np.int32), ("prompt.lengths", 1, np.int32),
            ("prompt.images", 1, np.int32),
        ):  # fmt: skip
            lane.tensor(name, (sizes.rows, numbers), dtype)
        lane.tensor("prompt.logits", (sizes.images, sizes.vocab), np.float32)
        lane.buffer("plan", struct.calcsize(LAYOUT))
        self._graph: Any = None
        self._known: Any = None  # what the graph holds for, or the last step that was enqueued without one
        self._refused = False
        self._rows = self._seen = 0

    # The prompts

    def encode(self, embeds: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], sources: np.ndarray[Any, Any]) -> None:
        """Encoder-decoder only: embeds (B, S, D), mask (B, S) -> cross keys and values of every row.

        sources (rows): the image that a row belongs to.
        """
        sizes, lane = self.sizes, self.lane
        assert sizes.cross is not None
        images, self._seen = mask.shape
        heads, width = sizes.cross
        row = heads * self._seen * width * sizes.dtype.itemsize
        small, large = lane.address("cross.images"), lane.address("cross.rows")
        self._cross_images = self._cross(small, self._cross_strides[0], images)
        self._cross_rows = self._cross(large, self._cross_strides[1], len(sources))
        encoder = lane.runner(self._plans[contract.ENCODER])
        encoder.set({
            contract.INPUTS_EMBEDS: lane.upload("encoder.embeds", embeds),
            contract.ATTENTION_MASK: lane.upload("encoder.mask", mask), **self._cross_images,
        })  # fmt: skip
        encoder.enqueue()
        self._cross_images[contract.ENCODER_MASK] = lane.upload("encoder.mask", mask)
        self._cross_rows[contract.ENCODER_MASK] = lane.upload("encoder.mask.rows", mask[sources])
        self._kernels.launch("spread", (len(sources), sizes.tensors), lane.stream, small, large,
                             lane.address("sources"), self._cross_strides[0] // 4, self._cross_strides[1] // 4,
                             ctypes.c_int(row // 4))  # fmt: skip

    def _cross(self, address: int, stride: int, rows: int) -> dict[str, DeviceTensor]:
        heads, width = self.sizes.cross or (0, 0)
        names = [name.format(layer) for layer in range(self.sizes.layers)
                 for name in (contract.CROSS_KEY, contract.CROSS_VALUE)]  # fmt: skip
        shape = (rows, heads, self._seen, width)
        return {name: DeviceTensor(address + i * stride, shape, self.sizes.dtype) for i, name in enumerate(names)}

    def embed(self, prompts: Sequence[list[int]]) -> np.ndarray[Any, Any]:
        """B prompts -> their embeddings (B, longest, D). What follows a shorter prompt means nothing."""
        longest = max(map(len, prompts))
        if longest == 0:
            return np.zeros((len(prompts), 0, self.sizes.hidden), np.float32)
        ids = np.array([prompt + [0] * (longest - len(prompt)) for prompt in prompts], np.int64)
        outputs = self.lane.run(self._plans[contract.EMBED], {contract.TOKEN_IDS: ids}, _PROMPT)
        return self.lane.download(outputs[contract.TOKEN_EMBEDS])

    def read(self, embeds: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any], sources: np.ndarray[Any, Any]) -> None:
        """embeds (B, S, D) of prompts of lengths (B) -> keys and values of every row, logits of every image.

        sources (rows) int32: the image that a row belongs to.
        """
        sizes, lane = self.sizes, self.lane
        images, length, _ = embeds.shape
        self._rows = len(sources)
        last_index = lane.upload("prompt.last_index", lengths.astype(np.int64) - 1)
        positions = np.broadcast_to(np.arange(length), (images, length))
        # A cache that the graph writes has a row an image here; where rows are images, it is the cache of the steps.
        own = sizes.in_place and not np.array_equal(sources, np.arange(images))
        kept = self._prompts_mask(images) if not sizes.in_place else self._written(images, own)
        self._llm_prompt.set({
            contract.INPUTS_EMBEDS: lane.upload("prompt.embeds", embeds),
            contract.POSITION_IDS: lane.upload("prompt.positions", positions),
            contract.LAST_INDEX: last_index, **kept, **(self._cross_images if sizes.cross else {}),
            **self._outputs(images, length, "prompt.logits"),
        })  # fmt: skip
        self._llm_prompt.enqueue()
        if not sizes.in_place:
            self._scatter(lane.address("mask"), last_index.address, 0, length)
        elif own:
            words = sizes.heads * sizes.capacity * sizes.width * sizes.dtype.itemsize // 4
            self._kernels.launch("spread", (self._rows, sizes.tensors), lane.stream, self._fresh, self._cache,
                                 lane.address("sources"), self._fresh_stride // 4, self._cache_stride // 4,
                                 ctypes.c_int(words))  # fmt: skip

    def _prompts_mask(self, images: int) -> dict[str, DeviceTensor]:
        """Close the masks: that of the prompts, which see no cache, and that of the rows. Bind the former."""
        sizes, lane = self.sizes, self.lane
        mask = lane.tensor("mask", (sizes.rows, sizes.capacity), np.float32)
        closed = lane.tensor("mask.closed", (images, sizes.capacity), np.float32)
        for each in (mask, closed):
            lane.cuda.fill(each.address, int(_MASKED.view(np.uint32)), each.size // 4, lane.stream)
        return {contract.PAST_MASK: closed, **self._past(images)}

    def _past(self, rows: int) -> dict[str, DeviceTensor]:
        sizes = self.sizes
        names = contract.llm_tensors(sizes.layers, target="trt")[0][4:]
        shape = (rows, sizes.heads, sizes.capacity, sizes.width)
        return {name: DeviceTensor(self._cache + i * self._cache_stride, shape, sizes.dtype)
                for i, name in enumerate(names)}  # fmt: skip

    def _written(self, rows: int, own: bool) -> dict[str, DeviceTensor]:
        """Bind a cache that the graph writes, what was and what will be at one place. own: the prompts' own."""
        sizes = self.sizes
        inputs, outputs = contract.llm_tensors(sizes.layers, target="trt", in_place=True)
        start, stride = (self._fresh, self._fresh_stride) if own else (self._cache, self._cache_stride)
        shape = (rows, sizes.heads, sizes.capacity, sizes.width)
        return {name: DeviceTensor(start + i * stride, shape, sizes.dtype)
                for names in (inputs[3:], outputs[4:]) for i, name in enumerate(names)}  # fmt: skip

    def _outputs(self, rows: int, length: int, logits: str) -> dict[str, DeviceTensor]:
        """Bind what a step or a prompt gives, but a cache that the graph writes."""
        sizes, lane = self.sizes, self.lane
        names = () if sizes.in_place else contract.llm_tensors(sizes.layers, target="trt")[1][4:]
        shape = (rows, sizes.heads, length, sizes.width)
        fresh = {name: DeviceTensor(self._fresh + i * self._fresh_stride, shape, sizes.dtype)
                 for i, name in enumerate(names)}  # fmt: skip
        return {
            contract.LOGITS: lane.tensor(logits, (rows, sizes.vocab), np.float32),
            contract.TOP_LOGITS: lane.tensor("top.logits", (rows, sizes.k), np.float32),
            contract.TOP_TOKENS: lane.tensor("top.tokens", (rows, sizes.k), np.int64),
            contract.LOG_SUM_EXP: lane.tensor("top.sum", (rows, 1), np.float32),
            **fresh,
        }

    def _scatter(self, mask: int, last_index: int, positions: int, length: int) -> None:
        """Write new keys and values into the cache: those of images, where last_index is given, or of rows."""
        sizes, words = self.sizes, self.sizes.width * self.sizes.dtype.itemsize // 4
        self._kernels.launch(
            "scatter", (self._rows, sizes.tensors), self.lane.stream, self._fresh, self._cache, mask,
            self.lane.address("sources") if last_index else 0, last_index, positions, self._fresh_stride // 4,
            self._cache_stride // 4, ctypes.c_int(sizes.heads), ctypes.c_int(length), ctypes.c_int(sizes.capacity),
            ctypes.c_int(words),
        )  # fmt: skip

    # The steps

    def begin(self, search: SearchMemory, lengths: np.ndarray[Any, Any], images: np.ndarray[Any, Any]) -> None:
        """Choose the first tokens, and bind the step.

        lengths (answers): positions that were read; images (answers): the row of the prompts.
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
        changed = self._embed.set({
            contract.TOKEN_IDS: lane.tensor("tokens", (rows, 1), np.int64), contract.TOKEN_EMBEDS: step_embeds,
        })  # fmt: skip
        changed |= self._llm_step.set({
            contract.INPUTS_EMBEDS: step_embeds,
            contract.POSITION_IDS: lane.tensor("positions", (rows, 1), np.int64),
            contract.LAST_INDEX: lane.tensor("step.last_index", (rows,), np.int64),  # zeros
            **(self._written(rows, False) if sizes.in_place else {
                contract.PAST_MASK: lane.tensor("mask", (rows, sizes.capacity), np.float32), **self._past(rows)}),
            **(self._cross_rows if sizes.cross else {}), **self._outputs(rows, 1, "logits"),
        })  # fmt: skip

        key = (rows, search.beams, lane.version)
        if changed or key != self._known:
            self.drop_graph()

    def _choose(self, prompt_logits: int = 0, images: int = 0) -> None:
        lane, address = self.lane, self.lane.address
        self._kernels.launch(
            "choose", (self._search.answers, 1), lane.stream, address("plan"), address("logits"), prompt_logits, images,
            address("top.logits"), address("top.tokens"), address("top.sum"), address("prompt.lengths"),
            address("tokens"), address("positions"), address("parents"), address("done"), ctypes.c_int(self.sizes.k),
        )  # fmt: skip

    def step(self) -> None:
        """Launch one step: enqueued the first time, captured the second, replayed from then on."""
        key = (self._rows, self._search.beams, self.lane.version)
        if self._graph is not None:
            assert key == self._known, "a buffer has moved since the step was captured"
            self.lane.cuda.launch_graph(self._graph, self.lane.stream)
        elif self._refused or self._known != key:  # TensorRT prepares itself in the first run with new shapes
            self._enqueue()
            self._known = key
        else:
            self._capture()

    def _capture(self) -> None:
        lane, graph = self.lane, None
        try:
            for runner in (self._embed, self._llm_step):
                if not runner.capturable():
                    raise BackendError(f"{runner.name}: TensorRT says that a run of the plan cannot be captured")
            lane.cuda.begin_capture(lane.stream)
            try:
                self._enqueue()
            finally:
                graph = lane.cuda.end_capture(lane.stream)
        except BackendError as error:
            if graph is not None:
                lane.cuda.destroy_graph(graph)
            self._refused = True
            _log.warning("the step cannot be captured as a CUDA graph, and is enqueued anew each time: %s", error)
            self._enqueue()
            return
        self._graph = graph
        lane.cuda.launch_graph(graph, lane.stream)

    def _enqueue(self) -> None:
        sizes, lane, address = self.sizes, self.lane, self.lane.address
        self._embed.enqueue()
        self._llm_step.enqueue()
        if not sizes.in_place:
            self._scatter(address("mask"), 0, address("positions"), 1)
        self._choose()
        if self._search.beams > 1:
            self._kernels.launch(
                "reorder", (self._rows, sizes.tensors), lane.stream, address("plan"), self._cache,
                address("parents"), address("prompt.lengths"), address("positions"), self._cache_stride // 4,
                ctypes.c_int(sizes.heads), ctypes.c_int(sizes.capacity),
                ctypes.c_int(sizes.width * sizes.dtype.itemsize // 4),
            )  # fmt: skip

    def drop_graph(self) -> None:
        if self._graph is not None:
            self.lane.wait()
            self.lane.cuda.destroy_graph(self._graph)
        self._graph = self._known = None
