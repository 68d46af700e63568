"""Metrics against values worked out by hand, and the rules that make questions from captions."""

import itertools
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip2rt.errors import OptionError
from blip2rt_train.evaluation.annotations import in_half
from blip2rt_train.evaluation.metrics import (
    best_rank,
    caption_metrics,
    normalize_answer,
    recall,
    recall_at,
    reranked,
    tokenize,
    vqa_accuracy,
)
from blip2rt_train.evaluation.report import Row, changes, render
from blip2rt_train.evaluation.retrieval import _tables
from blip2rt_train.evaluation.truth import chair
from blip2rt_train.extras.questions import questions
from blip2rt_train.extras.self_critical import CiderReward
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
    "cut ½ mile, 2½ miles, 1½-inch; ¼ ¾ ⅓ ⅔ ⅛ or 1⁄2 of",
    "rock 'n' roll; RIF=ding 50% [off] a U.S. flag",
]


def test_tokens_follow_the_treebank() -> None:
    assert tokenize(WRITTEN[0]) == "a man 's dog does n't run it 's a t-shirt"
    assert tokenize("we can't (now)") == "we ca n't -lrb- now -rrb-"
    assert tokenize("2½-inch") == "2 1/2 inch"


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
    "the dog's": "dog's",
    "1,000 people!": "1000 people",
    "5:30 p.m.": "5:30 pm",
    "salt, pepper": "salt pepper",
    "couldnt've": "couldn't've",
    "an": "",
}


@pytest.mark.parametrize("text", NORMALIZED)
def test_answers_are_normalized(text: str) -> None:
    assert normalize_answer(text) == NORMALIZED[text]


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


def test_chair_counts_nouns_that_nobody_names_or_suggests() -> None:
    human = [["A man rides a wave.", "A surfer in the water."], ["Two dogs on grass."]]
    said = ["a man on a surfboard next to a dog", "a dog with a frisbee on a bench"]
    assert chair(human, said) == {"chair_captions": 100, "chair_nouns": pytest.approx(100 * 3 / 6)}
    assert chair(human, ["a man", "an animal"]) == {"chair_captions": 0, "chair_nouns": 0}


def test_every_image_is_in_one_half() -> None:
    names = [f"{number}.jpg" for number in range(1000)]
    tuned = [name for name in names if in_half(name, "tune")]
    assert 400 < len(tuned) < 600 and all(in_half(name, "tune") != in_half(name, "report") for name in names)


def test_reward_is_the_metric_of_each_image() -> None:
    scorer = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    seed = new_seed()
    rng = random.Random(seed)
    words = "a dog man runs on the grass red ball with two".split()

    def sentence() -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(1, 9)))

    references = [[sentence() for _ in range(rng.randint(1, 5))] for _ in range(20)]
    captions = [sentence() for _ in references]
    _, expected = scorer.compute_score(dict(enumerate(references)), {i: [text] for i, text in enumerate(captions)})
    reward = CiderReward(references)
    assert [reward(i, text) for i, text in enumerate(captions)] == pytest.approx(list(expected))


def test_reward_of_unknown_words_is_zero() -> None:
    reward = CiderReward([["a dog runs"], ["a man sits"]])
    assert reward(0, "colourless green ideas") == 0.0
    assert reward(0, "") == 0.0


def test_retrieval_report_has_one_table_per_direction(tmp_path: Path) -> None:
    columns = {
        f"{score}_{way}_r@{k}": float(k + 100 * (way == "t2i"))
        for score in ("itc", "itm", "match")
        for way in ("t2i", "i2t")
        for k in (1, 5, 10)
    }
    tables = _tables(columns)
    assert list(tables) == ["Texts of an image (i2t)", "Images of a text (t2i)"]
    assert tables["Images of a text (t2i)"]["r@5"] == {"itc": 105.0, "itm": 105.0, "match": 105.0}
    assert sum(len(column) for table in tables.values() for column in table.values()) == len(columns)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [
        Row(tmp_path / "a.png", "", [], -rank, f"rank {rank + 1}", f"{rank} of {section}", section=section)
        for section in tables
        for rank in (0, 7, 3)
    ]
    page = render("retrieval", {}, tables, rows, 2)
    assert page.count("<table>") == 2 == page.count("1 better ones are not shown")
    assert "<thead><tr><th><th>r@1<th>r@5<th>r@10</thead><tbody><tr><td>itc<td>1.00<td>5.00<td>10.00" in page
    for title in tables:
        assert f"<h2>{title}: worst first</h2>" in page
        assert page.index(f"7 of {title}") < page.index(f"3 of {title}") and f"0 of {title}" not in page


def test_changes_since_an_earlier_evaluation(tmp_path: Path) -> None:
    before = {"task": "caption", "data": "kept-back", "images": 20, "seconds": 9.0, "cider": 60.0, "bleu4": 10.5}
    (file := tmp_path / "before.json").write_text(json.dumps(before))
    found = changes(file, {**before, "seconds": 4.0, "cider": 90.0, "rouge_l": 5.0})
    assert found == {"cider": (60.0, 90.0), "bleu4": (10.5, 10.5)}
    with pytest.raises(OptionError, match="its images is 20, and 19 here"):
        changes(file, {**before, "images": 19})
    file.write_text("{")
    with pytest.raises(OptionError, match="cannot be read"):
        changes(file, before)
