"""The losses of stage 1 as the reference computes them: three independent forward passes."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

from blip2rt.modeling.blip2 import Blip2
from blip2rt_train.objectives.stage1 import (
    LossSettings,
    TextBatch,
    hard_negatives,
    itc_loss,
    itg_loss,
    itm_loss,
    next_tokens,
    similarity,
)
from blip2rt_train.objectives.stage1_batch import WholeBatch


def _normalized_features(model: Blip2) -> Any:
    """Inside, the LayerNorm's output is what keys and values are computed of, as in LAVIS."""

    def vision_kv(vision_features: torch.Tensor) -> list[Any]:
        seen = model.vision_norm(vision_features)
        return model.qformer.vision_kv(seen + model.vision_positions if model.config.learned_positions else seen)

    return mock.patch.object(model, "vision_kv", vision_kv)


def itc_pass(model: Blip2, vision_features: torch.Tensor, text: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and text separately: the loss, and the similarities (b, b)."""
    query_output = model.query_output(vision_features)
    sim = similarity(model.image_embeds(query_output), model.text_embeds(text.token_ids, text.text_mask))
    return itc_loss(sim, model.temperature, text.image_ids), sim


def itm_pass(model: Blip2, vision_features: torch.Tensor, text: TextBatch, sim: torch.Tensor) -> torch.Tensor:
    """Matching pairs, wrong images, wrong texts: 3b images with 3b texts under the bidirectional mask."""
    wrong_image, wrong_text = hard_negatives(sim, model.temperature, text.image_ids)
    images = torch.cat((vision_features, vision_features[wrong_image], vision_features))
    token_ids = torch.cat((text.token_ids, text.token_ids, text.token_ids[wrong_text]))
    text_mask = torch.cat((text.text_mask, text.text_mask, text.text_mask[wrong_text]))
    return itm_loss(model.itm_logits(images, token_ids, text_mask).float(), len(vision_features))[0]


def itg_pass(model: Blip2, vision_features: torch.Tensor, text: TextBatch, dec_token_id: int) -> torch.Tensor:
    """[queries ; text] as one sequence under the multimodal causal mask."""
    qformer = model.qformer
    decoder_ids = text.token_ids.clone()
    decoder_ids[:, 0] = dec_token_id
    batch, length = decoder_ids.shape
    count = qformer.config.queries
    mask = torch.ones(count + length, count + length, dtype=torch.bool, device=decoder_ids.device).tril()
    mask[:, :count] = True
    seen = torch.cat((text.text_mask.new_ones(batch, count), text.text_mask), 1).bool()
    queries, words = qformer.embed_queries(batch), qformer.embed_text(decoder_ids)
    for layer, image in zip(qformer.layers, model.vision_kv(vision_features), strict=True):
        queries, words, _ = layer(queries, words, (mask & seen[:, None, :]).unsqueeze(1), image, None)
    states, targets = next_tokens(words, decoder_ids, text.text_mask)
    return itg_loss(model.lm_head(states, qformer.word_embeddings.weight), targets)


def independent_losses(
    model: Blip2, vision_features: torch.Tensor, text: TextBatch, settings: LossSettings, _batch: WholeBatch
) -> dict[str, torch.Tensor]:
    """ITC, ITM and ITG with a full forward pass each; they share only the similarities for ITM's negatives. A batch on
    one process only."""
    with _normalized_features(model):
        itc, sim = itc_pass(model, vision_features, text)
        itm = itm_pass(model, vision_features, text, sim)
        itg = itg_pass(model, vision_features, text, settings.dec_token_id)
    return {"loss": itc + itm + itg, "itc": itc, "itm": itm, "itg": itg}
