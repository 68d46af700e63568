"""Moves rotary position embedding from the traced model into GroupQueryAttention, which rotates in place.

Only where the model's own function is seen to rotate halves by one static table; any other model keeps its own nodes,
which is slower and as right. The op counts positions from a row's length, as the contract's position_ids do.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_FUNCTION = "apply_rotary_pos_emb"  # transformers' name, in the module that defines the model
_STATIC = {"default", "linear", "llama3", "yarn"}  # kinds whose table does not depend on the length
CHANGING = {"dynamic", "longrope"}  # kinds whose table is one up to a length, and others beyond it

_HEAD_MULTIPLE = 16  # the op rotates only heads of such a width


class Rotary:
    """`tables` (cos, sin), each (positions, hd/2), empty when the model keeps its own rotation.

    While `removed()` is active the model's function passes queries and keys through and sets `pending`.
    """

    def __init__(self, llm: Any, head_dim: int, positions: int) -> None:
        self.namespace = sys.modules[type(llm).__module__]
        self.tables = self._find_tables(llm, head_dim, positions)
        self.pending = False

    def _find_tables(self, llm: Any, head_dim: int, positions: int) -> tuple[Tensor, ...]:
        function = getattr(self.namespace, _FUNCTION, None)
        found = [module for module in llm.modules() if "inv_freq" in module._buffers]
        parameters = getattr(llm.config.get_text_config(), "rope_parameters", None) or {}
        if function is None or len(found) != 1 or parameters.get("rope_type") not in _STATIC | CHANGING:
            return ()
        if head_dim % _HEAD_MULTIPLE:
            return ()
        try:
            cos, sin = found[0](torch.zeros(1), torch.arange(positions)[None])  # each (1, positions, hd)
            query, key = torch.randn(2, 1, 2, positions, head_dim)
            rotated = function(query, key, cos, sin)
            expected = [_rotate_halves(tensor, cos[:, None], sin[:, None]) for tensor in (query, key)]
            same = all(torch.allclose(a, b, atol=1e-5) for a, b in zip(rotated, expected, strict=True))
        except (TypeError, ValueError, RuntimeError, IndexError):
            return ()
        half = head_dim // 2
        repeated = torch.equal(cos[..., :half], cos[..., half:]) and torch.equal(sin[..., :half], sin[..., half:])
        return (cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()) if same and repeated else ()

    def take(self) -> bool:
        """Whether the layer that is being traced wanted a rotation."""
        wanted, self.pending = self.pending, False
        return wanted

    @contextlib.contextmanager
    def removed(self) -> Iterator[None]:
        """Have the model's function rotate nothing, and note that it was asked to."""
        if not self.tables:
            yield
            return
        original = getattr(self.namespace, _FUNCTION)

        def pass_through(q: Tensor, k: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            self.pending = True
            return q, k

        setattr(self.namespace, _FUNCTION, pass_through)
        try:
            yield
        finally:
            setattr(self.namespace, _FUNCTION, original)


@contextlib.contextmanager
def fixed_rope_tables(llm: Any) -> Iterator[None]:
    """Have no table of the model change with the length: it is that of the positions up to `rope_length_limit`."""
    found = [module for module in llm.modules() if str(getattr(module, "rope_type", None)) in CHANGING]
    kinds = [module.rope_type for module in found]
    for module in found:
        module.rope_type = "default"
    try:
        yield
    finally:
        for module, kind in zip(found, kinds, strict=True):
            module.rope_type = kind


def rope_length_limit(config: Any) -> int | None:
    """The position from which on a model of this config rotates otherwise than before; None where there is none."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [each for each in (given, *given.values()) if isinstance(each, dict)]
    found = [each for each in kinds if each.get("rope_type", each.get("type")) in CHANGING]
    if not found:
        return None
    first = found[0].get("original_max_position_embeddings")
    first = first or getattr(config, "original_max_position_embeddings", None)
    return int(first or config.max_position_embeddings)


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B,H,S,hd), tables (1,1,S,hd) -> x rotated"""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
