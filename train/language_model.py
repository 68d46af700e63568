"""A small language model of one's own, to be frozen in stage 2: `python -m train.language_model --recipe FILE`.

OPT's architecture with a byte-level BPE of its own, trained on the texts of a table; written as a Hugging Face folder.
Where SmolLM2 is too large, 4 million parameters caption too. Knows texts, nothing about images.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from blip2rt.errors import Blip2rtError, OptionError
from blip2rt.text import clean_caption

from .cli import run_main
from .data.samples import batches, read_table
from .loop.trainer import autocast_dtype, learning_rate
from .settings import TrainSettings, option, parse

END = "</s>"


@dataclass(frozen=True)
class LanguageModelSettings(TrainSettings):
    vocab_size: int = option(4096, "entries of the byte-level BPE")
    hidden_size: int = option(256, "width D")
    layers: int = option(4, "decoder layers")
    heads: int = option(4, "attention heads")
    max_text_tokens: int = option(40, "tokens of one text")


def train_tokenizer(texts: list[str], vocab_size: int) -> Any:
    """A fast Hugging Face tokenizer: byte-level BPE, <pad> 0 and END 1."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token=END)


def build(settings: LanguageModelSettings, vocab_size: int) -> Any:
    """A fresh OPT."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(settings.seed)
    config = OPTConfig(
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        word_embed_proj_dim=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        ffn_dim=4 * settings.hidden_size,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return OPTForCausalLM(config)


def train(settings: LanguageModelSettings) -> Path:
    """Train on every text of the table (questions before their answers); returns the folder, written when whole."""
    if settings.dry_run:
        raise OptionError("dry_run: of stage 1 and 2 alone; leave it out")
    out = Path(settings.out)
    if out.exists():
        raise Blip2rtError(f"out {settings.out!r} exists; remove it or choose another folder")
    samples = read_table(settings.train_table, settings.images).samples
    texts = [
        f"Question: {s.prompt} Answer: {clean_caption(s.text)}" if s.prompt else clean_caption(s.text) for s in samples
    ]
    tokenizer = train_tokenizer(texts, settings.vocab_size)
    model = build(settings, len(tokenizer)).train()
    rows = [[1, *ids[: settings.max_text_tokens - 2], 1] for ids in tokenizer(texts)["input_ids"]]
    lengths = np.array([len(row) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), betas=(settings.beta1, settings.beta2), weight_decay=0.1)
    dtype = autocast_dtype(settings.precision)
    bar = tqdm(total=settings.steps, unit="step", desc=out.name)
    for step, chosen in batches(len(rows), settings.batch_size, settings.seed, 0, lengths):
        if step == settings.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.lr, settings)
        loss = _loss(model, [rows[i] for i in chosen], dtype)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    return partial.rename(out)


def _loss(model: Any, rows: list[list[int]], dtype: torch.dtype) -> torch.Tensor:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss: torch.Tensor = model(
            input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100), use_cache=False
        ).loss
    return loss


def main(argv: list[str] | None = None) -> int:
    return run_main(lambda: print(train(parse(LanguageModelSettings, argv, __doc__ or ""))))


if __name__ == "__main__":
    raise SystemExit(main())
