"""Tokenizers: special tokens, truncation, padding, clean-up, and parity with transformers if installed."""

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blip2rt.bundle.manifest import LlmSpec, RetrievalSpec
from blip2rt.errors import OptionError
from blip2rt.language import open_llm_tokenizer, open_qformer_tokenizer
from blip2rt.native import native
from tests.tiny.bundle import TEXT_WORDS, WORDS

LLM = LlmSpec(1, 1, 8, 16, len(WORDS), 64, 3, 0, False, (1,), 0, "tokenizer.json")


@pytest.fixture
def llm_file(tiny) -> Path:
    return tiny.path / "tokenizer.json"


@pytest.fixture
def qformer(tiny) -> Any:
    return open_qformer_tokenizer(tiny.path / "qformer_tokenizer.json", RetrievalSpec("", 6, 0))


def test_bos_precedes_the_prompt(llm_file):
    assert open_llm_tokenizer(llm_file, replace(LLM, prepend_bos=True)).encode("a") == [0, 2]
    assert open_llm_tokenizer(llm_file, replace(LLM, prepend_bos=True)).encode("") == [0]
    assert open_llm_tokenizer(llm_file, replace(LLM, prepend_bos=True, bos_token_id=None)).encode("") == []


def test_text_is_cleaned(tmp_path):
    from tokenizers import Tokenizer, models

    words = ["two", "\n", "dogs", " ", ".", ",", "it", "'s", "n't", "is", "  ", "3.5"]
    vocabulary = {word: i for i, word in enumerate(words)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="two")).save(str(tmp_path / "t.json"))
    tokenizer = open_llm_tokenizer(tmp_path / "t.json", LLM)
    cases = {"two \n dogs .": "two dogs.", "it 's": "it's", "is n't , it": "isn't, it", "dogs 3.5 .": "dogs 3.5."}
    for tokens, want in cases.items():
        assert tokenizer.decode([vocabulary[word] for word in tokens.split(" ")]) == want


def test_texts_of_the_qformer_are_padded_and_masked(qformer):
    ids, mask = qformer.encode(["a dog runs", "red", ""])
    assert ids.dtype == mask.dtype == np.int64
    assert [[TEXT_WORDS[i] for i in row] for row in ids] == [
        ["[CLS]", "a", "dog", "runs", "[SEP]"],
        ["[CLS]", "red", "[SEP]", "[PAD]", "[PAD]"],
        ["[CLS]", "[SEP]", "[PAD]", "[PAD]", "[PAD]"],
    ]
    np.testing.assert_array_equal(mask.sum(1), [5, 3, 2])


