"""Sampling in the native loop: the distribution that Hugging Face's processors leave, and the same text for a seed."""

import math
import random
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.engines.native.reference import Case, inputs, make_case
from tests.seeds import new_seed

pytestmark = pytest.mark.long(12, "shares of thousands of draws")

DRAWS = 6000
BEAM_DRAWS = 1500


@pytest.fixture(scope="module", params=["opt", "wide"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp("sampling"), images=1)


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


def deviations(square: float, freedom: int) -> float:
    """How far a chi-square is from what it should be, in standard deviations (Wilson and Hilferty)."""
    return ((square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


def surprise(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities * counts.sum()
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    kept = expected > 0
    square = float((((counts - expected) ** 2)[kept] / expected[kept]).sum())
    freedom = int(kept.sum()) - 1
    return deviations(square, freedom) if freedom else 0.0


PROCESSORS: list[dict[str, Any]] = [
    *({"temperature": 2.5, "top_p": 0.95}, {"temperature": 2.0, "top_k": 40}, {"temperature": 2.0, "min_p": 0.02}),
    *({"temperature": temperature} for temperature in (0.7, 1.0, 3.0)),
    *({"top_k": top_k} for top_k in (1, 5, 5000)),
    *({"top_p": top_p} for top_p in (0.0, 0.5)),
    {"min_p": 0.1},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "temperature": 1.7},
]


@pytest.mark.parametrize("options", PROCESSORS)
def test_draws_follow_the_distribution(case: Case, options: dict[str, Any]) -> None:
    probabilities = target(case, options)
    seed = random.randrange(2**63)
    counts = np.bincount(draws(case, seed=seed, **options), minlength=len(probabilities))
    assert counts[probabilities == 0].sum() == 0
    assert surprise(counts, probabilities) < 5, f"{options}"


@pytest.mark.parametrize("beams", [{"num_return_sequences": 3}, {"num_return_sequences": 4, "num_beams": 4}])
def test_a_seed_repeats_exactly(case: Case, beams: dict[str, int]) -> None:
    options = {"do_sample": True, "max_new_tokens": 8, "temperature": 20.0, **beams}
    first, again, other = (
        case.generator.generate(case.prefix, case.prompts, {**options, "seed": seed})[0] for seed in (5, 5, 6)
    )
    assert first == again != other
    assert len({tuple(tokens) for tokens, _ in first}) == beams["num_return_sequences"]
    if "num_beams" in beams:
        assert [score for _, score in first] == sorted((score for _, score in first), reverse=True)


def test_images_have_separate_random_streams(case: Case) -> None:
    options = {"do_sample": True, "max_new_tokens": 8, "temperature": 20.0, "seed": 9}
    prefix = np.repeat(case.prefix, 4, axis=0)
    together = [image[0][0] for image in case.generator.generate(prefix, case.prompts * 4, options)]
    alone = [
        case.generator.generate(case.prefix, case.prompts, {**options, "first_image": image})[0][0][0]
        for image in range(4)
    ]
    assert together == alone
    assert len({tuple(tokens) for tokens in together}) == 4


def test_draws_stop_independently(case: Case) -> None:
    options = {"do_sample": True, "max_new_tokens": 12, "num_return_sequences": 20, "eos_token_ids": case.said[:3]}
    options["seed"] = random.randrange(2**63)
    [sequences] = case.generator.generate(case.prefix, case.prompts, options)
    assert len(sequences) == 20
    assert all(not set(tokens) & set(case.said[:3]) for tokens, _ in sequences)
    [again] = case.generator.generate(case.prefix, case.prompts, {**options, "num_return_sequences": 7})
    assert [tokens for tokens, _ in again] == [tokens for tokens, _ in sequences[:7]]


def beams_drawn(case: Case, options: dict[str, Any], seed: int) -> list[tuple[tuple[int, ...], float]]:
    prefix = np.repeat(case.prefix, BEAM_DRAWS, axis=0)
    images = case.generator.generate(prefix, case.prompts * BEAM_DRAWS, {**options, "do_sample": True, "seed": seed})
    return [(tuple(tokens), score) for [(tokens, score), *_] in images]


def hugging_face_draws(case: Case, options: dict[str, Any], seed: int) -> list[tuple[tuple[int, ...], float]]:
    """The best sequence of each of BEAM_DRAWS calls, without the stop token, and its score."""
    given = {"top_k": 0, **options}
    stops = given.pop("eos_token_ids")
    torch.manual_seed(seed)
    told = inputs(case, 0, [])
    told = {name: tensor.repeat(BEAM_DRAWS, *[1] * (tensor.dim() - 1)) for name, tensor in told.items()}
    with torch.no_grad():
        ending = {"eos_token_id": stops or None, "pad_token_id": 0}
        returned = {"return_dict_in_generate": True, "output_scores": True}
        output = case.model.generate(**told, do_sample=True, **ending, **returned, **given)
    lengths = (output.beam_indices >= 0).sum(dim=1).tolist()
    rows = [row[:length] for row, length in zip(output.sequences.tolist(), lengths, strict=True)]
    rows = [[token for token in row if token not in stops] for row in rows]
    return list(zip(map(tuple, rows), output.sequences_scores.tolist(), strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2, "max_new_tokens": 2},
        {"num_beams": 3, "max_new_tokens": 3, "temperature": 2.0, "top_k": 4},
        {"num_beams": 2, "max_new_tokens": 3, "top_p": 0.6, "length_penalty": 0.0},
        {"num_beams": 2, "max_new_tokens": 3, "min_p": 0.3, "temperature": 1.5, "early_stopping": "true"},
        {"num_beams": 3, "max_new_tokens": 3, "top_k": 1, "repetition_penalty": 1.5, "temperature": 3.0},
    ],
)
def test_sampled_beams_match_hugging_face(case: Case, options: dict[str, Any]) -> None:
    seed = new_seed()
    options = {**options, "eos_token_ids": case.said[: 2 if options.get("top_k") == 1 else 1]}
    ours = beams_drawn(case, options, seed)
    early = {"early_stopping": options.get("early_stopping", "false") == "true"}
    theirs = hugging_face_draws(case, {**options, **early}, seed)
    names = {answer: i for i, answer in enumerate(dict.fromkeys(answer for answer, _ in ours + theirs))}
    counts = [np.bincount([names[answer] for answer, _ in draws], minlength=len(names)) for draws in (ours, theirs)]
    # Equal numbers of both are given: each has half of the draws of an answer.
    frequent = counts[0] + counts[1] >= 20
    a, b = ([*count[frequent], count[~frequent].sum()] for count in counts)
    square = sum((x - y) ** 2 / (x + y) for x, y in zip(a, b, strict=True) if x + y > 0)
    freedom = max(1, sum(x + y > 0 for x, y in zip(a, b, strict=True)) - 1)
    assert deviations(square, freedom) < 5, f"{options}"
    if len(options["eos_token_ids"]) > 1:  # answers are given without the stop token, on which their score depends
        return
    scores = dict(theirs)
    for answer, score in ours:
        assert score == pytest.approx(scores.get(answer, score), rel=1e-4, abs=1e-4), f"{options}"


def test_beams_with_probability_come_first(case: Case) -> None:
    """Fewer tokens than beams have any probability: those with some come first."""
    allowed = case.said[:3]
    bad = [[token] for token in range(len(case.texts)) if token not in allowed]
    options = {"do_sample": True, "num_beams": 5, "max_new_tokens": 3, "bad_words_ids": bad, "top_k": 2}
    [[(tokens, score)]] = case.generator.generate(case.prefix, case.prompts, options)
    assert set(tokens) <= set(allowed) and math.isfinite(score)
