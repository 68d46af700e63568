"""The fused attention of GPUs against the written-out one, and both stages on simulated GPUs."""

from __future__ import annotations

import pytest
import torch

from blip2rt.modeling.vit import attention
from tests.seeds import new_seed


@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_equals_the_written_one(masked: bool) -> None:
    torch.manual_seed(new_seed())
    query, key, value = (torch.randn(3, 4, length, 8, requires_grad=True) for length in (5, 9, 9))
    mask = torch.rand(3, 1, 5, 9) < 0.6 if masked else None
    if mask is not None:
        mask[..., 0] = True
    upstream = torch.randn(3, 4, 5, 8)
    found = []
    for fused in (False, True):
        mixed = attention(query, key, value, mask, fused=fused)
        found.append((mixed, *torch.autograd.grad(mixed, (query, key, value), upstream)))
    for written, kernel in zip(*found, strict=True):
        torch.testing.assert_close(kernel, written, rtol=1e-5, atol=1e-6)
