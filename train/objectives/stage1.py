"""The three losses of stage 1 (Li et al. 2023, section 3.2): ITC (`itc_loss`), ITM (`itm_loss`), ITG (`itg_loss`).

`stage1_losses` computes all three of a micro-batch. What ITC contrasts and ITM draws from is the whole batch, over
micro-batches and processes: stage1_batch.py. Does not know about data or steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.row_noise import RowNoise

LABEL_SMOOTHING = 0.1


@dataclass(frozen=True)
class TextBatch:
    """token_ids (B, T) starting with [CLS], text_mask (B, T), image_ids (B): equal for captions of one image."""

    token_ids: torch.Tensor
    text_mask: torch.Tensor
    image_ids: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> TextBatch:
        return TextBatch(self.token_ids[rows], self.text_mask[rows], self.image_ids[rows])


def similarity(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """Cosine of every image (B, Q, E) with every text (T, E), the maximum over queries: (B, T)."""
    with torch.autocast(image_embeds.device.type, enabled=False):  # a small temperature would magnify bf16's rounding
        return torch.einsum("bqe,te->btq", image_embeds.float(), text_embeds.float()).amax(-1)


def itc_loss(sim: torch.Tensor, temperature: torch.Tensor, image_ids: torch.Tensor) -> torch.Tensor:
    """Image-text contrast over sim (B, B), both ways; captions of one image share the target, smoothed by 0.1."""
    same = (image_ids[:, None] == image_ids[None, :]).float()
    target = (1 - LABEL_SMOOTHING) * same / same.sum(1, keepdim=True) + LABEL_SMOOTHING / len(image_ids)
    logits = sim / temperature
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


@torch.no_grad()
def hard_negatives(
    sim: torch.Tensor,
    temperature: torch.Tensor,
    image_ids: torch.Tensor,
    hardness: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a wrong image for each text and a wrong text for each image, (B) each, by similarity.

    Captions of the same image are never drawn. hardness: 1 draws by softmax(sim / temperature), 0 uniformly; a model
    that cannot tell a dog from a beach learns nothing from two dogs.
    """
    same = image_ids[:, None] == image_ids[None, :]
    logits = (hardness * sim.float() / temperature).masked_fill(same, float("-inf"))
    if bool(same.all(1).any()):
        raise Blip2rtError(
            "all texts of a batch of stage 1 belong to one image, so that none is wrong: give more images or a larger "
            "batch_size"
        )
    return (
        torch.multinomial(logits.t().softmax(1), 1, generator=generator).squeeze(1),
        torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1),
    )


