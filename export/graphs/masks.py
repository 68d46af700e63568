"""Check that a language model masks attention as the llm graph does: causally, in the window that each layer asks for.

transformers' mask functions honour many fields of a config (is_causal, is_decoder, windows, chunks). Instead of listing
them, the model runs once without data, and its mask functions are compared with the graph's at chosen positions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.llm import sees_both_ways

from .rotary import fixed_rope_tables

_NAME = "blip2rt_masks"  # our key in transformers' tables
_LENGTH = 4  # of the run without data


class _Masks:
    """The functions that transformers calls: they evaluate each mask, and compare it when a layer uses it."""

    def __init__(self, window: Any) -> None:
        near = {size + step for size in (0, *(2**n for n in range(3, 21)), int(window or 0)) for step in (-1, 0, 1, 2)}
        self.places = torch.tensor(sorted(place for place in near if place >= 0))
        self.made: list[tuple[Tensor, Tensor]] = []  # what the model got, and the mask at the chosen positions
        self.used: set[int] = set()  # of `made`
        self.wrong: list[str] = []

    def mask(self, *_: Any, mask_function: Callable[..., Tensor], **__: Any) -> Tensor:
        """(1,1,S,S) bool"""
        with unset_fake_temporarily():
            zero, short = torch.zeros((1, 1), dtype=torch.int64), torch.arange(_LENGTH)
            given, full = (mask_function(zero, zero, each[:, None], each[None]) for each in (short, self.places))
            self.made.append((given[None, None], full))
        return self.made[-1][0]

    def attention(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **more: Any
    ) -> tuple[Tensor, None]:
        """query (B,H,S,hd), value (B,Hkv,S,hdv) -> zeros (B,S,H,hdv)"""
        window, layer = more.get("sliding_window"), str(getattr(module, "layer_idx", "?"))
        if attention_mask is None and (window is not None or not getattr(module, "is_causal", True)):
            self.wrong.append(layer)
        for number, (given, full) in enumerate(self.made):
            if given is attention_mask:  # otherwise the model builds its own; see llm.builds_causal_masks
                self.used.add(number)
                if not self._is_causal(full, window):
                    self.wrong.append(layer)
        batch, heads, length, _ = query.shape
        return query.new_zeros(batch, length, heads, value.shape[-1]), None

    def _is_causal(self, mask: Tensor, window: int | None) -> bool:
        with unset_fake_temporarily():
            distance = self.places[:, None] - self.places
            return torch.equal(mask, (distance >= 0) & (distance < (window or 1 << 30)))

    def layers(self) -> list[str]:
        """The numbers of the layers whose masks differ; "?": a model with attention of its own."""
        unused = [full for number, (_, full) in enumerate(self.made) if number not in self.used]
        own = [] if all(self._is_causal(full, None) for full in unused) or self.used else ["?"]
        return list(dict.fromkeys(self.wrong + own))


@torch.no_grad()
def layers_of_other_masks(llm: Any) -> list[str]:
    """The numbers of the layers of a causal LM that see other positions than in the llm graph."""
    config = llm.config.get_text_config()
    masks = _Masks(getattr(config, "sliding_window", None))
    before, log = config._attn_implementation, logging.getLogger(FakeTensorMode.__module__)
    ALL_ATTENTION_FUNCTIONS.register(_NAME, masks.attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, masks.mask)
    config._attn_implementation, log.disabled = _NAME, True
    try:
        with fixed_rope_tables(llm), FakeTensorMode(allow_non_fake_inputs=True):
            embeds = torch.zeros(1, _LENGTH, llm.get_input_embeddings().weight.shape[1])
            llm(inputs_embeds=embeds, attention_mask=torch.ones(1, _LENGTH, dtype=torch.int64), use_cache=False)
    finally:
        config._attn_implementation, log.disabled = before, False
        for table in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
            table._global_mapping.pop(_NAME, None)
    return masks.layers()


def require_causal_masks(llm: Any) -> None:
    """Raise Blip2rtError if a layer of a causal LM would see other positions than in the llm graph."""
    if sees_both_ways(llm.config):
        return  # see bidirectional.py
    try:
        layers = layers_of_other_masks(llm)
    except Exception:  # noqa: BLE001  # of a model that cannot run without data: tracing it has a better reason, if any
        return
    if layers:
        raise Blip2rtError(
            f"{type(llm).__name__} is not causal in layers {', '.join(layers)}, or has other windows than its layers "
            "ask for: set is_causal and is_decoder to true in its config.json if it was trained so, or use another "
            "language model"
        )
