"""The Querying Transformer (Li et al. 2023, section 3.1): queries and text through one stack of shared self-attention.

Only queries attend to the image (cross-attention in every `cross_attention_frequency`-th layer); queries and text have
separate feed-forwards. Does not know about losses, images or tokenizers.

Two options are ours: the queries have their own LayerNorm with a large initial gain (`query_gain`), and no dropout
(`query_dropout` 0). In the reference they share BERT's embedding LayerNorm and dropout with the text, with which the
fresh queries of a small Q-Former collapse into one vector.

Training passes `noise`, which decides what dropout drops of each row; without it, nothing is dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from .row_noise import RowNoise
from .vit import attention

KeyValue = tuple[torch.Tensor, torch.Tensor]
Affine = tuple[torch.Tensor, torch.Tensor]  # gain (C) and offset (C) or (N, C) of vision_features


@dataclass(frozen=True)
class QFormerConfig:
    """Geometry of the Q-Former; defaults are MiniLM-L6's; the paper's are 768 wide, 12 layers, 32 queries."""

    hidden_size: int = 384
    layers: int = 6
    heads: int = 12
    intermediate_size: int = 1536
    queries: int = 16
    vision_width: int = 1280
    cross_attention_frequency: int = 2
    vocab_size: int = 30523  # BERT's 30522 and [DEC]
    max_positions: int = 512
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1  # on the text stream
    query_gain: float | None = 3.0  # initial gain of the queries' own LayerNorm; None: they share the text's
    text_branch: bool = True  # none in stage 2, unless the queries also read the question
    query_dropout: float = 0.0  # on the query stream; the reference has that of the text
    attention_dropout: float = 0.0  # of attention's probabilities; the reference has BERT's 0.1


class Attention(nn.Module):
    """Multi-head attention, output projection, residual and LayerNorm (post-norm, as BERT has it)."""

    def __init__(self, config: QFormerConfig, key_width: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(key_width, width)
        self.value = nn.Linear(key_width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, width) -> (B, heads, T, width / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def key_value(self, source: torch.Tensor, affine: Affine | None = None) -> KeyValue:
        """affine: what `source` (B, S, width) still lacks."""
        if affine is None:
            return self.split(self.key(source)), self.split(self.value(source))
        key, value = (_projected(source, linear, *affine) for linear in (self.key, self.value))
        return self.split(key), self.split(value)

    def forward(
        self, x: torch.Tensor, key_value: KeyValue, mask: torch.Tensor | None, noise: RowNoise | None
    ) -> torch.Tensor:
        """The attention's output before dropout, residual and norm."""
        key, value = key_value
        drop = partial(noise.drop, share=self.dropout) if noise and self.dropout else None
        mixed = attention(self.split(self.query(x)), key, value, mask, drop)
        return self.output(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.hidden_size, config.intermediate_size)
        self.outer = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(F.gelu(self.inner(x)))


class Layer(nn.Module):
    def __init__(self, config: QFormerConfig, index: int) -> None:
        super().__init__()
        self.attention = Attention(config, config.hidden_size)
        crosses = index % config.cross_attention_frequency == 0
        self.cross_attention = Attention(config, config.vision_width) if crosses else None
        self.query_ffn = FeedForward(config)
        self.text_ffn = FeedForward(config) if config.text_branch else None
        self.dropout, self.query_dropout = config.dropout, config.query_dropout

    def forward(
        self,
        queries: torch.Tensor | None,
        text: torch.Tensor | None,
        mask: torch.Tensor | None,
        vision_kv: KeyValue | None,
        query_kv: KeyValue | None,
        noise: RowNoise | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, KeyValue]:
        """One layer over [queries ; text]. With `query_kv`, text also attends to queries computed before."""
        count = 0 if queries is None else queries.shape[1]
        x = torch.cat([part for part in (queries, text) if part is not None], 1)
        own_kv = self.attention.key_value(x)
        key_value = own_kv
        if query_kv is not None:
            key_value = (torch.cat((query_kv[0], own_kv[0]), 2), torch.cat((query_kv[1], own_kv[1]), 2))
        mixed = self.attention(x, key_value, mask, noise and noise.at(0))
        to_queries, to_text = mixed.split((count, mixed.shape[1] - count), 1)  # its backward is one concatenation
        if queries is not None:
            queries = self.attention.norm(queries + _dropped(to_queries, self.query_dropout, noise, 1))
            if self.cross_attention is not None and vision_kv is not None:
                seen = self.cross_attention(queries, vision_kv, None, noise and noise.at(2))
                queries = self.cross_attention.norm(queries + _dropped(seen, self.query_dropout, noise, 3))
            queries = self.query_ffn.norm(queries + _dropped(self.query_ffn(queries), self.query_dropout, noise, 4))
        if text is not None:
            assert self.text_ffn is not None, "this Q-Former has no text branch"
            text = self.attention.norm(text + _dropped(to_text, self.dropout, noise, 5))
            text = self.text_ffn.norm(text + _dropped(self.text_ffn(text), self.dropout, noise, 6))
        return queries, text, own_kv


