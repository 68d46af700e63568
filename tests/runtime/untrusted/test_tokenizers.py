"""Untrusted tokenizer.json files: rejected in one line if they blow up a text or crash the library."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from blip2rt.errors import BundleError
from blip2rt.language import read_tokenizer

WORDS = ["[UNK]", "[CLS]", "[SEP]", "a", "dog", "cat", "##s"]


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.mark.parametrize(
    ("part", "component", "growth"),
    [
        ("normalizer", normalizers.Replace("a", "b" * 65), 65),
        ("normalizer", normalizers.Sequence([normalizers.Replace("a", "aa")] * 7), 128),
        ("normalizer", normalizers.Sequence([normalizers.NFC()] * 4), 256),
        ("normalizer", normalizers.Prepend("x" * 65), 65),
        ("decoder", decoders.Sequence([decoders.Replace("a", "aa")] * 7), 128),
        ("post_processor", processors.TemplateProcessing(single="$A $A", special_tokens=[]), None),
    ],
)
def test_growing_parts_are_rejected(tmp_path: Path, part: str, component: object, growth: object) -> None:
    tokenizer = word_piece()
    setattr(tokenizer, part, component)
    fault = f"turns one character into up to {growth}, more than 64" if growth else "repeats the text"
    with pytest.raises(BundleError, match=f"its {part} {fault}"):
        read_tokenizer(save(tokenizer, tmp_path))


def test_unknown_parts_are_named_in_one_line(tmp_path: Path) -> None:
    tokenizer = word_piece()
    tokenizer.normalizer = normalizers.NFKC()
    with pytest.raises(BundleError, match=r"needs what no supported tokenizer has: the normalizer 'NFKC'$"):
        read_tokenizer(save(tokenizer, tmp_path))


def test_large_and_missing_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.json is not a tokenizer: No such file"):
        read_tokenizer(tmp_path / "none.json")
    file = tmp_path / "large.json"
    file.touch()
    with open(file, "r+b") as stream:
        stream.truncate((256 << 20) + 1)
    with pytest.raises(BundleError, match="it has more than 268,435,456 bytes"):
        read_tokenizer(file)
