"""Any Hugging Face decoder-only language model -> the graphs `embed` and `llm`.

embed: token_ids (B,S) -> token_embeds (B,S,D)
llm:   inputs_embeds (B,S,D), position_ids (B,S), last_index (B), seqlens_k (B), total_sequence_length (),
       past_key_i, past_value_i (B,Hkv,T,hd) -> logits (B,V), present_key_i, present_value_i (B,Hkv,T,hd)

Attention becomes com.microsoft::GroupQueryAttention, which writes the new keys and values in place into the buffer that
the caller binds to past and present. It is put there through transformers' attention interface, so that no architecture
is named here. Knows nothing about prompts, tokenizers or how tokens are chosen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.llm import sees_both_ways

from . import alibi, bidirectional, fuse, trace
from .rotary import Rotary, fixed_rope_tables

_NAME = "blip2rt_group_query"  # our key in transformers' table of attention functions
HEAD_MULTIPLE = 8  # of the width of heads
_IGNORED = {"dropout", "is_causal", "position_ids", "use_cache", "cache_position", "cache", "past_key_values"}
_NEUTRAL = (None, False)
_ANY = 1 << 20  # positions of a model that has no limit


@dataclass(frozen=True)
class Geometry:
    """What the KV cache and the graphs' I/O are made of."""

    layers: int
    kv_heads: int
    head_dim: int  # of the cache: a multiple of HEAD_MULTIPLE
    hidden_size: int
    vocab_size: int
    max_positions: int


