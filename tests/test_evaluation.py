"""Metrics against values worked out by hand, and the rules that make questions from captions."""

from __future__ import annotations

import random

import numpy as np
import pytest

from blip2rt.text import clean_caption
from train.data import batches
from train.metrics import caption_metrics, tokenize
from train.questions import questions
from train.retrieval import recall


def test_recall_by_hand() -> None:
    owner = np.array([0, 0, 1])  # texts 0 and 1 belong to image 0, text 2 to image 1
    sim = np.array([[0.9, 0.1, 0.8], [0.2, 0.3, 0.7]])
    scores = recall(sim, owner)
    assert scores["t2i_r@1"] == pytest.approx(100 / 3)  # text 0 alone ranks its own image first
    assert scores["t2i_r@5"] == 100.0
    assert scores["i2t_r@1"] == 100.0  # image 0 ranks text 0 first, image 1 text 2


def test_recall_counts_images_below_the_cut() -> None:
    sim = np.tile(np.linspace(0, 1, 12), (12, 1)).T  # every text likes image 11 most, then 10, ...
    scores = recall(sim, np.arange(12))
    assert scores["t2i_r@1"] == pytest.approx(100 / 12) and scores["t2i_r@10"] == pytest.approx(1000 / 12)


def test_tokens_are_the_treebanks() -> None:
    assert tokenize("A man's dog doesn't run, it's a T-shirt .") == "a man 's dog does n't run it 's a t-shirt"


def test_caption_metrics_by_hand() -> None:
    pytest.importorskip("pycocoevalcap")
    references = [["a dog runs in the snow"], ["two men play ball on the beach"], ["a cat sleeps on a red couch"]]
    perfect = caption_metrics(references, [texts[0] for texts in references])
    assert perfect["bleu4"] == pytest.approx(100, abs=1e-3) and perfect["cider"] == pytest.approx(1000, abs=1e-3)
    wrong = caption_metrics(references, ["a train", "a train", "a train"])
    assert wrong["bleu4"] < 1 and wrong["cider"] < 30
    # Unigram precision 3 of 4 and one word too few of 6: 0.75 * exp(1 - 6 / 4).
    one = caption_metrics([["a dog runs in the snow"]], ["a dog runs fast"])
    assert one["bleu1"] == pytest.approx(75 * np.exp(1 - 6 / 4), abs=1e-3)


def test_questions_are_answered_by_the_captions() -> None:
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


def test_nothing_is_denied_that_a_caption_suggests() -> None:
    for seed in range(200):
        made = dict(questions(["a surfer rides a wave", "someone in the ocean"], random.Random(seed)))
        denied = [question for question, answer in made.items() if answer == "no"]
        assert not any("water" in question or "man" in question for question in denied), denied


def test_captions_are_cleaned_as_the_reference_does() -> None:
    assert clean_caption(' A dog (black) ; runs: "fast" ! ') == "a dog black runs fast"


def test_batches_cover_an_epoch_once_and_go_on_from_any_step() -> None:
    lengths = np.random.default_rng().integers(1, 20, 103)
    whole = [next(it) for it in [batches(103, 10, 7, 0, lengths)] for _ in range(25)]
    assert [step for step, _ in whole] == list(range(25))
    first = np.concatenate([rows for _, rows in whole[:10]])
    assert len(set(first.tolist())) == 100
    resumed = batches(103, 10, 7, 13, lengths)
    for step, rows in whole[13:]:
        other_step, other = next(resumed)
        assert step == other_step and (rows == other).all()
    assert max(np.ptp(lengths[rows]) for _, rows in whole) < np.ptp(lengths)
