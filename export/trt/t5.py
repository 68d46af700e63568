"""T5's decoder as the graph `llm` of the target trt; kv_cache.py describes how its cache is read.

llm: inputs_embeds (B,S,D), position_ids (B,S), last_index (B), past_mask (B,T), past_key_i, past_value_i (B,H,T,hd),
     cross_key_i, cross_value_i (B,H,S_enc,hd), encoder_mask (B,S_enc)
     -> logits (B,V), new_key_i, new_value_i (B,H,S,hd)

The encoder is that of graphs/t5.py, made of primitive operators already. Slot j of the cache holds position j.
"""

from typing import Any

import onnx_ir as ir
from torch import Tensor

from blip2rt.bundle import LLM
from blip2rt.native import native

from ..graphs import t5, trace
from ..graphs.llm import example_inputs
from .kv_cache import Cache
from .llm import OPSET


def trace_decoder(model: Any) -> ir.Model:
    """Trace `llm`."""
    shape = t5.geometry(model, 0)
    inputs, outputs = native.component_tensors(LLM, shape.layers, True, "trt")
    example, axes = example_inputs(inputs, shape)
    return trace.trace(trace.GraphSpec(LLM, _Decoder(model), example, outputs, axes), OPSET)


class _Decoder(t5.T5Decoder):
    """The llm graph as a module: its arguments are the graph's inputs."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.relative_bias = t5.RelativeBias(model.decoder, bidirectional=False)

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, last_index: Tensor, *caches: Tensor
    ) -> tuple[Tensor, ...]:
        *tensors, encoder_mask = caches
        own, cross = tensors[: -2 * len(self.decoder.block)], tensors[-2 * len(self.decoder.block) :]
        cache = Cache(position_ids, own, self.relative_bias)

        def self_attend(layer: int, attention: Any, x: Tensor) -> Tensor:
            return cache.attend(layer, *t5.project_heads(x, attention)).transpose(1, 2).flatten(2)

        logits = self.logits(inputs_embeds, last_index, cross, encoder_mask, self_attend)
        return logits, *cache.outputs()
