"""Targets of ITC and ITM that say what else fits, for images that come in groups of alike ones.

The hardest wrong texts of a small set of photographs often fit: learned as wrong, they are learned by heart. So a share
of the target goes by the likeness of texts (likeness.py), the rest to what was written of the image (as soft labels of
Gao et al. 2024, SoftCLIP, which takes them of region features). Knows tensors only.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

# Under which a softmax of likeness gives most to the right one of 1,000 images of Flickr8k (68 of 100 first).
_TEMPERATURE = 0.04


def soft_targets(likeness: torch.Tensor, same: torch.Tensor, share: float) -> torch.Tensor:
    """What each row of likeness (Q, C) is of, (Q, C) with rows that sum to one: its own (`same`, Q x C) evenly, but for
    a `share`, which goes to what is alike."""
    own = same.float()
    return (1 - share) * own / own.sum(-1, keepdim=True) + share * (likeness / _TEMPERATURE).softmax(-1)


def soft_contrast(logits: torch.Tensor, likeness: torch.Tensor, same: torch.Tensor, share: float) -> torch.Tensor:
    """Cross-entropy of logits (..., B images, B texts) both ways with soft targets."""

    def one_way(logits: torch.Tensor, likeness: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        targets = soft_targets(likeness, same, share).flatten(0, -2)
        return F.cross_entropy(logits.flatten(0, -2), targets)

    of_texts = one_way(*(x.transpose(-1, -2) for x in (logits, likeness, same)))
    return (one_way(logits, likeness, same) + of_texts) / 2


def group_itm(log_odds: torch.Tensor, likeness: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """ITM over every pair of groups of different images, (groups, g images, g texts) each, the own text of an image at
    its place; and how often a text's own image is the first of its group.

    Whether a pair matches (one right to two wrong ones, as the paper draws them; a wrong one to a `share` of the chance
    that it is the right one, of the two, by likeness), and which of the group does (the contrast).
    """
    size = log_odds.shape[1]
    same = torch.eye(size, dtype=torch.bool, device=log_odds.device).expand_as(log_odds)
    own, own_likeness = (x.diagonal(dim1=1, dim2=2) for x in (log_odds, likeness))  # (groups, g)

    def wrong(dim: int) -> torch.Tensor:
        fits = share * ((likeness - own_likeness.unsqueeze(dim)) / _TEMPERATURE).sigmoid()
        return F.binary_cross_entropy_with_logits(log_odds, fits, reduction="none")[~same].mean()

    matches = (F.softplus(-own).mean() + wrong(1) + wrong(2)) / 3
    first = (log_odds.argmax(1) == torch.arange(size, device=log_odds.device)).float().mean()
    return matches + soft_contrast(log_odds, likeness, same, share), first.detach()
