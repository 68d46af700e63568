"""The three losses of stage 1 (Li et al. 2023, section 3.2): ITC (`itc_loss`), ITM (`itm_loss`), ITG (`itg_loss`).

`stage1_losses` computes all three of one batch. Does not know about data or steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.row_noise import RowNoise

from ..loop.parallel import Parallel, this_process

LABEL_SMOOTHING = 0.1


@dataclass(frozen=True)
class TextBatch:
    """token_ids (B, T) starting with [CLS], text_mask (B, T), image_ids (B): equal for captions of one image."""

    token_ids: torch.Tensor
    text_mask: torch.Tensor
    image_ids: torch.Tensor


def join_texts(texts: Sequence[TextBatch]) -> TextBatch:
    """Concatenate batches, padded to the longest."""
    length = max(text.token_ids.shape[1] for text in texts)
    ids, masks = (
        torch.cat([F.pad(rows, (0, length - rows.shape[1])) for rows in parts])
        for parts in ([text.token_ids for text in texts], [text.text_mask for text in texts])
    )
    return TextBatch(ids, masks, torch.cat([text.image_ids for text in texts]))


def similarity(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """Cosine of every image (B, Q, E) with every text (T, E), the maximum over queries: (B, T)."""
    with torch.autocast(image_embeds.device.type, enabled=False):  # a small temperature would magnify bf16's rounding
        return torch.einsum("bqe,te->btq", image_embeds.float(), text_embeds.float()).amax(-1)


def itc_loss(sim: torch.Tensor, temperature: torch.Tensor, image_ids: torch.Tensor) -> torch.Tensor:
    """Image-text contrast over sim (B, B), both ways; captions of one image share the target, smoothed by 0.1."""
    target, logits = _itc_target(image_ids, image_ids), sim / temperature
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


def _itc_target(own: torch.Tensor, image_ids: torch.Tensor) -> torch.Tensor:
    """The smoothed target (b, B) of rows that belong to the images own (b), over image_ids (B)."""
    same = (own[:, None] == image_ids[None, :]).float()
    return (1 - LABEL_SMOOTHING) * same / same.sum(1, keepdim=True) + LABEL_SMOOTHING / len(image_ids)


def own_itc_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    temperature: torch.Tensor,
    image_ids: torch.Tensor,
    parallel: Parallel,
) -> torch.Tensor:
    """itc_loss of this process's rows (b, Q, E) and (b, E) against those of all processes, which get no gradient.

    image_ids (B): of all rows. The mean over processes is itc_loss, with a part of its gradient.
    """
    target = _itc_target(image_ids[parallel.own_rows(len(text_embeds)).to(image_ids.device)], image_ids)
    to_texts = similarity(image_embeds, parallel.gather(text_embeds.detach()))
    to_images = similarity(parallel.gather(image_embeds.detach()), text_embeds).t()
    return (F.cross_entropy(to_texts / temperature, target) + F.cross_entropy(to_images / temperature, target)) / 2


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
class Contrast:
    """ITC of a whole batch: the rows of all micro-batches and processes (B), numbered by process, then micro-batch.

    text: of all rows; itc: the loss; wrong_image, wrong_text (B): each row's negatives; gradients: of itc by this
    process's image_embeds (b, Q, E), text_embeds (b, E) and the temperature.
    """

    text: TextBatch
    itc: torch.Tensor
    wrong_image: torch.Tensor
    wrong_text: torch.Tensor
    gradients: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class BatchPart:
    """A micro-batch (b) of this process, one of `micros`, within a whole batch.

    own: its rows among this process's; rows (b): among all; wrong_features: the vision_features (b, N, C) of its wrong
    images.
    """

    contrast: Contrast
    own: slice
    rows: torch.Tensor
    micros: int
    wrong_features: Callable[[], torch.Tensor]

    def itc(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
        """The batch's ITC with the gradient of its rows here; over all micro-batches, the mean is the whole one."""
        by_images, by_texts, by_temperature = self.contrast.gradients
        rows = (image_embeds.float() * by_images[self.own]).sum() + (text_embeds.float() * by_texts[self.own]).sum()
        linear = self.micros * rows + by_temperature * temperature
        return self.contrast.itc + (linear - linear.detach())


@dataclass(frozen=True)
class LossSettings:
    """dec_token_id: begins ITG's texts; hardness: see hard_negatives; whole_gradient: ITC's gradient reaches each row
    from all processes, otherwise from its own.
    """

    dec_token_id: int
    itm_weight: float = 1.0
    hardness: float = 1.0
    whole_gradient: bool = True


