"""Calls that decode together say what each says alone: from threads, by submit, in streams and chats; what is kept."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blip2rt
from blip2rt.batching import Batching
from blip2rt.errors import BackendError, OptionError
from blip2rt.options import Options
from blip2rt.pixels.feature_cache import FeatureCache
from blip2rt.requests import Answer, Request, Usage
from tests.seeds import new_seed
from tests.tiny.bundle import POSITIONS, WORDS, Q, Tiny

pytest.importorskip("blip2rt._native")
GREEDY = Options(num_beams=1, max_new_tokens=6)


@pytest.fixture(scope="module")
def alone(tiny: Tiny) -> blip2rt.Model:
    return blip2rt.load(tiny.path, threads=1)


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> blip2rt.Model:
    return blip2rt.load(tiny.path, threads=1, batching=True, cache_bytes=1 << 20)


def calls_of(model: blip2rt.Model, images: list[np.ndarray]) -> list[Callable[[], Any]]:
    """Calls of every kind whose results are always the same."""

    def chat(image: np.ndarray, beams: int) -> list[str]:
        talk = model.chat(image, num_beams=beams)
        return [talk.ask(question, max_new_tokens=4) for question in ("what is red", "who runs", "is the cat on grass")]

    def told(image: np.ndarray) -> list[tuple[int, int, int]]:
        tokens: list[tuple[int, int, int]] = []
        model.caption([image, *images], num_beams=1, on_token=lambda *token: tokens.append(token))
        return sorted(tokens, key=lambda token: token[0])

    def broken_off(image: np.ndarray) -> str:
        return next(iter(model.stream(image, max_new_tokens=8)), "")

    calls: list[Callable[[], Any]] = [lambda: model.match(images[0], ["a dog", "a cat"])]
    for number, image in enumerate(images):
        drawn = {"do_sample": True, "seed": number, "temperature": 2.0, "max_new_tokens": 8}
        calls += [
            lambda image=image: model.caption(image, num_beams=1),
            lambda image=image: model.caption([image, *images], num_beams=4, num_captions=2, length_penalty=0.5),
            lambda image=image, drawn=drawn: model.caption(image, num_captions=3, **drawn),
            lambda image=image, drawn=drawn: model.caption([image] * 9, num_beams=3, top_k=6, **drawn),
            lambda image=image: model.ask(image, ["what is red", "who runs"], repetition_penalty=1.5),
            lambda image=image: "".join(model.stream(image, question="who runs", stop_strings="dog")),
            lambda image=image: told(image),
            lambda image=image: broken_off(image),
            lambda image=image, number=number: chat(image, 1 + number % 3),
        ]
    return calls


@pytest.mark.parametrize("sizes", [Batching(), Batching(rows=5, positions=80, read=3), Batching(rows=1)])
def test_threads_get_the_results_of_one_thread(
    tiny: Tiny, alone: blip2rt.Model, photo: Callable[..., np.ndarray], sizes: Batching
) -> None:
    """Also what does not fit the pool, which runs alone."""
    images = [photo(*size) for size in ((5, 7), (20, 30), (9, 9))]
    want = [call() for call in calls_of(alone, images)]
    seed = new_seed()
    shared = blip2rt.load(tiny.path, threads=1, batching=sizes, cache_bytes=seed % 2 * 100_000)
    calls, wrong = calls_of(shared, images), []

    def work(number: int) -> None:
        for i in random.Random(seed + number).sample(range(len(calls)), len(calls)):
            try:
                got = calls[i]()
            except Exception as error:
                got = error
            if got != want[i]:
                wrong.append(f"seed {seed}, call {i}: {got!r}, not {want[i]!r}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[0]


def test_an_answer_comes_in_pieces_and_as_a_whole(
    alone: blip2rt.Model, model: blip2rt.Model, photo: Callable[..., np.ndarray]
) -> None:
    image = photo()
    want = alone.caption(image, num_beams=1, max_new_tokens=6, scores=True)
    answer = model.submit(Request(image, options=GREEDY))
    assert "".join(answer) == want.text
    [scored] = answer.result()
    assert scored.text == want.text and scored.score == pytest.approx(want.score, abs=1e-4)
    assert answer.done and answer.take() == [] and list(answer) == []
    assert answer.finish in ("stop", "length")
    assert answer.usage.prompt == Q and answer.usage.answer <= 6
    beams = model.submit(Request(image, question="who runs", options=Options(num_beams=3, max_new_tokens=4)))
    assert "".join(beams) == alone.ask(image, "who runs", num_beams=3, max_new_tokens=4)
    draws = Options(num_captions=3, do_sample=True, seed=5, max_new_tokens=6)
    several = model.submit(Request(image, options=draws)).result()
    assert [each.text for each in several] == alone.caption(
        image, num_captions=3, do_sample=True, seed=5, max_new_tokens=6
    )


def test_answers_can_be_awaited(alone: blip2rt.Model, model: blip2rt.Model, photo: Callable[..., np.ndarray]) -> None:
    images = [photo() for _ in range(5)]

    async def one(image: np.ndarray) -> str:
        return "".join([piece async for piece in model.submit(Request(image, options=GREEDY))])

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*map(one, images))

    assert asyncio.run(all_of_them()) == [alone.caption(image, num_beams=1, max_new_tokens=6) for image in images]


def test_progress_is_reported_from_another_thread(
    alone: blip2rt.Model, model: blip2rt.Model, photo: Callable[..., np.ndarray]
) -> None:
    pieces: list[str] = []
    ended = threading.Event()
    image = photo()

    def on_news(answer: Answer) -> None:
        assert threading.current_thread().name == "blip2rt-news"
        done = answer.done
        pieces.extend(answer.take())
        if done:
            ended.set()

    answer = model.submit(Request(image, options=GREEDY), on_news=on_news)
    assert ended.wait(30)
    assert "".join(pieces) == answer.result()[0].text == alone.caption(image, num_beams=1, max_new_tokens=6)


def test_a_failing_listener_ends_only_its_request(model: blip2rt.Model, photo: Callable[..., np.ndarray]) -> None:
    def on_news(answer: Answer) -> None:
        raise KeyError("mine")

    long = Options(num_beams=1, max_new_tokens=40, min_new_tokens=40)
    image = photo()
    bad = model.submit(Request(image, options=long), on_news=on_news)
    good = model.submit(Request(image, options=long))
    with pytest.raises(BackendError, match=r"on_news failed: KeyError\('mine'\)"):
        while True:  # at once, or when it has been told
            bad.result(30)
    assert good.result(30)[0].text


def test_a_failed_request_keeps_its_error(model: blip2rt.Model, photo: Callable[..., np.ndarray]) -> None:
    """on_news meets the failure where it takes pieces; it is the request's all the same."""
    nothing = Options(
        num_beams=1, do_sample=True, min_new_tokens=3, bad_words=[word for word in WORDS if word != "</s>"]
    )
    told = threading.Event()

    def on_news(answer: Answer) -> None:
        try:
            answer.take()
        finally:
            told.set()

    answer = model.submit(Request(photo(), options=nothing), on_news=on_news)
    for _ in range(2):  # at once, and when it has been told
        with pytest.raises(BackendError, match="generation failed: the options forbid every token"):
            answer.result(30)
        assert told.wait(30)
        time.sleep(0.1)