def _projected(x: torch.Tensor, linear: nn.Linear, gain: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """`linear` of gain * x + offset, without computing that: x (B, N, C)."""
    shift, weight = F.linear(offset, linear.weight, linear.bias), linear.weight * gain
    return F.linear(x, weight, shift) if shift.dim() == 1 else F.linear(x, weight) + shift


def _dropped(x: torch.Tensor, share: float, noise: RowNoise | None, place: int) -> torch.Tensor:
    """Dropout at one of the places of a layer, or of the embeddings, if there is noise."""
    return noise.at(place).drop(x, share) if noise and share else x


def _in_autocast(x: torch.Tensor) -> torch.Tensor:
    """Cast to autocast's dtype, so that residuals are not kept in float32 and cast for every product."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class QFormer(nn.Module):
    """Queries (learned) and text through the shared stack, under one of the paper's three masks."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.query_tokens = nn.Parameter(torch.randn(1, config.queries, config.hidden_size))
        self.query_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.layers))
        if config.text_branch:
            self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
            self.position_embeddings = nn.Embedding(config.max_positions, config.hidden_size)
            if config.query_gain is not None:
                self.text_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.apply(_bert_init)
        if config.query_gain is not None:
            nn.init.constant_(self.query_norm.weight, config.query_gain)

    def vision_kv(self, vision_features: torch.Tensor, affine: Affine | None = None) -> list[KeyValue | None]:
        """Cross-attention keys and values of vision_features (B, N, C), per layer; computed once for all passes.

        affine: what the features still lack.
        """
        crossing = [cast(Layer, layer).cross_attention for layer in self.layers]
        return [None if attention is None else attention.key_value(vision_features, affine) for attention in crossing]

    def embed_queries(self, batch: int, noise: RowNoise | None = None) -> torch.Tensor:
        """The queries (batch, Q, H) that enter the first layer."""
        queries = _in_autocast(self.query_norm(self.query_tokens)).expand(batch, -1, -1)
        return _dropped(queries, self.config.query_dropout, noise, -1)

    def embed_text(self, token_ids: torch.Tensor, noise: RowNoise | None = None) -> torch.Tensor:
        """Word and position embeddings of token_ids (B, T); queries do not count as positions."""
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        embeds = self.word_embeddings(token_ids) + self.position_embeddings(positions)
        norm = self.query_norm if self.config.query_gain is None else self.text_norm
        return _in_autocast(_dropped(norm(embeds), self.config.dropout, noise, -2))

    def encode_image(
        self, vision_kv: Sequence[KeyValue | None], batch: int, noise: RowNoise | None = None
    ) -> tuple[torch.Tensor, list[KeyValue]]:
        """Queries alone: query_output (B, Q, H) and the queries' self-attention keys and values of each layer."""
        queries: torch.Tensor | None = self.embed_queries(batch, noise)
        cache = []
        for index, (layer, image) in enumerate(zip(self.layers, vision_kv, strict=True)):
            queries, _, own_kv = layer(queries, None, None, image, None, noise and noise.at(index))
            cache.append(own_kv)
        assert queries is not None
        return queries, cache

    def encode_text(self, token_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        """Text alone (uni-modal mask), bidirectional: (B, T, H). text_mask (B, T) is 1 where there is a token."""
        text: torch.Tensor | None = self.embed_text(token_ids)
        mask = text_mask[:, None, None, :].bool()
        for layer in self.layers:
            _, text, _ = layer(None, text, mask, None, None)
        assert text is not None
        return text

    def encode_pair(
        self,
        token_ids: torch.Tensor,
        text_mask: torch.Tensor,
        vision_kv: Sequence[KeyValue | None],
        noise: RowNoise | None = None,
    ) -> torch.Tensor:
        """Queries and text see each other (bidirectional mask): query_output (B, Q, H)."""
        batch = token_ids.shape[0]
        queries: torch.Tensor | None = self.embed_queries(batch, noise)
        text: torch.Tensor | None = self.embed_text(token_ids, noise)
        seen = torch.cat((text_mask.new_ones(batch, self.config.queries), text_mask), 1)
        mask = seen[:, None, None, :].bool()
        for index, (layer, image) in enumerate(zip(self.layers, vision_kv, strict=True)):
            queries, text, _ = layer(queries, text, mask, image, None, noise and noise.at(index))
        assert queries is not None
        return queries

    def encode_image_and_texts(
        self,
        vision_kv: Sequence[KeyValue | None],
        token_ids: torch.Tensor,
        decoder_ids: torch.Tensor,
        text_mask: torch.Tensor,
        noise: RowNoise | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The outputs of encode_image, of encode_text for token_ids and of decode_text for decoder_ids, in one pass.

        It reads each weight, and writes its gradient, once instead of three times. Words of both texts alternate, so
        that a word's place, on which its noise depends, does not depend on padding.
        """
        (batch, length), count = token_ids.shape, self.config.queries
        both = [self.embed_text(ids, noise and noise.at(place)) for place, ids in ((-1, token_ids), (-2, decoder_ids))]
        queries: torch.Tensor | None = self.embed_queries(batch, noise)
        text: torch.Tensor | None = torch.stack(both, 2).flatten(1, 2)
        mask = text_mask.new_zeros(batch, count + 2 * length, count + 2 * length, dtype=torch.bool)
        mask[:, :count, :count] = mask[:, count + 1 :: 2, :count] = True
        over_text = text_mask[:, None, :].bool().expand(-1, length, -1)
        mask[:, count::2, count::2], mask[:, count + 1 :: 2, count + 1 :: 2] = over_text, over_text.tril()
        for index, (layer, image) in enumerate(zip(self.layers, vision_kv, strict=True)):
            queries, text, _ = layer(queries, text, mask.unsqueeze(1), image, None, noise and noise.at(index))
        assert queries is not None and text is not None
        return queries, text[:, ::2], text[:, 1::2]

    def decode_text(
        self, token_ids: torch.Tensor, text_mask: torch.Tensor, query_kv: Sequence[KeyValue]
    ) -> torch.Tensor:
        """Causal text over all queries (multimodal causal mask): (B, T, H).

        The queries see only themselves under this mask, so their keys and values come from `encode_image`.
        """
        batch, length = token_ids.shape
        text: torch.Tensor | None = self.embed_text(token_ids)
        causal = torch.ones(length, length, dtype=torch.bool, device=token_ids.device).tril()
        over_text = causal & text_mask[:, None, :].bool()
        over_queries = over_text.new_ones(batch, length, self.config.queries)
        mask = torch.cat((over_queries, over_text), -1).unsqueeze(1)
        for layer, kv in zip(self.layers, query_kv, strict=True):
            _, text, _ = layer(None, text, mask, None, kv)
        assert text is not None
        return text


class LanguageHead(nn.Module):
    """BERT's masked-LM head: transform, LayerNorm, the word embeddings as output matrix (tied), a bias. ITG only."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(_bert_init)

    def forward(self, hidden: torch.Tensor, word_embeddings: torch.Tensor) -> torch.Tensor:
        return F.linear(self.norm(F.gelu(self.transform(hidden))), word_embeddings, self.bias)


def _bert_init(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
