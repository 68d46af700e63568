"""A decoder-only language model as the graph `llm` of the target trt.

llm: inputs_embeds (B,S,D), position_ids (B,S), last_index (B), past_mask (B,T), past_key_i, past_value_i (B,Hkv,T,hd)
     -> logits (B,V), new_key_i, new_value_i (B,Hkv,S,hd); kv_cache.py describes how these are read

Shapes and addresses are the same in every step, as a captured CUDA graph requires.
"""

from typing import Any

import onnx_ir as ir
from torch import Tensor, nn

from blip2rt.bundle import LLM
from blip2rt.errors import Blip2rtError
from blip2rt.native import native

from ..graphs import llm as ort_llm
from ..graphs import trace
from ..graphs.rotary import fixed_rope_tables
from .kv_cache import Cache

OPSET = 19  # the newest that TensorRT 10.3 (JetPack 6.1) reads completely, and the oldest with fp16 QuantizeLinear


class _Attention:
    """The attention function of one trace: hands each layer to the cache."""

    def __init__(self, cache: Cache, positions: int) -> None:
        self.cache, self.positions, self.present = cache, positions, cache.present

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """query (B,H,S,hd), key and value (B,Hkv,S,hd) -> (B,S,H,hd)"""
        layer, width = module.layer_idx, query.shape[-1]
        window, softcap = options.pop("sliding_window", None), options.pop("softcap", None)
        ort_llm.reject_unsupported(layer, options, attention_mask is not None, self.present, len(self.cache.past))
        if window is not None and window < self.positions:
            raise Blip2rtError(
                f"this language model has a sliding window of {window} positions, which the llm graph of the target "
                f"trt cannot express: give --max-positions {window} or less"
            )
        scale = float(width**-0.5 if scaling is None else scaling)
        if fill := ort_llm.padded_head_dim(width) - width:
            query, key, value = (nn.functional.pad(each, (0, fill)) for each in (query, key, value))
        mixed = self.cache.attend(layer, query, key, value, scale, softcap)
        return mixed[..., :width].transpose(1, 2), None


class _Decoder(nn.Module):
    """The llm graph as a module: its arguments are the graph's inputs."""

    def __init__(self, llm: Any, layers: int, positions: int) -> None:
        super().__init__()
        self.llm, self.layers, self.positions = llm, layers, positions

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, last_index: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        cache = Cache(position_ids, inputs)
        attention = _Attention(cache, self.positions)
        logits = ort_llm.last_logits(self.llm, attention, self.layers, inputs_embeds, position_ids, last_index)
        return logits, *cache.outputs()


def trace_llm(llm: Any, max_positions: int) -> ir.Model:
    """Trace `llm` of a Hugging Face causal LM in eval mode and float32, for up to `max_positions` positions."""
    shape = ort_llm.geometry(llm)
    inputs, outputs = native.component_tensors(LLM, shape.layers, target="trt")
    example, axes = ort_llm.example_inputs(inputs, shape)
    with ort_llm.custom_attention(llm), fixed_rope_tables(llm):
        decoder = _Decoder(llm, shape.layers, min(max_positions, shape.max_positions))
        return trace.trace(trace.GraphSpec(LLM, decoder, example, outputs, axes), OPSET)
