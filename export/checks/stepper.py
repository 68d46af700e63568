"""Run an `llm` graph step by step in ONNX Runtime, to verify and measure exported graphs.

Stepper runs graphs of the target ort, TrtStepper those of trt and trt-native.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from blip2rt.bundle import LOG_SUM_EXP, LOGITS, PAST_MASK, TOP_LOGITS, TOP_TOKENS
from blip2rt.native import native

from ..trt.kv_cache import MASKED

_POISON = 1e3  # fills unused cache slots: a graph that reads them gives wrong logits


class Stepper:
    """A batch: call `prefill` once, then `step` as often as the capacity allows. Past and present share one buffer.

    encoded: what the decoder reads from its encoder in every step: cross_key_i, cross_value_i, encoder_mask.
    """

    def __init__(
        self, llm: ort.InferenceSession, batch: int, capacity: int, encoded: Mapping[str, np.ndarray] | None = None
    ) -> None:
        inputs = {value.name: value for value in llm.get_inputs()}
        _, heads, _, width = inputs["past_key_0"].shape
        self.session, self.encoded = llm, dict(encoded or {})
        self.layers = sum(name.startswith("past_key_") for name in inputs)
        self.lengths = np.zeros(batch, np.int64)
        self.cache = self._make_cache(inputs, (2 * self.layers, batch, heads, capacity, width))

    def prefill(self, inputs_embeds: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """inputs_embeds (B,S,D) padded on the right, lengths (B) -> logits (B,V) after each row's last position"""
        return self._run(inputs_embeds, lengths.astype(np.int64))

    def step(self, inputs_embeds: np.ndarray) -> np.ndarray:
        """inputs_embeds (B,1,D) -> logits (B,V)"""
        return self._run(inputs_embeds, np.ones_like(self.lengths))

    def _make_cache(self, inputs: Mapping[str, ort.NodeArg], shape: tuple[int, ...]) -> Any:
        return [ort.OrtValue.ortvalue_from_numpy(buffer) for buffer in np.full(shape, _POISON, np.float32)]

    def _run(self, inputs_embeds: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Read counts (B) new positions of each row."""
        inputs, outputs = native.component_tensors("llm", self.layers)
        positions = self.lengths[:, None] + np.arange(inputs_embeds.shape[1])
        self.lengths = self.lengths + counts
        feeds = (
            np.ascontiguousarray(inputs_embeds, np.float32),
            positions,
            counts - 1,
            (self.lengths - 1).astype(np.int32),
            np.array(self.lengths.max(), np.int32),
        )
        binding = self.session.io_binding()
        for name, array in (*zip(inputs, feeds, strict=False), *self.encoded.items()):
            binding.bind_cpu_input(name, array)
        for past, present, buffer in zip(inputs[5:], outputs[1:], self.cache, strict=True):
            binding.bind_ortvalue_input(past, buffer)
            binding.bind_ortvalue_output(present, buffer)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy()  # outputs come in the order of binding


class TrtStepper(Stepper):
    """The same for graphs of the targets trt and trt-native, before a plan is built.

    `top_k` holds the other outputs of the last call: top_logits, top_tokens (B,K), log_sum_exp (B,1).
    """

    def _make_cache(self, inputs: Mapping[str, ort.NodeArg], shape: tuple[int, ...]) -> Any:
        self.in_place = PAST_MASK not in inputs
        return np.full(shape, _POISON, np.float16 if "float16" in inputs["past_key_0"].type else np.float32)

    def _run(self, inputs_embeds: np.ndarray, counts: np.ndarray) -> np.ndarray:
        inputs, outputs = native.component_tensors("llm", self.layers, target="trt", in_place=self.in_place)
        feeds = {
            "inputs_embeds": np.ascontiguousarray(inputs_embeds, np.float32),
            "position_ids": self.lengths[:, None] + np.arange(inputs_embeds.shape[1]),
            "last_index": counts - 1,
            **dict(zip(inputs[3 if self.in_place else 4 :], self.cache, strict=True)),
            **self.encoded,
        }
        if not self.in_place:
            filled = np.arange(self.cache[0].shape[2]) < self.lengths[:, None]
            feeds[PAST_MASK] = np.where(filled, 0, MASKED).astype(np.float32)
        results = dict(zip(outputs, self.session.run(list(outputs), feeds), strict=True))
        for buffer, name in zip(self.cache, outputs[4:], strict=True):
            if self.in_place:
                buffer[:] = results[name]
                continue
            for row, count in enumerate(counts):
                start = self.lengths[row]
                buffer[row, :, start : start + count] = results[name][row, :, :count]
        self.lengths = self.lengths + counts
        self.top_k = {name: results[name] for name in (TOP_LOGITS, TOP_TOKENS, LOG_SUM_EXP)}
        logits: np.ndarray = results[LOGITS]
        return logits
