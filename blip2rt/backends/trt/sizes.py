"""How large the language model is, and what its plans hold: whether a call fits. Knows the manifest, no GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import bundle as contract
from ...bundle.manifest import Manifest
from ...errors import OptionError

ALIGNMENT = 256  # bytes; what TensorRT asks of every address


def aligned(size: int) -> int:
    """`size` bytes, rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Sizes:
    """Sizes of the language model, and of what its plans were built for."""

    layers: int
    heads: int
    width: int  # numbers of a head
    dtype: np.dtype[Any]  # of keys and values
    hidden: int
    vocab: int
    k: int  # likeliest tokens that a step returns
    images: int  # at once, at most
    rows: int  # beams or draws of all images, at most
    capacity: int  # positions of the cache
    cross: tuple[int, int] | None  # heads and their width, of an encoder-decoder
    start: int  # the token that its decoder starts from
    in_place: bool = False  # the graph writes the cache itself

    @property
    def tensors(self) -> int:
        """Number of the cache's tensors: keys and values."""
        return 2 * self.layers

    @classmethod
    def of(cls, manifest: Manifest, images: int, rows: int, capacity: int) -> Sizes:
        spec = manifest.llm
        assert spec is not None
        ports = {tensor.name: tensor for tensor in manifest.components[contract.LLM].inputs}
        past = ports[contract.PAST_KEY.format(0)]
        cross = ports[contract.CROSS_KEY.format(0)].shape if spec.encoder_decoder else None
        return cls(
            spec.layers, int(past.shape[1]), int(past.shape[3]), np.dtype(past.dtype), spec.hidden_size,
            spec.vocab_size, min(contract.TOP_K, spec.vocab_size), images, rows, capacity,
            None if cross is None else (int(cross[1]), int(cross[3])), spec.decoder_start_token_id or 0,
            contract.PAST_MASK not in ports,
        )  # fmt: skip


@dataclass(frozen=True)
class Strides:
    """Bytes from one tensor of keys or values to the next, in the buffers that hold all of them."""

    cache: int  # of every row
    fresh: int  # of a prompt's or a step's positions, before they are in the cache; or of the prompts' own cache
    cross: tuple[int, ...]  # of what an encoder-decoder reads: of images, of rows

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
    """Bytes of the logits of prompts and rows, of the weights that sampling makes of them, and of their embeddings."""
    blocks = -(-sizes.vocab // 64)  # sums of sampling
    drawn = sizes.rows * (4 * sizes.vocab + 8 * blocks)
    read = sizes.images * sizes.capacity * (4 * sizes.hidden + 8 + 4)  # embeddings, position and mask of prompts
    step = sizes.rows * (4 * sizes.hidden + 12 * sizes.k)  # embeddings, and the likeliest tokens
    return 4 * sizes.vocab * (sizes.images + sizes.rows) + drawn + read + step + 4 * sizes.rows * sizes.capacity


def check_room(sizes: Sizes, rows_each: int, read: int, most: int) -> None:
    """Raise OptionError where a generation needs more than the plans were built for."""
    faults = []
    if rows_each > sizes.rows:
        faults.append(f"{rows_each} beams or draws of an image, but they hold {sizes.rows}: max_beams={rows_each}")
    if read + most > sizes.capacity:
        faults.append(f"{read} positions of prefix and prompt and {most} of max_new_tokens, but they hold "
                      f"{sizes.capacity}: capacity={read + most}, or fewer new tokens")  # fmt: skip
    if faults:
        raise OptionError(f"the plans are too small for this call, load with larger ones: {'; '.join(faults)}")
