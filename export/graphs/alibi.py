"""Support models whose code bypasses transformers' attention interface: BLOOM, MPT and Falcon.

Inside `intercepted_attention` their attention layers call the tracing function; linear biases are computed here.
A bias is the distance of key from query times the head's slope; this differs from their own code by a constant for
each query, which softmax cancels. Falcon with ALiBi rounds its biases to bfloat16 and is rejected.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_MASK = "create_causal_mask"  # transformers' name, in the module that defines a model
Attend = Callable[..., tuple[Tensor, None]]


def slopes(llm: Any) -> Tensor | None:
    """Return each head's slope (H) from the model's own table; None for a model without such biases."""
    config = llm.config.get_text_config()
    if config.model_type == "bloom":
        table = llm.transformer.build_alibi_tensor(torch.ones(1, 2), config.num_attention_heads, torch.float32)
    elif config.model_type == "mpt":
        table = llm.transformer.build_mpt_alibi_tensor(config.num_attention_heads, 2)
    else:
        return None
    table = table.reshape(config.num_attention_heads, 2).float()
    return table[:, 1] - table[:, 0]


def bias(slope: Tensor, position_ids: Tensor, positions: int) -> Tensor:
    """slope (H), position_ids (B,S) of queries, keys 0 to positions - 1 -> (B,H,S,positions)"""
    distance = torch.arange(positions)[None, None, :] - position_ids[:, :, None]
    return slope[None, :, None, None] * distance[:, None].to(slope.dtype)


@contextlib.contextmanager
def intercepted_attention(llm: Any, attend: Attend) -> Iterator[None]:
    """Make the attention layers of such a model call `attend(module, query, key, value, None, scaling=...)`."""
    entry = _FORWARDS.get(llm.config.get_text_config().model_type)
    if entry is None:
        yield
        return
    kind, forward = entry
    modules = [module for module in llm.modules() if type(module).__name__ == kind]
    namespace = sys.modules[type(llm).__module__]
    mask = getattr(namespace, _MASK, None)
    if mask is not None:  # transformers builds none for our attention, but MPT's code reads one
        setattr(namespace, _MASK, lambda *_, **__: torch.zeros(1, 1, 1, 1))
    for module in modules:
        module.forward = forward(module, attend)
    try:
        yield
    finally:
        for module in modules:
            del module.forward
        if mask is not None:
            setattr(namespace, _MASK, mask)


def _bloom(module: Any, attend: Attend) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, residual: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """hidden_states, residual (B,S,D) -> (B,S,D)"""
        fused = module.query_key_value(hidden_states).unflatten(-1, (module.num_heads, 3, module.head_dim))
        query, key, value = (fused[..., part, :].transpose(1, 2) for part in range(3))
        mixed, _weights = attend(module, query, key, value, None, scaling=module.inv_norm_factor)
        return module.dense(mixed.flatten(2)) + residual, None

    return forward


def _mpt(module: Any, attend: Attend) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """hidden_states (B,S,D) -> (B,S,D)"""
        fused = module.Wqkv(hidden_states)
        if module.clip_qkv:
            fused = fused.clamp(min=-module.clip_qkv, max=module.clip_qkv)
        parts = [
            part.unflatten(-1, (module.n_heads, module.head_dim)).transpose(1, 2) for part in fused.chunk(3, dim=2)
        ]
        mixed, _weights = attend(module, *parts, None, scaling=module.softmax_scale)
        return module.out_proj(mixed.flatten(2)), None

    return forward


def _falcon(module: Any, attend: Attend) -> Callable[..., Any]:
    kv_heads = falcon_kv_heads(module.config)
    groups = module.num_heads // kv_heads

    def forward(
        hidden_states: Tensor, *_: Any, position_embeddings: tuple[Tensor, Tensor], **__: Any
    ) -> tuple[Tensor, None]:
        """hidden_states (B,S,D) -> (B,S,D)"""
        fused = module.query_key_value(hidden_states).unflatten(-1, (kv_heads, groups + 2, module.head_dim))
        query = fused[..., :-2, :].flatten(2, 3).transpose(1, 2)
        key, value = (fused[..., part, :].transpose(1, 2) for part in (-2, -1))
        rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb  # may be replaced
        query, key = rotate(query, key, *position_embeddings)
        mixed, _weights = attend(module, query, key, value, None, scaling=module.head_dim**-0.5)
        return module.dense(mixed.flatten(2)), None

    return forward


def falcon_kv_heads(config: Any) -> int:
    """Count the key-value heads in Falcon's fused projection."""
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)


_FORWARDS: dict[str, tuple[str, Callable[[Any, Attend], Callable[..., Any]]]] = {
    "bloom": ("BloomAttention", _bloom),
    "mpt": ("MptAttention", _mpt),
    "falcon": ("FalconAttention", _falcon),
}
