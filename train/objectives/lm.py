"""Texts behind soft prompts: samples to tokens, and the LLM's loss on them (paper section 3.3).

Knows prompts, tokens and the model; nothing about data or steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from blip2rt.errors import OptionError
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.checkpoints import qformer_tokenizer
from blip2rt.modeling.llm import (
    LlmConfig,
    end_token_ids,
    has_alibi,
    llm_tokenizer,
    sees_both_ways,
    text_config,
)
from blip2rt.text import clean_caption

from ..data.samples import Sample
from ..model import check_bos
from .packing import PackedTexts, Tokens, pack
from .stage1 import frozen_head_loss, query_cosine


@dataclass(frozen=True)
class Asked:
    """T texts that the queries read beside the image. image (T): its row; token_ids and text_mask (T, L)."""

    image: torch.Tensor
    token_ids: torch.Tensor
    text_mask: torch.Tensor


class Questions:
    """Samples to the texts that a Q-Former reads beside the image, as the runtime lays them out."""

    def __init__(self, model: Blip2) -> None:
        assert model.config.llm is not None
        self.config, self.caption_prompt = model.config, model.config.llm.caption_prompt
        self.tokenizer = qformer_tokenizer(model.config)

    def asked(self, groups: Sequence[Sequence[Sample]], device: torch.device) -> Asked:
        """One row a sample of each image's group."""
        rows = [(image, self._text(sample)) for image, group in enumerate(groups) for sample in group]
        encoded = self.tokenizer(
            [text for _, text in rows], padding=True, truncation=True, max_length=self.config.max_text_length,
            return_tensors="pt",
        )  # fmt: skip
        image = torch.tensor([image for image, _ in rows])
        return Asked(image.to(device), encoded["input_ids"].to(device), encoded["attention_mask"].to(device))

    def _text(self, sample: Sample) -> str:
        asks = self.config.question_prompt.replace("{}", sample.prompt) if sample.prompt else self.caption_prompt
        return clean_caption(asks) if self.config.clean_captions else asks


class Room(NamedTuple):
    """Whether a sample is cut at max_text_tokens, and whether nothing is left of it to learn."""

    cut: bool
    nothing: bool


def written(sample: Sample, cleans: bool) -> str:
    """A text as it is learned: a caption as the reference cleans it, an answer as it was given unless `cleans`."""
    return sample.text.strip() if sample.prompt and not cleans else clean_caption(sample.text)


def given_ids(tokenizer: Any, config: LlmConfig, prompt: str, most: int | None = None) -> list[int]:
    """Ids of a prompt as the runtime lays it out, special tokens included; `most` of them at most."""
    if prompt == "" and config.empty_prompt_ids is not None:
        return list(config.empty_prompt_ids)
    first = [tokenizer.bos_token_id] if config.prepend_bos else []
    special = config.add_special_tokens
    cut = {} if most is None else {"truncation": True, "max_length": most}
    return [*first, *tokenizer.encode(prompt, add_special_tokens=special, **cut)]


class Texts:
    """Samples to tokens: prompt, text, end."""

    def __init__(
        self, config: LlmConfig, queries: int, max_tokens: int, learn_bos: bool = False, cleans: bool = False
    ) -> None:
        """learn_bos: where there is no prompt, what is given before the text is learned too; cleans: answers too."""
        self.config, self.queries, self.max_tokens = config, queries, max_tokens
        self.learn_bos, self.cleans = learn_bos, cleans
        self.tokenizer = llm_tokenizer(config)
        check_bos(self.tokenizer, config)
        self.end = end_token_ids(self.tokenizer, config)[0]

    def tokens(self, sample: Sample) -> Tokens:
        """The first max_tokens. The end is among them where nothing is cut."""
        ids, given = self._whole(sample)
        return Tokens(ids[: self.max_tokens], given)

    def room(self, sample: Sample) -> Room:
        """What max_tokens leaves of a sample."""
        ids, given = self._whole(sample)
        return Room(len(ids) > self.max_tokens, given >= self.max_tokens)

    def _whole(self, sample: Sample) -> tuple[list[int], int]:
        """All ids of a sample, and how many of them are given."""
        prompt = self.config.ask_prompt.format(sample.prompt) if sample.prompt else self.config.caption_prompt
        text = written(sample, self.cleans)
        given = self.given(prompt)
        ids = [*given, *self.encode(f" {text}" if prompt else text), self.end]
        return ids, len(given) if prompt or not self.learn_bos else 0

    def given(self, prompt: str) -> list[int]:
        return given_ids(self.tokenizer, self.config, prompt, self.max_tokens)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False) if text else []

    def packed(self, groups: list[list[Tokens]], device: torch.device) -> PackedTexts:
        """The texts of each image behind its soft prompt."""
        texts = pack(groups, self.queries, self.end)
        return PackedTexts(*(value.to(device) for value in vars(texts).values()))


