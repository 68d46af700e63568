"""The native loop against Hugging Face `generate` on random (model, options, batch) cases, fresh seeds in every run."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

from tests.engines.native.reference import CONFIGS, Case, compare, make_case, vocabulary
from tests.seeds import new_seed

pytestmark = pytest.mark.long(60)

CASES = 320
PARTS = 8


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return [make_case(name, tmp_path_factory.mktemp(name), images=2) for name in sorted(CONFIGS)]


def random_options(rng: random.Random, case: Case) -> dict[str, Any]:
    """Options such as a user may combine, about tokens that the model is likely to say."""
    likely = case.said[:12]
    longest = rng.randint(1, 10)
    options: dict[str, Any] = {
        "num_beams": rng.choice([1, 1, 2, 3, 5]),
        "max_new_tokens": longest,
        "eos_token_ids": rng.sample(likely, min(rng.choice([0, 1, 1, 2, 3]), len(likely))),  # some say little
    }
    if rng.random() < 0.3:
        options["min_new_tokens"] = rng.randint(0, longest)
    if options["num_beams"] > 1:
        options["num_return_sequences"] = rng.randint(1, options["num_beams"])
        options["early_stopping"] = rng.choice(["true", "false", "never"])
        options["length_penalty"] = rng.choice([-1.5, 0.0, 0.6, 1.0, 2.0])
    if rng.random() < 0.4:
        options["repetition_penalty"] = rng.choice([0.7, 1.3, 2.0, 5.0])
    if rng.random() < 0.3:
        options["no_repeat_ngram_size"] = rng.randint(1, 3)
    if rng.random() < 0.4:
        words = [[rng.choice(likely) for _ in range(rng.randint(1, 3))] for _ in range(rng.randint(1, 4))]
        words = [word for word in words if len(word) > 1 or word[0] not in options["eos_token_ids"]]
        if words:  # Hugging Face takes no list that holds nothing but stop tokens
            stops = [[token] for token in options["eos_token_ids"]]
            options["bad_words_ids"] = words + stops[: rng.randint(0, 1)]
    if rng.random() < 0.3:
        options["forced_prefix"] = [
            rng.choice([*likely, rng.randrange(len(case.texts))]) for _ in range(rng.randint(1, 3))
        ]
    if rng.random() < 0.3:
        texts = [case.texts[rng.choice(likely)] for _ in range(2)] + ["".join(rng.choices("abc", k=rng.randint(2, 6)))]
        options["stop_strings"] = [text.encode() for text in rng.sample(texts, rng.randint(1, 3))]
        options["vocabulary"] = vocabulary(len(case.texts))
    return options


@pytest.mark.parametrize("part", range(PARTS))
def test_random_options_say_what_hugging_face_says(cases: list[Case], part: int) -> None:
    compare_some(cases, CASES // PARTS)


def test_random_options_say_the_same_with_onnx_runtimes_attention(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As on a GPU and with older releases of ONNX Runtime: what was read is copied to every beam."""
    names = sorted(CONFIGS)
    cases = [make_case(name, tmp_path_factory.mktemp(name), images=2, custom_attention=False) for name in names]
    compare_some(cases, CASES // PARTS)


def compare_some(cases: list[Case], count: int) -> None:
    seed = new_seed()
    print(f"options of seed {seed}")
    rng = random.Random(seed)
    for _ in range(count):
        case = rng.choice(cases)
        compare(case, random_options(rng, case))
