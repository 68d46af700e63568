"""Bidirectional attention within a prompt: Gemma 3 with use_bidirectional_attention.

As in transformers' generate with a cache, a run of several positions is a whole prompt that starts at position 0; its
positions see each other, and a sliding window reaches as far ahead as back. A run of one position is causal.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FAMILIES = ("gemma3", "gemma3_text")


class BidirectionalPrompt:
    """Attention among a run's new positions, by position_ids (B,S) and last_index (B)."""

    def __init__(self, position_ids: Tensor, last_index: Tensor) -> None:
        self.is_prompt = (position_ids[:, -1:] > position_ids[:, :1])[:, :, None]  # (B,1,1)
        self.places = torch.arange(position_ids.shape[1])
        self.valid = (self.places <= last_index[:, None])[:, None, None, None]  # (B,1,1,1,S): padding is hidden

    def attend(
        self, causal: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """causal (B,S,H*hd) of a step, query (B,H,S,hd), key and value (B,Hkv,S,hd) -> (B,S,H*hd)"""
        grouped = query.unflatten(1, (key.shape[1], -1))
        scores = grouped @ key[:, :, None].transpose(-1, -2) * scale  # (B,Hkv,H/Hkv,S,S)
        seen = self.valid
        if window is not None:
            seen = seen & ((self.places[:, None] - self.places).abs() < window)
        scores = torch.where(seen, scores, torch.finfo(scores.dtype).min)  # not -inf: a padding row may see nothing
        mixed = nn.functional.softmax(scores, -1) @ value[:, :, None]
        return torch.where(self.is_prompt, mixed.flatten(1, 2).transpose(1, 2).flatten(2), causal)
