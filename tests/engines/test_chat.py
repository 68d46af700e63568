"""A chat keeps its cache, and its answers equal those of reading everything again."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

from tests.engines.native import Chat
from tests.engines.native.reference import POSITIONS, Case, make_case, undecided


@pytest.fixture(scope="module", params=["llama", "opt"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp("chat"), images=1)


def finish(generation: Any) -> list[int]:
    while not generation.done:
        generation.step()
    tokens: list[int] = generation.results()[0][0][0]
    return tokens


@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_equal_recomputation(case: Case, num_beams: int) -> None:
    rng = random.Random(case.seed)
    chat = Chat(case.generator, case.prefix, num_beams, POSITIONS)
    history: list[int] = []
    for turn in range(4):
        question = [rng.randrange(len(case.texts)) for _ in range(rng.randint(1, 5))]
        forced = question[: rng.randint(0, 2)]
        options = {"num_beams": num_beams, "max_new_tokens": 6, "eos_token_ids": case.said[:2], "forced_prefix": forced}
        answer = finish(chat.ask(question, options))
        [[(want, _)]] = case.generator.generate(case.prefix, [history + question], options)
        if answer != want:  # the numbers differ in the last bits
            whole = Case(case.model, case.generator, case.prefix, [history + question], case.seed)
            assert undecided(whole, 0, options, [want]), f"seed {case.seed}, turn {turn}"
        history += question + forced + answer
    assert chat.positions > 4 * 2


@pytest.mark.parametrize("num_beams", [1, 3])
def test_rules_see_the_whole_conversation(case: Case, num_beams: int) -> None:
    rng = random.Random(case.seed)
    chat = Chat(case.generator, case.prefix, num_beams, POSITIONS)
    history: list[int] = []
    for turn in range(4):
        question = [rng.randrange(len(case.texts)) for _ in range(rng.randint(1, 5))]
        options: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": 5, "repetition_penalty": 1.8}
        options |= {"forced_prefix": question[: rng.randint(0, 2)], "no_repeat_ngram_size": rng.choice([1, 2])}
        options |= {"counts_prompt": True, "image_token_id": case.said[0]}
        answer = finish(chat.ask(question, options))
        [[(want, _)]] = case.generator.generate(case.prefix, [history + question], options)
        assert answer == want, f"seed {case.seed}, turn {turn}"
        history += question + options["forced_prefix"] + answer
        if options["no_repeat_ngram_size"] == 1:
            assert not set(answer) & {case.said[0], *question}, "neither the image's token nor the question's"


def test_a_question_costs_only_its_own_tokens(case: Case) -> None:
    """Cached positions are not read again. They include a greedy answer, except for its last token."""
    chat = Chat(case.generator, case.prefix, 1, POSITIONS)
    finish(chat.ask([5, 6], {"max_new_tokens": 4}))
    assert chat.positions == 0  # counted at the next question
    chat.ask([7], {"max_new_tokens": 4})
    assert chat.positions == 3 + 2 + 3


def test_an_interrupted_answer_is_kept(case: Case) -> None:
    options = {"max_new_tokens": 8}
    chat = Chat(case.generator, case.prefix, 1, POSITIONS)
    first = chat.ask([5, 6], options)
    first.step()
    first.step()
    said = first.results()[0][0][0]
    assert len(said) == 2
    second = finish(chat.ask([7], options))
    assert first.done and first.step() == []
    [[(want, _)]] = case.generator.generate(case.prefix, [[5, 6, *said, 7]], options)
    whole = Case(case.model, case.generator, case.prefix, [[5, 6, *said, 7]], case.seed)
    assert second == want or undecided(whole, 0, options, [want])


def test_a_question_that_was_never_read_is_dropped(case: Case) -> None:
    options = {"max_new_tokens": 4}
    chat = Chat(case.generator, case.prefix, 1, POSITIONS)
    chat.ask([5, 6], options)
    answer = finish(chat.ask([7], options))
    assert answer == case.generator.generate(case.prefix, [[7]], options)[0][0][0]


def test_rejected_questions_change_nothing(case: Case) -> None:
    chat = Chat(case.generator, case.prefix, 2, 14)
    answer = finish(chat.ask([5, 6], {"max_new_tokens": 4}))
    for options, message in (
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"num_beams": 3}, "num_beams is 3, more than the chat's 2"),
        ({"max_new_tokens": 5}, "the chat is full: 8 of its 14 positions are used, and this needs 7 more"),
    ):
        with pytest.raises(RuntimeError, match=message):
            chat.ask([7], options)
    with pytest.raises(RuntimeError, match="neither prefix nor prompt|token id"):
        chat.ask([-1], {"max_new_tokens": 1})
    options = {"max_new_tokens": 4}
    [[(want, _)]] = case.generator.generate(case.prefix, [[5, 6, *answer, 7]], options)
    whole = Case(case.model, case.generator, case.prefix, [[5, 6, *answer, 7]], case.seed)
    assert finish(chat.ask([7], options)) == want or undecided(whole, 0, options, [want])


def test_a_chat_is_about_one_image(case: Case) -> None:
    with pytest.raises(RuntimeError, match="about 1 image, not 2"):
        Chat(case.generator, np.repeat(case.prefix, 2, axis=0), 1, 10)
    with pytest.raises(RuntimeError, match="at least 1"):
        Chat(case.generator, case.prefix, 0, 10)
