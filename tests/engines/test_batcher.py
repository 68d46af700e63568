"""Requests that share steps say what each says alone: random interleavings, options of every kind, fresh seeds."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.engines.native import Batcher
from tests.engines.native.reference import CONFIGS, HIDDEN, Case, hugging_face, make_case, random_options, undecided
from tests.seeds import new_seed

pytestmark = pytest.mark.long(40, "random interleavings of threads: races show in many runs")

REQUESTS = 40  # of one interleaving
TIES = 0.1  # the most answers of an interleaving that may differ, each where Hugging Face is undecided too


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case("opt", tmp_path_factory.mktemp("opt"))


def wait(submitted: Any) -> Any:
    while not submitted.done:
        assert submitted.wait(60), "nothing new for a minute"
    return submitted.results()


def assert_nothing_is_held(batcher: Any) -> None:
    """Places are given back a moment after a result is there."""
    names, end = ("running", "waiting", "rows", "positions"), time.monotonic() + 60
    while any(batcher.counters[name] for name in names):
        assert time.monotonic() < end, batcher.counters
        time.sleep(0.001)


def one(case: Case, image: int) -> Case:
    """The case with one of its images alone."""
    return Case(case.model, case.generator, case.prefix[image : image + 1], [case.prompts[image]], case.seed, case.said)


def random_requests(rng: random.Random, case: Case, count: int) -> list[tuple[Case, dict[str, Any]]]:
    """Images with prompts and options of their own; some draw."""
    made = []
    for _ in range(count):
        alone = one(case, rng.randrange(len(case.prompts)))
        alone.prompts = [[rng.randrange(len(case.texts)) for _ in range(rng.randint(0, 9))]]
        options = random_options(rng, case)
        if "t5" not in type(case.model).__name__.lower():
            options |= {"counts_prompt": rng.random() < 0.5, "image_token_id": rng.choice([-1, 3])}
        if rng.random() < 0.25:
            options |= {"do_sample": True, "seed": rng.randrange(1000), "top_k": rng.choice([0, 5])}
            if options["num_beams"] == 1:
                options["num_return_sequences"] = rng.randint(1, 3)
        made.append((alone, options))
    return made


def tokens(results: Any) -> list[list[int]]:
    return [sequence for sequence, _ in results[0]]


def is_tie(alone: Case, options: dict[str, Any], want: list[list[int]]) -> bool:
    """Whether Hugging Face is undecided. Draws are by another stream of numbers: their ties are not looked into, nor
    those of rules that count the prompt."""
    if options.get("do_sample") or options.get("counts_prompt"):
        return True
    options = {name: value for name, value in options.items() if name not in ("counts_prompt", "image_token_id")}
    return undecided(alone, 0, options, hugging_face(alone, 0, options)[0])


@pytest.mark.parametrize(("rows", "positions", "read"), [(16, 1000, 64), (6, 130, 3), (5, 90, 1)])
def test_random_interleavings_match_separate_calls(case: Case, rows: int, positions: int, read: int) -> None:
    seed = new_seed()
    rng = random.Random(seed)
    requests = random_requests(rng, case, REQUESTS)
    want = [alone.generator.generate(alone.prefix, alone.prompts, options) for alone, options in requests]
    batcher = Batcher(case.generator, rows, positions, read, rng.choice([0, 20_000, 10_000_000]))
    got: list[Any] = [None] * REQUESTS
    delays = [rng.random() * 0.004 for _ in requests]
    images = [alone.prefix.tobytes() if rng.random() < 0.7 else b"" for alone, _ in requests]

    def work(number: int) -> None:
        for i in range(number, REQUESTS, 4):
            time.sleep(delays[i])
            alone, options = requests[i]
            got[i] = batcher.submit(alone.prefix, alone.prompts, options, [images[i]])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    ties = 0
    for (alone, options), submitted, sequences in zip(requests, got, want, strict=True):
        results = wait(submitted)
        if tokens(results) == tokens(sequences):
            np.testing.assert_allclose(
                [score for _, score in results[0]], [score for _, score in sequences[0]], rtol=1e-3, atol=1e-3
            )
            continue
        ties += 1
        assert is_tie(alone, options, tokens(sequences)), f"seed {seed}, {alone.prompts}, {options}"
    print(f"{ties} ties of {REQUESTS}")
    assert ties <= TIES * REQUESTS, f"seed {seed}"
    assert_nothing_is_held(batcher)


def test_rows_of_different_lengths_share_steps(opt: Case) -> None:
    options = {"max_new_tokens": 20, "eos_token_ids": []}
    for _ in range(50):  # on a busy machine the first has ended before this thread gets to submit the others
        batcher = Batcher(opt.generator, 8, 400)
        first = batcher.submit(opt.prefix[:1], [opt.prompts[0]], options, each_token=True)
        taken: list[Any] = []
        while len(taken) < 5:
            first.wait(60)
            taken += first.take()
        others = [batcher.submit(opt.prefix[i : i + 1], [opt.prompts[i]], options) for i in (1, 2)]
        for image, submitted in enumerate((first, *others)):
            want = opt.generator.generate(opt.prefix[image : image + 1], [opt.prompts[image]], options)
            assert tokens(wait(submitted)) == tokens(want) or undecided(one(opt, image), 0, options, tokens(want))
        if batcher.counters["steps"] < 3 * 20:
            return
    pytest.fail("no two requests shared a step")


def test_a_cancelled_request_frees_its_rows_within_a_step(opt: Case) -> None:
    long = {"max_new_tokens": 50, "eos_token_ids": []}
    for _ in range(50):  # on a busy machine all is said before this thread gets to cancel anything
        if cancelled_midway(opt, long):
            return
    pytest.fail("nothing was ever cancelled midway: this tests nothing")


def cancelled_midway(opt: Case, long: dict[str, Any]) -> bool:
    """One row for three requests: the first, which has it, and the third, which waits, are cancelled."""
    batcher = Batcher(opt.generator, 1, 64)
    first = batcher.submit(opt.prefix[:1], [[5]], long, each_token=True)
    second = batcher.submit(opt.prefix[1:2], [[6]], {"max_new_tokens": 3, "eos_token_ids": []})
    third = batcher.submit(opt.prefix[1:2], [[6]], long)
    assert first.wait(60)
    third.cancel()
    first.cancel()
    tokens = batcher.counters["tokens"]
    said = wait(first)[0][0][0]
    if len(said) == 50:
        return False
    assert said == opt.generator.generate(opt.prefix[:1], [[5]], long)[0][0][0][: len(said)]
    assert len(wait(second)[0][0][0]) == 3
    assert not any(said for said, _ in wait(third)[0])  # it had not begun
    assert 0 < batcher.counters["tokens"] <= tokens + 1 + 3  # the running step, and the second request's
    return True


def test_an_error_ends_only_its_request(opt: Case) -> None:
    batcher = Batcher(opt.generator, 8, 200)
    options = {"max_new_tokens": 20, "eos_token_ids": []}
    good = batcher.submit(opt.prefix[:1], [[5]], options)
    bad = batcher.submit(np.full_like(opt.prefix[:1], np.nan), [[5]], options)
    also = batcher.submit(opt.prefix[1:2], [[6]], options)
    for wrong, message in (
        ({"num_beams": 9}, "needs 9 rows, and there are 8"),
        ({"max_new_tokens": 300}, "needs 304 positions of keys and values, and there are 200"),
    ):
        with pytest.raises(RuntimeError, match=message):
            batcher.submit(opt.prefix[:1], [[5]], wrong)
    with pytest.raises(RuntimeError, match="token id 83"):
        batcher.submit(opt.prefix[:1], [[83]], options)
    assert bad.wait(60)
    with pytest.raises(RuntimeError, match="not finite"):
        bad.results()
    for image, submitted, prompt in ((0, good, [5]), (1, also, [6])):
        want = opt.generator.generate(opt.prefix[image : image + 1], [prompt], options)
        assert tokens(wait(submitted)) == tokens(want)


def test_a_second_question_costs_its_own_tokens(opt: Case) -> None:
    """And a history that is sent again; beams find what one row has left, and the other way round."""
    batcher = Batcher(opt.generator, 8, 300, 64, 10_000_000)
    options = {"max_new_tokens": 6, "eos_token_ids": []}
    name = [b"picture"]

    def ask(prompt: list[int], **more: Any) -> tuple[list[int], int]:
        given = {**options, **more}
        submitted = batcher.submit(opt.prefix[:1], [prompt], given, name)
        [[(answer, score), *_]] = wait(submitted)
        [[(want, likely), *_]] = opt.generator.generate(opt.prefix[:1], [prompt], given)
        alone = Case(opt.model, opt.generator, opt.prefix[:1], [prompt], opt.seed)
        assert (answer == want and score == pytest.approx(likely, abs=1e-4)) or undecided(alone, 0, given, [want])
        [(_, kept)] = submitted.lengths()
        return answer, kept

    answer, kept = ask([7, 8])
    assert kept == 0
    assert ask([9, 10, 11])[1] == 3  # the image
    assert ask([7, 8])[1] == 4  # all but the last position, whose logits are wanted
    history = [7, 8, *answer]
    more, kept = ask([*history, 12])
    assert kept == 3 + len(history) - 1  # the last token of the answer was never fed
    assert ask([*history, 12, *more, 13, 14], num_beams=3)[1] == 3 + len(history) + 1 + len(more) - 1
    assert ask([*history, 12, *more, 13, 14, 15])[1] == 3 + len(history) + 1 + len(more) + 2
    assert ask([*history[:4], 20, 21])[1] == 3 + 4  # it leaves the way amid a branch
    assert ask([*history[:4], 20, 22])[1] == 3 + 5
    assert ask([*history[:5], 23])[1] == 3 + 5
    assert ask([*history, 12])[1] == 3 + len(history)  # over three parts of that branch
    counters = batcher.counters
    assert counters["misses"] == 1 and counters["hits"] == 9
    other = batcher.submit(opt.prefix[1:2], [[7, 8]], options, [b"another"])
    wait(other)
    assert other.lengths() == [(5, 0)]


def test_the_prefix_cache_is_bounded(opt: Case) -> None:
    most = 40 * 2 * 2 * HIDDEN * 4  # 40 positions
    batcher = Batcher(opt.generator, 4, 300, 64, most)
    for number in range(60):
        prompt = [number % 83, (7 * number) % 83, number % 5]
        wait(batcher.submit(opt.prefix[:1], [prompt], {"max_new_tokens": 5}, [b"%d" % (number % 3)]))
        assert batcher.counters["kept_bytes"] <= most
    assert batcher.counters["kept_bytes"] > 0
    assert batcher.counters["hits"] > 0
