"""The prefix split of encoder-decoder LLMs: what goes to which side, and a stage 2 with a T5 end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from blip2rt.modeling.llm import LanguageModelSource, LlmConfig
from blip2rt_train.data.samples import Sample
from blip2rt_train.objectives.lm import truncation_report
from blip2rt_train.objectives.prefix_lm import PrefixLmTexts
from tests.seeds import new_seed
from tests.tiny.training import LLM_WORDS, t5_folder

CPU = torch.device("cpu")


def ids(text: str) -> list[int]:
    return [LLM_WORDS.index(word) for word in text.split()]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5_folder(tmp_path_factory.mktemp("t5"))


def texts(llm: Path, **fields: object) -> PrefixLmTexts:
    config = LlmConfig(source=str(llm), add_special_tokens=True, end="<|end|>", **fields)  # type: ignore[arg-type]
    return PrefixLmTexts(LanguageModelSource(config), max_tokens=12)


def test_caption_is_split_at_every_word(llm: Path) -> None:
    sample = Sample(0, "A dog runs in the snow.")
    whole, rng = ids("a dog runs in the snow"), np.random.default_rng(new_seed())
    cuts = set()
    for _ in range(200):
        given, learned = texts(llm).split(sample, rng)
        assert given[-1] == 1 and learned[-1] == 1, "the encoder's text and the decoder's end"
        assert given[:-1] + learned[:-1] == whole
        cuts.add(len(given) - 1)
    assert cuts == set(range(6)), "the decoder always has a word to say, the encoder may have none"


def test_questions_and_evaluation_are_not_split(llm: Path) -> None:
    made = texts(llm, ask_prompt="Question : {} Answer :")
    rng = np.random.default_rng(new_seed())
    assert made.split(Sample(0, "red", "what ?"), rng) == (
        ids("Question : what ? Answer : <|end|>"),
        ids("red <|end|>"),
    )
    assert made.split(Sample(0, "a dog"), None) == ([1], ids("a dog <|end|>"))
    prompted = texts(llm, caption_prompt="a")
    for draws in (None, rng):
        assert prompted.split(Sample(0, "dog runs"), draws) == (ids("a <|end|>"), ids("dog runs <|end|>"))


def test_truncated_texts_have_no_end_token(llm: Path) -> None:
    long = "a dog " * 40
    made = texts(llm, caption_prompt=long.strip())
    given, learned = made.split(Sample(0, long), None)
    assert len(given) == 12 and given[-1] == 1, "the encoder's text is whole to it"
    assert learned == ids("a dog " * 6)
    assert made.split(Sample(0, "a dog"), None)[1] == ids("a dog <|end|>")
    assert truncation_report(texts(llm), [Sample(0, long), Sample(0, "a dog"), Sample(0, "red", long)]) == (
        "max_text_tokens 12 cuts 2 of 3 texts, and leaves nothing of 0 to learn"
    )


def test_padding_is_ignored(llm: Path) -> None:
    groups = [[Sample(0, "a dog")], [Sample(1, "red", "what ?"), Sample(1, "two")]]
    batch = texts(llm).batch(groups, CPU)
    assert batch.image.tolist() == [0, 1, 1]
    assert (batch.encoder_mask.sum(1) > 0).all() and (batch.encoder_mask == 0).any()
    assert batch.target.tolist() == ids("a dog <|end|> red <|end|> two <|end|>")
