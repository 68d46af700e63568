"""Tiny random stand-ins for the frozen parts, in the real formats: a BERT folder, a causal LM folder, photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.seeds import new_seed

WORDS = "a the dog cat man woman runs sits in on grass snow red blue ball plays with two and is".split()


def bert_folder(folder: Path) -> Path:
    """A BERT of 2 layers x 32 with a word-piece vocabulary of WORDS and letters."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters[1:], *(f"##{c}" for c in letters)]
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocab)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab.index("[CLS]")), ("[SEP]", vocab.index("[SEP]"))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)  # fmt: skip
    return folder


LLM_WORDS = ["<unk>", "<|end|>", *WORDS, "Question", "Answer", ":", "?", "what"]


def _llm_tokenizer(folder: Path, template: str) -> None:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(LLM_WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<|end|>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<|end|>").save_pretrained(folder)


def t5_folder(folder: Path) -> Path:
    """A T5 of 2 + 2 layers x 32 with the same vocabulary; its texts end in <|end|>."""
    _llm_tokenizer(folder, "$A <|end|>")
    config = T5Config(
        vocab_size=len(LLM_WORDS), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, eos_token_id=1,
        decoder_start_token_id=0, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def llm_folder(folder: Path) -> Path:
    """A Llama of 2 layers x 32 with a word vocabulary; <|end|> ends a text."""
    _llm_tokenizer(folder, "$A")
    config = LlamaConfig(
        vocab_size=len(LLM_WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def caption_table(folder: Path, images: int = 8) -> Path:
    """`images` random photographs in folder/images and two captions each in folder/table.tsv."""
    rng = np.random.default_rng(new_seed())
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = ["image\tcaption"]
    for i in range(images):
        pixels = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.jpg")
        rows += [f"{i}.jpg\t{' '.join(rng.choice(WORDS, rng.integers(3, 7)))} ." for _ in range(2)]
    table = folder / "table.tsv"
    table.write_text("\n".join(rows) + "\n")
    return table


# What both stages of nano have and the paper has not. Nothing is drawn but the text's dropout.
NANO = ["--learned-positions", "--query-std", "1", "--query-gain", "3", "--dec-std", "0", "--query-dropout", "0",
        "--attention-dropout", "0", "--clip", "1"]  # fmt: skip

NANO_STAGE2 = ["--no-prepend-bos", "--normalize-prefix", "--query-offsets", "--texts-per-image", "6",
               "--max-text-tokens", "40"]  # fmt: skip


def tiny_settings(folder: Path) -> list[str]:
    """Command-line settings, common to both stages, of a training on these parts, with nano's tricks; writes the parts
    below `folder`."""
    torch.manual_seed(new_seed())
    table = caption_table(folder)
    bert_folder(folder / "bert")
    fields = {
        "train_table": table,
        "dev_table": table,
        "images": folder / "images",
        "features": folder / "features",
        "qformer_init": folder / "bert",
        "vision_source": "timm:test_efficientnet",
        "vision_size": 64,
        "vision_positions": 4,
        "vision_features": 256,
        "queries": 4,
        "views": 2,
        "steps": 6,
        "warmup": 2,
        "batch_size": 4,
        "save_every": 3,
        "eval_every": 6,
        "log_every": 1,
        "precision": "fp32",
    }
    return [*NANO, *(text for name, value in fields.items() for text in (f"--{name}", str(value)))]
