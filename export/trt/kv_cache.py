"""Where an llm graph of the target trt keeps keys and values: all that its two kinds differ in.

APART, for every TensorRT. The cache has a fixed capacity T and is only read: `past_mask` (B,T) is added to the scores
of its T slots (0 where a slot is filled, MASKED elsewhere), and the caller writes the new slices (`new_key_i`,
`new_value_i` (B,Hkv,S,hd)) behind what is there. Scores of old and new keys are computed apart and joined before the
softmax, so that the cache is never copied.

IN_PLACE, for TensorRT 10.15 and later. The graph writes the new slices into the cache from slot position_ids[b, 0] on
(TensorScatter), and attention looks at the valid slots alone (Attention with nonpad_kv_seqlen). Both are of opset 24.
`present_key_i`, `present_value_i` (B,Hkv,T,hd) lie where the past ones lie. There is no `past_mask`: slot j is seen
from position p where j <= p. Rows of a prompt that are shorter write what means nothing behind their end; the next
step writes over it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MASKED = -1e9  # finite, so that a row whose slots are all masked gives no NaN
_UNSEEN = -3e4  # the same within float16's range
Pair = Sequence[Tensor]  # key, value
Relative = Callable[[Tensor], Tensor]  # distances (B,S,K) of keys from queries -> bias (B,H,S,K)


class ReadOnlyCache:
    """Attention of one trace over a cache that is read."""

    in_place = False

    def __init__(self, position_ids: Tensor, last_index: Tensor, past: Sequence[Tensor], more: Sequence[Tensor],
                 relative: Relative | None = None) -> None:  # fmt: skip
        """more: past_mask, which only this kind has among its inputs."""
        [past_mask] = more
        self.past, self.kept = list(zip(past[::2], past[1::2], strict=True)), dict[int, Pair]()
        self._past_bias, self._new_bias = past_mask[:, None, None, :], causal_bias(position_ids.shape[1])
        if relative is not None:
            slots, here = torch.arange(past_mask.shape[1]), position_ids[:, :, None]
            self._past_bias = relative(slots[None, None, :] - here) + self._past_bias
            self._new_bias = relative(position_ids[:, None, :] - here) + self._new_bias

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None = None,
               softcap: float | None = None) -> Tensor:  # fmt: skip
        """query (B,H,S,hd), key and value (B,Hkv,S,hd) -> (B,H,S,hd). None: nothing is scaled, or capped.

        Query heads that share a key head are rows of one product: (B,Hkv,G*S,hd).
        """
        past, new, new_bias = self.past[layer], (key, value), self._new_bias
        self.kept[layer] = new
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


class InPlaceCache:
    """Attention of one trace over a cache that the graph writes."""

    in_place = True

    def __init__(self, position_ids: Tensor, last_index: Tensor, past: Sequence[Tensor], more: Sequence[Tensor],
                 relative: Relative | None = None) -> None:  # fmt: skip
        assert not more
        self.past, self.kept = list(zip(past[::2], past[1::2], strict=True)), dict[int, Pair]()
        slots, here = torch.arange(past[0].shape[2]), position_ids[:, :, None]
        self._start = position_ids[:, 0]
        self._length = self._start + last_index + 1
        self._mask = (slots[None, None, :] <= here)[:, None]  # (B,1,S,T)
        if relative is not None:
            self._mask = torch.where(self._mask, relative(slots[None, None, :] - here), _UNSEEN)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None = None,
               softcap: float | None = None) -> Tensor:  # fmt: skip
        """See ReadOnlyCache. Query heads share key heads by what Attention does with their numbers."""
        held = [self._written(old, new) for old, new in zip(self.past[layer], (key, value), strict=True)]
        self.kept[layer] = held
        attributes: dict[str, Any] = {"scale": 1.0 if scale is None else scale}
        if softcap is not None:
            attributes["softcap"] = softcap
        mixed: Tensor = torch.onnx.ops.symbolic(
            "Attention", (query, *held, self._mask, None, None, self._length), attributes, dtype=query.dtype,
            shape=query.shape,
        )  # fmt: skip
        return mixed

    def _written(self, past: Tensor, new: Tensor) -> Tensor:
        written: Tensor = torch.onnx.ops.symbolic(
            "TensorScatter", (past, new, self._start), {"axis": -2}, dtype=past.dtype, shape=past.shape
        )
        return written


CacheKind = type[ReadOnlyCache] | type[InPlaceCache]


def causal_bias(length: int) -> Tensor:
    """Make (S,S): 0 up to the diagonal, MASKED right of it."""
    position = torch.arange(length)
    return (position[None, :] > position[:, None]).float() * MASKED
