"""The prefix language modelling loss of encoder-decoder LLMs (paper section 3.3).

A text is split at random: the first part joins the soft prompt in the LLM's encoder, the decoder learns the second. A
question stays whole before its answer. Does not know about data or steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.llm import LanguageModelSource
from blip2rt.modeling.row_noise import RowNoise

from ..data.samples import Sample
from .lm import LmTexts, QformerTexts, Truncation, prompt_ids, query_output, target_text
from .stage1 import query_cosine

IGNORED = -100


@dataclass(frozen=True)
class SplitTexts:
    """T texts of a batch of images.

    image (T): the image whose soft prompt precedes the text; encoder_ids and encoder_mask (T, E): the encoder's tokens
    after the soft prompt, padded on the right; labels (T, L): the decoder's tokens, padded with -100.
    """

    image: torch.Tensor
    encoder_ids: torch.Tensor
    encoder_mask: torch.Tensor
    labels: torch.Tensor

    @property
    def target(self) -> torch.Tensor:
        """The learned tokens, (M)."""
        return self.labels[self.labels != IGNORED]


def prefix_lm_loss(
    model: Blip2,
    vision_features: torch.Tensor,
    texts: SplitTexts,
    hidden_positions: float = 0.0,
    questions: QformerTexts | None = None,
    noise: RowNoise | None = None,
) -> dict[str, torch.Tensor]:
    """Mean cross-entropy of the decoder's tokens, given soft prompt and first part in the encoder; see lm_loss."""
    llm: Any = model.llm
    seen = query_output(model, vision_features, hidden_positions, questions, noise)
    token_embeds = llm.get_input_embeddings()(texts.encoder_ids)
    prefix = model.prefix_embeds(seen).to(token_embeds.dtype)[texts.image]
    logits = llm(
        inputs_embeds=torch.cat((prefix, token_embeds), 1),
        attention_mask=torch.cat((texts.encoder_mask.new_ones(prefix.shape[:2]), texts.encoder_mask), 1),
        labels=texts.labels,  # the decoder reads them shifted right
        use_cache=False,
    ).logits
    loss = F.cross_entropy(logits.float().flatten(0, 1), texts.labels.flatten(), ignore_index=IGNORED)
    return {"loss": loss, "query_cosine": query_cosine(seen)}


class PrefixLmTexts:
    """Samples to the tokens of encoder and decoder, laid out as in the runtime (`add_special_tokens`)."""

    loss = staticmethod(prefix_lm_loss)

    def __init__(self, language: LanguageModelSource, max_tokens: int, clean_answers: bool = False) -> None:
        self.config, self.tokenizer, self.end = language.config, language.tokenizer, language.end_token_ids[0]
        self.max_tokens, self.clean_answers = max_tokens, clean_answers

    def split(self, sample: Sample, rng: np.random.Generator | None) -> tuple[list[int], list[int]]:
        """Ids of the encoder and of the decoder, at most max_tokens each, with the end unless the text is cut.

        `rng` splits a caption; without it, and after a caption_prompt, the decoder gets all of it.
        """
        given, learned = self._whole(sample, rng, self.max_tokens)
        return given, learned[: self.max_tokens]

    def truncation(self, sample: Sample) -> Truncation:
        """What max_tokens leaves of a sample; something is always left for the decoder."""
        return Truncation(any(len(ids) > self.max_tokens for ids in self._whole(sample, None, None)), False)

    def _whole(
        self, sample: Sample, rng: np.random.Generator | None, max_tokens: int | None
    ) -> tuple[list[int], list[int]]:
        """Ids of the encoder, at most max_tokens, and all ids of the decoder."""
        text = target_text(sample, self.clean_answers)
        if sample.prompt:
            prompt = self.config.ask_prompt.format(sample.prompt)
        else:
            words, prompt = text.split(), self.config.caption_prompt
            if rng is not None and words and not prompt:
                cut = int(rng.integers(0, len(words)))
                prompt, text = " ".join(words[:cut]), " ".join(words[cut:])
        learned = [*self.tokenizer.encode(text, add_special_tokens=False), self.end]
        return prompt_ids(self.tokenizer, self.config, prompt, max_tokens), learned

    def batch(
        self, groups: Sequence[Sequence[Sample]], device: torch.device, rngs: Sequence[np.random.Generator] = ()
    ) -> SplitTexts:
        """The texts of each image, one row each; `rngs`, one for each image, split captions."""
        image = torch.tensor([image for image, group in enumerate(groups) for _ in group])
        drawn: Sequence[np.random.Generator | None] = rngs or [None] * len(groups)
        rows = [self.split(sample, rng) for group, rng in zip(groups, drawn, strict=True) for sample in group]
        given, learned = ([torch.tensor(ids, dtype=torch.int64) for ids in side] for side in zip(*rows, strict=True))
        mask = pad_sequence([torch.ones_like(ids) for ids in given], batch_first=True)
        labels = pad_sequence(learned, batch_first=True, padding_value=IGNORED)
        texts = SplitTexts(image, pad_sequence(given, batch_first=True), mask, labels)
        return SplitTexts(*(value.to(device) for value in vars(texts).values()))


def open_texts(
    language: LanguageModelSource, queries: int, max_tokens: int, *, learn_bos: bool, clean_answers: bool
) -> LmTexts | PrefixLmTexts:
    """Choose how texts are laid out for the LLM, and its loss."""
    if language.encoder_decoder:
        return PrefixLmTexts(language, max_tokens, clean_answers)
    return LmTexts(language, queries, max_tokens, learn_bos, clean_answers)
