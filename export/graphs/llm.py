"""Trace any decoder-only language model of Hugging Face as the graphs `embed` and `llm`.

embed: token_ids (B,S) -> token_embeds (B,S,D)
llm:   inputs_embeds (B,S,D), position_ids (B,S), last_index (B), seqlens_k (B), total_sequence_length (),
       past_key_i, past_value_i (B,Hkv,T,hd) -> logits (B,V), present_key_i, present_value_i (B,Hkv,T,hd)

Attention becomes com.microsoft::GroupQueryAttention, which writes new keys and values in place into the buffer that the
caller binds to past and present. It is inserted through transformers' attention interface, so no architecture is named
here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from blip2rt.bundle import EMBED, LLM
from blip2rt.errors import Blip2rtError
from blip2rt.native import native

from . import fuse, trace
from .rotary import Rotary, fixed_rope_tables

HEAD_MULTIPLE = 8  # GroupQueryAttention takes head widths that are multiples of this
_NAME = "blip2rt_group_query"  # our key in transformers' table of attention functions
_IGNORED = {"dropout", "is_causal", "position_ids", "use_cache", "cache_position", "cache", "past_key_values"}
_UNLIMITED = 1 << 20  # max_positions of a model that has no limit


@dataclass(frozen=True)
class Geometry:
    """Sizes of the KV cache and of the graphs' inputs and outputs."""

    layers: int
    kv_heads: int
    head_dim: int  # of the cache: a multiple of HEAD_MULTIPLE
    hidden_size: int
    vocab_size: int
    max_positions: int


def padded_head_dim(head_dim: int) -> int:
    """Round a head's width up to what GroupQueryAttention takes. The padding is 0 and changes no score or value."""
    return -(-head_dim // HEAD_MULTIPLE) * HEAD_MULTIPLE


def geometry(llm: Any) -> Geometry:
    """Read the geometry of a causal LM from its config and its embedding table."""
    config = llm.config.get_text_config()
    heads = config.num_attention_heads
    shared = config.model_type == "gpt_bigcode" and config.multi_query
    limit = getattr(config, "max_position_embeddings", None)
    return Geometry(
        layers=config.num_hidden_layers,
        kv_heads=1 if shared else getattr(config, "num_key_value_heads", None) or heads,
        head_dim=padded_head_dim(getattr(config, "head_dim", None) or config.hidden_size // heads),
        hidden_size=llm.get_input_embeddings().weight.shape[1],
        vocab_size=llm.get_output_embeddings().weight.shape[0],
        max_positions=limit or _UNLIMITED,
    )


def example_inputs(names: Sequence[str], shape: Geometry) -> tuple[dict[str, Tensor], dict[str, Mapping[int, str]]]:
    """Make the inputs that an llm graph with inputs `names` is traced with, and name their free axes."""
    batch, length, capacity, encoder_length = 2, 3, 5, 4
    last = torch.tensor([length - 1, length - 2])
    fixed: dict[str, tuple[Tensor, Sequence[str]]] = {
        "inputs_embeds": (torch.zeros(batch, length, shape.hidden_size), "BS"),
        "position_ids": (torch.arange(length).expand(batch, length).contiguous(), "BS"),
        "last_index": (last, "B"),
        "seqlens_k": (last.to(torch.int32), "B"),
        "total_sequence_length": (torch.tensor(length, dtype=torch.int32), ""),
        "past_mask": (torch.zeros(batch, capacity), "BT"),
        "encoder_mask": (torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), ("B", "S_enc")),
    }
    values: dict[str, Tensor] = {}
    axes: dict[str, Mapping[int, str]] = {}
    for name in names:
        if name in fixed:
            values[name], letters = fixed[name]
            axes[name] = dict(enumerate(letters))
        else:
            size, letter = (capacity, "T") if name.startswith("past_") else (encoder_length, "S_enc")
            values[name] = torch.zeros(batch, shape.kv_heads, size, shape.head_dim)
            axes[name] = {0: "B", 2: letter}
    return values, axes


def reject_unsupported(
    layer: int | None, options: Mapping[str, Any], masked: bool, present: Mapping[int, Any], layers: int
) -> None:
    """Raise Blip2rtError if the model asks an attention function for something that the graphs cannot express."""
    unknown = [
        name for name, value in options.items() if name not in _IGNORED and value is not None and value is not False
    ]
    if masked:
        unknown.append("attention mask")
    if unknown or layer in present or layer is None or layer >= layers:
        raise Blip2rtError(
            f"this language model's attention needs {', '.join(unknown) or 'shared layers'}, "
            "which the llm graph cannot express; use a plain causal decoder"
        )


def last_logits(
    llm: Any, attention: Any, layers: int, inputs_embeds: Tensor, position_ids: Tensor, last_index: Tensor
) -> Tensor:
    """Run the model with `attention` in every layer: inputs_embeds (B,S,D) -> logits (B,V) of each row's last position.

    `attention.present` collects the new keys and values of each layer.
    """
    rows = last_index[:, None, None]

    def gather_last(_: nn.Module, args: tuple[Tensor, ...]) -> Any:
        """hidden (B,S,D) -> (B,1,D), before the output matrix reads it."""
        [hidden] = args
        shape = (hidden.shape[0], 1, hidden.shape[2])
        return torch.onnx.ops.symbolic(
            "GatherND", (hidden, rows), {"batch_dims": 1}, dtype=hidden.dtype, shape=shape, version=13
        )

    ALL_ATTENTION_FUNCTIONS.register(_NAME, attention)
    handle = llm.get_output_embeddings().register_forward_pre_hook(gather_last)
    try:
        logits: Tensor = llm(inputs_embeds=inputs_embeds, position_ids=position_ids, use_cache=False).logits
    finally:
        handle.remove()
    if len(attention.present) != layers:
        raise Blip2rtError(
            f"{type(llm).__name__} bypasses transformers' attention interface in "
            f"{layers - len(attention.present)} of {layers} layers and cannot be exported; use another language model"
        )
    return logits[:, 0]


class _Attention:
    """The attention function of one trace: gives each layer its past and collects its present."""

    def __init__(self, decoder: _Decoder, past: Sequence[Tensor], lengths: tuple[Tensor, Tensor]) -> None:
        self.decoder, self.lengths = decoder, lengths
        self.past = list(zip(past[::2], past[1::2], strict=True))
        self.tables = tuple(decoder.buffers(recurse=False))
        self.present: dict[int, Sequence[Tensor]] = {}

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
        layer, (batch, heads, length, width) = module.layer_idx, query.shape
        window, softcap = options.pop("sliding_window", None), options.pop("softcap", None)
        reject_unsupported(layer, options, attention_mask is not None, self.present, len(self.past))
        scale = float(width**-0.5 if scaling is None else scaling)
        attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": key.shape[1], "scale": scale}
        if window is not None:
            attributes["local_window_size"] = int(window)
        if softcap is not None:
            attributes["softcap"] = float(softcap)
        tables: tuple[Tensor | None, ...] = self.tables if self.decoder.rotary.consume() else ()
        if tables:
            attributes["do_rotary"] = 1
        if fill := padded_head_dim(width) - width:
            query, key, value = (nn.functional.pad(each, (0, fill)) for each in (query, key, value))
        flat = [each.transpose(1, 2).reshape(batch, length, -1) for each in (query, key, value)]
        past = self.past[layer]
        out, *self.present[layer] = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (*flat, *past, *self.lengths, *tables),
            attributes,
            dtypes=(query.dtype, key.dtype, value.dtype),
            shapes=(flat[0].shape, past[0].shape, past[1].shape),
            version=1,
        )
        return out.reshape(batch, length, heads, width + fill)[..., :width], None