def told_room(texts: Any, samples: Sequence[Sample]) -> str:
    """How many of the samples max_text_tokens cuts, as Texts or PrefixTexts lay them out."""
    rooms = [texts.room(sample) for sample in samples]
    cut, nothing = sum(room.cut for room in rooms), sum(room.nothing for room in rooms)
    return (
        f"of {len(rooms)} texts max_text_tokens {texts.max_tokens} cuts {cut}, and leaves nothing to learn of {nothing}"
    )


def part_seen(
    model: Blip2, vision_features: torch.Tensor, hidden_positions: float, asked: Asked | None
) -> torch.Tensor:
    """query_output (B, Q, H) of images without a random share of their positions.

    With `asked` it is (T, Q, H): the queries read T texts too, which share the keys and values of their images.
    """
    vision_kv = model.vision_kv(vision_features)
    if hidden_positions:
        count = vision_features.shape[1]
        seen = torch.randperm(count, device=vision_features.device)[: count - int(hidden_positions * count)]
        vision_kv = [None if kv is None else (kv[0][:, :, seen], kv[1][:, :, seen]) for kv in vision_kv]
    if asked is None:
        return model.qformer.encode_image(vision_kv, len(vision_features))[0]
    vision_kv = [None if kv is None else (kv[0][asked.image], kv[1][asked.image]) for kv in vision_kv]
    return model.qformer.encode_pair(asked.token_ids, asked.text_mask, vision_kv)


def stands_alone(config: Blip2Config) -> bool:
    """Whether one text alone may stand behind a soft prompt that is of several texts: the LLM's attention has biases
    by position, not by position_ids."""
    assert config.llm is not None
    return has_alibi(text_config(config.llm.source)) and not config.question_input


def check_llm(config: Blip2Config, texts_per_image: int) -> None:
    """Raise OptionError where the LLM cannot be trained with so many packed texts."""
    assert config.llm is not None
    text = text_config(config.llm.source)
    if has_alibi(text) and text.model_type != "mpt":
        raise OptionError(
            f"llm_source is {config.llm.source!r}, whose attention has biases by position (ALiBi), and transformers' "
            f"{text.model_type} takes no packed texts: give another"
        )
    if stands_alone(config) and texts_per_image > 1:
        raise OptionError(
            f"texts_per_image is {texts_per_image}, and {config.llm.source!r} (MPT) takes no notice of "
            "positions, so that a packed text would stand behind the others: give --texts-per-image 1"
        )
    if sees_both_ways(text):
        raise OptionError(
            f"llm_source is {config.llm.source!r}, whose positions see what comes after them "
            "(use_bidirectional_attention): it would read the word that it is to say; give another"
        )


def head_input(llm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states (..., D) as the output layer takes them.

    Cohere multiplies the logits, and Granite divides them. Neither has a bias, so the states are scaled instead.
    """
    scale = (getattr(llm, "logit_scale", None) or 1.0) / (getattr(llm.config, "logits_scaling", None) or 1.0)
    return hidden if scale == 1 else hidden * scale


def softcap(llm: Any) -> float:
    """What the logits are capped at, as Gemma 2's are; 0: nothing."""
    return getattr(llm.config, "final_logit_softcapping", None) or 0.0


def next_logits(llm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The LLM's own logits (B, V) float32 of hidden states (B, D)."""
    logits: torch.Tensor = llm.get_output_embeddings()(head_input(llm, hidden)).float()
    cap = softcap(llm)
    return cap * torch.tanh(logits / cap) if cap else logits


def lm_loss(
    model: Blip2,
    vision_features: torch.Tensor,
    texts: PackedTexts,
    hidden_positions: float = 0.0,
    asked: Asked | None = None,
) -> dict[str, torch.Tensor]:
    """Next-token cross-entropy of the packed texts behind the images' soft prompts; `hidden_positions`: the share of
    the image's positions that is left out, another one every time; `asked`: each text has a soft prompt of its own."""
    assert model.llm is not None
    query_output = part_seen(model, vision_features, hidden_positions, asked)
    token_embeds = model.llm.get_input_embeddings()(texts.token_ids)  # type: ignore[operator]
    prefix = model.prefix_embeds(query_output).to(token_embeds.dtype)
    hidden = model.llm.base_model(  # type: ignore[operator]
        inputs_embeds=torch.cat((prefix, token_embeds), 1),
        attention_mask=texts.mask,
        position_ids=texts.position_ids,
        use_cache=False,
    ).last_hidden_state
    head = model.llm.get_output_embeddings()  # type: ignore[operator]
    states = head_input(model.llm, hidden.flatten(0, 1)[texts.source])
    loss = frozen_head_loss(states, head, texts.target, texts.weight, texts.temperature, softcap(model.llm))
    return {"loss": loss, "query_cosine": query_cosine(query_output)}
