"""T5 (an encoder-decoder), mT5 and UMT5 -> the graphs `encoder` and `llm`.

encoder: inputs_embeds (B,S,D), attention_mask (B,S) -> cross_key_i, cross_value_i (B,H,S,hd) of each decoder layer i
llm:     inputs_embeds (B,S,D), position_ids (B,S), last_index (B), seqlens_k (B), total_sequence_length (),
         past_key_i, past_value_i (B,H,T,hd), cross_key_i, cross_value_i (B,H,S_enc,hd), encoder_mask (B,S_enc)
         -> logits (B,V), present_key_i, present_value_i (B,H,T,hd)

What the decoder sees of image and prompt is computed once. Its own attention is com.microsoft::GroupQueryAttention, in
place as elsewhere, with T5's relative position bias as attention_bias. The layers are transformers' modules; the
attention is written out here, so that no release's cache or mask takes part.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
import transformers
from torch import Tensor, nn

from blip2rt.bundle import ENCODER, LLM, encoder_tensors, llm_tensors
from blip2rt.errors import Blip2rtError
from blip2rt.modeling import quantize

from . import fuse, trace
from .llm import Geometry, padded, truncate_keys

_MASKED = torch.finfo(torch.float32).min


def start_token(model: Any) -> int:
    """The token that the decoder begins with. Raises Blip2rtError where neither of the model's configs names it."""
    for config in (model.config, model.generation_config):
        start = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise Blip2rtError(
        "the language model does not say what its decoder begins with: add decoder_start_token_id to its config.json "
        "(T5's is pad_token_id)"
    )


def geometry(t5: Any, max_positions: int) -> Geometry:
    """Read the decoder's geometry. Relative positions have no limit of their own."""
    config = t5.config
    return Geometry(
        layers=len(t5.decoder.block),
        kv_heads=config.num_heads,
        head_dim=padded(config.d_kv),
        hidden_size=config.d_model,
        vocab_size=t5.get_output_embeddings().weight.shape[0],
        max_positions=max_positions,
    )


def round_weights(llm: Any, bits: int, block: int) -> None:
    """Round a language model's weights in place, but for T5's relative positions, which the graphs keep in float."""
    biases = [(m, m.weight) for name, m in llm.named_modules() if name.endswith("relative_attention_bias")]
    kept = [(module, weight, weight.detach().clone()) for module, weight in biases]
    quantize.round_weights(llm, bits, block)
    for module, weight, values in kept:
        weight.data.copy_(values)
        module.weight = weight


def encoder_part(t5: Any) -> trace.Part:
    """The graph `encoder`, not traced yet."""
    example = {
        "inputs_embeds": torch.zeros(2, 3, t5.config.d_model),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }
    axes = {"inputs_embeds": {0: "B", 1: "S"}, "attention_mask": {0: "B", 1: "S"}}
    return trace.Part(ENCODER, _Encoder(t5), example, encoder_tensors(len(t5.decoder.block))[1], axes)


def trace_encoder(t5: Any) -> ir.Model:
    """Trace `encoder`."""
    model = trace.trace(encoder_part(t5))
    fuse.fuse_rms_norms(model)
    fuse.fuse_residuals(model)
    return model


def trace_decoder(t5: Any) -> ir.Model:
    """Trace `llm`."""
    shape = geometry(t5, 0)
    batch, length, capacity, seen = 2, 3, 5, 4
    names, outputs = llm_tensors(shape.layers, encoder_decoder=True)
    past, cross = (torch.zeros(batch, shape.kv_heads, size, shape.head_dim) for size in (capacity, seen))
    layers = 2 * shape.layers
    values = [
        torch.zeros(batch, length, shape.hidden_size),
        torch.arange(length).expand(batch, length).contiguous(),
        torch.tensor([length - 1, length - 2]),
        torch.tensor([length - 1, length - 2], dtype=torch.int32),
        torch.tensor(length, dtype=torch.int32),
        *(past.clone() for _ in range(layers)),
        *(cross.clone() for _ in range(layers)),
        torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    ]
    axes = {name: {0: "B"} for name in names if name != "total_sequence_length"}
    for name in axes:
        if name in ("inputs_embeds", "position_ids"):
            axes[name][1] = "S"
        elif name.startswith("past_"):
            axes[name][2] = "T"
        elif name.startswith("cross_"):
            axes[name][2] = "S_enc"
        elif name == "encoder_mask":
            axes[name][1] = "S_enc"
    example = dict(zip(names, values, strict=True))
    model = trace.trace(trace.Part(LLM, _Decoder(t5), example, outputs, axes))
    fuse.fuse_decoder(model)
    return model