class _Decoder(nn.Module):
    """The llm graph as a module: its arguments are the graph's inputs."""

    def __init__(self, llm: Any, layers: int, rotary: Rotary) -> None:
        super().__init__()
        self.llm, self.layers, self.rotary = llm, layers, rotary
        for name, table in zip(("cos", "sin"), rotary.tables, strict=False):
            self.register_buffer(name, table)

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, last_index: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        seqlens_k, total_sequence_length, *past = inputs
        attention = _Attention(self, past, (seqlens_k, total_sequence_length))
        logits = last_logits(self.llm, attention, self.layers, inputs_embeds, position_ids, last_index)
        return logits, *(tensor for layer in range(self.layers) for tensor in attention.present[layer])


@contextlib.contextmanager
def custom_attention(llm: Any) -> Iterator[None]:
    """Make the model call our attention function. transformers builds no mask for it, so none is traced."""
    config = llm.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(_NAME, None)


def trace_llm(llm: Any, max_positions: int = 1024) -> ir.Model:
    """Trace `llm` of a Hugging Face causal LM in eval mode and float32, for up to `max_positions` positions."""
    if llm.config.is_encoder_decoder:
        raise Blip2rtError(f"{type(llm).__name__} is an encoder-decoder; only decoder-only models are exported")
    shape = geometry(llm)
    inputs, outputs = native.component_tensors(LLM, shape.layers)
    example, axes = example_inputs(inputs, shape)
    with custom_attention(llm), fixed_rope_tables(llm):
        rotary = Rotary(llm, shape.head_dim, min(max_positions, shape.max_positions))
        decoder = _Decoder(llm, shape.layers, rotary)
        with rotary.bypassed():
            model = trace.trace(trace.GraphSpec(LLM, decoder, example, outputs, axes))
    fuse.fuse_decoder(model)
    return model


def embed_graph(llm: Any) -> trace.GraphSpec:
    """token_ids (B,S) -> token_embeds (B,S,D): the LM's input embedding, with any scaling that it applies."""
    example = {"token_ids": torch.zeros(2, 3, dtype=torch.int64)}
    axes = {"token_ids": {0: "B", 1: "S"}}
    return trace.GraphSpec(EMBED, llm.get_input_embeddings(), example, ["token_embeds"], axes)
