"""Captions of bundles with `no_repeat_words` say no content word twice."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import blip2rt
from blip2rt import bundle as contract
from blip2rt.native import native
from tests.tiny.bundle import Tiny

pytest.importorskip("blip2rt._native")

FUNCTION_WORDS = {"a", "the", "in", "on", "is", "who"}


def test_captions_say_no_content_word_twice_where_the_manifest_asks(tiny: Tiny, tmp_path: Path, photo) -> None:
    folder = shutil.copytree(tiny.path, tmp_path / "strict")
    manifest = json.loads((folder / contract.MANIFEST).read_text())
    manifest["decoding"]["caption"]["no_repeat_words"] = True
    (folder / contract.MANIFEST).write_text(json.dumps(manifest))
    strict, free = blip2rt.load(folder, threads=1), blip2rt.load(tiny.path, threads=1)
    pictures = [photo() for _ in range(8)]
    options = {"max_new_tokens": 12, "min_new_tokens": 10, "num_beams": 2}

    def repeated(texts: list[str]) -> set[str]:
        counts = [Counter(re.findall("[a-zA-Z]+", text)) for text in texts]
        return {word for each in counts for word, count in each.items() if count > 1} - FUNCTION_WORDS

    assert not repeated(strict.caption(pictures, **options))
    assert not repeated(strict.caption(pictures, max_new_tokens=12, min_new_tokens=10, do_sample=True))
    assert repeated(free.caption(pictures, **options))
    assert repeated(strict.ask(pictures, "what is on the grass?", **options))  # answers may


@pytest.mark.parametrize(
    ("text", "again", "other"),
    [
        ("a boat with a", " boat", " boats"),
        ("boat with a", " boat", " dog"),  # the first word has no space before it
        ("a man wearing a t-shirt and a t-", "shirt", "ree"),
        ("a man, a", " man", " the"),
        ("a dog on a", " dog", " on"),
    ],
)
def test_rule_forbids_the_last_token_of_a_repeated_word(text: str, again: str, other: str) -> None:
    language = blip2rt.load(threads=1).pipeline.language
    rule = native.RepeatedWords(language.vocabulary)
    tokens, (forbidden,), (allowed,) = (language.encode_more(each) for each in (text, again, other))
    logits = rule.forbid(tokens, [0.0] * len(language.vocabulary))
    assert logits[forbidden] == -np.inf and logits[allowed] == 0
