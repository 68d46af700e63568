"""Untrusted tokenizer.json files: rejected in one line if they blow up a text or crash the library."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from blip2rt.errors import BundleError
from blip2rt.untrusted.tokenizer import MAX_BYTES, guarded, read_tokenizer
from tests.seeds import new_seed

WORDS = ["[UNK]", "[CLS]", "[SEP]", "a", "dog", "cat", "##s"]
VALUES = [None, 0, -1, 10**6, 2**31, 2**63, 1.5, "", "x", [], {}, [{}], True]
VALUES += [{"String": "a"}, {"Regex": "("}, [["a", "b"]]]


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


def test_valid_tokenizer_is_loaded(tmp_path: Path) -> None:
    assert read_tokenizer(save(word_piece(), tmp_path)).encode("dogs a").tokens == ["[CLS]", "dog", "##s", "a", "[SEP]"]


@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.Replace("a", "b" * 65),
        normalizers.Sequence([normalizers.Replace("a", "aa")] * 7),
        normalizers.Sequence([normalizers.NFKC(), normalizers.NFKC()]),
        normalizers.Prepend("x" * 65),
    ],
    ids=["long", "many", "unicode", "prepend"],
)
def test_growing_normalizer_is_rejected(tmp_path: Path, normalizer: object) -> None:
    tokenizer = word_piece()
    tokenizer.normalizer = normalizer
    with pytest.raises(BundleError, match=r"its normalizer turns one character into up to [\d,]+, more than 64"):
        read_tokenizer(save(tokenizer, tmp_path))


def test_growing_decoder_is_rejected(tmp_path: Path) -> None:
    tokenizer = word_piece()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("a", "aa")] * 7)
    with pytest.raises(BundleError, match="its decoder turns one character into up to 128"):
        read_tokenizer(save(tokenizer, tmp_path))


def test_repeating_template_is_rejected(tmp_path: Path) -> None:
    tokenizer = word_piece()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A $A", special_tokens=[])
    with pytest.raises(BundleError, match="its post_processor repeats the text"):
        read_tokenizer(save(tokenizer, tmp_path))


@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.NFKC(),
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]),
    ],
    ids=["nfkc", "llama", "uncased"],
)
def test_common_normalizers_are_accepted(tmp_path: Path, normalizer: object) -> None:
    tokenizer = word_piece()
    tokenizer.normalizer = normalizer
    read_tokenizer(save(tokenizer, tmp_path))


def test_rust_panic_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A template with an undefined token makes the library panic."""
    data = json.loads(word_piece().to_str())
    data["post_processor"]["special_tokens"]["[SEP]"]["id"] = "[OTHER]"
    data["post_processor"]["special_tokens"]["[OTHER]"] = data["post_processor"]["special_tokens"].pop("[SEP]")
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match="tokenizer.json is not a tokenizer: "):
        read_tokenizer(tmp_path / "tokenizer.json")
    assert capfd.readouterr().err == ""


def test_large_and_missing_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.json is not a tokenizer: No such file"):
        read_tokenizer(tmp_path / "none.json")
    file = tmp_path / "large.json"
    file.touch()
    with open(file, "r+b") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(BundleError, match="268,435,457 bytes, more than 268,435,456"):
        read_tokenizer(file)


def test_keyboard_interrupt_passes() -> None:
    with pytest.raises(KeyboardInterrupt), guarded("x"):
        raise KeyboardInterrupt


def test_damaged_files_are_one_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seed = new_seed()
    rng, whole, file = random.Random(seed), json.loads(word_piece().to_str()), tmp_path / "tokenizer.json"
    for _ in range(300):
        data = json.loads(json.dumps(whole))
        place, key = data, rng.choice(list(data))
        while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.85:
            place = place[key]
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        place[key] = rng.choice(VALUES)
        file.write_text(json.dumps(data))
        try:
            tokenizer = read_tokenizer(file)
            with guarded(file):
                tokenizer.decode(tokenizer.encode("a dog").ids)
        except BundleError as error:
            assert "\n" not in str(error)
    assert "panicked" not in capfd.readouterr().err
