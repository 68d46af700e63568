"""A chat keeps its cache, and its answers equal those of reading everything again."""

import random
from typing import Any

import numpy as np
import pytest

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


def assert_equals_recomputation(case: Case, answer: list[int], prompt: list[int], options: dict[str, Any]) -> None:
    [[(want, _)]] = case.generator.generate(case.prefix, [prompt], options)
    if answer != want:  # the numbers differ in the last bits
        whole = Case(case.model, case.generator, case.prefix, [prompt], case.seed)
        assert "counts_prompt" not in options and undecided(whole, 0, options, [want]), f"seed {case.seed}, {prompt}"


@pytest.mark.parametrize("rules", [False, True])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_and_rules_see_the_whole_conversation(case: Case, num_beams: int, rules: bool) -> None:
    rng = random.Random(case.seed)
    chat = Chat(case.generator, case.prefix, num_beams, POSITIONS)
    history: list[int] = []
    for _ in range(4):
        question = [rng.randrange(len(case.texts)) for _ in range(rng.randint(1, 5))]
        forced = question[: rng.randint(0, 2)]
        options: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": 5, "forced_prefix": forced}
        if rules:
            options |= {"repetition_penalty": 1.8, "no_repeat_ngram_size": rng.choice([1, 2])}
            options |= {"counts_prompt": True, "image_token_id": case.said[0]}
        else:
            options |= {"eos_token_ids": case.said[:2]}
        answer = finish(chat.ask(question, options))
        assert_equals_recomputation(case, answer, history + question, options)
        history += question + forced + answer
        if options.get("no_repeat_ngram_size") == 1:
            assert not set(answer) & {case.said[0], *question}, "neither the image's token nor the question's"
    assert chat.positions > 4 * 2


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
    assert_equals_recomputation(case, second, [5, 6, *said, 7], options)


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
    assert_equals_recomputation(case, finish(chat.ask([7], options)), [5, 6, *answer, 7], options)


def test_a_chat_is_about_one_image(case: Case) -> None:
    with pytest.raises(RuntimeError, match="about 1 image, not 2"):
        Chat(case.generator, np.repeat(case.prefix, 2, axis=0), 1, 10)
    with pytest.raises(RuntimeError, match="at least 1"):
        Chat(case.generator, case.prefix, 0, 10)