def itm_loss(logits: torch.Tensor, positives: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of logits (3B, 2) whose first `positives` rows match; also the mean of both classes' accuracies."""
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[:positives] = 1
    right = (logits.argmax(1) == labels).float()
    accuracy = (right[:positives].mean() + right[positives:].mean()) / 2
    return F.cross_entropy(logits, labels), accuracy.detach()


def next_tokens(
    hidden: torch.Tensor, token_ids: torch.Tensor, text_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden (B, T, H) -> the M states that have a next token, (M, H), and those tokens, (M), without padding."""
    learned = text_mask[:, 1:].bool()
    return hidden[:, :-1][learned], token_ids[:, 1:][learned]


def itg_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Next-token cross-entropy of logits (M, V), smoothed by 0.1."""
    return F.cross_entropy(logits.float(), targets, label_smoothing=LABEL_SMOOTHING)


def query_cosine(query_output: torch.Tensor) -> torch.Tensor:
    """Mean cosine between different queries of (B, Q, H): 1.0 if they have collapsed into one, 0 for a single query."""
    unit = F.normalize(query_output.detach().float(), dim=-1)
    count = unit.shape[1]
    return ((unit @ unit.transpose(1, 2)).sum((1, 2)) - count).mean() / max(count * (count - 1), 1)


@dataclass(frozen=True)
class LossSettings:
    """dec_token_id: begins ITG's texts; hardness: see hard_negatives."""

    dec_token_id: int
    itm_weight: float = 1.0
    hardness: float = 1.0


@dataclass(frozen=True)
class Pairs:
    """ITM's pairs of a micro-batch (b): own images with own texts, wrong images with own texts, own with wrong texts.

    text: of the pairs (3b); wrong_kv(vision_features, vision_kv): keys and values of the wrong images (b).
    """

    text: TextBatch
    wrong_kv: Callable[[torch.Tensor, list[Any]], list[Any]]


Embeds = tuple[torch.Tensor, torch.Tensor]  # image_embeds (b, Q, E), text_embeds (b, E)
ContrastBatch = Callable[[Blip2, Embeds, TextBatch, LossSettings], tuple[torch.Tensor, Pairs]]


def _pair_kv(vision_kv: list[Any], elsewhere: list[Any]) -> list[Any]:
    """Keys and values of (3b) images: own, wrong, own."""
    return [
        None if own is None else tuple(torch.cat((mine, wrong, mine)) for mine, wrong in zip(own, other, strict=True))
        for own, other in zip(vision_kv, elsewhere, strict=True)
    ]


def encode_batch(
    model: Blip2, vision_kv: list[Any], text: TextBatch, settings: LossSettings, noise: RowNoise | None
) -> tuple[torch.Tensor, Embeds, torch.Tensor]:
    """query_output (b, Q, H), the embeddings for ITC, and the hidden states (b, T, H) of ITG's texts."""
    decoder_ids = text.token_ids.clone()
    decoder_ids[:, 0] = settings.dec_token_id
    query_output, words, decoded = model.qformer.encode_image_and_texts(
        vision_kv, text.token_ids, decoder_ids, text.text_mask, noise and noise.at(0)
    )
    return query_output, (model.image_embeds(query_output), model.pooled_text(words)), decoded


def stage1_losses(
    model: Blip2,
    vision_features: torch.Tensor,
    text: TextBatch,
    settings: LossSettings,
    contrast: ContrastBatch,
    itg_share: float = 1.0,
    noise: RowNoise | None = None,
) -> dict[str, torch.Tensor]:
    """ITC, ITM and ITG of a micro-batch (b), from the same keys and values of the image.

    contrast: returns ITC and ITM's pairs, see stage1_batch.py. itg_share: tokens here over their mean per process and
    micro-batch, so that every token counts equally. noise: of the rows here, for dropout.
    """
    rows, vision_kv = len(text.image_ids), model.vision_kv(vision_features)
    query_output, embeds, hidden = encode_batch(model, vision_kv, text, settings, noise)
    itc, pairs = contrast(model, embeds, text, settings)

    if settings.itm_weight:
        pair_kv = _pair_kv(vision_kv, pairs.wrong_kv(vision_features, vision_kv))
        three = torch.arange(3 * rows, device=text.image_ids.device)
        noise3 = noise and noise.at(2).copies(three % rows, three // rows)
        fused = model.qformer.encode_pair(pairs.text.token_ids, pairs.text.text_mask, pair_kv, noise3)
        itm, accuracy = itm_loss(model.itm_head(fused).mean(1).float(), rows)
        itm_measures = {"itm": itm.detach(), "itm_accuracy": accuracy}
    else:  # its pairs are most of a step's work; DDP waits for a gradient of every parameter, which is 0
        itm, itm_measures = torch.stack([parameter.sum() for parameter in model.itm_head.parameters()]).sum(), {}

    states, targets = next_tokens(hidden, text.token_ids, text.text_mask)
    itg = itg_share * itg_loss(model.lm_head(states, model.qformer.word_embeddings.weight), targets)
    return {
        "loss": itc + settings.itm_weight * itm + itg,
        "itc": itc.detach(),
        "itg": itg.detach(),
        **itm_measures,
        "temperature": model.temperature.detach().clone(),
        "query_cosine": query_cosine(query_output),
    }
