"""Self-critical sequence training (Rennie et al. 2017): captions are sampled and learned by how much better than the
image's other samples they are, by CIDEr. A finetune on top of stage 2's likelihood.

Knows captions and rewards; nothing about data or steps.
"""

from __future__ import annotations

import torch

from blip2rt.modeling.blip2 import Blip2

from .cider import CiderReward
from .data import Sample
from .metrics import tokenize
from .packing import Tokens
from .prompted import Texts, lm_loss

_MAX_NEW_TOKENS = 24
_END = "</s>"  # judged like a word, or captions learn to break off


class SelfCritical:
    """The loss of one step; questions among the samples are learned as they are, beside it."""

    def __init__(self, model: Blip2, texts: Texts, groups: list[list[Sample]], samples: int) -> None:
        """groups: the samples of every training image, whose captions are the references."""
        assert samples > 1, "each sample is judged against the others"
        captions = [[s.text for s in group if not s.prompt] for group in groups]
        self.reward = CiderReward([[f"{tokenize(text)} {_END}" for text in texts_] for texts_ in captions])
        self.model, self.texts, self.samples = model, texts, samples
        self.prompt = texts.encode(texts.config.caption_prompt)

    def loss(self, images: list[int], features: torch.Tensor, groups: list[list[Sample]]) -> dict[str, torch.Tensor]:
        """features (B, N, C) of `images`; a sample's advantage is its reward less the mean of the other samples'."""
        sampled = self._sample(features)
        rewards = torch.tensor(
            [[self._judge(image, ids) for ids in row] for image, row in zip(images, sampled, strict=True)]
        )
        advantages = (rewards - rewards.mean(1, keepdim=True)) * self.samples / (self.samples - 1)
        given = len(self.prompt)
        tokens = [
            [Tokens(self.prompt + ids, given, weight) for ids, weight in zip(row, weights, strict=True)]
            + [self.texts.tokens(sample) for sample in group if sample.prompt]
            for row, weights, group in zip(sampled, advantages.tolist(), groups, strict=True)
        ]
        losses = lm_loss(self.model, features, self.texts.packed(tokens, features.device))
        return losses | {"cider": 100 * rewards.mean()}

    def _judge(self, image: int, ids: list[int]) -> float:
        text = tokenize(self.texts.tokenizer.decode(ids, skip_special_tokens=True))
        return self.reward(image, f"{text} {_END}" if ids[-1] == self.texts.end else text)

    @torch.no_grad()
    def _sample(self, features: torch.Tensor) -> list[list[list[int]]]:
        """Token ids of `samples` captions of each image, drawn from the model's distribution, the end included."""
        llm = self.model.llm
        assert llm is not None
        embed = llm.get_input_embeddings()  # type: ignore[operator]
        prefix = self.model.prefix_embeds(self.model.query_output(features)).to(embed.weight.dtype)
        if self.prompt:
            prompt = embed(torch.tensor([self.prompt], device=features.device)).expand(len(prefix), -1, -1)
            prefix = torch.cat((prefix, prompt), 1)
        drawn = llm.generate(  # type: ignore[operator]
            inputs_embeds=prefix,
            attention_mask=prefix.new_ones(prefix.shape[:2], dtype=torch.long),
            do_sample=True,
            top_k=0,
            num_return_sequences=self.samples,
            max_new_tokens=_MAX_NEW_TOKENS,
            eos_token_id=self.texts.end,
            pad_token_id=self.texts.end,
        )
        rows = [_cut(ids, self.texts.end) for ids in drawn.tolist()]
        return [rows[i : i + self.samples] for i in range(0, len(rows), self.samples)]


def _cut(ids: list[int], end: int) -> list[int]:
    """Up to the first `end`, which stays."""
    return ids[: ids.index(end) + 1] if end in ids else ids
