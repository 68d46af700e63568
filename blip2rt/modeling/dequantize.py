"""Dequantize checkpoints whose matrices are stored as integers or 8-bit floats.

Supported are bitsandbytes' int8 (one scale per row), its 4-bit types nf4 and fp4 (a table of 16 values, and one scale
per block, which may be quantized too), and fp8 with one scale per tile. Other methods are rejected by name.
transformers can do this only with bitsandbytes or a GPU, and not one tensor at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from blip2rt.errors import Blip2rtError

from .sources import parse_json, read_json

Reader = Callable[[], torch.Tensor]
Entry = tuple[tuple[int, ...], Reader]  # shape, and what reads the tensor

METHODS = ("bitsandbytes", "fp8")  # supported values of quant_method
_STATE = re.compile(r"(.+)\.quant_state\.bitsandbytes__(\w+)")


def refuse_unknown_method(folder: Path) -> None:
    """Raise Blip2rtError if config.json of a folder names an unsupported quantization method."""
    try:
        data = read_json(folder / "config.json")
    except (OSError, ValueError):
        return  # reported when the config is read
    sections = [data, *data.values()] if isinstance(data, dict) else []
    for section in sections:
        found = section.get("quantization_config") if isinstance(section, dict) else None
        method = found.get("quant_method") if isinstance(found, dict) else None
        if found and (method not in METHODS or not isinstance(found, dict)):
            raise Blip2rtError(
                f"{folder / 'config.json'}: quantization_config.quant_method is {method!r}, supported are "
                f"{', '.join(METHODS)}: give the original checkpoint, or save the result of transformers' "
                "model.dequantize()"
            )


def dequantize(entries: Mapping[str, Entry], dtypes: Mapping[str, torch.dtype]) -> dict[str, Entry]:
    """Return float32 entries for the quantized matrices, by name. Raise ValueError for damaged ones."""
    found: dict[str, Entry] = {}
    for name in entries:
        state = _STATE.fullmatch(name)
        if state:
            found[state[1]] = _dequantize_4bit(entries, state[1], state[2])
        elif name.endswith(".SCB") and dtypes.get(weight := name.removesuffix("SCB") + "weight") is torch.int8:
            found[weight] = _dequantize_int8(entries, weight, name)
        elif name.endswith("_scale_inv") and dtypes.get(weight := name.removesuffix("_scale_inv")) in _FP8:
            found[weight] = _dequantize_fp8(entries, weight, name)
    return found


_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def _dequantize_int8(entries: Mapping[str, Entry], weight: str, scale: str) -> Entry:
    """codes (N,K) int8, scales (N): a row's values are codes * scale / 127."""
    shape, codes = entries[weight]
    kind = entries.get(f"{weight}_format")
    if kind is not None and int(kind[1]()) != 0:
        raise ValueError(f"{weight} has a GPU's memory layout: save the checkpoint with a newer bitsandbytes")
    scales = entries[scale][1]
    return shape, lambda: codes().float() * (scales().float()[:, None] / 127)


def _dequantize_fp8(entries: Mapping[str, Entry], weight: str, scale: str) -> Entry:
    """codes (N,K) fp8, scales (N / 128, K / 128)."""
    shape, codes = entries[weight]
    tiles, scales = entries[scale]
    if len(shape) != 2 or len(tiles) != 2:
        raise ValueError(f"{scale} has the shape {tiles}, and {weight} {shape}")
    sides = [-(-size // count) for size, count in zip(shape, tiles, strict=True)]
    tile = max(sides) if max(sides) >= 128 else 128
    if tuple(-(-size // tile) for size in shape) != tiles:
        raise ValueError(f"{scale} has the shape {tiles}, which does not divide {shape} into square tiles")

    def read() -> torch.Tensor:
        wide = scales().float().repeat_interleave(tile, 0).repeat_interleave(tile, 1)
        return codes().float() * wide[: shape[0], : shape[1]]

    return shape, read


def _dequantize_4bit(entries: Mapping[str, Entry], weight: str, kind: str) -> Entry:
    """Two codes per byte, the first in the high half; table (16), one scale per `blocksize` codes."""
    state: dict[str, Any] = parse_json(bytes(entries[f"{weight}.quant_state.bitsandbytes__{kind}"][1]().tolist()))
    shape, block = tuple(state["shape"]), int(state["blocksize"])
    needed = [weight, f"{weight}.quant_map", f"{weight}.absmax"]
    nested = "nested_offset" in state
    needed += [f"{weight}.nested_absmax", f"{weight}.nested_quant_map"] * nested
    missing = [name for name in needed if name not in entries]
    if missing:
        raise ValueError(f"{weight} lacks {', '.join(missing)}")
    packed, table, scales, *more = (entries[name][1] for name in needed)

    def scale_of_blocks() -> torch.Tensor:
        """(blocks) float32"""
        if not nested:
            return scales().float()
        outer, inner_table = (each().float() for each in more)
        codes = scales().long()
        wide = outer.repeat_interleave(int(state["nested_blocksize"]))[: len(codes)]
        return inner_table[codes] * wide + float(state["nested_offset"])

    def read() -> torch.Tensor:
        halves = packed().contiguous().view(torch.uint8).flatten()
        codes = torch.stack((halves >> 4, halves & 15), -1).flatten()[: torch.Size(shape).numel()].long()
        scale = scale_of_blocks().repeat_interleave(block)[: len(codes)]
        values = (table().float()[codes] * scale).view(shape)
        return values.to(getattr(torch, state.get("dtype", "float32"))).float()  # as the model computes with them

    return shape, read
