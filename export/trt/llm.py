"""A decoder-only language model -> the graph `llm` of the target trt, in primitive ops alone.

llm: inputs_embeds (B,S,D), position_ids (B,S), last_index (B), past_mask (B,T), past_key_i, past_value_i (B,Hkv,T,hd)
     -> logits (B,V), top_logits (B,K), top_tokens (B,K), log_sum_exp (B,1), new_key_i, new_value_i (B,Hkv,S,hd)

The cache has a fixed capacity T and is only read: `past_mask` is added to the scores of its T slots (0 where a slot is
filled, MASKED elsewhere), and the caller writes the new slices behind what is there. Shapes and addresses are then the
same in every step, as a captured CUDA graph wants them. Scores of old and new keys are computed apart and joined before
the softmax, so that the cache is never copied. Knows nothing about precision, prompts or how tokens are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from blip2rt.bundle import LLM, TOP_K, llm_tensors
from blip2rt.errors import Blip2rtError

from ..graphs import trace
from ..graphs.llm import geometry, last_logits, makes_causal_masks, our_attention, padded, refuse_unknown
from ..graphs.rotary import unchanging

OPSET = 19  # the newest that TensorRT 10.3 (JetPack 6.1) reads whole, and the oldest with fp16 QuantizeLinear
MASKED = -1e9  # finite, so that a row whose slots are all masked gives no NaN

Pair = Sequence[Tensor]  # key, value


def attend(query: Tensor, past: Pair, new: Pair, past_bias: Tensor, new_bias: Tensor, softcap: float | None) -> Tensor:
    """query (B,H,S,hd), scaled; past (B,Hkv,T,hd), new (B,Hkv,S,hd); biases that broadcast -> (B,H,S,hd).

    Query heads that share a key head are rows of one product: (B,Hkv,G*S,hd).
    """
    heads, length, kv_heads, capacity = query.shape[1], query.shape[2], new[0].shape[1], past[0].shape[2]
    groups = heads // kv_heads
    if groups > 1:
        query = query.unflatten(1, (kv_heads, groups)).flatten(2, 3)
        new_bias = new_bias.repeat(groups, 1)
    scores = [query @ key.transpose(-1, -2) for key in (past[0], new[0])]
    if softcap is not None:
        scores = [(each / softcap).tanh() * softcap for each in scores]
    weights = torch.cat((scores[0] + past_bias, scores[1] + new_bias), -1).softmax(-1)
    out = weights[..., :capacity] @ past[1] + weights[..., capacity:] @ new[1]
    return out.unflatten(2, (groups, length)).flatten(1, 2) if groups > 1 else out


def causal_bias(length: int) -> Tensor:
    """Make (S,S): 0 up to the diagonal, MASKED right of it."""
    position = torch.arange(length)
    return (position[None, :] > position[:, None]).float() * MASKED


def chosen(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits (B,V) -> logits, top_logits (B,K), top_tokens (B,K), log_sum_exp (B,1), a step's few bytes."""
    values, tokens = logits.topk(min(TOP_K, logits.shape[-1]))
    largest = values[:, :1]
    return logits, values, tokens, (logits - largest).exp().sum(-1, keepdim=True).log() + largest


class _Attention:
    """The attention function of one trace: hands each layer its past and collects the new keys and values."""

    def __init__(self, past: list[Pair], past_mask: Tensor, length: int, positions: int, causal_masks: bool) -> None:
        self.past, self.positions, self.causal_masks = past, positions, causal_masks
        self.past_bias, self.new_bias = past_mask[:, None, None, :], causal_bias(length)
        self.present: dict[int, Pair] = {}

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor,
        attention_mask: Tensor | None = None, scaling: float | None = None, **options: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """query (B,H,S,hd), key and value (B,Hkv,S,hd) -> (B,S,H,hd)"""
        layer, width = module.layer_idx, query.shape[-1]
        window, softcap = options.pop("sliding_window", None), options.pop("softcap", None)
        masked = attention_mask is not None and not self.causal_masks
        refuse_unknown(layer, options, masked, self.present, len(self.past))
        if window is not None and window < self.positions:
            raise Blip2rtError(f"this language model looks back {window} positions at most, which the llm graph of the "
                               f"target trt cannot express: give --max-positions {window} or less")  # fmt: skip
        query = query * float(width**-0.5 if scaling is None else scaling)
        if fill := padded(width) - width:
            query, key, value = (nn.functional.pad(each, (0, fill)) for each in (query, key, value))
        self.present[layer] = (key, value)
        mixed = attend(query, self.past[layer], (key, value), self.past_bias, self.new_bias, softcap)
        return mixed[..., :width].transpose(1, 2), None


class _Decoder(nn.Module):
    """The llm graph as a module: the arguments are the graph's inputs."""

    def __init__(self, llm: Any, layers: int, positions: int, causal_masks: bool) -> None:
        super().__init__()
        self.llm, self.layers, self.positions, self.causal_masks = llm, layers, positions, causal_masks

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, last_index: Tensor, past_mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        pairs: list[Pair] = list(zip(past[::2], past[1::2], strict=True))
        attention = _Attention(pairs, past_mask, inputs_embeds.shape[1], self.positions, self.causal_masks)
        logits = last_logits(self.llm, attention, self.layers, inputs_embeds, position_ids, last_index)
        new = [tensor for layer in range(self.layers) for tensor in attention.present[layer]]
        return *chosen(logits), *new


def example(inputs: Sequence[str], shape: Any) -> tuple[dict[str, Tensor], dict[str, Mapping[int, str]]]:
    """Make what an llm graph is traced with, and its free axes, for the tensors named `inputs`."""
    batch, length, capacity, seen = 2, 3, 5, 4
    past, cross = (torch.zeros(batch, shape.kv_heads, size, shape.head_dim) for size in (capacity, seen))
    fixed = {
        "inputs_embeds": (torch.zeros(batch, length, shape.hidden_size), "BS"),
        "position_ids": (torch.arange(length).expand(batch, length).contiguous(), "BS"),
        "last_index": (torch.tensor([length - 1, length - 2]), "B"),
        "past_mask": (torch.zeros(batch, capacity), "BT"),
        "encoder_mask": (torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), ("B", "S_enc")),
    }
    values: dict[str, Tensor] = {}
    axes: dict[str, Mapping[int, str]] = {}
    for name in inputs:
        if name in fixed:
            values[name], letters = fixed[name]
            axes[name] = dict(enumerate(letters))
        else:
            values[name], letter = (past.clone(), "T") if name.startswith("past_") else (cross.clone(), "S_enc")
            axes[name] = {0: "B", 2: letter}
    return values, axes


def trace_llm(llm: Any, max_positions: int) -> ir.Model:
    """Trace `llm` of a Hugging Face causal LM in eval mode and float32, for up to `max_positions` positions."""
    shape = geometry(llm)
    inputs, outputs = llm_tensors(shape.layers, target="trt")
    values, axes = example(inputs, shape)
    with our_attention(llm), unchanging(llm):
        decoder = _Decoder(llm, shape.layers, min(max_positions, shape.max_positions), makes_causal_masks(llm))
        return trace.trace(trace.Part(LLM, decoder, values, outputs, axes), OPSET)
