"""Steps an `llm` graph in ONNX Runtime as the runtime does: past and present of a layer are one buffer.

Exists to verify and measure exported graphs; knows nothing about search, prompts or images.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from blip2rt.bundle import llm_tensors


def session(graph: Path | bytes, threads: int = 0, packed: bool = True, fused: bool = True) -> ort.InferenceSession:
    """Open a graph in ONNX Runtime, on the CPU: a file's, or one in memory.

    packed: matrices are copied into the order that products want; otherwise they stay in the mapped file.
    fused: products between QuantizeLinear and DequantizeLinear are ONNX Runtime's integer ones; otherwise as written.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not packed:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not fused:
        options.add_session_config_entry("session.disable_quant_qdq", "1")

    def opened(exact: str) -> ort.InferenceSession:
        options.add_session_config_entry("session.x64quantprecision", exact)
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    # As the core does: without VNNI sums of 8-bit products overflow unless ONNX Runtime is told. Releases before 1.30
    # end the process at that; it is an error where two products read the same weights.
    if tuple(map(int, ort.__version__.split(".")[:2])) < (1, 30):
        return opened("0")
    try:
        return opened("1")
    except Fail:
        return opened("0")


def unfused_session(path: Path, threads: int = 0) -> ort.InferenceSession:
    """Open a graph that is made for TensorRT, and compute what its operators say.

    ONNX Runtime 1.32 fuses symmetric int8 convolutions into ones that compute something else.
    """
    return session(path, threads, fused=False)


class Stepper:
    """A batch in flight: `prefill` once, then `step` as often as the capacity allows.

    seen: what a decoder has from its encoder, and is given to every step: cross_key_i, cross_value_i, encoder_mask.
    """

    def __init__(
        self, llm: ort.InferenceSession, batch: int, capacity: int, seen: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self.seen = seen or {}
        shapes = {value.name: value.shape for value in llm.get_inputs()}
        self.layers = sum(name.startswith("past_key_") for name in shapes)
        heads, width = shapes["past_key_0"][1], shapes["past_key_0"][3]
        self.vocabulary = llm.get_outputs()[0].shape[1]
        self.session = llm
        self.lengths = np.zeros(batch, np.int64)
        # Filled with a large number: a graph that reads beyond a row's valid positions is found out.
        self.cache = [
            ort.OrtValue.ortvalue_from_numpy(np.full((batch, heads, capacity, width), 1e3, np.float32))
            for _ in range(2 * self.layers)
        ]

    def prefill(self, inputs_embeds: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """inputs_embeds (B,S,D) padded on the right, lengths (B) -> logits (B,V) after each row's last position."""
        positions = np.broadcast_to(np.arange(inputs_embeds.shape[1]), inputs_embeds.shape[:2])
        self.lengths = lengths.astype(np.int64)
        return self._run(inputs_embeds, positions, self.lengths - 1)

    def step(self, inputs_embeds: np.ndarray) -> np.ndarray:
        """inputs_embeds (B,1,D) -> logits (B,V)"""
        positions = self.lengths[:, None]
        self.lengths = self.lengths + 1
        return self._run(inputs_embeds, positions, np.zeros_like(self.lengths))

    def _run(self, inputs_embeds: np.ndarray, positions: np.ndarray, last: np.ndarray) -> np.ndarray:
        inputs, outputs = llm_tensors(self.layers)
        feeds = (
            np.ascontiguousarray(inputs_embeds, np.float32),
            np.ascontiguousarray(positions, np.int64),
            last.astype(np.int64),
            (self.lengths - 1).astype(np.int32),
            np.array(self.lengths.max(), np.int32),
        )
        binding = self.session.io_binding()
        for name, array in (*zip(inputs, feeds, strict=False), *self.seen.items()):
            binding.bind_cpu_input(name, array)
        for past, present, buffer in zip(inputs[5:], outputs[1:], self.cache, strict=True):
            binding.bind_ortvalue_input(past, buffer)
            binding.bind_ortvalue_output(present, buffer)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy()  # they come in the order of binding