def test_a_cancelled_answer_keeps_what_it_has(model: blip2rt.Model, photo: Callable[..., np.ndarray]) -> None:
    long = Options(num_beams=1, max_new_tokens=55, min_new_tokens=55)
    for _ in range(100):  # on a busy machine all is said before this thread gets to cancel
        answers = [model.submit(Request(photo(), options=long)) for _ in range(30)]
        for answer in answers:
            answer.cancel()
        for answer in answers:
            answer.result(30)
        assert {answer.finish for answer in answers} <= {"cancelled", "length"}
        if answers[-1].finish == "cancelled":
            break
    assert answers[-1].finish == "cancelled" and answers[-1].usage.answer < 55


def test_cancelling_a_finished_answer_does_nothing(model: blip2rt.Model, photo: Callable[..., np.ndarray]) -> None:
    answer = model.submit(Request(photo(), options=GREEDY))
    answer.result(30)
    ended = answer.finish
    answer.cancel()
    assert answer.finish == ended and ended in ("stop", "length")
    longer = Options(num_beams=1, max_new_tokens=50)
    answers = [model.submit(Request(photo(), options=longer)) for _ in range(20)]
    found = [(answer.result(30), answer.finish) for answer in answers]
    for answer in answers:
        answer.cancel()
    assert [(answer.result(), answer.finish) for answer in answers] == found


def left_in_the_middle(answer: Answer) -> None:
    for piece in answer:
        assert piece
        break


def let_go(answer: Answer) -> None:
    while not answer._call.wait():
        pass


