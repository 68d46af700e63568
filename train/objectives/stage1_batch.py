"""The batch of stage 1's contrast: the rows of all processes and micro-batches.

ITC compares every image with every text of the batch, and ITM draws its negatives from it. `WholeBatch` is one
micro-batch on each process. With several, `contrast_batch` computes ITC and its gradient from embeddings, and each
micro-batch is a `BatchPart`. The losses themselves are in stage1.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.row_noise import RowNoise

from ..loop.parallel import Parallel, this_process
from .stage1 import Embeds, LossSettings, Pairs, TextBatch, encode_batch, hard_negatives, itc_loss, similarity


def join_texts(texts: Sequence[TextBatch]) -> TextBatch:
    """Concatenate batches, padded to the longest."""
    length = max(text.token_ids.shape[1] for text in texts)
    ids, masks = (
        torch.cat([F.pad(rows, (0, length - rows.shape[1])) for rows in parts])
        for parts in ([text.token_ids for text in texts], [text.text_mask for text in texts])
    )
    return TextBatch(ids, masks, torch.cat([text.image_ids for text in texts]))


@dataclass(frozen=True)
class WholeBatch:
    """A batch of one micro-batch on each process. All processes draw the same negatives by `generator`."""

    parallel: Parallel = field(default_factory=this_process)
    generator: torch.Generator | None = None

    def __call__(
        self, model: Blip2, embeds: Embeds, text: TextBatch, settings: LossSettings
    ) -> tuple[torch.Tensor, Pairs]:
        """Return ITC and ITM's pairs."""
        everyone, itc, (wrong_image, wrong_text) = self.compare(embeds, model.temperature, text, settings)
        rows, parallel = self.parallel.own_rows(len(text.image_ids)).to(wrong_text.device), self.parallel

        def wrong_kv(vision_features: torch.Tensor, vision_kv: list[Any]) -> list[Any]:
            if parallel.world == 1:
                return [None if kv is None else (kv[0][wrong_image], kv[1][wrong_image]) for kv in vision_kv]
            return model.vision_kv(parallel.fetch(vision_features, wrong_image.view(parallel.world, -1)))

        return itc, Pairs(everyone[torch.cat((rows, rows, wrong_text[rows]))], wrong_kv)

    def compare(
        self, embeds: Embeds, temperature: torch.Tensor, text: TextBatch, settings: LossSettings
    ) -> tuple[TextBatch, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Return the texts of all processes (B), ITC, and each row's wrong image and text (B), if ITM counts."""
        parallel, images, texts = self.parallel, *embeds
        ids, mask = parallel.gather_padded(text.token_ids), parallel.gather_padded(text.text_mask)
        everyone = TextBatch(ids, mask, parallel.gather(text.image_ids))
        negatives = (everyone.image_ids, everyone.image_ids)
        sim = similarity(parallel.gather(images), parallel.gather(texts))
        itc = itc_loss(sim, temperature, everyone.image_ids)
        if settings.itm_weight:
            negatives = hard_negatives(sim, temperature, everyone.image_ids, settings.hardness, self.generator)
        return everyone, itc, negatives


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


@torch.no_grad()
def contrast_embeds(
    model: Blip2, vision_features: torch.Tensor, text: TextBatch, settings: LossSettings, noise: RowNoise | None = None
) -> Embeds:
    """The embeddings of a micro-batch, for `contrast_batch`."""
    return encode_batch(model, model.vision_kv(vision_features), text, settings, noise)[1]


def contrast_batch(
    model: Blip2, embeds: Embeds, text: TextBatch, settings: LossSettings, batch: WholeBatch
) -> Contrast:
    """ITC of the embeddings and texts of all micro-batches, with its gradients, and negatives.

    The gradient cache of Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
    """
    images, texts, temperature = (each.detach().requires_grad_() for each in (*embeds, model.temperature))
    with torch.enable_grad():
        everyone, itc, negatives = batch.compare((images, texts), temperature, text, settings)
        gradients = torch.autograd.grad(itc, (images, texts, temperature))
    return Contrast(everyone, itc.detach(), *negatives, gradients)


@dataclass(frozen=True)
class BatchPart:
    """A micro-batch (b) of this process, one of `micros`, within a whole batch.

    own: its rows among this process's; rows (b): among all; wrong_features: the vision_features (b, N, C) of its wrong
    images.
    """

    whole: Contrast
    own: slice
    rows: torch.Tensor
    micros: int
    wrong_features: Callable[[], torch.Tensor]

    def __call__(
        self, model: Blip2, embeds: Embeds, text: TextBatch, settings: LossSettings
    ) -> tuple[torch.Tensor, Pairs]:
        """Return the batch's ITC, with the gradient of its rows here (the mean over parts is the whole), and pairs."""
        by_images, by_texts, by_temperature = self.whole.gradients
        image_embeds, text_embeds = embeds
        rows = (image_embeds.float() * by_images[self.own]).sum() + (text_embeds.float() * by_texts[self.own]).sum()
        linear = self.micros * rows + by_temperature * model.temperature
        pairs = self.whole.text[torch.cat((self.rows, self.rows, self.whole.wrong_text[self.rows]))]
        wrong = Pairs(pairs, lambda vision_features, vision_kv: model.vision_kv(self.wrong_features()))
        return self.whole.itc + (linear - linear.detach()), wrong
