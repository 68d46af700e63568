"""Metrics against values worked out by hand, and the rules that make questions from captions."""

from __future__ import annotations

import itertools
import random
import shutil

import numpy as np
import pytest

from blip2rt.native import native
from blip2rt_train.evaluation.annotations import in_half
from blip2rt_train.evaluation.metrics import caption_metrics, tokenize
from blip2rt_train.evaluation.recall import best_rank, recall, recall_at, reranked
from blip2rt_train.evaluation.truth import chair
from blip2rt_train.evaluation.vqa import exact_match, normalize_answer, vqa_accuracy
from blip2rt_train.extras.questions import questions
from tests.seeds import new_seed


def test_recall_by_hand() -> None:
    owner = np.array([0, 0, 1])  # texts 0 and 1 belong to image 0, text 2 to image 1
    sim = np.array([[0.9, 0.1, 0.8], [0.2, 0.3, 0.7]])
    scores = recall(sim, owner)
    assert scores["t2i_r@1"] == pytest.approx(100 / 3)  # text 0 alone ranks its own image first
    assert scores["t2i_r@5"] == 100.0
    assert scores["i2t_r@1"] == 100.0  # image 0 ranks text 0 first, image 1 text 2


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_constant_model_scores_by_chance(value: float) -> None:
    """NaN ranks last."""
    scores = recall(np.full((100, 100), value), np.arange(100))
    assert [scores[f"{way}_r@{k}"] for way in ("t2i", "i2t") for k in (1, 10)] == [1.0, 10.0] * 2


def test_recall_counts_images_below_the_cut() -> None:
    sim = np.tile(np.linspace(0, 1, 12), (12, 1)).T  # every text likes image 11 most, then 10, ...
    scores = recall(sim, np.arange(12))
    assert scores["t2i_r@1"] == pytest.approx(100 / 12) and scores["t2i_r@10"] == pytest.approx(1000 / 12)


def test_reranking_reorders_only_the_best() -> None:
    sim = np.array([0.1, 0.9, 0.5, 0.7, 0.3])
    scores = reranked(sim, np.array([1, 3, 2]), np.array([-3.1, 2.7, 2.0]))
    assert np.argsort(-scores).tolist() == [3, 2, 1, 4, 0] and scores[3] == 2.7
    assert best_rank(scores, np.array([False, True, False, False, True])) == 2
    assert best_rank(scores, np.zeros(5, bool)) == 5
    assert recall_at("t2i", np.array([0, 2, 7, 40])) == {"t2i_r@1": 25.0, "t2i_r@5": 50.0, "t2i_r@10": 75.0}


WRITTEN = [
    "A man's dog doesn't run, it's a T-shirt .",
    "It's 5 o'clock (left) at 5:30 p.m. on St. Mary's, no. 8 & #13!",
    'He said "hello"; they cannot pay $5.00 or 10,000 at www.shop.com...',
    "gonna go up 1/2 mile -- Mr. Smith's avrovulcan.com sign, Washington D.C.",
    "rock 'n' roll; RIF=ding 50% [off] a U.S. flag",
]


def test_tokens_follow_the_treebank() -> None:
    assert tokenize(WRITTEN[0]) == "a man 's dog does n't run it 's a t-shirt"
    assert tokenize("we can't (now)") == "we ca n't -lrb- now -rrb-"


@pytest.mark.skipif(shutil.which("java") is None, reason="the reference's tokenizer is a Java program")
def test_tokens_equal_the_reference() -> None:
    reference = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    want = reference.tokenize({i: [{"caption": text}] for i, text in enumerate(WRITTEN)})
    assert [tokenize(text) for text in WRITTEN] == [want[i][0] for i in range(len(WRITTEN))]


def test_caption_metrics_by_hand() -> None:
    pytest.importorskip("pycocoevalcap")
    references = [["a dog runs in the snow"], ["two men play ball on the beach"], ["a cat sleeps on a red couch"]]
    perfect, each = caption_metrics(references, [texts[0] for texts in references])
    assert perfect["bleu4"] == pytest.approx(100, abs=1e-3) and perfect["cider"] == pytest.approx(1000, abs=1e-3)
    assert each == pytest.approx([1000] * 3, abs=1e-3)
    wrong, _ = caption_metrics(references, ["a train", "a train", "a train"])
    assert wrong["bleu4"] < 1 and wrong["cider"] < 30
    # Unigram precision 3 of 4 and one word too few of 6: 0.75 * exp(1 - 6 / 4).
    one, _ = caption_metrics([["a dog runs in the snow"]], ["a dog runs fast"])
    assert one["bleu1"] == pytest.approx(75 * np.exp(1 - 6 / 4), abs=1e-3)