def padded(head_dim: int) -> int:
    """Return the width that GroupQueryAttention takes. Zeros fill heads up to it; they change no score and no value."""
    return -(-head_dim // HEAD_MULTIPLE) * HEAD_MULTIPLE


def geometry(llm: Any) -> Geometry:
    """Read the geometry of a causal LM from its config and its embedding table."""
    config = llm.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = alibi.falcon_kv_heads(config) if config.model_type == "falcon" else None
    if config.model_type == "gpt_bigcode" and config.multi_query:
        kv_heads = 1
    table = llm.get_input_embeddings().weight
    return Geometry(
        layers=config.num_hidden_layers,
        kv_heads=kv_heads or getattr(config, "num_key_value_heads", None) or heads,
        head_dim=padded(getattr(config, "head_dim", None) or config.hidden_size // heads),
        hidden_size=table.shape[1],
        vocab_size=llm.get_output_embeddings().weight.shape[0],
        max_positions=getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None) or _ANY,
    )


def reject_unsupported(
    layer: int | None, options: dict[str, Any], masked: bool, present: dict[int, Any], layers: int
) -> None:  # fmt: skip
    """Raise Blip2rtError where the model asks an attention function for something that our graphs do not express."""
    unknown = [k for k, v in options.items() if k not in _IGNORED and not any(v is n for n in _NEUTRAL)]
    if masked:
        unknown.append("attention mask")
    if unknown or layer in present or layer is None or layer >= layers:
        raise Blip2rtError(f"this language model's attention needs {', '.join(unknown) or 'shared layers'}, "
                           "which the llm graph cannot express; use a plain causal decoder")  # fmt: skip


def last_logits(
    llm: Any, attention: Any, layers: int, inputs_embeds: Tensor, position_ids: Tensor, last_index: Tensor
) -> Tensor:
    """Run the model with `attention` in every layer: inputs_embeds (B,S,D) -> logits (B,V) of each row's last position.

    `attention.present` holds what each layer left in the cache.
    """
    rows = last_index[:, None, None]

    def last_only(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        """hidden (B,S,D) -> (B,1,D), before the vocabulary's matrix sees it."""
        hidden = args[0]
        shape = (hidden.shape[0], 1, hidden.shape[2])
        gathered = torch.onnx.ops.symbolic(
            "GatherND", (hidden, rows), {"batch_dims": 1}, dtype=hidden.dtype, shape=shape, version=13
        )
        return (gathered,)

    ALL_ATTENTION_FUNCTIONS.register(_NAME, attention)
    handle = llm.get_output_embeddings().register_forward_pre_hook(last_only)
    try:
        with alibi.intercepted_attention(llm, attention):
            logits: Tensor = llm(inputs_embeds=inputs_embeds, position_ids=position_ids, use_cache=False).logits
    finally:
        handle.remove()
    if len(attention.present) != layers:
        raise Blip2rtError(
            f"{type(llm).__name__} bypasses transformers' attention interface in "
            f"{layers - len(attention.present)} of {layers} layers; it cannot be exported"
        )
    return logits[:, 0]


class _Attention:
    """The attention function of one trace: hands each layer its past and collects its present."""

    def __init__(
        self, past: list[tuple[Tensor, Tensor]], lengths: tuple[Tensor, Tensor], rotary: Rotary,
        tables: tuple[Tensor, ...], causal_masks: bool, bias: Tensor | None = None,
        both: bidirectional.BidirectionalPrompt | None = None,
    ) -> None:  # fmt: skip
        self.bias, self.both = bias, both
        self.past, self.lengths, self.rotary = past, lengths, rotary
        self.tables = tables
        self.causal_masks = causal_masks
        self.present: dict[int, tuple[Tensor, Tensor]] = {}

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
        layer = module.layer_idx
        window, softcap = options.pop("sliding_window", None), options.pop("softcap", None)
        masked = attention_mask is not None and not self.causal_masks
        if self.both is not None and softcap is not None:
            options["softcap"] = softcap
        reject_unsupported(layer, options, masked, self.present, len(self.past))
        batch, heads, length, width = query.shape
        attributes: dict[str, Any] = {
            "num_heads": heads,
            "kv_num_heads": key.shape[1],
            "scale": float(width**-0.5 if scaling is None else scaling),
        }
        if window is not None:
            attributes["local_window_size"] = int(window)
        if softcap is not None:
            attributes["softcap"] = float(softcap)
        tables = self.tables if self.rotary.take() else ()
        if tables:
            attributes["do_rotary"] = 1
        fill = padded(width) - width
        if fill:
            query, key, value = (nn.functional.pad(each, (0, fill)) for each in (query, key, value))
        flat = [each.transpose(1, 2).reshape(batch, length, -1) for each in (query, key, value)]
        past = self.past[layer]
        more: tuple[Tensor | None, ...] = tables
        if self.bias is not None:
            more = (*(tables or (None, None)), None, self.bias)
        out, *present = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (*flat, *past, *self.lengths, *more),
            attributes,
            dtypes=(query.dtype, key.dtype, value.dtype),
            shapes=(flat[0].shape, past[0].shape, past[1].shape),
            version=1,
        )
        self.present[layer] = (present[0], present[1])
        if self.both is not None:
            assert not tables, "queries and keys are rotated already"
            out = self.both.over(out, query, key, value, attributes["scale"], window)
        return out.reshape(batch, length, heads, width + fill)[..., :width], None


class _Decoder(nn.Module):
    """The llm graph as a module: the arguments are the graph's inputs."""

    def __init__(self, llm: Any, layers: int, rotary: Rotary, causal_masks: bool, positions: int) -> None:
        super().__init__()
        self.llm, self.layers, self.rotary, self.causal_masks = llm, layers, rotary, causal_masks
        for name, table in zip(("cos", "sin"), rotary.tables, strict=False):
            self.register_buffer(name, table)
        self.slopes, self.rounded = alibi.slopes(llm), alibi.rounded(llm, positions)
        self.both_ways = sees_both_ways(llm.config)

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, last_index: Tensor, seqlens_k: Tensor,
        total_sequence_length: Tensor, *past: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        pairs = list(zip(past[::2], past[1::2], strict=True))
        tables = tuple(self.buffers(recurse=False))
        bias = None
        if self.slopes is not None:
            bias = alibi.bias(self.slopes, position_ids, pairs[0][0].shape[2])
            bias = truncate_keys(bias, total_sequence_length)
        if self.rounded is not None:
            heads = self.llm.config.get_text_config().num_attention_heads
            bias = alibi.lookup(self.rounded, heads, pairs[0][0].shape[2])
            bias = truncate_keys(bias, total_sequence_length)
            bias = bias + torch.zeros(1, 1, position_ids.shape[1], 1)  # (1,H,S,T), whatever T has become
        both = bidirectional.BidirectionalPrompt(position_ids, last_index) if self.both_ways else None
        lengths = seqlens_k, total_sequence_length
        attention = _Attention(pairs, lengths, self.rotary, tables, self.causal_masks, bias, both)
        logits = last_logits(self.llm, attention, self.layers, inputs_embeds, position_ids, last_index)
        present = [tensor for layer in range(self.layers) for tensor in attention.present[layer]]
        return logits, *present


def truncate_keys(bias: Tensor, count: Tensor) -> Tensor:
    """bias (B,H,S,T) -> (B,H,S,count), which is what GroupQueryAttention wants. Tracing sees the longer shape."""
    start, axis = torch.tensor([0]), torch.tensor([3])
    end = count.to(torch.int64).reshape(1)
    inputs = (bias, start, end, axis)
    cut: Tensor = torch.onnx.ops.symbolic("Slice", inputs, dtype=bias.dtype, shape=bias.shape, version=13)
    return cut


@contextlib.contextmanager
def custom_attention(llm: Any) -> Iterator[None]:
    """Have the model call our attention function. transformers has no mask for it, so none is traced."""
    config = llm.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(_NAME, None)


@torch.no_grad()
def builds_causal_masks(llm: Any) -> bool:
    """Whether the model makes its masks itself, and they hide the future alone, as GroupQueryAttention does.

    Some models do so in older releases of transformers.
    """
    if not any(hasattr(module, "_update_causal_mask") for module in llm.modules()):
        return False
    masks: list[Tensor | None] = []

    def record(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> Any:
        masks.append(attention_mask)
        return query.transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register(_NAME, record)
    length = 4
    llm(inputs_embeds=torch.zeros(1, length, llm.get_input_embeddings().weight.shape[1]), use_cache=False)
    past = torch.ones(length, length, dtype=torch.bool).tril()
    seen = [None if mask is None else (mask if mask.dtype == torch.bool else mask == 0)[0, 0] for mask in masks]
    return all(mask is not None and torch.equal(mask[:, :length], past) for mask in seen)


def cache_names(layers: int, kind: str) -> list[str]:
    """past_key_0, past_value_0, past_key_1, ... in the order of the graph's inputs; its outputs are of kind present."""
    return [f"{kind}_{part}_{layer}" for layer in range(layers) for part in ("key", "value")]


def trace_llm(llm: Any, max_positions: int = 1024) -> ir.Model:
    """Trace `llm` of a Hugging Face causal LM in eval mode and float32, for up to `max_positions` positions."""
    if llm.config.is_encoder_decoder:
        raise Blip2rtError(f"{type(llm).__name__} is an encoder-decoder; only decoder-only models are exported")
    shape = geometry(llm)
    batch, length, capacity = 2, 3, 5
    past = torch.zeros(batch, shape.kv_heads, capacity, shape.head_dim)
    names = cache_names(shape.layers, "past")
    example = {
        "inputs_embeds": torch.zeros(batch, length, shape.hidden_size),
        "position_ids": torch.arange(length).expand(batch, length).contiguous(),
        "last_index": torch.tensor([length - 1, length - 2]),
        "seqlens_k": torch.tensor([length - 1, length - 2], dtype=torch.int32),
        "total_sequence_length": torch.tensor(length, dtype=torch.int32),
        **{name: past.clone() for name in names},
    }
    axes = {"inputs_embeds": {0: "B", 1: "S"}, "position_ids": {0: "B", 1: "S"}, "last_index": {0: "B"},
            "seqlens_k": {0: "B"}, **{name: {0: "B", 2: "T"} for name in names}}  # fmt: skip
    positions = min(max_positions, shape.max_positions)
    outputs = ["logits", *cache_names(shape.layers, "present")]
    with custom_attention(llm), fixed_rope_tables(llm):
        rotary = Rotary(llm, shape.head_dim, positions)
        decoder = _Decoder(llm, shape.layers, rotary, builds_causal_masks(llm), positions)
        with rotary.removed():
            model = trace.trace(trace.Part("llm", decoder, example, outputs, axes))
    fuse.fuse_decoder(model)
    return model


def embed_part(llm: Any) -> trace.Part:
    """token_ids (B,S) -> token_embeds (B,S,D): the LM's own input embedding, with the scaling that it applies."""
    example = {"token_ids": torch.zeros(2, 3, dtype=torch.int64)}
    axes = {"token_ids": {0: "B", 1: "S"}}
    return trace.Part("embed", llm.get_input_embeddings(), example, ["token_embeds"], axes)