def byte_level(tmp_path: Path, **spec: bool) -> Any:
    """A tokenizer of all bytes and a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: i for i, text in enumerate([*letters, "th", "\u0120d"])}
    merges = [("t", "h"), ("\u0120", "d")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(tmp_path / "t.json"))
    return open_llm_tokenizer(tmp_path / "t.json", replace(LLM, vocab_size=len(vocabulary) + 3, **spec))


@pytest.mark.parametrize(
    ("clean", "letters"), [(False, "ab n't 's ., é图🐕 \n"), (True, "ab n't 's ., ' m ?!'ve re\n")]
)
def test_random_pieces_join_to_the_text(tmp_path, clean, letters):
    tokenizer = byte_level(tmp_path, clean_up_tokenization_spaces=clean)
    for _ in range(400):
        text = "".join(random.choices(letters, k=random.randrange(30)))
        ids = tokenizer.encode(text)
        split = 0 if clean else random.randint(0, len(ids))
        stream = native.TextStream(tokenizer, ids[:split])
        pieces = [*map(stream.push, ids[split:]), stream.end()]
        assert "".join(pieces) == tokenizer.text(ids) and "\ufffd" not in "".join(pieces), repr(text)
        assert clean or tokenizer.text(ids) == text.strip()
    assert tokenizer.text(tokenizer.encode("it 's n't , is it ?")) == (
        "it'sn't, is it?" if clean else "it 's n't , is it ?"
    )


def test_clean_up_equals_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    byte_level(tmp_path)
    made = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "t.json"))
    for _ in range(300):
        text = "".join(random.choices("ab n't 's ., ' m ?!'ve re\n", k=random.randrange(40)))
        assert native.cleaned_up(text) == made.clean_up_tokenization(text)


PIECES = """a|an|cat|dogs|CATS|'s|n't|'|"|.|,|?|!|;|:|#|(|)|~|*|caf\u00e9|\u03a3\u0391\u03a3|\u03a3|\u0130|\u65e5\u672c
|\ufb01|\u2028|\u00a0|\u3000|\x1f|\x00|\t|_|7|\u0967|\u00bd|''ll|I've|we're a|\U0001f600|-|ISTANBUL|\u00df"""
EXTRA_SPACE = re.compile(r" (?=[.,!?;:](\s|$)|n't\b|'(s|m|re|ve|ll|d)\b)")


def test_text_forms_have_pythons_letters_and_spaces():
    pieces, core = PIECES.replace("\n", "").split("|"), native
    for _ in range(1000):
        text = "".join(random.choice(pieces) + random.choice(("", " ", "  ")) for _ in range(random.randint(0, 6)))
        assert core.tidied(text) == EXTRA_SPACE.sub("", " ".join(text.split())), repr(text)
        plain = re.sub(r"[.!\"()*#:;~]", " ", text.lower())
        assert core.clean_caption(text) == " ".join(plain.split()), repr(text)
        assert core.is_phrase(text) == (len(text.split()) <= 4), repr(text)
    for wrong, message in (("a \ud800", r"the text 'a \\ud800' is not valid Unicode"), (1, "a text is int, not str")):
        with pytest.raises(OptionError, match=message):
            core.phrase_of(wrong)


def byte_fallback(tmp_path: Path) -> Any:
    """A tokenizer with byte fallback, like Llama's; its last token, 260, is special, and the id 261 has no token."""
    from tokenizers import Tokenizer, decoders, models

    words = ["<unk>", "\u2581a", "\u2581dog", "s", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = [(word, -1.0 - i) for i, word in enumerate(words)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(tmp_path / "t.json"))
    return open_llm_tokenizer(tmp_path / "t.json", replace(LLM, vocab_size=len(words) + 2))


def test_byte_fallback_pieces_join_to_the_text(tmp_path):
    tokenizer = byte_fallback(tmp_path)
    first = 4  # the token of byte 0
    runs = [first + 65, first + 66, first + 0xE2], [1, first + 65, first + 0xE2, 2], [first + 0xFF, 3]
    for said in (*runs, [first + 0x36, 261, first + 0xC6, 2]):
        stream = native.TextStream(tokenizer)
        assert "".join([*map(stream.push, said), stream.end()]) == tokenizer.text(said)
    for _ in range(300):
        text = "".join(random.choices(["\u56fe", "\U0001f415", "A", "\xe9"], k=4)).encode()
        text = text[: random.randint(1, len(text))]  # it may end within a character
        said = [first + byte for byte in text]
        for at in sorted(random.sample(range(len(said)), random.randint(0, min(2, len(said) - 1)))):
            said.insert(at, random.choice([1, 2, 3, 260, 261]))
        stream = native.TextStream(tokenizer)
        pieces = [*map(stream.push, said), stream.end()]
        assert "".join(pieces) == tokenizer.text(said), said


def test_line_breaks_and_spaces_are_kept(tmp_path):
    tokenizer = byte_level(tmp_path)
    text = "Steps :\n\t1 . a dog , it 's\n\n  2. def f():\n      return  3"
    assert tokenizer.text(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text)) == "Steps: 1. a dog, it's 2. def f(): return 3"


def test_pieces_come_immediately(llm_file):
    stream = native.TextStream(open_llm_tokenizer(llm_file, LLM))
    pieces = [stream.push(WORDS.index(word)) for word in "a red dog : runs".split()]
    assert pieces == ["a", " red", " dog", " :", " runs"]
    assert stream.end() == ""


def test_captions_are_cleaned_if_the_bundle_says_so(tiny, qformer):
    clean = open_qformer_tokenizer(tiny.path / "qformer_tokenizer.json", RetrievalSpec("", 6, 0, clean_captions=True))
    np.testing.assert_array_equal(clean.encode(["A Dog."])[0], qformer.encode(["a dog"])[0])
