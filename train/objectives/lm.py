"""The language modelling loss of stage 2 (paper section 3.3): samples to tokens, and the LLM's loss of them.

Does not know about data or steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from blip2rt.errors import OptionError
from blip2rt.modeling.bert import BertSource
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.llm import LanguageModelSource, LlmConfig, attention_fault
from blip2rt.modeling.row_noise import RowNoise
from blip2rt.native import native

from ..data.samples import Sample
from .frozen_head import frozen_head_loss
from .packing import PackedTexts, Tokens, pack
from .stage1 import query_cosine


@dataclass(frozen=True)
class QformerTexts:
    """T texts that the queries read beside the image. image (T): its row; token_ids and text_mask (T, L)."""

    image: torch.Tensor
    token_ids: torch.Tensor
    text_mask: torch.Tensor


class QformerTokenizer:
    """Samples to the texts that the queries read beside the image, laid out as in the runtime."""

    def __init__(self, config: Blip2Config, bert: BertSource) -> None:
        self.config, self.tokenizer = config, bert.tokenizer

    def batch(self, groups: Sequence[Sequence[Sample]], device: torch.device) -> QformerTexts:
        """One row per sample of each image's group."""
        rows = [(image, self._text(sample)) for image, group in enumerate(groups) for sample in group]
        length = self.config.max_text_length
        texts = [text for _, text in rows]
        encoded = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        image = torch.tensor([image for image, _ in rows])
        return QformerTexts(image.to(device), encoded["input_ids"].to(device), encoded["attention_mask"].to(device))

    def _text(self, sample: Sample) -> str:
        assert self.config.llm is not None
        prompt = self.config.llm.caption_prompt
        if sample.prompt:
            prompt = self.config.question_prompt.replace("{}", sample.prompt)
        return native.clean_caption(prompt) if self.config.clean_captions else prompt


class Truncation(NamedTuple):
    """Whether max_text_tokens cuts a sample, and whether nothing is left of it to learn."""

    cut: bool
    empty: bool


def target_text(sample: Sample, clean_answers: bool) -> str:
    """The text to learn: a caption is cleaned as in the reference, an answer only with `clean_answers`."""
    return sample.text.strip() if sample.prompt and not clean_answers else native.clean_caption(sample.text)


def prompt_ids(tokenizer: Any, config: LlmConfig, prompt: str, max_tokens: int | None = None) -> list[int]:
    """Ids of a prompt as the runtime lays it out, with special tokens, truncated to `max_tokens`."""
    if prompt == "" and config.empty_prompt_ids is not None:
        return list(config.empty_prompt_ids)
    first = [tokenizer.bos_token_id] if config.prepend_bos else []
    truncation = {} if max_tokens is None else {"truncation": True, "max_length": max_tokens}
    return [*first, *tokenizer.encode(prompt, add_special_tokens=config.add_special_tokens, **truncation)]


def truncation_report(texts: Any, samples: Sequence[Sample]) -> str:
    """How many of the samples max_text_tokens cuts; texts: LmTexts or PrefixLmTexts."""
    found = [texts.truncation(sample) for sample in samples]
    cut, empty = sum(each.cut for each in found), sum(each.empty for each in found)
    return (
        f"max_text_tokens {texts.max_tokens} cuts {cut} of {len(found)} texts, and leaves nothing of {empty} to learn"
    )


def query_output(
    model: Blip2,
    vision_features: torch.Tensor,
    hidden_positions: float,
    questions: QformerTexts | None,
    noise: RowNoise | None = None,
) -> torch.Tensor:
    """query_output (B, Q, H) of images, with a share of their positions hidden, the same ones in the whole batch.

    With `questions` it is (T, Q, H): the queries read T texts too, which share the keys and values of their images.
    noise: of the images, for dropout and the hidden positions.
    """
    vision_kv = model.vision_kv(vision_features)
    if hidden_positions and noise:
        count = vision_features.shape[1]
        shown = noise.order(count)[: count - int(hidden_positions * count)]
        vision_kv = [None if kv is None else (kv[0][:, :, shown], kv[1][:, :, shown]) for kv in vision_kv]
    if questions is None:
        return model.qformer.encode_image(vision_kv, len(vision_features), noise)[0]
    vision_kv = [None if kv is None else (kv[0][questions.image], kv[1][questions.image]) for kv in vision_kv]
    number = torch.arange(len(questions.image), device=questions.image.device)
    number -= torch.searchsorted(questions.image, questions.image)  # within its image
    noise = noise and noise.copies(questions.image, number)
    return model.qformer.encode_pair(questions.token_ids, questions.text_mask, vision_kv, noise)


