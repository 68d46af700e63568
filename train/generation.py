"""What a PyTorch model of stage 2 says: query_output -> soft prompt -> token ids -> text, by transformers' `generate`.

Prompts, special tokens and texts are laid out as blip2rt.language does it, so that a checkpoint and its bundle say the
same. Knows the model and its LLM's tokenizer, nothing about images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.llm import end_token_ids, load_tokenizer
from blip2rt.text import tidy


class Generator:
    """The LLM of a model behind its soft prompt."""

    def __init__(self, model: Blip2) -> None:
        assert model.llm is not None and model.config.llm is not None
        self.model, self.config = model, model.config.llm
        llm: Any = model.llm
        llm.generation_config = GenerationConfig()  # what the source's own says would come into every option
        self.llm = llm
        self.tokenizer = load_tokenizer(self.config.source)
        self.ends = end_token_ids(self.tokenizer, self.config)

    def encode(self, prompt: str) -> list[int]:
        """A prompt's token ids."""
        if prompt == "" and self.config.empty_prompt_ids is not None:
            return list(self.config.empty_prompt_ids)
        ids: list[int] = self.tokenizer.encode(prompt, add_special_tokens=self.config.add_special_tokens)
        return [self.tokenizer.bos_token_id, *ids] if self.config.prepend_bos else ids

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # a compiled block would be compiled again for the cache
    def texts(self, query_output: torch.Tensor, prompts: Sequence[str], **options: Any) -> list[str]:
        """query_output (B, Q, H) and B prompts -> B texts. options: `generate`'s, beams and lengths among them."""
        embeds, mask = self._inputs(query_output, [self.encode(prompt) for prompt in prompts])
        given: dict[str, Any] = {"do_sample": False, "eos_token_id": list(self.ends), "pad_token_id": self.ends[0]}
        start = 0
        if self.llm.config.is_encoder_decoder:
            given["decoder_start_token_id"], start = self.llm.config.decoder_start_token_id, 1
        ids = self.llm.generate(inputs_embeds=embeds, attention_mask=mask, **given, **options)
        return [tidy(self.tokenizer.decode(self._said(row[start:]), skip_special_tokens=True)) for row in ids.tolist()]

    def _said(self, ids: list[int]) -> list[int]:
        """The tokens before the end."""
        return ids[: next((i for i, token in enumerate(ids) if token in self.ends), len(ids))]

    def _inputs(self, query_output: torch.Tensor, prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """[image | prompt] (B, S, D) and what of it is real (B, S): padded where the text does not go on."""
        table = self.llm.get_input_embeddings()
        prefix = self.model.prefix_embeds(query_output).to(table.weight.dtype)
        rows = [
            torch.cat((image, table(torch.tensor(ids, dtype=torch.int64, device=image.device))))
            for image, ids in zip(prefix, prompts, strict=True)
        ]
        side = "right" if self.llm.config.is_encoder_decoder else "left"
        pad = torch.nn.utils.rnn.pad_sequence
        mask = [torch.ones(len(row), dtype=torch.int64, device=row.device) for row in rows]
        return (pad(rows, batch_first=True, padding_side=side), pad(mask, batch_first=True, padding_side=side))
