"""Move rotary position embedding from the traced model into GroupQueryAttention.

This needs a model whose own function provably rotates halves by one static table. Any other model keeps its own nodes,
which is slower and equally correct. The operator counts positions from a row's length, as position_ids do.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_FUNCTION = "apply_rotary_pos_emb"  # transformers' name, in the module that defines the model
_STATIC = {"default", "linear", "llama3", "yarn"}  # rope types whose table does not depend on the length
LENGTH_DEPENDENT = {"dynamic", "longrope"}  # rope types whose table changes beyond some length
_HEAD_MULTIPLE = 16  # the operator only rotates heads whose width is a multiple of this


class Rotary:
    """`tables` are (cos, sin), each (positions, hd/2); empty if the model keeps its own rotation.

    Inside `bypassed()` the model's function returns queries and keys unchanged and sets `pending`.
    """

    def __init__(self, llm: Any, head_dim: int, positions: int) -> None:
        self.namespace = sys.modules[type(llm).__module__]
        self.tables = self._find_tables(llm, head_dim, positions)
        self.pending = False

    def _find_tables(self, llm: Any, head_dim: int, positions: int) -> tuple[Tensor, ...]:
        function = getattr(self.namespace, _FUNCTION, None)
        found = [module for module in llm.modules() if "inv_freq" in module._buffers]
        parameters = getattr(llm.config.get_text_config(), "rope_parameters", None) or {}
        if function is None or len(found) != 1 or parameters.get("rope_type") not in _STATIC | LENGTH_DEPENDENT:
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

    def consume(self) -> bool:
        """Whether the layer that is being traced called for a rotation; resets the flag."""
        pending, self.pending = self.pending, False
        return pending

    @contextlib.contextmanager
    def bypassed(self) -> Iterator[None]:
        """Make the model's function rotate nothing and record each call."""
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
    """Fix length-dependent tables to those of the positions up to `rope_length_limit`."""
    found = [module for module in llm.modules() if _rope_types(module) & LENGTH_DEPENDENT]
    kinds = [module.rope_type for module in found]
    for module, kind in zip(found, kinds, strict=True):
        module.rope_type = dict.fromkeys(kind, "default") if isinstance(kind, dict) else "default"
    try:
        yield
    finally:
        for module, kind in zip(found, kinds, strict=True):
            module.rope_type = kind


def _rope_types(module: Any) -> set[str]:
    """The types of a module's tables: one, or one for each kind of layers."""
    kind = getattr(module, "rope_type", None)
    return set(map(str, kind.values())) if isinstance(kind, dict) else {str(kind)}


def rope_length_limit(config: Any) -> int | None:
    """Return the length beyond which a model of this config changes a rotation; None if it never does."""
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [each for each in (settings, *settings.values()) if isinstance(each, dict)]
    found = [each for each in kinds if each.get("rope_type", each.get("type")) in LENGTH_DEPENDENT]
    name = "original_max_position_embeddings"
    default: Any = getattr(config, name, None) or getattr(config, "max_position_embeddings", None)
    return min((int(each.get(name) or default) for each in found), default=None)


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B,H,S,hd), tables (1,1,S,hd) -> x rotated"""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
