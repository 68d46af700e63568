"""Weights as symmetric integers: codes, scales, and where the codes of a block have their middle. Knows matrices."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from blip2rt.modeling.quantize import unpacked

from .rounding import BITS, Blocks

LEVELS = 127  # of int8, on either side of 0
_MIDDLE = 8  # of the 16 codes of int4


def channel_codes(weight: np.ndarray, axis: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """weight -> int8 codes of the same shape, scales (size of `axis`); codes * scales are nearly the weight."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(others, keepdims=True)
    scales = np.where(largest > 0, largest / LEVELS, 1).astype(dtype)
    scales = np.maximum(scales, np.finfo(dtype).tiny)
    codes = np.clip(np.rint(weight / scales.astype(np.float32)), -LEVELS, LEVELS).astype(np.int8)
    return codes, scales.reshape(-1)


def block_codes(name: str, matrix: ir.TensorProtocol, blocks: Blocks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """matrix (K,N) -> int8 codes (K',N) from -8 to 7, scales and offsets (K'/block,N) float32; K' is K in whole blocks.

    A weight is code * scale + offset of its block. Those behind the matrix's end are 0.
    """
    rows, columns = matrix.shape.numpy()
    quantized = blocks.encode(
        name, (columns, rows), lambda: torch.from_numpy(np.asarray(matrix.numpy())).T, BITS["int4"], blocks.size
    )
    codes, zeros = (part.numpy().astype(np.int8) for part in unpacked(quantized))
    scales = quantized.scales.float().numpy()
    offsets = scales * (_MIDDLE - zeros.astype(np.float32))
    return (codes - _MIDDLE).reshape(columns, -1).T, scales.T, offsets.T