@pytest.mark.parametrize("leave", [left_in_the_middle, let_go])
def test_a_dropped_answer_is_cancelled(
    tiny: Tiny, photo: Callable[..., np.ndarray], leave: Callable[[Answer], None]
) -> None:
    """After its first token. It stands alone, so that what is computed afterwards is its own."""
    model = blip2rt.load(tiny.path, threads=1, batching=Batching(rows=1))
    image, most = photo(), 55
    long = Options(num_beams=1, max_new_tokens=most, min_new_tokens=most)
    for tries in range(1, 5001):  # on a busy machine all is said before this thread gets to leave
        before = model.counters()
        leave(model.submit(Request(image, options=long)))
        left = model.counters()["tokens"] - before["tokens"]
        end = time.monotonic() + 30
        while (after := model.counters())["requests"] == before["requests"]:
            assert time.monotonic() < end, after
            time.sleep(0.001)
        said = after["tokens"] - before["tokens"]
        assert 0 < said <= left + 1  # the running step
        if left < most - 1:
            print(f"left after {left} tokens, try {tries}")
            return
    pytest.fail("nothing was ever left midway: this tests nothing")


def test_max_time_is_the_finish_reason(model: blip2rt.Model, photo: Callable[..., np.ndarray]) -> None:
    answer = model.submit(Request(photo(), options=Options(num_beams=1, max_new_tokens=40, max_time=1e-9)))
    answer.result(30)
    assert answer.finish == "time" and answer.usage.answer <= 1


def test_a_request_without_an_image_is_answered(model: blip2rt.Model) -> None:
    answer = model.submit(Request(prompt="a red dog", options=GREEDY))
    assert answer.result(30) and answer.usage.prompt == 3
    with pytest.raises(OptionError, match="neither an image nor a prompt"):
        model.submit(Request())


def test_bad_requests_are_rejected(
    tiny: Tiny, alone: blip2rt.Model, model: blip2rt.Model, photo: Callable[..., np.ndarray]
) -> None:
    image = photo()
    with pytest.raises(OptionError, match=r"load\(batching=True\) to submit"):
        alone.submit(Request(image))
    with pytest.raises(OptionError, match="prompt and question are both given"):
        model.submit(Request(image, prompt="a", question="b"))
    for wrong in ("photo.jpg", Request(image, options={})):
        with pytest.raises(OptionError, match="submit takes a blip2rt.requests.Request"):
            model.submit(wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="17 beams or captions are asked for, and 16 fit.*: ask for less"):
        model.submit(Request(image, options=Options(num_beams=17, max_new_tokens=2)))
    with pytest.raises(OptionError, match="positions of keys and values are needed, and there are 128"):
        model.submit(Request(image, options=Options(num_beams=10, max_new_tokens=20)))
    with pytest.raises(OptionError, match="max_new_tokens is 0"):
        model.submit(Request(image, options=Options(max_new_tokens=0)))
    for wrong, message in (
        ({"batching": 3}, "batching is 3: give True, False or"),
        ({"batching": True, "backend": "trt"}, "the backend trt decodes each call by itself: leave out batching"),
        ({"cache_bytes": -1}, "cache_bytes is -1"),
    ):
        with pytest.raises(OptionError, match=message):
            blip2rt.load(tiny.path, **wrong)
    with pytest.raises(OptionError, match="rows is 0: give a whole number from 1 to 65,536; read is True"):
        Batching(rows=0, read=True)
    with pytest.raises(OptionError, match="positions is 1000000000000: give a whole number from 1 to 2,147,483,647"):
        Batching(positions=10**12)


def test_a_second_question_costs_its_own_tokens(tiny: Tiny, photo: Callable[..., np.ndarray]) -> None:
    model = blip2rt.load(tiny.path, threads=1, batching=True, cache_bytes=1 << 20)
    image = photo(20, 30)
    model.submit(Request(image, question="what is red", options=GREEDY)).result(30)
    first = model.counters()
    again = model.submit(Request(image.copy(), question="who runs", options=GREEDY))
    again.result(30)
    assert again.usage == Usage(Q + 6, Q + 2, again.usage.answer)  # "Question :" is the template's
    second = model.counters()
    assert second["image_misses"] == first["image_misses"] and second["image_hits"] == first["image_hits"] + 1
    assert (second["hits"], second["misses"]) == (first["hits"] + 1, first["misses"])
    talk = model.chat(image, num_beams=1)
    for question in ("what is red", "who runs", "is the cat on grass"):
        before = model.counters()["kept_positions"]
        talk.ask(question, max_new_tokens=4)
        assert model.counters()["kept_positions"] - before >= Q
    assert 0 < model.counters()["kept_bytes"] <= 3 << 18