def _embeds(
    model: Blip2, vision_kv: list[Any], text: TextBatch, noise: RowNoise | None
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Return query_output (b, Q, H), text_embeds (b, E), and the queries' keys and values."""
    query_output, query_kv = model.qformer.encode_image(vision_kv, len(text.image_ids), noise and noise.at(0))
    return query_output, model.text_embeds(text.token_ids, text.text_mask, noise and noise.at(1)), query_kv


@torch.no_grad()
def contrast_embeds(
    model: Blip2, vision_features: torch.Tensor, text: TextBatch, noise: RowNoise | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """image_embeds (b, Q, E) and text_embeds (b, E) of a micro-batch, for `contrast_batch`."""
    query_output, text_embeds, _ = _embeds(model, model.vision_kv(vision_features), text, noise)
    return model.image_embeds(query_output), text_embeds


def contrast_batch(
    model: Blip2,
    embeds: tuple[torch.Tensor, torch.Tensor],
    text: TextBatch,
    settings: LossSettings,
    parallel: Parallel,
    generator: torch.Generator | None,
) -> Contrast:
    """ITC of image_embeds (b, Q, E) and text_embeds (b, E) of all micro-batches, with its gradients, and negatives.

    The gradient cache of Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
    """
    images, texts, temperature = (each.detach().requires_grad_() for each in (*embeds, model.temperature))
    everyone = _gather_texts(text, parallel)
    with torch.enable_grad():
        itc, sim = _itc(images, texts, temperature, everyone, settings, parallel)
        gradients = torch.autograd.grad(itc, (images, texts, temperature))
    return Contrast(everyone, itc.detach(), *_negatives(sim, model, everyone, settings, generator), gradients)


def _gather_texts(text: TextBatch, parallel: Parallel) -> TextBatch:
    ids, mask = parallel.gather_padded(text.token_ids), parallel.gather_padded(text.text_mask)
    return TextBatch(ids, mask, parallel.gather(text.image_ids))


def _negatives(
    sim: torch.Tensor, model: Blip2, text: TextBatch, settings: LossSettings, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if not settings.itm_weight:
        return text.image_ids, text.image_ids
    return hard_negatives(sim, model.temperature, text.image_ids, settings.hardness, generator)


def _itc(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    temperature: torch.Tensor,
    text: TextBatch,
    settings: LossSettings,
    parallel: Parallel,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ITC and the similarities (B, B) of all processes' rows."""
    whole = settings.whole_gradient or parallel.world == 1
    with torch.set_grad_enabled(torch.is_grad_enabled() and whole):
        sim = similarity(parallel.gather(image_embeds), parallel.gather(text_embeds))
    if whole:
        return itc_loss(sim, temperature, text.image_ids), sim
    return own_itc_loss(image_embeds, text_embeds, temperature, text.image_ids, parallel), sim


def _pair_kv(vision_kv: list[Any], elsewhere: list[Any]) -> list[Any]:
    """Keys and values of (3b) images: own, wrong, own."""
    return [
        None if own is None else tuple(torch.cat((mine, wrong, mine)) for mine, wrong in zip(own, other, strict=True))
        for own, other in zip(vision_kv, elsewhere, strict=True)
    ]


def stage1_losses(
    model: Blip2,
    vision_features: torch.Tensor,
    text: TextBatch,
    settings: LossSettings,
    *,
    parallel: Parallel | None = None,
    generator: torch.Generator | None = None,
    itg_share: float = 1.0,
    part: BatchPart | None = None,
    noise: RowNoise | None = None,
) -> dict[str, torch.Tensor]:
    """ITC, ITM and ITG of one micro-batch (b), from the same keys and values of the image.

    With several processes ITC contrasts the rows of all, and ITM's negatives are drawn from all, identically by
    `generator`. part: the micro-batch's place in a larger batch, whose ITC is already known; otherwise it is all of
    this process's rows. itg_share: tokens here over their mean per process and micro-batch, so that every token counts
    equally. noise: of the rows here, for dropout.
    """
    parallel = parallel or this_process()
    batch = len(text.image_ids)
    vision_kv = model.vision_kv(vision_features)
    query_output, text_embeds, query_kv = _embeds(model, vision_kv, text, noise)
    image_embeds = model.image_embeds(query_output)
    if part is None:
        everyone = _gather_texts(text, parallel)
        itc, sim = _itc(image_embeds, text_embeds, model.temperature, everyone, settings, parallel)
        wrong_image, wrong_text = _negatives(sim, model, everyone, settings, generator)
        rows = parallel.own_rows(batch).to(wrong_text.device)
    else:
        itc, everyone, rows = part.itc(image_embeds, text_embeds, model.temperature), part.contrast.text, part.rows
        wrong_image, wrong_text = part.contrast.wrong_image, part.contrast.wrong_text

    if settings.itm_weight:
        texts = torch.cat((rows, rows, wrong_text[rows]))
        if part is not None:
            elsewhere = model.vision_kv(part.wrong_features())
        elif parallel.world > 1:
            elsewhere = model.vision_kv(parallel.fetch(vision_features, wrong_image.view(parallel.world, -1)))
        else:
            elsewhere = [None if kv is None else (kv[0][wrong_image], kv[1][wrong_image]) for kv in vision_kv]
        pair_kv = _pair_kv(vision_kv, elsewhere)
        three = torch.arange(3 * batch, device=rows.device)
        noise3 = noise and noise.at(2).copies(three % batch, three // batch)
        fused = model.qformer.encode_pair(everyone.token_ids[texts], everyone.text_mask[texts], pair_kv, noise3)
        itm, itm_accuracy = itm_loss(model.itm_head(fused).mean(1).float(), batch)
        itm_measures = {"itm": itm.detach(), "itm_accuracy": itm_accuracy}
    else:  # its pairs are most of a step's work; DDP waits for a gradient of every parameter, which is 0
        itm, itm_measures = torch.stack([parameter.sum() for parameter in model.itm_head.parameters()]).sum(), {}

    decoder_ids = text.token_ids.clone()
    decoder_ids[:, 0] = settings.dec_token_id
    hidden = model.qformer.decode_text(decoder_ids, text.text_mask, query_kv, noise and noise.at(3))
    states, targets = next_tokens(hidden, decoder_ids, text.text_mask)
    itg = itg_share * itg_loss(model.lm_head(states, model.qformer.word_embeddings.weight), targets)
    return {
        "loss": itc + settings.itm_weight * itm + itg,
        "itc": itc.detach(),
        "itg": itg.detach(),
        **itm_measures,
        "temperature": model.temperature.detach().clone(),
        "query_cosine": query_cosine(query_output),
    }