def test_caption_metrics_as_published() -> None:
    pytest.importorskip("pycocoevalcap")
    # Papineni et al. 2002, examples 2 and 1: modified unigram precision 2/7, and 17/18 where nothing is too short.
    mat = [["The cat is on the mat .", "There is a cat on the mat ."]]
    assert caption_metrics(mat, ["the the the the the the the"])[0]["bleu1"] == pytest.approx(100 * 2 / 7, abs=1e-3)
    guide = [
        "It is a guide to action that ensures that the military will forever heed Party commands",
        "It is the guiding principle which guarantees the military forces always being under the command of the Party",
        "It is the practical guide for the army always to heed the directions of the party",
    ]
    first = "It is a guide to action which ensures that the military always obeys the commands of the party"
    assert caption_metrics([guide], [first])[0]["bleu1"] == pytest.approx(100 * 17 / 18, abs=1e-3)
    bigrams = (caption_metrics([guide], [first])[0]["bleu2"] / 100) ** 2 / (17 / 18)
    assert bigrams == pytest.approx(10 / 17, abs=1e-5)
    # The worked example in the documentation of the package aac-metrics, another implementation.
    references = [
        ["a man speaks.", "someone speaks.", "a man is speaking while a bird is chirping in the background"],
        ["rain is falling hard on a surface"],
    ]
    scores, each = caption_metrics(references, ["a man is speaking", "rain falls"])
    assert scores["cider"] == pytest.approx(96.14, abs=0.01) and scores["bleu1"] == pytest.approx(42.78, abs=0.01)
    assert each == pytest.approx([136.41, 55.87], abs=0.01)


@pytest.mark.parametrize(("same", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_as_published(same: int, accuracy: float) -> None:
    """visualqa.org: min(n / 3, 1), averaged over the ten sets of nine annotators."""
    answers = ["yes"] * same + ["no"] * (10 - same)
    assert vqa_accuracy("yes", answers) == pytest.approx(accuracy)


def test_vqa_accuracy_averages_over_subsets() -> None:
    rng = random.Random(new_seed())
    for _ in range(50):
        answers = [rng.choice(["red", "blue", "Red.", "the red", "dark red"]) for _ in range(rng.randint(2, 10))]
        plain = [{"Red.": "red", "the red": "red"}.get(answer, answer) for answer in answers]
        subsets = list(itertools.combinations(plain, len(plain) - 1))
        want = sum(min(1, subset.count("red") / 3) for subset in subsets) / len(subsets)
        assert vqa_accuracy("RED", answers) == pytest.approx(want), answers


NORMALIZED = {
    "Two dogs.": "2 dogs",
    "  A\nred  ball ": "red ball",
    "none": "0",
    "dont": "don't",
    "the dog's": "dog's",
    "1,000 people!": "1000 people",
    "3.5": "3.5",
    "5:30 p.m.": "5:30 pm",
    "t-shirt/jeans": "t shirt jeans",
    "salt, pepper": "salt pepper",
    "yes?": "yes",
    "couldnt've": "couldn't've",
    "10 (ten)": "10 10",
    "an": "",
}


@pytest.mark.parametrize("text", NORMALIZED)
def test_answers_are_normalized(text: str) -> None:
    assert normalize_answer(text) == NORMALIZED[text]


def test_exact_match_normalizes_answers() -> None:
    assert exact_match("The Dog.", ["dog"]) == 1.0
    assert exact_match("a dog on grass", ["dog"]) == 0.0


def test_generated_questions_have_answers_in_the_captions() -> None:
    captions = [
        "a brown dog is running through the snow",
        "a brown dog runs in the snow",
        "the dog has a red collar",
        "a dog plays in the snow",
    ]
    made = dict(questions(captions, random.Random(0)))
    assert made["what is the dog doing?"] == "running through the snow"
    assert made["where is the dog?"] == "through the snow"
    assert made["how many dogs are there?"] == "one"
    colours = {question: answer for question, answer in made.items() if question.startswith("what col")}
    assert set(colours.values()) == {"brown", "red"}
    assert all(answer == "yes" for question, answer in made.items() if "a dog" in question or "snow" in question[:14])


def test_suggested_things_are_never_denied() -> None:
    for seed in range(200):
        made = dict(questions(["a surfer rides a wave", "someone in the ocean"], random.Random(seed)))
        denied = [question for question, answer in made.items() if answer == "no"]
        assert not any("water" in question or "man" in question for question in denied), denied


def test_captions_are_cleaned_like_the_reference() -> None:
    assert native.clean_caption(' A dog (black) ; runs: "fast" ! ') == "a dog black runs fast"


def test_chair_counts_nouns_that_nobody_names_or_suggests() -> None:
    human = [["A man rides a wave.", "A surfer in the water."], ["Two dogs on grass."]]
    said = ["a man on a surfboard next to a dog", "a dog with a frisbee on a bench"]
    assert chair(human, said) == {"chair_captions": 100, "chair_nouns": pytest.approx(100 * 3 / 6)}
    assert chair(human, ["a man", "an animal"]) == {"chair_captions": 0, "chair_nouns": 0}


def test_every_image_is_in_one_half() -> None:
    names = [f"{number}.jpg" for number in range(1000)]
    tuned = [name for name in names if in_half(name, "tune")]
    assert 400 < len(tuned) < 600 and all(in_half(name, "tune") != in_half(name, "report") for name in names)
