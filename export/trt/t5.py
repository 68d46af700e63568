"""T5's decoder -> the graph `llm` of the target trt; export.trt.kv_cache tells how its cache is read and written.

llm: inputs_embeds (B,S,D), position_ids (B,S), last_index (B), [past_mask (B,T)], past_key_i, past_value_i (B,H,T,hd),
     cross_key_i, cross_value_i (B,H,S_enc,hd), encoder_mask (B,S_enc)
     -> logits (B,V), top_logits (B,K), top_tokens (B,K), log_sum_exp (B,1), and keys and values

The encoder is export.graphs.t5's: it is made of primitive ops already. A slot of the cache holds the position of its
number.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from torch import Tensor, nn

from blip2rt.bundle import LLM, llm_tensors

from ..graphs import t5, trace
from .kv_cache import CacheKind, ReadOnlyCache
from .llm import chosen, example, left, split, traced


def trace_decoder(model: Any, kind: CacheKind = ReadOnlyCache) -> ir.Model:
    """Trace `llm`."""
    shape = t5.geometry(model, 0)
    inputs, outputs = llm_tensors(shape.layers, encoder_decoder=True, target="trt", in_place=kind.in_place)
    values, axes = example(inputs, shape)
    return traced(trace.Part(LLM, _Decoder(model, kind), values, outputs, axes), kind)


class _Decoder(nn.Module):
    """The llm graph as a module: the arguments are the graph's inputs."""

    def __init__(self, model: Any, kind: CacheKind) -> None:
        super().__init__()
        self.decoder, self.head, self.scale = model.decoder, model.get_output_embeddings(), t5.head_scale(model)
        self.relative_bias = t5.RelativeBias(model.decoder.block[0].layer[0].SelfAttention, bidirectional=False)
        self.kind = kind

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, last_index: Tensor, *caches: Tensor
    ) -> tuple[Tensor, ...]:
        *tensors, encoder_mask = caches
        count = 2 * len(self.decoder.block)
        before, cross = tensors[: len(tensors) - count], tensors[len(tensors) - count :]
        more, past = split(before, count)
        cache = self.kind(position_ids, last_index, past, more, self.relative_bias)
        seen = t5.mask_bias(encoder_mask)
        x = inputs_embeds
        for index, block in enumerate(self.decoder.block):
            own, crossing, feed_forward = block.layer
            attention, normed = own.SelfAttention, own.layer_norm(x)
            query, key, value = (t5.split(part(normed), attention) for part in (attention.q, attention.k, attention.v))
            mixed = cache.attend(index, query, key, value).transpose(1, 2).flatten(2)
            x = x + attention.o(t5.cut(mixed, attention))
            attention = crossing.EncDecAttention
            query = t5.split(attention.q(crossing.layer_norm(x)), attention)
            crossed = cross[2 * index], cross[2 * index + 1]
            x = x + attention.o(t5.cut(t5.attend(query, *crossed, seen), attention))
            x = feed_forward(x)
        logits = self.head(t5.last(self.decoder.final_layer_norm(x), last_index) * self.scale)
        return *chosen(logits), *left(cache)
