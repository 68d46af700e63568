"""Steps an `llm` graph of the target trt in ONNX Runtime as TensorRT will, whichever way its cache is written.

TrtStepper has the methods of export.checks.stepper.Stepper. It verifies graphs before a plan is built.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from blip2rt.bundle import LOG_SUM_EXP, LOGITS, PAST_MASK, TOP_LOGITS, TOP_TOKENS, llm_tensors

from ..trt.kv_cache import MASKED


class TrtStepper:
    """A batch in flight: `prefill` once, then `step` as often as the capacity allows.

    `chosen` holds what the last call returned besides logits: top_logits, top_tokens (B,K), log_sum_exp (B,1).
    """

    def __init__(
        self, llm: ort.InferenceSession, batch: int, capacity: int, seen: Mapping[str, np.ndarray] | None = None
    ) -> None:
        values = {value.name: value for value in llm.get_inputs()}
        self.layers = sum(name.startswith("past_key_") for name in values)
        _, heads, _, width = values["past_key_0"].shape
        dtype = np.float16 if "float16" in values["past_key_0"].type else np.float32
        self.in_place = PAST_MASK not in values
        self.session, self.seen = llm, dict(seen or {})
        self.lengths = np.zeros(batch, np.int64)
        # Filled with a large number: a graph that reads what is masked is found out.
        shape = (2 * self.layers, batch, heads, capacity, width)
        self.cache = np.full(shape, 1e3, dtype)
        self.chosen: dict[str, np.ndarray] = {}

    def prefill(self, inputs_embeds: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """inputs_embeds (B,S,D) padded on the right, lengths (B) -> logits (B,V) after each row's last position."""
        return self._run(inputs_embeds, lengths.astype(np.int64))

    def step(self, inputs_embeds: np.ndarray) -> np.ndarray:
        """inputs_embeds (B,1,D) -> logits (B,V)"""
        return self._run(inputs_embeds, np.ones_like(self.lengths))

    def _run(self, inputs_embeds: np.ndarray, counts: np.ndarray) -> np.ndarray:
        length, capacity = inputs_embeds.shape[1], self.cache.shape[3]
        positions = self.lengths[:, None] + np.arange(length)
        filled = np.arange(capacity) < self.lengths[:, None]
        inputs, outputs = llm_tensors(self.layers, target="trt", in_place=self.in_place)
        feeds = {
            "inputs_embeds": np.ascontiguousarray(inputs_embeds, np.float32),
            "position_ids": positions,
            "last_index": counts - 1,
            **dict(zip(inputs[3 if self.in_place else 4 :], self.cache, strict=True)),
            **self.seen,
        }
        if not self.in_place:
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
        self.chosen = {name: results[name] for name in (TOP_LOGITS, TOP_TOKENS, LOG_SUM_EXP)}
        logits: np.ndarray = results[LOGITS]
        return logits
