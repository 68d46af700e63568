"""Calibrated probabilities: against numpy; yes or no to questions whether something is there, by every door."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blip2rt
from blip2rt import cli
from blip2rt.bundle.manifest import Calibration, Logistic
from blip2rt.cli.stdio import Session
from blip2rt.errors import CapabilityError, OptionError
from blip2rt.language import Prompt
from blip2rt.matching.labels import read_labels
from blip2rt.native import native
from blip2rt.requests import Request
from blip2rt.structured import fill
from tests.tiny.bundle import CALIBRATION, Tiny, calibrated, with_likelihood_weight

PHRASES, SENTENCES = ["a dog", "cat", "red cat"], ["a dog runs on the red grass", "the red cat sits in the blue water"]


@pytest.fixture
def model(tiny: Tiny, tmp_path: Path) -> blip2rt.Model:
    folder = with_likelihood_weight(tiny, tmp_path / "calibrated", 0.4)
    return blip2rt.load(calibrated(folder, CALIBRATION), threads=1)


def logistic(regression: Logistic | None, signals: dict[str, float]) -> float:
    assert regression is not None
    return float(1 / (1 + np.exp(-regression.bias - sum(w * signals[name] for name, w in regression.weights.items()))))


def test_probability_of_a_phrase_equals_numpy(model: blip2rt.Model, photo: Any) -> None:
    images = [photo(5, 7), photo(20, 30), photo(9, 9)]
    features = model.vision_features(images)
    matches = model.match(images, PHRASES)
    bare, full = ["dog", "cat", "red cat"], ["a dog", "a cat", "a red cat"]
    cosines = np.einsum("bqe,be->bq", model.embed_image(images), model.embed_text(bare))
    likelihoods = model.likelihoods(features, full)
    yes, blind = model.pipeline.judge.yes_odds(features, [f"is there {text}?" for text in full])
    for row, match in enumerate(matches):
        signals = {"name_cosine": cosines[row].max(), "query_1": cosines[row, 1], "yes": yes[row]}
        signals |= {"base_cosine": float((model.embed_image(images[row]) @ np.array(CALIBRATION.mean_text)).mean())}
        signals |= {"phrase_likelihood": likelihoods[row], "yes_blind": blind[row]}
        assert match.probability == pytest.approx(logistic(CALIBRATION.phrase, signals), abs=1e-4)


def test_probability_of_a_sentence_equals_numpy(model: blip2rt.Model, photo: Any) -> None:
    images = [photo(5, 7), photo(20, 30)]
    for match, text in zip(model.match(images, SENTENCES), SENTENCES, strict=True):
        signals = {"cosine": match.cosine, "itm": float(np.log(match.itm / (1 - match.itm)))}
        signals |= {"likelihood": float(match.likelihood or 0), "words": len(text.split())}
        assert match.probability == pytest.approx(logistic(CALIBRATION.sentence, signals), abs=1e-4)


def test_a_mixed_batch_gives_each_its_own_probability(model: blip2rt.Model, photo: Any) -> None:
    image, texts = photo(8, 8), [PHRASES[0], SENTENCES[0], PHRASES[1], SENTENCES[1]]
    alone = [model.match(image, text).probability for text in texts]
    assert [match.probability for match in model.match(image, texts)] == pytest.approx(alone, abs=1e-4)
    judged = model.matcher.judge(np.repeat(model.vision_features(image)[None], 4, 0), texts)
    assert judged.tolist() == pytest.approx(alone, abs=1e-4)
    question = model.matcher.judge(model.vision_features(image)[None], ["Is there a dog in the picture?"])
    assert question.tolist() == pytest.approx(alone[:1], abs=1e-4)
    assert model.sees(image, texts) == [value > 0.5 for value in alone]
    assert model.sees(image, "a dog", threshold=0) is True and model.sees(image, "a dog", threshold=1) is False


def test_questions_of_a_number_get_the_likeliest(tiny: Tiny, tmp_path: Path, photo: Any) -> None:
    folder = with_likelihood_weight(tiny, tmp_path / "counts", 0.4)
    numbers = ("red", "the blue", "dog")
    model = blip2rt.load(calibrated(folder, replace(CALIBRATION, numbers=numbers)), threads=1)
    images, question = [photo(5, 7), photo(9, 3), photo(20, 30)], "how many who is there?"
    language = model.pipeline.language
    end = language.spec.eos_token_ids[:1]
    texts = [[*language.encode_more(Prompt(" ", number)), *end] for number in numbers]
    ids = language.encode(language.ask_prompt(question))
    answers = model.ask(images, "How many  who is there? Please answer with one word.")
    for image, answer in zip(images, answers, strict=True):
        prefix = model.pipeline.prefix_embeds([model.prepare(image)], [""])
        given, mean = (
            np.array([model.pipeline.backend.generator().likelihoods(embeds, [ids], [0], [text])[0] for text in texts])  # type: ignore[attr-defined]
            for embeds in (prefix, np.fromfile(folder / "mean_prefix.data", "<f4").reshape(prefix.shape))
        )
        scores = given - 0.5 * mean
        assert answer.score == pytest.approx(max(scores) - np.logaddexp.reduce(scores), abs=1e-4)
        assert scores[numbers.index(answer)] == pytest.approx(max(scores), abs=1e-4)
        assert list(answer.tokens) == texts[numbers.index(answer)][:-1] and not answer.truncated
        chat = model.chat(image)
        assert [chat.ask(question), model.ask(image, question, num_beams=1)] == [answer, answer]
    mixed = model.ask([images[0]] * 3, [question, "is there a dog?", "what is red"])
    assert mixed[0] == answers[0] and mixed[1] in ("yes", "no")
    for asked, answer in zip((question, "is there a dog?"), mixed, strict=False):
        assert fill(model, images[0], {"properties": {"answer": {"type": "string"}}}, asked) == {"answer": answer}
    generated = model.pipeline.task(question=question, min_new_tokens=2)
    assert (
        not generated.short_question
        and not blip2rt.load(tiny.path, threads=1).pipeline.task(question=question).short_question
    )


def test_yes_odds_do_not_depend_on_the_batch(model: blip2rt.Model, photo: Any) -> None:
    features = model.vision_features([photo(5, 7), photo(5, 7), photo(9, 3)])
    questions = ["is there a dog?", "is there a cat on the grass?", "is there a man in red?", "is there a dog?"]
    rows = features[[0, 0, 1, 2]]
    together = model.pipeline.judge.yes_odds(rows, questions)
    alone = [model.pipeline.judge.yes_odds(rows[i : i + 1], questions[i : i + 1]) for i in range(4)]
    for part in (0, 1):
        assert together[part] == pytest.approx([each[part][0] for each in alone], abs=1e-3)


def test_without_calibration_probability_is_the_heads(tiny: Tiny, tmp_path: Path, photo: Any) -> None:
    unknown = Calibration(Logistic(0.0, {"of a later version": 1.0}), CALIBRATION.sentence)
    later = calibrated(with_likelihood_weight(tiny, tmp_path / "later", 0.4), unknown)
    for model in (blip2rt.load(tiny.path, threads=1), blip2rt.load(later, threads=1)):
        match = model.match(photo(), "a dog")
        assert match.probability == match.itm and 0 < match.itm < 1
        with pytest.raises(CapabilityError, match=r"judge what it sees: .* blip2rt-train calibrate adds it"):
            model.sees(photo(), "a dog")


def test_sees_rejects_wrong_input(model: blip2rt.Model, photo: Any) -> None:
    for threshold in (2, -0.1, "0.5", True, None):
        with pytest.raises(OptionError, match="threshold is .*: give a probability from 0 to 1"):
            model.sees(photo(), "a dog", threshold=threshold)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="no words"):
        model.sees(photo(), "?!")


LABELS = ["dog", "animal|cat", "red cat", "water", "red", "grass", "animal"]


def label_probabilities(model: blip2rt.Model, image: Any, names: list[str]) -> dict[str, float]:
    """The probability of each label, in numpy."""
    cosines, caption = model.embed_image(image) @ model.embed_text(names).T, model.caption(image).text
    nearness = cosines.max(0) - 0.5 * cosines[0] + model.embed_text(names) @ np.array(CALIBRATION.label_text)
    signals = (
        {"nearness": float(near), "told": re.search(rf"\b{name}\b", caption) is not None}
        for name, near in zip(names, nearness, strict=True)
    )
    return {name: logistic(CALIBRATION.label, each) for name, each in zip(names, signals, strict=True)}


def test_labels_equal_numpy(model: blip2rt.Model, photo: Any) -> None:
    images = [photo(9, 9), photo(20, 30)]
    names = ["dog", "cat", "red cat", "water", "red", "grass", "animal"]
    for image, tags in zip(images, model.tag(images, LABELS, threshold=0), strict=True):
        want = label_probabilities(model, image, names)
        del want["animal"]  # cat implies it
        assert {str(tag): tag.probability for tag in tags} == pytest.approx(want, abs=1e-3)
        assert [tag.probability for tag in tags] == sorted((tag.probability for tag in tags), reverse=True)
        assert {tag.parents for tag in tags if tag == "cat"} == {("animal",)}
        assert model.tag(image, LABELS, threshold=0, top=2) == tags[:2]
        level = tags[3].probability - 1e-6
        found = model.tag(image, LABELS, threshold=level)
        assert [tag for tag in found if tag != "animal"] == [tag for tag in tags if tag.probability >= level]
        assert not {"animal", "cat"} <= set(found)
        assert model.tag(image, LABELS, threshold=1) == []
        assert model.tag(image, ["people", "group of people"], threshold=0) == ["group of people"]


def test_everyday_labels_are_the_default(model: blip2rt.Model, photo: Any) -> None:
    entries = native.Labels.everyday().entries
    names = {name for name, _, _ in entries}
    assert len(names) > 1000 and {"dog", "train", "bicycle", "snow", "food"} <= names and "sitting" not in names
    assert all(parents and name not in synonyms for name, parents, synonyms in entries)
    image = photo(9, 9)
    tags = model.tag(image, threshold=0)
    assert len(tags) == 10 and set(tags) <= names and model.tag([image], threshold=0) == [tags]


def test_wrong_labels_are_reported_at_once(model: blip2rt.Model, tmp_path: Path, photo: Any) -> None:
    for labels, problem in (
        ("dog", "labels is 'dog': give a list of texts"),
        ([], "there are no labels"),
        (["dog", "", "?!"], "'' is no label: give a word or a phrase, as in 'dog' or 'animal|dog'; '?!' is no label"),
        ([3], "a text is int, not str"),
    ):
        with pytest.raises(OptionError, match=re.escape(problem)):
            model.tag(photo(), labels)  # type: ignore[call-overload]
    for options, problem in (({"top": 0}, "top is 0"), ({"threshold": 1.5}, "threshold is 1.5")):
        with pytest.raises(OptionError, match=problem):
            model.tag(photo(), ["dog"], **options)
    file = tmp_path / "labels.txt"
    file.write_text("# my labels\n\ndog\nanimal | cat\ndog\n", encoding="utf-8-sig")
    assert read_labels(file).entries == [("dog", [], []), ("cat", ["animal"], [])]
    file.write_bytes(b"\xff\xfe")
    for path, problem in ((file, "is not UTF-8"), (tmp_path / "absent", "cannot read .*: No such file")):
        with pytest.raises(OptionError, match=problem):
            read_labels(path)


def test_confidence_equals_numpy(model: blip2rt.Model, photo: Any) -> None:
    images = [photo(9, 9), photo(20, 30), photo(3, 5)]
    for image, caption in zip(images, model.caption(images, scores=True, bad_words=":"), strict=True):
        match = model.match(image, str(caption.text))
        signals = {"cosine": match.cosine, "likelihood": float(match.likelihood or 0), "score": caption.score}
        signals |= {"words": len(caption.text.split())}
        assert caption.confidence == pytest.approx(logistic(CALIBRATION.caption, signals), abs=1e-4)
        assert model.caption(image).confidence is None


def test_what_is_not_calibrated_is_said(tiny: Tiny, tmp_path: Path, photo: Any) -> None:
    folder = with_likelihood_weight(tiny, tmp_path / "partly", 0.4)
    partly = blip2rt.load(calibrated(folder, replace(CALIBRATION, label=None, caption=None)), threads=1)
    plain = blip2rt.load(tiny.path, threads=1)
    for model in (partly, plain):
        with pytest.raises(CapabilityError, match=r"cannot label images: .* blip2rt-train calibrate adds it"):
            model.tag(photo())
        with pytest.raises(CapabilityError, match=r"how likely a caption is right: .* blip2rt-train calibrate adds it"):
            model.matcher.require_confidence()
        assert model.caption(photo(), scores=True).confidence is None


@pytest.fixture(scope="module")
def nano() -> blip2rt.Model:
    return blip2rt.load(batching=True)


YES, NO = "is there a cup?", "Is there an elephant in the picture? Please answer yes or no."


@pytest.mark.long(3, "nano on a photograph")
def test_nano_sees_the_cup(nano: blip2rt.Model, capsys: Any) -> None:
    image = "docs/photo.jpg"
    assert nano.ask([image] * 3, [YES, NO, "what is in the cup?"]) == ["yes", "no", "coffee"]
    assert nano.sees(image, ["a cup", "an elephant", "a cup stands on a table", YES]) == [True, False, True, True]
    assert [*nano.stream(image, question=YES)] == ["yes"]
    chat = nano.chat(image)
    assert [chat.ask(YES), chat.ask("what is in the cup?"), *chat.stream(NO)] == ["yes", "coffee", "no"]
    answer = nano.submit(Request(image, question=YES))
    assert [*answer] == ["yes"] and answer.result() == ["yes"] and not answer.result()[0].truncated
    assert cli.main(["ask", image, YES]) == 0 and capsys.readouterr().out == "yes\n"
    lines: list[dict[str, Any]] = []
    Session(nano, lines.append, 1).run([json.dumps({"id": 1, "task": "ask", "image": image, "question": NO}).encode()])
    assert lines[0]["answer"] == "no"


def test_an_answer_of_a_chat_ends_before_a_next_question(nano: blip2rt.Model) -> None:
    """After questions and answers, nano continues with a question of its own."""
    asked, streamed = nano.chat("docs/photo.jpg"), nano.chat("docs/photo.jpg")
    for question in ("What is it?", "Is there a dog?", "What colour is the cup?", "How many cups are there?"):
        answer = asked.ask(question)
        assert answer and "Question" not in answer and answer == "".join(streamed.stream(question))


def test_options_that_shape_the_text_leave_the_question_to_the_language_model(nano: blip2rt.Model) -> None:
    image = "docs/photo.jpg"
    told: list[int] = []
    assert nano.ask(image, YES, num_beams=1, on_token=lambda *token: told.append(token[2])) == "yes"
    assert nano.decode(told).strip() == "yes"
    assert nano.ask(image, YES, max_new_tokens=1).truncated is False
    assert nano.ask(image, YES, forced_prefix="no").startswith("no")
    assert len(nano.ask(image, YES, num_captions=2)) == 2


def test_news_of_a_judged_request_come_at_once(nano: blip2rt.Model) -> None:
    heard: list[tuple[bool, list[str]]] = []
    nano.submit(Request("docs/photo.jpg", question=YES), on_news=lambda each: heard.append((each.done, each.take())))
    assert heard == [(True, ["yes"])]


@pytest.mark.parametrize(
    ("question", "phrase"),
    [
        ("Is there a cat in the picture?", "a cat"),
        ("are there any dogs here", "dogs"),
        ("Do you see a man riding a horse?", "a man riding a horse"),
        ("does this image show snow?", "snow"),
        ("Is anyone visible in the image?", "a person"),
        ("Is there a bus? Answer with one word.", "a bus"),
        ("is a dog in the photo?", "a dog"),
    ],
)
def test_questions_whether_something_is_there(question: str, phrase: str) -> None:
    assert native.phrase_of(question) == phrase


@pytest.mark.parametrize(
    ("question", "kind", "text"),
    [
        ("Isn't there a dog?", "presence", "a dog"),
        ("is there no dog?", "not presence", "dog"),
        ("is there nobody?", "not presence", "a person"),
        ("any dogs here", "presence", "dogs"),
        ("is this a beach?", "presence", "a beach"),
        ("is it raining", "presence", "raining"),
        ("is there a dog, yes or no?", "presence", "a dog"),
        ("### User: is the dog swimming?", "statement", "a dog is swimming"),
        ("Question: is the dog not swimming? Answer:", "not statement", "a dog is swimming"),
        ("is anyone wearing a hat?", "statement", "a person is wearing a hat"),
        ("does the man have a beard?", "statement", "a man has a beard"),
        ("are the animals in the water?", "statement", "animals are in the water"),
        ("is this picture black and white?", "presence", "black and white"),
        ("is the dog blue?", "colour", "what color is the dog?"),
        ("is the dog not blue?", "not colour", "what color is the dog?"),
        ("Hi, please tell me if there is a dog", "presence", "a dog"),
        ("is thre a dog", "presence", "a dog"),
        ("is three a dog?", "presence", "a dog"),
        ("is there a small coach?", "presence", "a small coach"),  # neither stall nor couch
        ("there is a dog, right?", "presence", "a dog"),
        ("What's the time?", "fixed", "I cannot tell from the picture."),
        ("is there without people?", "not presence", "a person"),
        ("How many dogs  are there?", "number", "how many dogs are there?"),
        ("how many people do you see? Answer with a number.", "number", "how many people do you see?"),
        ("Count the dogs.", "number", "how many dogs are there?"),
        ("what is the number of people in the image?", "number", "how many people are there?"),
        ("is it indoors or outdoors?", "choice", "indoors|outdoors"),
        ("is he riding a horse or a bike?", "choice", "horse|bike"),
        ("is the bus red, green or blue?", "choice", "red|green|blue"),
        ("what is it, a cat or a dog?", "choice", "cat|dog"),
        ("what race is she?", "fixed", "I cannot tell from the picture."),
        *(
            (f"{asked}?", "fixed", "I cannot tell from the picture.")
            for asked in (
                "is the man gay",
                *("is he black or white", "where are these people from", "does she look chinese", "is he rich"),
                *("are they of mixed race", "did he steal the bike", "is the kid sick", "what does she believe in"),
            )
        ),
        ("is the man eating chinese food?", "statement", "a man is eating chinese food"),
        ("how many calories are in it?", "fixed", "I cannot tell from the picture."),
        ("wie viele Hunde sind im Bild?", "fixed", "I only understand English."),
        ("這是什麼？", "fixed", "I only understand English."),
        ("Are you sure?", "fixed", "I may be wrong: please check the picture."),
    ],
)
def test_short_questions(question: str, kind: str, text: str) -> None:
    found = native.short_question(question)
    assert found is not None and f"{'not ' * found.negated}{found.kind}" == kind
    assert text == ("|".join(found.choices) if kind == "choice" else found.text)


NO_PHRASE = """is the dog brown?|are there two dogs?|is there no dog?|is there a dog or a cat?|is it raining?|
is there a cat? what colour is it?|how many cats are there?"""
GENERATED = """Please say how many|how many|what is that? how many are there?|what colour is the dog?|is|is or|or ?|
does the|is there more than one dog?|who won the race?|what time of day is it?|
where is the man?|what is the man eating from?"""


@pytest.mark.parametrize("unknown", ["unknown", "Other", "none of these", "n/a", "not visible"])
def test_an_open_choice_wins_only_if_no_other_is_likely(unknown: str) -> None:
    choices, question = [unknown, "cat", "dog"], "what animal is it?"
    assert native.best_choice(question, choices, [9.0, -5.0, -6.0], [0.9, 0.3, 0.2]) == 1
    assert native.best_choice(question, choices, [-9.0, -5.0, -6.0], [0.001, 0.03, 0.02]) == 0
    assert native.best_choice(question, choices[1:], [-5.0, -5.0], [0.02, 0.03]) == 1
    assert native.best_choice("what colour is it?", choices, [9.0, -5.0, -6.0], [0.9, 0.3, 0.2]) == 0


def test_other_questions_have_no_phrase_or_are_generated() -> None:
    for question in ("", *NO_PHRASE.replace("\n", "").split("|")):
        assert native.phrase_of(question) is None, question
    for question in GENERATED.replace("\n", "").split("|"):
        assert native.short_question(question) is None, question


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("is there a dgo in the pictrue?", "is there a dgo in the picture?"),  # three letters: dog, dig, ...
        ("Are there brwon hosres or a hrse?", "are there brown horses or a horse?"),
        ("is the man waering a ht", "is the man wearing a ht?"),
        ("what place is it? the side of a state", "what place is it? the side of a state"),  # words, not palaces
        ("Zoë's frisbe isn't bllue", "zoë's frisbee isn't blue"),
        ("is this a couch? " * 20 + "hrse", "is this a couch? " * 20 + "hrse"),  # no question
    ],
)
def test_misspelt_words(nano: blip2rt.Model, wrong: str, right: str) -> None:
    assert nano.pipeline.language.core.plain_question(wrong) == right
    assert nano.ask("docs/nano/cat.jpg", "is ther a prson?") == "no"


def test_plain_questions(nano: blip2rt.Model) -> None:
    plain = nano.pipeline.language.core.plain_question
    for question in ("What colour is the dog", "### User: what colour is the dog?", "Q: what colour is the DOG?"):
        assert plain(question) == "what colour is the dog?"
    assert plain("Describe the picture.") == "describe the picture"
    assert plain(" What is it? Where is it? ") == "What is it? Where is it?"
    assert nano.chat("docs/photo.jpg").ask("WHAT colr is the cup") == "red"


def test_a_space_before_a_forced_prefix_is_not_doubled(nano: blip2rt.Model) -> None:
    given = {"prompt": "a cup", "scores": True}
    without, with_space = (nano.caption("docs/photo.jpg", forced_prefix=text, **given).score for text in ("of", " of"))
    assert without == pytest.approx(with_space, abs=1e-4)


def test_absent_things_are_not_counted_and_answers_do_not_contradict(nano: blip2rt.Model) -> None:
    image = "docs/nano/cat.jpg"
    assert nano.ask(image, "how many elephants are there?") == "none"
    assert nano.ask(image, "Is there no cat?") == "no" and nano.ask(image, "isn't there a cat?") == "yes"
    assert nano.ask(image, "is it a dog or a cat?") == "cat" == nano.ask(image, "### Human: dog or cat")
    place = "is it indoors or outdoors?"
    assert (nano.ask("docs/photo.jpg", place), nano.ask("docs/nano/camera.jpg", place)) == ("indoors", "outdoors")
    for what in ("flying", "blue"):
        assert [nano.ask(image, f"is the cat {word}{what}?") for word in ("", "not ")] == ["no", "yes"]


def test_json_of_nano_does_not_contradict_itself(nano: blip2rt.Model) -> None:
    flag = {"type": "boolean"}
    about = ("nsfw", "no_cat", "has_cat", "without_elephants", "elephant", "nobody_visible")
    count = {"type": "integer", "minimum": 0, "maximum": 10}
    value = fill(nano, "docs/nano/cat.jpg", {"properties": dict.fromkeys(about, flag) | {"elephant_count": count}})
    assert value.pop("elephant_count") == 0
    assert value == dict.fromkeys(("has_cat", "without_elephants", "nobody_visible"), True) | dict.fromkeys(
        ("nsfw", "no_cat", "elephant"), False
    )


def test_words_of_phrases() -> None:
    core = native
    for bare, phrase, question in (
        ("cat", "a cat", "is there a cat?"),
        ("orange", "an orange", "is there an orange?"),
        ("snow", "snow", "is there snow?"),
        ("dogs", "dogs", "are there dogs?"),
        ("glass of wine", "a glass of wine", "is there a glass of wine?"),
        ("black CATS", "black CATS", "are there black CATS?"),
        ("Apple", "an Apple", "is there an Apple?"),
        ("Grass", "Grass", "is there Grass?"),
    ):
        assert core.with_article(bare) == phrase and core.question_of(phrase) == question
        assert core.without_article(phrase) == bare
    assert core.with_article("A cat") == "A cat" and core.without_article("The dogs") == "dogs"
    plurals = {"dog": "dogs", "bus": "buses", "cherry": "cherries", "fireman": "firemen", "human": "humans"}
    assert {noun: core.plural_of(noun) for noun in plurals} == plurals