def test_the_image_cache_needs_no_batching(tiny: Tiny, alone: blip2rt.Model, photo: Callable[..., np.ndarray]) -> None:
    """Without batching too, for all that images are asked for."""
    model = blip2rt.load(tiny.path, threads=1, cache_bytes=1 << 20)
    images = [photo() for _ in range(3)]
    for _ in range(2):
        assert model.caption([*images, images[0]]) == alone.caption([*images, images[0]])
        assert model.match(images, "a dog") == alone.match(images, "a dog")
        np.testing.assert_array_equal(model.vision_features(images), alone.vision_features(images))
    counters = model.counters()
    assert counters["image_misses"] == 4 + 3 and counters["image_bytes"] > 0
    assert "steps" not in counters


def test_cached_arrays_are_bounded() -> None:
    made: list[int] = []

    def make(numbers: list[int]) -> Any:
        made.extend(numbers)
        return np.stack([np.full(4, number, np.float32) for number in numbers])

    kept = FeatureCache(40)  # two arrays and a half
    names = [b"a", b"b", b"a"]
    np.testing.assert_array_equal(kept.rows(names, make)[:, 0], [0, 1, 0])
    assert made == [0, 1] and kept.bytes == 32
    kept.rows([b"a"], make)
    kept.rows([b"c"], make)  # b goes
    assert kept.bytes == 32 and len(made) == 3
    kept.rows([b"a"], make)
    assert len(made) == 3
    kept.rows([b"b"], make)
    assert len(made) == 4
    assert (kept.hits, kept.misses) == (2, 5)
    FeatureCache(8).rows([b"large"], make)


@pytest.mark.long(2, "threads that wait")
def test_closing_a_model_fails_running_requests(tiny: Tiny, photo: Callable[..., np.ndarray]) -> None:
    long = Options(num_beams=1, max_new_tokens=50, min_new_tokens=50)
    for _ in range(50):  # on a busy machine all is said before this thread gets to close it
        model = blip2rt.load(tiny.path, threads=1, batching=Batching(rows=1))
        answers = [model.submit(Request(photo(), options=long)) for _ in range(20)]
        model.close()
        try:
            answers[-1].result(30)
        except BackendError as error:
            assert "closed" in str(error)
            break
    else:
        pytest.fail("what ran was said to its end")
    with pytest.raises(BackendError, match="closed"):
        model.caption(photo())
    del answers
    backend = weakref.ref(model.pipeline.backend)
    del model
    gc.collect()
    end = time.monotonic() + 60
    while backend() is not None and time.monotonic() < end:
        time.sleep(0.05)
    assert backend() is None
    assert POSITIONS * 2 == 128  # the pool of the tests above


@pytest.mark.parametrize("batching", [False, True])
def test_an_answer_that_never_started_leaves_no_question(
    tiny: Tiny, tmp_path: Path, photo: Callable[..., np.ndarray], batching: bool
) -> None:
    """The next question is the first: with the token that begins a text, and all the room."""
    path = Path(shutil.copytree(tiny.path, tmp_path / "begins"))
    manifest = json.loads((path / "blip2rt.json").read_text())
    manifest["llm"] |= {"bos_token_id": 2, "prepend_bos": True}
    (path / "blip2rt.json").write_text(json.dumps(manifest))
    model = blip2rt.load(path, threads=1, batching=batching)
    for image in [photo() for _ in range(8)]:
        first = model.chat(image, num_beams=1, max_new_tokens=6)
        talk = model.chat(image, num_beams=1, max_new_tokens=6)
        for _ in range(20):  # more than fit
            talk.stream("what is red")
        assert talk.ask("who runs") == first.ask("who runs")


def test_closing_a_model_during_calls_is_named(tiny: Tiny, photo: Callable[..., np.ndarray]) -> None:
    image, faults = photo(), []
    for _ in range(12):
        model = blip2rt.load(tiny.path, threads=1)

        def call(model: blip2rt.Model = model) -> None:
            try:
                while True:
                    model.caption(image, max_new_tokens=1)
            except Exception as error:  # noqa: BLE001
                if not isinstance(error, BackendError) or "closed" not in str(error):
                    faults.append(error)

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        model.close()
        for thread in threads:
            thread.join()
    assert not faults