def head_scale(t5: Any) -> float:
    """Return what the hidden state is multiplied by before the vocabulary's matrix."""
    scaled = getattr(t5.config, "scale_decoder_outputs", None)
    if scaled is None:  # transformers 4 scales where embeddings are tied; since 5, mT5 never does
        scaled = t5.config.tie_word_embeddings and int(transformers.__version__.split(".")[0]) < 5
    return float(t5.config.d_model) ** -0.5 if scaled else 1.0


def _knows_direction(attention: Any) -> bool:
    """Whether an attention's buckets are those of its own direction, as UMT5's are."""
    return len(inspect.signature(attention._relative_position_bucket).parameters) == 1


class Biases(nn.Module):
    """The bias of each layer. T5 has one, which all layers share; UMT5 has one for each."""

    def __init__(self, blocks: Any, bidirectional: bool) -> None:
        super().__init__()
        first, *others = [block.layer[0].SelfAttention for block in blocks]
        own = [attention.has_relative_attention_bias for attention in others]
        assert all(own) or not any(own), "one for all layers, or one for each"
        self.layers = len(blocks)
        each = [first, *others] if any(own) else [first]
        self.biases = nn.ModuleList(RelativeBias(attention, bidirectional) for attention in each)

    def forward(self, distance: Tensor, finish: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """distance (B,S,K) of keys from queries -> the bias (B,H,S,K) of each layer, finished where it is made."""
        made = [finish(bias(distance)) for bias in self.biases]
        return made if len(made) == self.layers else made * self.layers


class RelativeBias(nn.Module):
    """T5's bias by distance, as a table (H, 1 + 2 * furthest): distances beyond the furthest share its bucket."""

    def __init__(self, attention: Any, bidirectional: bool) -> None:
        super().__init__()
        self.furthest = int(attention.relative_attention_max_distance)
        distance = torch.arange(-self.furthest, self.furthest + 1)  # of key from query
        settings = (bidirectional, attention.relative_attention_num_buckets, self.furthest)
        more = () if _knows_direction(attention) else settings
        bucket = attention._relative_position_bucket(distance, *more)
        self.register_buffer("table", attention.relative_attention_bias.weight.detach()[bucket].T.contiguous())
        self.table: Tensor

    def forward(self, distance: Tensor) -> Tensor:
        """distance (B,S,K) of keys from queries -> bias (B,H,S,K)"""
        index = distance.clamp(-self.furthest, self.furthest) + self.furthest
        bias = torch.index_select(self.table, 1, index.flatten())
        return bias.view(-1, *distance.shape).transpose(0, 1)


def _fill(x: Tensor, attention: Any) -> Tensor:
    """(B,S,H*d_kv) -> (B,S,H*hd), each head filled up to the width that GroupQueryAttention takes."""
    width = attention.key_value_proj_dim
    if padded(width) == width:
        return x
    return nn.functional.pad(x.unflatten(-1, (-1, width)), (0, padded(width) - width)).flatten(2)


def cut(x: Tensor, attention: Any) -> Tensor:
    """(B,S,H*hd) -> (B,S,H*d_kv): cut off what _fill added."""
    width = attention.key_value_proj_dim
    return x if padded(width) == width else x.unflatten(-1, (-1, padded(width)))[..., :width].flatten(2)


def split(x: Tensor, attention: Any) -> Tensor:
    """(B,S,H*d_kv) -> (B,H,S,hd)"""
    return _fill(x, attention).unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """query (B,H,S,hd), key and value (B,H,K,hd), bias that broadcasts to (B,H,S,K) -> (B,S,H*hd), without a scale."""
    weights = (query @ key.transpose(-1, -2) + bias).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def mask_bias(mask: Tensor) -> Tensor:
    """mask (B,K), 1 where there is a token -> (B,1,1,K), 0 there and the least float elsewhere."""
    return ((1 - mask).float() * _MASKED)[:, None, None, :]


class _Encoder(nn.Module):
    def __init__(self, t5: Any) -> None:
        super().__init__()
        self.encoder = t5.encoder
        self.crossing = nn.ModuleList(block.layer[1].EncDecAttention for block in t5.decoder.block)
        self.biases = Biases(t5.encoder.block, bidirectional=True)

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        x = inputs_embeds
        positions = torch.arange(x.shape[1])
        distance, unseen = (positions[None, :] - positions[:, None])[None], mask_bias(attention_mask)
        biases = self.biases(distance, lambda bias: bias + unseen)
        for block, bias in zip(self.encoder.block, biases, strict=True):
            attention, normed = block.layer[0].SelfAttention, block.layer[0].layer_norm(x)
            query, key, value = (split(part(normed), attention) for part in (attention.q, attention.k, attention.v))
            x = x + attention.o(cut(attend(query, key, value, bias), attention))
            x = block.layer[-1](x)
        x = self.encoder.final_layer_norm(x)
        crossing: list[Any] = list(self.crossing)
        return tuple(split(part(x), each) for each in crossing for part in (each.k, each.v))


class _Decoder(nn.Module):
    """The llm graph as a module: the arguments are the graph's inputs."""

    def __init__(self, t5: Any) -> None:
        super().__init__()
        self.decoder, self.head = t5.decoder, t5.get_output_embeddings()
        self.scale = head_scale(t5)
        self.biases = Biases(t5.decoder.block, bidirectional=False)

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, last_index: Tensor, seqlens_k: Tensor,
        total_sequence_length: Tensor, *caches: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        *tensors, encoder_mask = caches
        half = len(tensors) // 2
        past, cross = tensors[:half], tensors[half:]
        key_positions = torch.arange(past[0].shape[2])
        distance = key_positions[None, None, :] - position_ids[:, :, None]
        biases = self.biases(distance, lambda bias: truncate_keys(bias, total_sequence_length))
        seen = mask_bias(encoder_mask)
        x, present = inputs_embeds, []
        for index, block in enumerate(self.decoder.block):
            pair = slice(2 * index, 2 * index + 2)
            own, crossing, feed_forward = block.layer
            mixed, *new = _own_attention(
                own.SelfAttention, own.layer_norm(x), past[pair], (seqlens_k, total_sequence_length), biases[index]
            )
            present += new
            x = x + own.SelfAttention.o(cut(mixed, own.SelfAttention))
            attention = crossing.EncDecAttention
            query = split(attention.q(crossing.layer_norm(x)), attention)
            key, value = cross[pair]
            x = x + attention.o(cut(attend(query, key, value, seen), attention))
            x = feed_forward(x)
        return self.head(last(self.decoder.final_layer_norm(x), last_index) * self.scale), *present


def _own_attention(
    attention: Any, x: Tensor, past: list[Tensor], lengths: tuple[Tensor, Tensor], bias: Tensor
) -> Sequence[Tensor]:
    """x (B,S,D) -> (B,S,H*hd), present key and value"""
    query, key, value = (_fill(part(x), attention) for part in (attention.q, attention.k, attention.v))
    return torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (query, key, value, *past, *lengths, None, None, None, bias),
        {"num_heads": attention.n_heads, "kv_num_heads": attention.n_heads, "scale": 1.0},
        dtypes=(query.dtype, key.dtype, value.dtype),
        shapes=(query.shape, past[0].shape, past[1].shape),
        version=1,
    )


def last(hidden: Tensor, last_index: Tensor) -> Tensor:
    """hidden (B,S,D) -> (B,D), before the vocabulary's matrix sees it."""
    shape = (hidden.shape[0], hidden.shape[2])
    row: Tensor = torch.onnx.ops.symbolic(
        "GatherND", (hidden, last_index[:, None]), {"batch_dims": 1}, dtype=hidden.dtype, shape=shape, version=13
    )
    return row
