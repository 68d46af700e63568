"""Tiny random inputs of a training, in the real formats: BERT and LLM folders, captioned photographs, settings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.seeds import new_seed

WORDS = "a the dog cat man woman runs sits in on grass snow red blue ball plays with two and is".split()
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def bert_folder(folder: Path) -> Path:
    """Save a BERT of 2 layers x 32 with a word-piece vocabulary of WORDS and letters."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters[1:], *(f"##{c}" for c in letters)]
    config = transformers.BertConfig(vocab_size=len(vocab), max_position_embeddings=40, **_SIZES)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocab)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab.index("[CLS]")), ("[SEP]", vocab.index("[SEP]"))]
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "pad", "cls", "sep", "mask")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return folder


LLM_WORDS = ["<unk>", "<|end|>", *WORDS, "Question", "Answer", ":", "?", "what"]


def _llm_tokenizer(folder: Path, template: str) -> None:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(LLM_WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<|end|>", 1)])
    special = {"unk_token": "<unk>", "eos_token": "<|end|>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)


def t5_folder(folder: Path) -> Path:
    """Save a T5 of 2 + 2 layers x 32 with a word vocabulary; its texts end in <|end|>."""
    _llm_tokenizer(folder, "$A <|end|>")
    sizes = {"vocab_size": len(LLM_WORDS), "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    tokens = {"eos_token_id": 1, "decoder_start_token_id": 0}
    config = transformers.T5Config(**sizes, **tokens, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def llm_folder(folder: Path) -> Path:
    """Save a Llama of 2 layers x 32 with a word vocabulary; <|end|> ends a text."""
    _llm_tokenizer(folder, "$A")
    sizes = {**_SIZES, "vocab_size": len(LLM_WORDS), "num_key_value_heads": 2, "tie_word_embeddings": True}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, eos_token_id=1)).save_pretrained(folder)
    return folder


def encoder_weights(folder: Path, name: str = "test_efficientnet") -> list[str]:
    """Save random weights of a timm encoder; return the option that names them."""
    torch.save(timm.create_model(name).state_dict(), folder / "encoder.pt")
    return ["--vision_weights", str(folder / "encoder.pt")]


def caption_table(folder: Path, images: int = 8) -> Path:
    """Write random photographs to folder/images, and two captions for each to folder/table.tsv."""
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


# nano's settings beyond the paper, for both stages. Only text dropout is random.
NANO = (
    "--learned-positions --query-std 1 --query-gain 3 --dec-std 0 --query-dropout 0 --attention-dropout 0 --clip 1"
).split()

NANO_STAGE2 = "--no-prepend-bos --normalize-prefix --texts-per-image 6 --max-text-tokens 40".split()


def tiny_settings(folder: Path) -> list[str]:
    """Make the command-line settings of a training for either stage, with NANO; writes all inputs into `folder`."""
    torch.manual_seed(new_seed())
    table = caption_table(folder)
    bert_folder(folder / "bert")
    paths = {
        "train_table": table,
        "dev_table": table,
        "images": folder / "images",
        "features": folder / "features",
        "qformer_init": folder / "bert",
    }
    options = (
        "--vision_source timm:test_efficientnet --vision_size 64 "
        "--queries 4 --views 2 --steps 6 --warmup 2 --batch_size 4 --save_every 3 --eval_every 6 --log_every 1 "
        "--precision fp32"
    ).split()
    given = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
    return [*NANO, *given, *encoder_weights(folder), *options]


def interrupt(run: Any, at: int = 4) -> None:
    """Run a training and interrupt it at step `at` as Ctrl-C does: after the checkpoint of step 3 of tiny settings."""
    original = run.trainer._step

    def step(number: int, backward: Any) -> dict[str, float]:
        if number == at:
            raise KeyboardInterrupt
        metrics: dict[str, float] = original(number, backward)
        return metrics

    run.trainer._step = step
    with pytest.raises(KeyboardInterrupt):
        run.run()
