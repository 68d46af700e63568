"""Block-wise weight quantization, shared by training and export.

A row of K weights is divided into blocks; a block is stored as unsigned codes with one fp16 scale and one integer zero
point, `w = scale * (code - zero_point)`: the layout of ONNX Runtime's MatMulNBits. Quantizing again changes nothing
(4 bits), so a model that was trained against its dequantized weights ships exactly these.
"""

from dataclasses import dataclass

import torch
from torch import nn

from . import streaming

_PROBE = 4  # weights of a block that tell whether it can be on a grid
_CHUNK = 2**18  # weights; the search's temporaries then fit a core's cache, which is five times faster than memory


@dataclass(frozen=True)
class QuantizedWeight:
    """An (N, K) matrix in blocks of `block` along K.

    codes (N, blocks, block * bits / 8) uint8, the first of two 4-bit codes in the low half; scales (N, blocks) float16;
    zero_points (N, ceil(blocks * bits / 8)) uint8, packed like the codes.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor
    bits: int
    block: int
    shape: tuple[int, int]


def _pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack (..., n) codes into (..., ceil(n * bits / 8)) bytes."""
    values = values.to(torch.uint8)
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = nn.functional.pad(values, (0, 1))
    return values[..., 0::2] | (values[..., 1::2] << 4)


def _unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    if bits == 8:
        return packed[..., :count]
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)[..., :count]


def _encode(w: torch.Tensor, scale: torch.Tensor, low: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    zero = (-low / scale).round().clamp_(0, top)
    return (w / scale).round_().add_(zero).clamp_(0, top), zero


def _error(w: torch.Tensor, code: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return ((code - zero) * scale - w).square_().sum(-1, keepdim=True)


def _quantize_rows(w: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales and zero points of blocks w (rows, blocks, block); each block's grid contains 0."""
    top = 2**bits - 1
    low = w.amin(-1, keepdim=True).clamp_(max=0)
    high = w.amax(-1, keepdim=True).clamp_(min=0)
    best_error = torch.full_like(low, float("inf"))
    codes, scales, zeros = torch.zeros_like(w), torch.ones_like(low), torch.zeros_like(low)
    # More steps than codes clip the extremes for a finer grid; fewer are for blocks that are on such a grid already.
    clipping = [top, top + 1, top + 2, top + 3] if bits == 4 else [top]
    on_grid = [top - 1, top - 2, top - 3] if bits == 4 else []
    for steps in clipping + on_grid:
        scale = ((high - low) / steps).half().float()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        if steps < top and _error(w[..., :_PROBE], *_encode(w[..., :_PROBE], scale, low, top), scale).all():
            continue  # no block is on this grid
        code, zero = _encode(w, scale, low, top)
        error = _error(w, code, zero, scale)
        better = error < best_error if steps >= top else (error == 0) & (best_error > 0)
        best_error = torch.where(better, error, best_error)
        codes = torch.where(better, code, codes)
        scales = torch.where(better, scale, scales)
        zeros = torch.where(better, zero, zeros)
    return codes, scales.squeeze(-1), zeros.squeeze(-1)


def quantize_blockwise(weight: torch.Tensor, bits: int = 4, block: int = 64) -> QuantizedWeight:
    """Quantize weight (N, K) to `bits` (4 or 8). K is padded with zeros to whole blocks."""
    if bits not in (4, 8):
        raise ValueError(f"bits is {bits}: choose 4 or 8")
    rows, width = weight.shape
    blocks = -(-width // block)
    padded = nn.functional.pad(weight.detach().float(), (0, blocks * block - width)).view(rows, blocks, block)
    parts = [_quantize_rows(chunk, bits) for chunk in padded.split(max(1, _CHUNK // (blocks * block)))]
    codes, scales, zeros = (torch.cat(column) for column in zip(*parts, strict=True))
    return QuantizedWeight(_pack(codes, bits), scales.half(), _pack(zeros, bits), bits, block, (rows, width))


def unpacked(weight: QuantizedWeight) -> tuple[torch.Tensor, torch.Tensor]:
    """codes (N, blocks, block) and zero points (N, blocks), a byte each."""
    codes = _unpack(weight.codes, weight.bits, weight.block)
    return codes, _unpack(weight.zero_points, weight.bits, weight.scales.shape[1])


def dequantize_blockwise(weight: QuantizedWeight) -> torch.Tensor:
    """The (N, K) float32 matrix of the codes."""
    codes, zeros = unpacked(weight)
    values = (codes.float() - zeros.float().unsqueeze(-1)) * weight.scales.float().unsqueeze(-1)
    return values.flatten(1)[:, : weight.shape[1]].contiguous()


@torch.no_grad()
def round_weights(module: nn.Module, bits: int, block: int, exact: str | None = None) -> None:
    """Quantize and dequantize every Linear and Embedding matrix in `module`, in place (tied weights once).

    exact: last name of the layers that keep their values.
    """
    streaming.change(module, lambda weight: dequantize_blockwise(quantize_blockwise(weight, bits, block)), exact)
