"""How an llm graph of the target trt reads its KV cache.

The cache has a fixed capacity T and is only read: `past_mask` (B,T) is added to the scores of its T slots (0 for a
filled slot, MASKED for others), and the caller appends the new slices (`new_key_i`, `new_value_i` (B,Hkv,S,hd)). Scores
of old and new keys are computed separately and concatenated before the softmax, so the cache is never copied.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MASKED = -1e9  # finite: a row whose slots are all masked must not become NaN
Relative = Callable[[Tensor], Tensor]  # distances (B,S,K) of keys from queries -> bias (B,H,S,K)
Factor = float | None


class Cache:
    """Keys and values of one trace: `past` of each layer, and `present`, which attention fills."""

    def __init__(self, position_ids: Tensor, inputs: Sequence[Tensor], relative: Relative | None = None) -> None:
        """inputs: past_mask, then the past keys and values."""
        past_mask, *past = inputs
        self.past = list(zip(past[::2], past[1::2], strict=True))
        self.present: dict[int, Sequence[Tensor]] = {}
        self._past_bias, self._new_bias = past_mask[:, None, None, :], causal_bias(position_ids.shape[1])
        if relative is not None:
            slots, here = torch.arange(past_mask.shape[1]), position_ids[:, :, None]
            self._past_bias = relative(slots[None, None, :] - here) + self._past_bias
            self._new_bias = relative(position_ids[:, None, :] - here) + self._new_bias

    def outputs(self) -> list[Tensor]:
        """Return the graph's key and value outputs, each layer's key before its value."""
        return [tensor for layer in range(len(self.past)) for tensor in self.present[layer]]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: Factor = None, softcap: Factor = None
    ) -> Tensor:
        """query (B,H,S,hd), key and value (B,Hkv,S,hd) -> (B,H,S,hd). None: no scale, no cap.

        Query heads that share a key head become rows of one product: (B,Hkv,G*S,hd).
        """
        past, new_bias = self.past[layer], self._new_bias
        self.present[layer] = key, value
        query = query if scale is None else query * scale
        heads, length, kv_heads, capacity = query.shape[1], query.shape[2], key.shape[1], past[0].shape[2]
        groups = heads // kv_heads
        if groups > 1:
            query = query.unflatten(1, (kv_heads, groups)).flatten(2, 3)
            new_bias = new_bias.repeat(groups, 1)
        scores = [query @ each.transpose(-1, -2) for each in (past[0], key)]
        if softcap is not None:
            scores = [(each / softcap).tanh() * softcap for each in scores]
        weights = torch.cat((scores[0] + self._past_bias, scores[1] + new_bias), -1).softmax(-1)
        out = weights[..., :capacity] @ past[1] + weights[..., capacity:] @ value
        return out.unflatten(2, (groups, length)).flatten(1, 2) if groups > 1 else out


def causal_bias(length: int) -> Tensor:
    """Make (S,S): 0 up to the diagonal, MASKED right of it."""
    position = torch.arange(length)
    return (position[None, :] > position[:, None]).float() * MASKED
