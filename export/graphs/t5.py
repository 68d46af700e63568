"""T5 (an encoder-decoder) and mT5 -> the graphs `encoder` and `llm`.

encoder: inputs_embeds (B,S,D), attention_mask (B,S) -> cross_key_i, cross_value_i (B,H,S,hd) of each decoder layer i
llm:     inputs_embeds (B,S,D), position_ids (B,S), last_index (B), seqlens_k (B), total_sequence_length (),
         past_key_i, past_value_i (B,H,T,hd), cross_key_i, cross_value_i (B,H,S_enc,hd), encoder_mask (B,S_enc)
         -> logits (B,V), present_key_i, present_value_i (B,H,T,hd)

Keys and values of image and prompt are computed once. The decoder's self-attention is
com.microsoft::GroupQueryAttention, in place as elsewhere, with T5's relative position bias as attention_bias. The
layers are transformers' modules; attention is written out here, independent of any release's cache and masks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from blip2rt.bundle import ENCODER, LLM
from blip2rt.errors import Blip2rtError
from blip2rt.native import native

from . import fuse, trace
from .llm import Geometry, example_inputs, padded_head_dim

_MASKED = torch.finfo(torch.float32).min
FLOAT_TABLE = "relative_attention_bias"  # an embedding that graphs keep in float
# Self-attention of a decoder layer: (layer, its attention module, hidden states (B,S,D)) -> (B,S,H*hd)
SelfAttention = Callable[[int, Any, Tensor], Tensor]


def start_token(model: Any) -> int:
    """Return the token that the decoder starts from. Raises Blip2rtError if neither of the model's configs names it."""
    for config in (model.config, model.generation_config):
        start = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise Blip2rtError(
        "the language model does not name the token that its decoder starts from: add decoder_start_token_id to its "
        "config.json (T5's is pad_token_id)"
    )


def geometry(t5: Any, max_positions: int) -> Geometry:
    """Read the decoder's geometry. Relative positions have no limit of their own."""
    config = t5.config
    return Geometry(
        layers=len(t5.decoder.block),
        kv_heads=config.num_heads,
        head_dim=padded_head_dim(config.d_kv),
        hidden_size=config.d_model,
        vocab_size=t5.get_output_embeddings().weight.shape[0],
        max_positions=max_positions,
    )


def encoder_graph(t5: Any) -> trace.GraphSpec:
    """The graph `encoder`, before tracing."""
    example = {
        "inputs_embeds": torch.zeros(2, 3, t5.config.d_model),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }
    axes = {name: {0: "B", 1: "S"} for name in example}
    _, outputs = native.component_tensors(ENCODER, len(t5.decoder.block))
    return trace.GraphSpec(ENCODER, _Encoder(t5), example, outputs, axes)


def trace_encoder(t5: Any) -> ir.Model:
    """Trace `encoder`."""
    model = trace.trace(encoder_graph(t5))
    fuse.fuse_rms_norms(model)
    return model


def trace_decoder(t5: Any) -> ir.Model:
    """Trace `llm`."""
    shape = geometry(t5, 0)
    inputs, outputs = native.component_tensors(LLM, shape.layers, encoder_decoder=True)
    example, axes = example_inputs(inputs, shape)
    model = trace.trace(trace.GraphSpec(LLM, _Decoder(t5), example, outputs, axes))
    fuse.fuse_decoder(model)
    return model


def head_scale(t5: Any) -> float:
    """Return the factor that scales hidden states before the output matrix."""
    return float(t5.config.d_model) ** -0.5 if getattr(t5.config, "scale_decoder_outputs", False) else 1.0


class RelativeBias(nn.Module):
    """T5's bias by distance, as a table (H, 1 + 2 * furthest); larger distances share the furthest one's bucket."""

    def __init__(self, stack: Any, bidirectional: bool) -> None:
        """stack: T5's encoder or decoder, whose first layer has the bias of all."""
        super().__init__()
        attention = stack.block[0].layer[0].SelfAttention
        self.furthest = int(attention.relative_attention_max_distance)
        distance = torch.arange(-self.furthest, self.furthest + 1)  # of key from query
        settings = (bidirectional, attention.relative_attention_num_buckets, self.furthest)
        bucket = attention._relative_position_bucket(distance, *settings)
        self.register_buffer("table", attention.relative_attention_bias.weight.detach()[bucket].T.contiguous())
        self.table: Tensor

    def forward(self, distance: Tensor) -> Tensor:
        """distance (B,S,K) of keys from queries -> bias (B,H,S,K)"""
        index = distance.clamp(-self.furthest, self.furthest) + self.furthest
        bias = torch.index_select(self.table, 1, index.flatten())
        return bias.view(-1, *distance.shape).transpose(0, 1)


def _pad_heads(x: Tensor, attention: Any) -> Tensor:
    """(B,S,H*d_kv) -> (B,S,H*hd), each head padded to the width that GroupQueryAttention takes"""
    width = attention.key_value_proj_dim
    fill = padded_head_dim(width) - width
    return nn.functional.pad(x.unflatten(-1, (-1, width)), (0, fill)).flatten(2) if fill else x


def unpad_heads(x: Tensor, attention: Any) -> Tensor:
    """(B,S,H*hd) -> (B,S,H*d_kv)"""
    width = attention.key_value_proj_dim
    padded = padded_head_dim(width)
    return x if padded == width else x.unflatten(-1, (-1, padded))[..., :width].flatten(2)


