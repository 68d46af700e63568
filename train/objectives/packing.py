"""Several texts of one image behind one soft prompt, in one sequence: `[prefix | text 1 | text 2 | ...]`.

Every text attends to the prefix and itself, at the positions that it would have alone; the prefix is computed once for
all of them. Does not know about images or models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tokens:
    """One text: the first `prompt` ids are given, the others are learned, at `weight` and `temperature`."""

    ids: list[int]
    prompt: int = 0
    weight: float = 1.0
    temperature: float = 1.0


@dataclass(frozen=True)
class PackedTexts:
    """A batch of B sequences of P prefix positions and L packed tokens.

    token_ids (B, L); position_ids (B, P + L); mask (B, 1, P + L, P + L), 0 where a position may attend, the smallest
    float elsewhere (eager attention would add a bool mask as numbers); source (M): flat index into (B * (P + L)) of the
    position that predicts each learned token; target (M): those tokens; weight (M): the weights of their losses;
    temperature (M): of the softmax in their losses.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor
    temperature: torch.Tensor


def pack(groups: Sequence[Sequence[Tokens]], prefix: int, pad_token_id: int) -> PackedTexts:
    """Pack each group (the texts of one image) behind `prefix` positions; shorter sequences are padded on the right."""
    length = prefix + max(sum(len(text.ids) for text in group) for group in groups)
    token_ids = torch.full((len(groups), length - prefix), pad_token_id)
    position_ids = torch.zeros(len(groups), length, dtype=torch.long)
    position_ids[:, :prefix] = torch.arange(prefix)
    segment = torch.full((len(groups), length), -1)  # 0 is the prefix, texts count from 1, padding is -1
    segment[:, :prefix] = 0
    source: list[int] = []
    target: list[int] = []
    weight: list[float] = []
    temperature: list[float] = []
    for row, group in enumerate(groups):
        start = prefix
        for number, text in enumerate(group, 1):
            end = start + len(text.ids)
            token_ids[row, start - prefix : end - prefix] = torch.tensor(text.ids)
            position_ids[row, start:end] = torch.arange(prefix, prefix + len(text.ids))
            segment[row, start:end] = number
            for offset in range(text.prompt, len(text.ids)):
                before = prefix - 1 if offset == 0 else start + offset - 1
                source.append(row * length + before)
                target.append(text.ids[offset])
                weight.append(text.weight)
                temperature.append(text.temperature)
            start = end
    learned = (
        *(torch.tensor(numbers, dtype=torch.long) for numbers in (source, target)),
        *(torch.tensor(numbers, dtype=torch.float32) for numbers in (weight, temperature)),
    )
    return PackedTexts(token_ids, position_ids, _mask(segment), *learned)


def _mask(segment: torch.Tensor) -> torch.Tensor:
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same_or_prefix = (segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)
    hidden = ~(causal & same_or_prefix).unsqueeze(1)
    return torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
