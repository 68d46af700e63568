"""Cross-entropy after a frozen output layer, without its logits in memory."""

from typing import Any

import torch
from torch.nn import functional as F


class _FrozenHeadLoss(torch.autograd.Function):
    """Computes a few rows at a time: the (M, V) logits, their softmax and their gradient are never in memory as a
    whole, which would take most of the time."""

    ROWS = 128

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        weights: torch.Tensor,
        temperatures: torch.Tensor,
        softcap: float,
    ) -> torch.Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        for start in range(0, len(hidden), _FrozenHeadLoss.ROWS):
            rows = slice(start, start + _FrozenHeadLoss.ROWS)
            logits = F.linear(hidden[rows].to(weight.dtype), weight, bias).float()
            if softcap:
                logits = softcap * torch.tanh(logits / softcap)
            target, counts, warmth = targets[rows, None], weights[rows, None], temperatures[rows, None]
            warm = logits / warmth
            norm = warm.logsumexp(1, keepdim=True)
            total += (counts * (norm - warm.gather(1, target))).sum()
            if not ctx.needs_input_grad[0]:
                continue
            slope = (warm - norm).exp_().scatter_add_(1, target, -torch.ones_like(norm)).mul_(counts / warmth)
            if softcap:
                slope *= 1 - (logits / softcap) ** 2
            gradient[rows] = slope.to(weight.dtype) @ weight
        rows_or_one = max(len(hidden), 1)  # without rows the loss is 0
        ctx.save_for_backward(gradient / rows_or_one)
        return total / rows_or_one

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0], None, None, None, None, None, None


def frozen_head_loss(
    hidden: torch.Tensor,
    head: torch.nn.Linear,
    targets: torch.Tensor,
    weights: torch.Tensor,
    temperatures: torch.Tensor,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Mean over M tokens of weights (M) times next-token cross-entropy, of hidden (M, D) and a frozen `head`, for
    targets (M). Logits are capped unless softcap is 0 (`cap * tanh(logits / cap)`), then divided by temperatures (M).
    """
    loss: torch.Tensor = _FrozenHeadLoss.apply(hidden, head.weight, head.bias, targets, weights, temperatures, softcap)
    return loss