def split_heads(x: Tensor, attention: Any) -> Tensor:
    """(B,S,H*d_kv) -> (B,H,S,hd)"""
    return _pad_heads(x, attention).unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)


def project_heads(x: Tensor, attention: Any) -> tuple[Tensor, Tensor, Tensor]:
    """x (B,S,D) -> query, key and value, each (B,H,S,hd)"""
    query, key, value = (split_heads(part(x), attention) for part in (attention.q, attention.k, attention.v))
    return query, key, value


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """query (B,H,S,hd), key and value (B,H,K,hd), bias that broadcasts to (B,H,S,K) -> (B,S,H*hd), unscaled"""
    weights = (query @ key.transpose(-1, -2) + bias).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def mask_bias(mask: Tensor) -> Tensor:
    """mask (B,K), 1 for each token -> (B,1,1,K): 0 for tokens, the lowest float elsewhere"""
    return ((1 - mask).float() * _MASKED)[:, None, None, :]


class _Encoder(nn.Module):
    def __init__(self, t5: Any) -> None:
        super().__init__()
        self.encoder = t5.encoder
        self.crossing = nn.ModuleList(block.layer[1].EncDecAttention for block in t5.decoder.block)
        self.bias = RelativeBias(t5.encoder, bidirectional=True)

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        x = inputs_embeds
        positions = torch.arange(x.shape[1])
        bias = self.bias((positions[None, :] - positions[:, None])[None]) + mask_bias(attention_mask)
        for block in self.encoder.block:
            attention, normed = block.layer[0].SelfAttention, block.layer[0].layer_norm(x)
            mixed = attend(*project_heads(normed, attention), bias)
            x = x + attention.o(unpad_heads(mixed, attention))
            x = block.layer[-1](x)
        x = self.encoder.final_layer_norm(x)
        crossing: list[Any] = list(self.crossing)
        return tuple(split_heads(part(x), each) for each in crossing for part in (each.k, each.v))


class T5Decoder(nn.Module):
    """The decoder but for its self-attention, in which targets differ."""

    def __init__(self, t5: Any) -> None:
        super().__init__()
        self.decoder, self.head, self.scale = t5.decoder, t5.get_output_embeddings(), head_scale(t5)

    def logits(
        self, x: Tensor, last_index: Tensor, cross: Sequence[Tensor], encoder_mask: Tensor, self_attend: SelfAttention
    ) -> Tensor:
        """x (B,S,D), keys and values of the encoder's output -> logits (B,V) of each row's last position."""
        masked = mask_bias(encoder_mask)
        for layer, block in enumerate(self.decoder.block):
            own, crossing, feed_forward = block.layer
            attention = own.SelfAttention
            mixed = self_attend(layer, attention, own.layer_norm(x))
            x = x + attention.o(unpad_heads(mixed, attention))
            attention = crossing.EncDecAttention
            query = split_heads(attention.q(crossing.layer_norm(x)), attention)
            mixed = attend(query, cross[2 * layer], cross[2 * layer + 1], masked)
            x = feed_forward(x + attention.o(unpad_heads(mixed, attention)))
        logits: Tensor = self.head(_last_hidden(self.decoder.final_layer_norm(x), last_index) * self.scale)
        return logits


class _Decoder(T5Decoder):
    """The llm graph as a module: its arguments are the graph's inputs."""

    def __init__(self, t5: Any) -> None:
        super().__init__(t5)
        self.bias = RelativeBias(t5.decoder, bidirectional=False)

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, last_index: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        seqlens_k, total_sequence_length, *tensors, encoder_mask = inputs
        past, cross = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        distance = torch.arange(past[0].shape[2])[None, None, :] - position_ids[:, :, None]
        bias = _truncate_keys(self.bias(distance), total_sequence_length)
        present: list[Tensor] = []

        def self_attend(layer: int, attention: Any, x: Tensor) -> Tensor:
            query, key, value = (_pad_heads(part(x), attention) for part in (attention.q, attention.k, attention.v))
            old_key, old_value = past[2 * layer : 2 * layer + 2]
            lengths = seqlens_k, total_sequence_length
            mixed, *new = torch.onnx.ops.symbolic_multi_out(
                "com.microsoft::GroupQueryAttention",
                (query, key, value, old_key, old_value, *lengths, None, None, None, bias),
                {"num_heads": attention.n_heads, "kv_num_heads": attention.n_heads, "scale": 1.0},
                dtypes=(query.dtype, key.dtype, value.dtype),
                shapes=(query.shape, old_key.shape, old_value.shape),
                version=1,
            )
            present.extend(new)
            return mixed

        return self.logits(inputs_embeds, last_index, cross, encoder_mask, self_attend), *present


def _truncate_keys(bias: Tensor, count: Tensor) -> Tensor:
    """bias (B,H,S,T) -> (B,H,S,count), as GroupQueryAttention requires. Tracing sees the longer shape."""
    inputs = (bias, torch.tensor([0]), count.to(torch.int64).reshape(1), torch.tensor([3]))
    cut: Tensor = torch.onnx.ops.symbolic("Slice", inputs, dtype=bias.dtype, shape=bias.shape, version=13)
    return cut


def _last_hidden(hidden: Tensor, last_index: Tensor) -> Tensor:
    """hidden (B,S,D) -> (B,D), before the output matrix reads it"""
    shape = (hidden.shape[0], hidden.shape[2])
    row: Tensor = torch.onnx.ops.symbolic(
        "GatherND", (hidden, last_index[:, None]), {"batch_dims": 1}, dtype=hidden.dtype, shape=shape, version=13
    )
    return row
