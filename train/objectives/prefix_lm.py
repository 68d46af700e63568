"""The prefix language modelling loss of encoder-decoder LLMs (paper section 3.3).

A text is split in two at random: the first part joins the soft prompt in the LLM's encoder, the second is what its
decoder learns to say. A question stays whole before its answer. Knows prompts, tokens and the model, no data or steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.llm import LlmConfig, encoder_decoder, end_token_ids, llm_tokenizer

from ..data.samples import Sample
from .lm import Asked, Room, Texts, given_ids, part_seen, written
from .stage1 import query_cosine

IGNORED = -100


@dataclass(frozen=True)
class SplitTexts:
    """T texts of a batch of images.

    image (T): whose soft prompt stands before it; encoder_ids and encoder_mask (T, E): what the encoder reads behind
    that prompt, padded on the right; labels (T, L): what the decoder says, -100 where there is padding.
    """

    image: torch.Tensor
    encoder_ids: torch.Tensor
    encoder_mask: torch.Tensor
    labels: torch.Tensor

    @property
    def target(self) -> torch.Tensor:
        """The learned tokens, (M)."""
        return self.labels[self.labels != IGNORED]


class PrefixTexts:
    """Samples to the tokens of both sides, laid out as the runtime lays prompts out (`add_special_tokens`)."""

    def __init__(self, config: LlmConfig, queries: int, max_tokens: int, cleans: bool = False) -> None:
        """cleans: answers too."""
        self.config, self.max_tokens, self.cleans = config, max_tokens, cleans
        self.tokenizer = llm_tokenizer(config)
        self.end = end_token_ids(self.tokenizer, config)[0]

    def split(self, sample: Sample, rng: np.random.Generator | None) -> tuple[list[int], list[int]]:
        """Ids of the encoder and of the decoder. `rng` cuts a caption in two; without it, and behind a caption_prompt,
        which takes the first part's place, all of it is the decoder's.

        Each has max_tokens at most. The end is among the decoder's where nothing of the text is cut.
        """
        given, learned = self._whole(sample, rng, self.max_tokens)
        return given, learned[: self.max_tokens]

    def room(self, sample: Sample) -> Room:
        """What max_tokens leaves of a sample; the decoder always has some."""
        return Room(any(len(ids) > self.max_tokens for ids in self._whole(sample, None, None)), False)

    def _whole(self, sample: Sample, rng: np.random.Generator | None, most: int | None) -> tuple[list[int], list[int]]:
        """Ids of both sides, the decoder's all of them; `most` of the encoder's at most."""
        text = written(sample, self.cleans)
        if sample.prompt:
            prompt = self.config.ask_prompt.format(sample.prompt)
        else:
            words, prompt = text.split(), self.config.caption_prompt
            if rng is not None and words and not prompt:
                cut = int(rng.integers(0, len(words)))
                prompt, text = " ".join(words[:cut]), " ".join(words[cut:])
        learned = [*self.tokenizer.encode(text, add_special_tokens=False), self.end]
        return given_ids(self.tokenizer, self.config, prompt, most), learned

    def packed(
        self, groups: Sequence[Sequence[Sample]], device: torch.device, rng: np.random.Generator | None = None
    ) -> SplitTexts:
        """The texts of each image, one row each."""
        rows = [(image, *self.split(sample, rng)) for image, group in enumerate(groups) for sample in group]
        given, mask = _pad([row[1] for row in rows], 0)
        labels, learned = _pad([row[2] for row in rows], 0)
        texts = SplitTexts(
            torch.tensor([row[0] for row in rows]), given, mask, labels.masked_fill(learned == 0, IGNORED)
        )
        return SplitTexts(*(value.to(device) for value in vars(texts).values()))


def open_texts(
    config: LlmConfig, queries: int, max_tokens: int, *, learn_bos: bool, cleans: bool
) -> Texts | PrefixTexts:
    """What lays texts out for the LLM."""
    if encoder_decoder(config.source):
        return PrefixTexts(config, queries, max_tokens, cleans)
    return Texts(config, queries, max_tokens, learn_bos, cleans)


def _pad(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (T, L) and mask (T, L) of rows of unequal length."""
    ids = torch.full((len(rows), max(map(len, rows))), pad)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return ids, mask


def prefix_lm_loss(
    model: Blip2,
    vision_features: torch.Tensor,
    texts: SplitTexts,
    hidden_positions: float = 0.0,
    asked: Asked | None = None,
) -> dict[str, torch.Tensor]:
    """Mean cross-entropy of the decoder's tokens, given soft prompt and first part in the encoder; `hidden_positions`:
    the share of the image's positions that is left out; `asked`: each text has a soft prompt of its own."""
    llm: Any = model.llm
    query_output = part_seen(model, vision_features, hidden_positions, asked)
    token_embeds = llm.get_input_embeddings()(texts.encoder_ids)
    prefix = model.prefix_embeds(query_output).to(token_embeds.dtype)[texts.image]
    logits = llm(
        inputs_embeds=torch.cat((prefix, token_embeds), 1),
        attention_mask=torch.cat((texts.encoder_mask.new_ones(prefix.shape[:2]), texts.encoder_mask), 1),
        labels=texts.labels,  # the decoder reads them shifted right
        use_cache=False,
    ).logits
    loss = F.cross_entropy(logits.float().flatten(0, 1), texts.labels.flatten(), ignore_index=IGNORED)
    return {"loss": loss, "query_cosine": query_cosine(query_output)}