def check_llm(language: LanguageModelSource) -> None:
    """Raise OptionError if the LLM cannot be trained through."""
    fault = attention_fault(language.text_config)
    if fault is not None:
        raise OptionError(f"llm_source is {language.config.source!r}, {fault}: give another")


def head_input(llm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states (..., D) as the output layer takes them.

    Cohere multiplies the logits, and Granite divides them. Neither has a bias, so the states are scaled instead.
    """
    scale = (getattr(llm, "logit_scale", None) or 1.0) / (getattr(llm.config, "logits_scaling", None) or 1.0)
    return hidden if scale == 1 else hidden * scale


def softcap(llm: Any) -> float:
    """The cap of the logits, as in Gemma 2; 0: none."""
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
    questions: QformerTexts | None = None,
    noise: RowNoise | None = None,
) -> dict[str, torch.Tensor]:
    """Next-token cross-entropy of the packed texts behind the images' soft prompts.

    hidden_positions: share of the image's positions that is hidden. questions: each text has its own soft prompt.
    noise: see query_output.
    """
    assert model.llm is not None
    seen = query_output(model, vision_features, hidden_positions, questions, noise)
    token_embeds = model.llm.get_input_embeddings()(texts.token_ids)  # type: ignore[operator]
    prefix = model.prefix_embeds(seen).to(token_embeds.dtype)
    hidden = model.llm.base_model(  # type: ignore[operator]
        inputs_embeds=torch.cat((prefix, token_embeds), 1),
        attention_mask=texts.mask,
        position_ids=texts.position_ids,
        use_cache=False,
    ).last_hidden_state
    head = model.llm.get_output_embeddings()  # type: ignore[operator]
    states = head_input(model.llm, hidden.flatten(0, 1)[texts.source])
    loss = frozen_head_loss(states, head, texts.target, texts.weight, texts.temperature, softcap(model.llm))
    return {"loss": loss, "query_cosine": query_cosine(seen)}


class LmTexts:
    """Samples to tokens for a decoder-only LLM: prompt, text, end."""

    loss = staticmethod(lm_loss)

    def __init__(
        self,
        language: LanguageModelSource,
        queries: int,
        max_tokens: int,
        learn_bos: bool = False,
        clean_answers: bool = False,
    ) -> None:
        """learn_bos: without a prompt, the tokens before the text are learned too."""
        language.require_bos()
        self.config, self.tokenizer, self.end = language.config, language.tokenizer, language.end_token_ids[0]
        self.queries, self.max_tokens = queries, max_tokens
        self.learn_bos, self.clean_answers = learn_bos, clean_answers

    def tokens(self, sample: Sample) -> Tokens:
        """The first max_tokens; they include the end unless the text is cut."""
        ids, given = self._whole(sample)
        return Tokens(ids[: self.max_tokens], given)

    def truncation(self, sample: Sample) -> Truncation:
        """What max_tokens leaves of a sample."""
        ids, given = self._whole(sample)
        return Truncation(len(ids) > self.max_tokens, given >= self.max_tokens)

    def _whole(self, sample: Sample) -> tuple[list[int], int]:
        """All ids of a sample, and the number of given ones before those to learn."""
        prompt = self.config.ask_prompt.format(sample.prompt) if sample.prompt else self.config.caption_prompt
        text = target_text(sample, self.clean_answers)
        text = f" {text}" if prompt else text
        given = self.given(prompt)
        learned = self.tokenizer.encode(text, add_special_tokens=False) if text else []
        return [*given, *learned, self.end], len(given) if prompt or not self.learn_bos else 0

    def given(self, prompt: str) -> list[int]:
        """Ids of a prompt."""
        return prompt_ids(self.tokenizer, self.config, prompt, self.max_tokens)

    def batch(
        self, groups: Sequence[Sequence[Sample]], device: torch.device, rngs: Sequence[np.random.Generator] = ()
    ) -> PackedTexts:
        """The texts of each image behind its soft prompt; nothing is drawn."""
        return self.packed([[self.tokens(sample) for sample in group] for group in groups], device)

    def packed(self, groups: Sequence[Sequence[Tokens]], device: torch.device) -> PackedTexts:
        """The tokens of each image behind its soft prompt."""
        texts = pack(groups, self.queries, self.end)
        return PackedTexts(*(value.to(device) for value in vars(texts).values()))
