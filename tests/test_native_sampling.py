"""Sampling in the native loop: the distribution that Hugging Face's processors leave, and the same text for a seed."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

from tests.native.reference import Case, inputs, make_case

DRAWS = 6000


@pytest.fixture(scope="module", params=["opt", "wide"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    case = make_case(request.param, tmp_path_factory.mktemp("sampling"), images=1)
    print(f"seed {case.seed}")
    return case


def target(case: Case, options: dict[str, Any]) -> np.ndarray:
    """The distribution of the first token, by Hugging Face's own processors: (V,)"""
    with torch.no_grad():
        scores = case.model(inputs_embeds=inputs(case, 0, [])["inputs_embeds"]).logits[:, -1]
    processors = {
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }
    for name, processor in processors.items():
        if name in options:
            scores = processor(options[name])(None, scores)
    return scores.softmax(-1)[0].double().numpy()


def draws(case: Case, **options: Any) -> list[int]:
    given = {"do_sample": True, "num_return_sequences": DRAWS, "max_new_tokens": 1, **options}
    [sequences] = case.generator.generate(case.prefix, case.prompts, given)
    return [token for [token], _ in sequences]


def surprise(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """How far counts are from what they should be, in standard deviations (chi-square, by Wilson and Hilferty)."""
    expected = probabilities * counts.sum()
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    kept = expected > 0
    square = float((((counts - expected) ** 2)[kept] / expected[kept]).sum())
    freedom = int(kept.sum()) - 1
    if freedom == 0:
        return 0.0
    return ((square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


@pytest.mark.parametrize(
    "options",
    [
        {}, {"temperature": 0.7}, {"temperature": 3.0}, {"top_k": 1}, {"top_k": 5}, {"temperature": 2.0, "top_k": 40},
        {"top_p": 0.5}, {"top_p": 0.95, "temperature": 2.5}, {"min_p": 0.1}, {"min_p": 0.02, "temperature": 2.0},
        {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "temperature": 1.7}, {"top_p": 0.0}, {"top_k": 5000},
    ],
)  # fmt: skip
def test_draws_follow_the_distribution(case: Case, options: dict[str, Any]) -> None:
    probabilities = target(case, options)
    seed = random.randrange(2**63)
    counts = np.bincount(draws(case, seed=seed, **options), minlength=len(probabilities))
    assert counts[probabilities == 0].sum() == 0
    assert surprise(counts, probabilities) < 5, f"model seed {case.seed}, seed {seed}, {options}"


def test_a_seed_repeats_exactly(case: Case) -> None:
    options = {"do_sample": True, "max_new_tokens": 8, "temperature": 2.0, "num_return_sequences": 3}
    again = [case.generator.generate(case.prefix, case.prompts, {**options, "seed": 5}) for _ in range(2)]
    assert again[0] == again[1]
    other = case.generator.generate(case.prefix, case.prompts, {**options, "seed": 6})
    tokens = [sequence for [sequences] in (again[0], other) for sequence, _ in sequences]
    assert len({tuple(sequence) for sequence in tokens}) == 6


def test_images_draw_from_streams_of_their_own(case: Case) -> None:
    """What an image draws depends on its number, not on the batch that it came in."""
    options = {"do_sample": True, "max_new_tokens": 8, "temperature": 2.0, "seed": 9}
    prefix = np.repeat(case.prefix, 4, axis=0)
    together = [image[0][0] for image in case.generator.generate(prefix, case.prompts * 4, options)]
    alone = [
        case.generator.generate(case.prefix, case.prompts, {**options, "first_image": image})[0][0][0]
        for image in range(4)
    ]
    assert together == alone
    assert len({tuple(tokens) for tokens in together}) == 4


def test_each_draw_stops_on_its_own(case: Case) -> None:
    options = {"do_sample": True, "max_new_tokens": 12, "num_return_sequences": 20, "eos_token_ids": case.said[:3],
               "seed": random.randrange(2**63)}  # fmt: skip
    [sequences] = case.generator.generate(case.prefix, case.prompts, options)
    assert len(sequences) == 20
    assert all(not set(tokens) & set(case.said[:3]) for tokens, _ in sequences)
    [again] = case.generator.generate(case.prefix, case.prompts, {**options, "num_return_sequences": 7})
    assert [tokens for tokens, _ in again] == [tokens for tokens, _ in sequences[:7]]


def test_forbidding_everything_is_named(case: Case) -> None:
    everything = [[token] for token in range(len(case.texts))]
    options = {"do_sample": True, "bad_words_ids": everything}
    with pytest.raises(RuntimeError, match="forbid every token"):
        case.generator.generate(case.prefix, case.prompts, options)
