"""A decoder-only language model -> the graph `llm` of the target trt.

llm: inputs_embeds (B,S,D), position_ids (B,S), last_index (B), [past_mask (B,T)], past_key_i, past_value_i (B,Hkv,T,hd)
     -> logits (B,V), top_logits (B,K), top_tokens (B,K), log_sum_exp (B,1), and keys and values as export.trt.kv_cache
     has them, which tells how they are read and written

Shapes and addresses are the same in every step, as a captured CUDA graph wants them. Knows nothing about precision,
prompts or how tokens are chosen.
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
from ..graphs.llm import builds_causal_masks, custom_attention, geometry, last_logits, padded, reject_unsupported
from ..graphs.rotary import fixed_rope_tables
from .kv_cache import CacheKind, InPlaceCache, ReadOnlyCache

OPSET = 19  # the newest that TensorRT 10.3 (JetPack 6.1) reads whole, and the oldest with fp16 QuantizeLinear
OPSET_IN_PLACE = 24  # the first with TensorScatter; of the other operators that our graphs have, only types differ


def chosen(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits (B,V) -> logits, top_logits (B,K), top_tokens (B,K), log_sum_exp (B,1), a step's few bytes."""
    values, tokens = logits.topk(min(TOP_K, logits.shape[-1]))
    largest = values[:, :1]
    return logits, values, tokens, (logits - largest).exp().sum(-1, keepdim=True).log() + largest


class _Attention:
    """The attention function of one trace: hands each layer to the cache."""

    def __init__(self, cache: ReadOnlyCache | InPlaceCache, positions: int, causal_masks: bool) -> None:
        self.cache, self.positions, self.causal_masks = cache, positions, causal_masks

    @property
    def present(self) -> dict[int, Any]:
        """What each layer leaves of its keys and values."""
        return self.cache.kept

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor,
        attention_mask: Tensor | None = None, scaling: float | None = None, **options: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """query (B,H,S,hd), key and value (B,Hkv,S,hd) -> (B,S,H,hd)"""
        layer, width = module.layer_idx, query.shape[-1]
        window, softcap = options.pop("sliding_window", None), options.pop("softcap", None)
        masked = attention_mask is not None and not self.causal_masks
        reject_unsupported(layer, options, masked, self.present, len(self.cache.past))
        if window is not None and window < self.positions:
            raise Blip2rtError(f"this language model looks back {window} positions at most, which the llm graph of the "
                               f"target trt cannot express: give --max-positions {window} or less")  # fmt: skip
        scale = float(width**-0.5 if scaling is None else scaling)
        if fill := padded(width) - width:
            query, key, value = (nn.functional.pad(each, (0, fill)) for each in (query, key, value))
        mixed = self.cache.attend(layer, query, key, value, scale, softcap)
        return mixed[..., :width].transpose(1, 2), None


class _Decoder(nn.Module):
    """The llm graph as a module: the arguments are the graph's inputs."""

    def __init__(self, llm: Any, layers: int, positions: int, causal_masks: bool, kind: CacheKind) -> None:
        super().__init__()
        self.llm, self.layers, self.positions, self.causal_masks, self.kind = llm, layers, positions, causal_masks, kind

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, last_index: Tensor, *caches: Tensor
    ) -> tuple[Tensor, ...]:
        more, past = split(caches, 2 * self.layers)
        cache = self.kind(position_ids, last_index, past, more)
        attention = _Attention(cache, self.positions, self.causal_masks)
        logits = last_logits(self.llm, attention, self.layers, inputs_embeds, position_ids, last_index)
        return *chosen(logits), *left(cache)


def split(tensors: Sequence[Tensor], past: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Inputs behind last_index -> what a cache has besides, its `past` keys and values."""
    return tensors[: len(tensors) - past], tensors[len(tensors) - past :]


def left(cache: ReadOnlyCache | InPlaceCache) -> list[Tensor]:
    """Return what a cache leaves, each layer's key before its value."""
    return [tensor for layer in range(len(cache.past)) for tensor in cache.kept[layer]]


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


def traced(part: trace.Part, kind: CacheKind) -> ir.Model:
    """Trace an llm graph. The opset is that of the cache's kind."""
    model = trace.trace(part, OPSET)
    if kind is InPlaceCache:
        model.graph.opset_imports[""] = OPSET_IN_PLACE
    return model


def trace_llm(llm: Any, max_positions: int, kind: CacheKind = ReadOnlyCache) -> ir.Model:
    """Trace `llm` of a Hugging Face causal LM in eval mode and float32, for up to `max_positions` positions."""
    shape = geometry(llm)
    inputs, outputs = llm_tensors(shape.layers, target="trt", in_place=kind.in_place)
    values, axes = example(inputs, shape)
    with custom_attention(llm), fixed_rope_tables(llm):
        decoder = _Decoder(llm, shape.layers, min(max_positions, shape.max_positions), builds_causal_masks(llm), kind)
        return traced(trace.Part(LLM, decoder, values, outputs, axes), kind)
