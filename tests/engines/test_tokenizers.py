"""The core's tokenizers: parity with the library `tokenizers`, unknown and unsafe parts, damaged files."""

import json
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from blip2rt.native import native
from tests.seeds import new_seed
from tests.tiny.tokenizers import KINDS, NANO, random_texts


@pytest.mark.parametrize("kind", list(KINDS))
def test_random_texts_have_the_ids_of_the_library(kind: str) -> None:
    library, rng = KINDS[kind](), random.Random(new_seed())
    core = native.Tokenizer(library.to_str().encode())
    highest = max(library.get_vocab().values()) + 2
    for text in random_texts(rng, 2_000):
        layout = rng.random() < 0.5
        ids = library.encode(text, add_special_tokens=layout).ids
        got = core.encode([(text, False)], layout)
        assert got == ids, f"{text!r}: {got} != {ids}"
        ids = rng.choice([ids, [rng.randrange(highest) for _ in range(rng.randrange(8))]])
        decoded, wanted = core.decode(ids, layout), library.decode(ids, skip_special_tokens=layout)
        assert decoded == wanted, f"{ids}: {decoded!r} != {wanted!r}"


@pytest.mark.parametrize("kind", ["llama 3", "t5", "bert", "cased bert"])
def test_special_tokens_can_be_text_and_texts_can_be_cut(kind: str) -> None:
    library, rng = KINDS[kind](), random.Random(new_seed())
    core, library.encode_special_tokens = native.Tokenizer(library.to_str().encode()), True
    for text in random_texts(rng, 1000):
        layout, most = rng.random() < 0.5, rng.randrange(3, 20)
        library.enable_truncation(most)
        assert core.encode([(text, True)], layout, most) == library.encode(text, add_special_tokens=layout).ids, text


def test_pieces_are_encoded_apart_and_laid_out_once() -> None:
    core = native.Tokenizer((NANO / "qformer_tokenizer.json").read_bytes())
    ids = core.encode([("a dog [SEP]", False), ("[SEP]", True)], True)
    assert " ".join(map(str, ids)) == "101 1037 3899 102 1031 19802 1033 102"


@pytest.mark.parametrize("kind", ["gpt-2", "llama 2", "gemma"])
def test_bytes_of_tokens_join_to_the_text(kind: str) -> None:
    library = KINDS[kind]()
    core = native.Tokenizer(library.to_str().encode())
    tokens = core.token_bytes(library.get_vocab_size() + 1)
    special = {i: token.content for i, token in library.get_added_tokens_decoder().items() if token.special}
    assert {i: name for i, name, is_special in core.added_tokens if is_special} == special
    assert tokens[-1] == b"" and all(name.encode() in tokens for _, name, special in core.added_tokens if special)
    for text in ("the dogs aren't running", "a naïve 3.5 图 🐕"):
        ids = library.encode(" " + text, add_special_tokens=False).ids
        assert b"".join(tokens[i] for i in ids).strip() == text.encode()


def words(**parts: Any) -> dict[str, Any]:
    """The JSON of a small tokenizer with other parts."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[U]": 1}, unk_token="[U]"))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return dict(json.loads(tokenizer.to_str()))


BLANK = {"id": 2, "content": "\n", "special": False, "normalized": False, "single_word": False, "lstrip": False}
UNKNOWN = {
    "a blank added token that strips spaces": {**words(), "added_tokens": [{**BLANK, "rstrip": True}]},
    "the decoder 'CTC'": words(decoder=decoders.CTC()),
    "the pre-tokenizer 'UnicodeScripts'": words(pre_tokenizer=pre_tokenizers.UnicodeScripts()),
    "the normalizer 'NFKC'": words(normalizer=normalizers.NFKC()),
    r"the regular expression '\p{Han}'": words(pre_tokenizer=pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated")),
    "the regular expression '(?<=a)b'": words(normalizer=normalizers.Replace(Regex("(?<=a)b"), "c")),
    "the model 'Other'": {**words(), "model": {"type": "Other", "vocab": {}}},
    "the post-processor 'Other'": {**words(), "post_processor": {"type": "Other"}},
    "the version '2.0'": {**words(), "version": "2.0"},
    "two tokens of the id 1": {**words(), "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 1, "b": 1}}},
    "the token id 4294967295 far above the others": {
        **words(),
        "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 2**32 - 1}},
    },
}


@pytest.mark.parametrize("part", list(UNKNOWN))
def test_unknown_parts_are_named(part: str) -> None:
    with pytest.raises(NotImplementedError, match=re.escape(part)):
        native.Tokenizer(json.dumps(UNKNOWN[part]).encode())


def test_wrong_merges_fail_in_every_thread() -> None:
    wrong = {**words(), "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}
    core = native.Tokenizer(json.dumps(wrong).encode())
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(core.encode, [("a", False)], False) for _ in range(64)]
        assert {str(call.exception(60)).split(": ")[-1] for call in calls} == {"a merge with 'ab'"}


def test_expression_that_backtracks_is_stopped() -> None:
    state = words(pre_tokenizer=pre_tokenizers.Split(Regex("(a*)*b"), "isolated"))
    started = time.process_time()
    with pytest.raises(RuntimeError, match="takes too long to match"):
        native.Tokenizer(json.dumps(state).encode()).encode([("a" * 10_000, False)], False)
    assert time.process_time() - started < 20


VALUES = [None, True, False, 0, 1, 3, 1.5, -1, "", "a", "▁", "▁▁", " ", "never", "Removed", [], {}, ["a", 1]]
VALUES += [{"String": "d"}]


def damage(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value in which a part is another value or missing."""
    if not isinstance(value, list | dict) or not value or rng.random() < 0.2:
        return rng.choice(VALUES)
    changed = value.copy()
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if rng.random() < 0.1:
        del changed[key]
    else:
        changed[key] = damage(rng, value[key])
    return changed


@pytest.mark.parametrize("kind", ["llama 2", "gemma", "mt5", "word level", "nfc"])
def test_damaged_files_are_rejected_or_read_as_the_library_does(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    state, rng, opened = json.loads(KINDS[kind]().to_str()), random.Random(new_seed()), 0
    text = "a dog, 2 <s> \n\n cats"
    for _ in range(500):
        part = rng.choice(["normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens", "model"])
        data = json.dumps({**state, part: damage(rng, state[part])}).encode()
        try:
            core = native.Tokenizer(data)
            got = core.encode([(text, False)], True)
            library = Tokenizer.from_buffer(data)
            ids = library.encode(text).ids
        except BaseException as error:  # of Rust, too
            assert isinstance(error, Exception) or type(error).__name__ == "PanicException"
            continue
        opened += 1
        assert got == ids, data[-3000:]
        assert core.decode(got, True) == library.decode(got), data[-3000:]
    capfd.readouterr()  # Rust's panics
    assert opened > 10
