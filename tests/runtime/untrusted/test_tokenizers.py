"""Untrusted tokenizer.json files: rejected in one line if they blow up a text or crash the library."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from blip2rt.errors import BundleError
from blip2rt.language import read_tokenizer
from blip2rt.native import native
from tests.seeds import new_seed
from tests.tiny.tokenizers import KINDS, random_texts

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
        ("normalizer", normalizers.Sequence([normalizers.NFKC(), normalizers.NFKC()]), 324),
        ("normalizer", normalizers.Prepend("x" * 65), 65),
        ("decoder", decoders.Sequence([decoders.Replace("a", "aa")] * 7), 128),
        ("post_processor", processors.TemplateProcessing(single="$A $A", special_tokens=[]), None),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_growing_parts_are_rejected(tmp_path: Path, part: str, component: object, growth: object, known: bool) -> None:
    tokenizer = word_piece()
    if not known:
        tokenizer.pre_tokenizer = pre_tokenizers.UnicodeScripts()
    setattr(tokenizer, part, component)
    fault = f"turns one character into up to {growth}, more than 64" if growth else "repeats the text"
    with pytest.raises(BundleError, match=f"its {part} {fault}"):
        read_tokenizer(save(tokenizer, tmp_path))


def test_rust_panic_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A template with an undefined token, which the core does not know, makes the library panic."""
    data = json.loads(word_piece().to_str())
    data["post_processor"]["special_tokens"]["[SEP]"]["id"] = "[OTHER]"
    data["post_processor"]["special_tokens"]["[OTHER]"] = data["post_processor"]["special_tokens"].pop("[SEP]")
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match="tokenizer.json is not a tokenizer: "):
        read_tokenizer(tmp_path / "tokenizer.json")
    assert capfd.readouterr().err == ""


def test_library_applies_parts_that_the_core_does_not_know(tmp_path: Path) -> None:
    """Its ids, texts and pieces are those that the core has for the same tokenizer without the part."""
    known = KINDS["llama 2"]()
    unknown = Tokenizer.from_str(known.to_str())
    unknown.decoder = decoders.Sequence([known.decoder, decoders.CTC("<pad>", "|", cleanup=False)])
    texts = [read_tokenizer(save(each, tmp_path)) for each in (known, unknown)]
    with pytest.raises(NotImplementedError):
        native.Tokenizer(unknown.to_str().encode())
    rng = random.Random(new_seed())
    for text in random_texts(rng, 300):
        pieces, layout, ids = [(text, rng.random() < 0.5)], rng.random() < 0.5, [rng.randrange(700) for _ in range(9)]
        most = rng.choice([None, 5])
        assert texts[0].encode(pieces, layout, most) == texts[1].encode(pieces, layout, most)
        assert texts[0].settled(ids) == texts[1].settled(ids)
        assert texts[0].decode(ids, layout) == texts[1].decode(ids, layout)
    pieces = [("a <s>", True), (" b", False)]
    assert texts[0].encode(pieces, True) == texts[1].encode(pieces, True)
    assert texts[0].token_bytes(100) == texts[1].token_bytes(100)
    assert texts[0].added_tokens == texts[1].added_tokens


def test_large_and_missing_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.json is not a tokenizer: No such file"):
        read_tokenizer(tmp_path / "none.json")
    file = tmp_path / "large.json"
    file.touch()
    with open(file, "r+b") as stream:
        stream.truncate((256 << 20) + 1)
    with pytest.raises(BundleError, match="it has more than 268,435,456 bytes"):
        read_tokenizer(file)
