"""Texts from a PyTorch model: vision_features -> query_output -> soft prompt -> token ids -> text.

Stage 2 uses transformers' `generate`, with prompts and texts laid out as in blip2rt.language, so that a checkpoint and
its bundle agree; stage 1 uses its ITG head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from blip2rt.modeling.bert import BertSource
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.llm import LanguageModelSource
from blip2rt.native import native

from ..objectives.lm import prompt_ids

GREEDY = {"num_beams": 1, "max_new_tokens": 20}


def qformer_tokens(config: Blip2Config, tokenizer: Any, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """B texts as the Q-Former reads them: token_ids, text_mask (B, L)."""
    given = [native.clean_caption(text) if config.clean_captions else text for text in texts]
    tokens = tokenizer(given, padding=True, truncation=True, max_length=config.max_text_length, return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"]


class Generator:
    """Captions and answers of a stage-2 model."""

    def __init__(self, model: Blip2, language: LanguageModelSource, bert: BertSource) -> None:
        self.model, self.config, self.bert = model, language.config, bert
        llm: Any = model.llm
        llm.generation_config = GenerationConfig()  # what the source's own says would come into every option
        self.llm = llm
        self.tokenizer, self.ends = language.tokenizer, language.end_token_ids

    def captions(self, vision_features: torch.Tensor, **options: Any) -> list[str]:
        """Captions of images (B, N, C). options: `generate`'s, beams and lengths among them."""
        prompts = [self.config.caption_prompt] * len(vision_features)
        return [native.tidied(text) for text in self._texts(vision_features, prompts, prompts, options)]

    def candidates(self, vision_features: torch.Tensor, rounds: Sequence[dict[str, Any]]) -> list[list[str]]:
        """Captions of each image (B, N, C) by several rounds of `generate`, each with its own options."""
        images, prompts = len(vision_features), [self.config.caption_prompt] * len(vision_features)
        prefix = self._prefix(vision_features, prompts)
        found: list[list[str]] = [[] for _ in range(images)]
        for options in rounds:
            texts, count = self._generate(prefix, prompts, options), options.get("num_return_sequences", 1)
            for image in range(images):
                found[image] += map(native.tidied, texts[image * count : (image + 1) * count])
        return found

    def answers(self, vision_features: torch.Tensor, questions: Sequence[str], **options: Any) -> list[str]:
        """Answers to questions about images (B, N, C), pairwise."""
        questions = [question.strip() for question in questions]
        prompts = [self.config.ask_prompt.replace("{}", question) for question in questions]
        read = [self.model.config.question_prompt.replace("{}", question) for question in questions]
        return self._texts(vision_features, prompts, read, options)

    def _texts(
        self, vision_features: torch.Tensor, prompts: Sequence[str], read: Sequence[str], options: dict[str, Any]
    ) -> list[str]:
        return self._generate(self._prefix(vision_features, read), prompts, options)

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")
    def _prefix(self, vision_features: torch.Tensor, read: Sequence[str]) -> torch.Tensor:
        """Soft prompts (B, Q, D). read: what the Q-Former reads beside the prompt, where it reads at all."""
        question: tuple[torch.Tensor, ...] = ()
        if self.model.config.question_input:
            tokens = qformer_tokens(self.model.config, self.bert.tokenizer, read)
            question = tuple(each.to(vision_features.device) for each in tokens)
        return self.model.prefix_embeds(self.model.query_output(vision_features, *question))

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # a compiled block would be compiled again for the cache
    def _generate(self, prefix: torch.Tensor, prompts: Sequence[str], options: dict[str, Any]) -> list[str]:
        """Texts after soft prompts (B, Q, D). options: `generate`'s, and `seed`, which sets PyTorch's generators."""
        ids = [prompt_ids(self.tokenizer, self.config, prompt) for prompt in prompts]
        embeds, mask = self._inputs(prefix, ids)
        given: dict[str, Any] = {"do_sample": False, "eos_token_id": list(self.ends), "pad_token_id": self.ends[0]}
        start = 0
        if self.llm.config.is_encoder_decoder:
            given["decoder_start_token_id"], start = self.llm.config.decoder_start_token_id, 1
        elif options.get("repetition_penalty", 1.0) != 1.0:
            given |= self._counted(ids, mask.shape[1])
            start = mask.shape[1] * ("input_ids" in given)
        given |= options
        with torch.random.fork_rng():
            if (seed := given.pop("seed", None)) is not None:
                torch.manual_seed(seed)
            found = self.llm.generate(inputs_embeds=embeds, attention_mask=mask, **given)
        rows = [self._answer(row[start:]) for row in found.tolist()]
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]

    def _counted(self, prompts: list[list[int]], length: int) -> dict[str, torch.Tensor]:
        """input_ids (B, length) of image and prompt, which repetition penalties count as in the runtime; {}: none."""
        image = self.config.image_token_id
        fill = [] if image is None or image >= self.llm.config.vocab_size else [image]
        rows = [(fill or ids[:1]) * (length - len(ids)) + ids for ids in prompts]
        return {"input_ids": torch.tensor(rows, device=self.llm.device)} if rows[0] else {}

    def _answer(self, ids: list[int]) -> list[int]:
        """The tokens before the end."""
        return ids[: next((i for i, token in enumerate(ids) if token in self.ends), len(ids))]

    def _inputs(self, prefix: torch.Tensor, prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """[image | prompt] (B, S, D) and its mask (B, S), padded right for an encoder, left for a decoder."""
        table = self.llm.get_input_embeddings()
        rows = [
            torch.cat((image, table(torch.tensor(ids, dtype=torch.int64, device=image.device))))
            for image, ids in zip(prefix.to(table.weight.dtype), prompts, strict=True)
        ]
        side = "right" if self.llm.config.is_encoder_decoder else "left"
        mask = [torch.ones(len(row), dtype=torch.int64, device=row.device) for row in rows]
        return pad_sequence(rows, True, padding_side=side), pad_sequence(mask, True, padding_side=side)


@torch.no_grad()
def itg_captions(model: Blip2, tokenizer: Any, vision_features: torch.Tensor) -> list[str]:
    """Caption images (B, N, C) greedily with a stage-1 model's ITG."""
    qformer, device = model.qformer, vision_features.device
    _, query_kv = qformer.encode_image(model.vision_kv(vision_features), len(vision_features))
    ids = torch.full((len(vision_features), 1), tokenizer.bos_token_id, device=device)
    for _ in range(GREEDY["max_new_tokens"]):
        hidden = qformer.decode_text(ids, torch.ones_like(ids), query_kv)[:, -1]
        logits = model.lm_head(hidden, qformer.word_embeddings.weight)
        ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), 1)
    rows = [row[: row.index(end)] if (end := tokenizer.sep_token_id) in row else row for row in ids.tolist()]
    return [native.tidied(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
