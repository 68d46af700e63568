"""Sizes of the language model and of its plans, the memory they take, and whether a call fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...bundle import CROSS_KEY, LLM, PAST_KEY, PAST_MASK, TOP_K
from ...bundle.manifest import Manifest
from ...errors import OptionError

ALIGNMENT = 256  # bytes; TensorRT requires it of every address


def aligned(size: int) -> int:
    """`size` rounded up to the alignment, in bytes."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Sizes:
    """Sizes of the language model and the limits that its plans were built for."""

    layers: int
    heads: int
    width: int  # elements per head
    dtype: np.dtype[Any]  # of keys and values
    hidden: int
    vocab: int
    k: int  # most likely tokens that a step returns
    images: int  # maximum per run
    rows: int  # maximum beams or draws of all images together
    capacity: int  # positions of the cache
    cross: tuple[int, int] | None  # number of heads and their width in an encoder-decoder's cross-attention
    start: int  # decoder start token of an encoder-decoder
    in_place: bool = False  # whether the graph itself writes the cache

    @property
    def tensors(self) -> int:
        """Number of tensors in the cache: keys and values of each layer."""
        return 2 * self.layers

    @classmethod
    def of(cls, manifest: Manifest, images: int, rows: int, capacity: int) -> Sizes:
        spec = manifest.llm
        assert spec is not None
        ports = {tensor.name: tensor for tensor in manifest.components[LLM].inputs}
        past = ports[PAST_KEY.format(0)]
        cross = ports[CROSS_KEY.format(0)].shape if spec.encoder_decoder else None
        return cls(
            layers=spec.layers,
            heads=int(past.shape[1]),
            width=int(past.shape[3]),
            dtype=np.dtype(past.dtype),
            hidden=spec.hidden_size,
            vocab=spec.vocab_size,
            k=min(TOP_K, spec.vocab_size),
            images=images,
            rows=rows,
            capacity=capacity,
            cross=None if cross is None else (int(cross[1]), int(cross[3])),
            start=spec.decoder_start_token_id or 0,
            in_place=PAST_MASK not in ports,
        )


@dataclass(frozen=True)
class Strides:
    """Bytes from one tensor of keys or values to the next in each buffer."""

    cache: int  # the cache of all rows
    fresh: int  # new keys and values of a prompt or step; with an in-place cache, the prompts' own cache
    cross: tuple[int, ...]  # an encoder-decoder's cross-attention: per image, per row

    @classmethod
    def of(cls, sizes: Sizes) -> Strides:
        slot = sizes.heads * sizes.width * sizes.dtype.itemsize
        cross = () if sizes.cross is None else (sizes.images, sizes.rows)
        wide = 0 if sizes.cross is None else sizes.cross[0] * sizes.cross[1] * sizes.dtype.itemsize
        return cls(
            aligned(sizes.rows * slot * sizes.capacity),
            aligned(max(0 if sizes.in_place else sizes.rows, sizes.images * sizes.capacity) * slot),
            tuple(aligned(rows * sizes.capacity * wide) for rows in cross),
        )


def cache_bytes(sizes: Sizes) -> int:
    """Bytes of all keys and values."""
    strides = Strides.of(sizes)
    return sizes.tensors * (strides.cache + strides.fresh + sum(strides.cross))


def logits_bytes(sizes: Sizes) -> int:
    """Bytes of logits, sampling weights and embeddings, for prompts and steps."""
    blocks = -(-sizes.vocab // 64)  # partial sums of sampling
    sampling = sizes.rows * (4 * sizes.vocab + 8 * blocks)
    prompts = sizes.images * sizes.capacity * (4 * sizes.hidden + 8 + 4)  # embeddings, positions and mask
    step = sizes.rows * (4 * sizes.hidden + 12 * sizes.k)  # embeddings and the most likely tokens
    return 4 * sizes.vocab * (sizes.images + sizes.rows) + sampling + prompts + step + 4 * sizes.rows * sizes.capacity


def check_capacity(sizes: Sizes, rows_per_image: int, prompt_length: int, max_new_tokens: int) -> None:
    """Raise OptionError if a generation needs more than the plans were built for."""
    faults = []
    if rows_per_image > sizes.rows:
        faults.append(
            f"{rows_per_image} beams or draws per image, but the limit is {sizes.rows}: max_beams={rows_per_image}"
        )
    if prompt_length + max_new_tokens > sizes.capacity:
        faults.append(
            f"{prompt_length} positions of prefix and prompt and {max_new_tokens} new tokens, but the limit is "
            f"{sizes.capacity}: capacity={prompt_length + max_new_tokens}, or fewer new tokens"
        )
    if faults:
        raise OptionError(f"the plans are too small for this call, load with larger ones: {'; '.join(faults)}")
