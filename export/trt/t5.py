"""T5's decoder -> the graph `llm` of the target trt; export.trt.llm tells how its cache is read.

llm: inputs_embeds (B,S,D), position_ids (B,S), last_index (B), past_mask (B,T), past_key_i, past_value_i (B,H,T,hd),
     cross_key_i, cross_value_i (B,H,S_enc,hd), encoder_mask (B,S_enc)
     -> logits (B,V), top_logits (B,K), top_tokens (B,K), log_sum_exp (B,1), new_key_i, new_value_i (B,H,S,hd)

The encoder is export.graphs.t5's: it is made of primitive ops already. A slot of the cache holds the position of its
number.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from blip2rt.bundle import LLM, llm_tensors

from ..graphs import t5, trace
from .llm import OPSET, attend, causal_bias, chosen, example


def trace_decoder(model: Any) -> ir.Model:
    """Trace `llm`."""
    shape = t5.geometry(model, 0)
    inputs, outputs = llm_tensors(shape.layers, encoder_decoder=True, target="trt")
    values, axes = example(inputs, shape)
    return trace.trace(trace.Part(LLM, _Decoder(model), values, outputs, axes), OPSET)


class _Decoder(nn.Module):
    """The llm graph as a module: the arguments are the graph's inputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.head, self.scale = model.decoder, model.get_output_embeddings(), t5.head_scale(model)
        self.relative_bias = t5.RelativeBias(model.decoder.block[0].layer[0].SelfAttention, bidirectional=False)

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, last_index: Tensor, past_mask: Tensor, *caches: Tensor
    ) -> tuple[Tensor, ...]:
        *tensors, encoder_mask = caches
        half = len(tensors) // 2
        past, cross = tensors[:half], tensors[half:]
        slots, here = torch.arange(past_mask.shape[1]), position_ids[:, :, None]
        past_bias = self.relative_bias(slots[None, None, :] - here) + past_mask[:, None, None, :]
        new_bias = self.relative_bias(position_ids[:, None, :] - here) + causal_bias(inputs_embeds.shape[1])
        seen = t5.mask_bias(encoder_mask)
        x, new = inputs_embeds, []
        for index, block in enumerate(self.decoder.block):
            pair = slice(2 * index, 2 * index + 2)
            own, crossing, feed_forward = block.layer
            attention, normed = own.SelfAttention, own.layer_norm(x)
            query, *added = (t5.split(part(normed), attention) for part in (attention.q, attention.k, attention.v))
            new += added
            mixed = attend(query, past[pair], added, past_bias, new_bias, None).transpose(1, 2).flatten(2)
            x = x + attention.o(t5.cut(mixed, attention))
            attention = crossing.EncDecAttention
            query = t5.split(attention.q(crossing.layer_norm(x)), attention)
            key, value = cross[pair]
            x = x + attention.o(t5.cut(t5.attend(query, key, value, seen), attention))
            x = feed_forward(x)
        logits = self.head(t5.last(self.decoder.final_layer_norm(x), last_index) * self.scale)
        return *chosen(logits), *new
