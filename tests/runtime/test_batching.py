"""Calls that decode together say what each says alone: from threads, by submit, in streams and chats; what is kept."""

import asyncio
import gc
import json
import random
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blip2rt
from blip2rt.batching import Batching
from blip2rt.errors import BackendError, OptionError
from blip2rt.options import Options
from blip2rt.pixels.feature_cache import FeatureCache
from blip2rt.requests import Answer, Request
from tests.seeds import new_seed
from tests.tiny.bundle import WORDS, Q, Tiny

GREEDY = Options(num_beams=1, max_new_tokens=6)
Photo = Callable[..., np.ndarray]


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


@pytest.mark.parametrize("sizes", [False, Batching(), Batching(rows=5, positions=80, read=3), Batching(rows=1)])
def test_threads_get_the_results_of_one_thread(tiny: Tiny, alone: blip2rt.Model, photo: Photo, sizes: Any) -> None:
    """Also what does not fit the pool, which runs alone."""
    images = [photo(*size) for size in ((5, 7), (20, 30), (9, 9))]
    want = [call() for call in calls_of(alone, images)]
    seed = new_seed()
    shared = blip2rt.load(tiny.path, threads=1, batching=sizes, cache_bytes=seed % 2 * 100_000)
    calls = calls_of(shared, images)

    def work(number: int) -> None:
        for i in random.Random(seed + number).sample(range(len(calls)), len(calls)):
            assert calls[i]() == want[i], f"seed {seed}, call {i}"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_an_answer_comes_in_pieces_and_as_a_whole(alone: blip2rt.Model, model: blip2rt.Model, photo: Photo) -> None:
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
    draws = {"num_captions": 3, "do_sample": True, "seed": 5, "max_new_tokens": 6}
    several = model.submit(Request(image, options=Options(**draws))).result()
    assert [each.text for each in several] == alone.caption(image, **draws)


def test_answers_can_be_awaited(alone: blip2rt.Model, model: blip2rt.Model, photo: Photo) -> None:
    images = [photo() for _ in range(5)]

    async def one(image: np.ndarray) -> str:
        return "".join([piece async for piece in model.submit(Request(image, options=GREEDY))])

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*map(one, images))

    assert asyncio.run(all_of_them()) == [alone.caption(image, num_beams=1, max_new_tokens=6) for image in images]


def test_progress_is_reported_from_another_thread(alone: blip2rt.Model, model: blip2rt.Model, photo: Photo) -> None:
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


def test_a_failing_listener_ends_only_its_request(model: blip2rt.Model, photo: Photo) -> None:
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


def test_a_failed_request_keeps_its_error(model: blip2rt.Model, photo: Photo) -> None:
    """on_news meets the failure where it takes pieces; it is the request's all the same."""
    words, told = [word for word in WORDS if word != "</s>"], threading.Event()
    nothing = Options(num_beams=1, do_sample=True, min_new_tokens=3, bad_words=words)

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


def test_a_cancelled_answer_keeps_what_it_has(model: blip2rt.Model, photo: Photo) -> None:
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


def left_in_the_middle(answer: Answer) -> None:
    for piece in answer:
        assert piece
        break


def let_go(answer: Answer) -> None:
    while not answer._call.wait():
        pass


@pytest.mark.parametrize("leave", [left_in_the_middle, let_go])
def test_a_dropped_answer_is_cancelled(tiny: Tiny, photo: Photo, leave: Callable[[Answer], None]) -> None:
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


def test_max_time_is_the_finish_reason(model: blip2rt.Model, photo: Photo) -> None:
    answer = model.submit(Request(photo(), options=Options(num_beams=1, max_new_tokens=40, max_time=1e-9)))
    answer.result(30)
    assert answer.finish == "time" and answer.usage.answer <= 1


def test_a_request_without_an_image_is_answered(model: blip2rt.Model) -> None:
    answer = model.submit(Request(prompt="a red dog", options=GREEDY))
    assert answer.result(30) and answer.usage.prompt == 3


def test_bad_requests_are_rejected(tiny: Tiny, alone: blip2rt.Model, model: blip2rt.Model, photo: Photo) -> None:
    image = photo()
    with pytest.raises(OptionError, match=r"load\(batching=True\) to submit"):
        alone.submit(Request(image))
    for request, message in (
        (Request(image, prompt="a", question="b"), "prompt and question are both given"),
        ("photo.jpg", "submit takes a blip2rt.requests.Request"),
        (Request(image, options={}), "submit takes a blip2rt.requests.Request"),
        (Request(image, options=Options(num_beams=17, max_new_tokens=2)), "17 beams or captions are asked for, and 16"),
        (Request(image, options=Options(num_beams=10, max_new_tokens=20)), "positions of keys and values are needed"),
        (Request(image, options=Options(max_new_tokens=0)), "max_new_tokens is 0"),
        (Request(), "neither an image nor a prompt"),
    ):
        with pytest.raises(OptionError, match=message):
            model.submit(request)
    for wrong, message in (
        ({"batching": 3}, "batching is 3: give True, False or"),
        ({"cache_bytes": -1}, "cache_bytes is -1"),
    ):
        with pytest.raises(OptionError, match=message):
            blip2rt.load(tiny.path, **wrong)
    with pytest.raises(OptionError, match="rows is 0: give a whole number from 1 to 65,536; read is True"):
        Batching(rows=0, read=True)
    with pytest.raises(OptionError, match="positions is 1000000000000: give a whole number from 1 to 2,147,483,647"):
        Batching(positions=10**12)


def test_the_image_cache_needs_no_batching(tiny: Tiny, alone: blip2rt.Model, photo: Photo) -> None:
    model = blip2rt.load(tiny.path, threads=1, cache_bytes=1 << 20)
    images = [photo() for _ in range(3)]
    for _ in range(2):
        assert model.caption([*images, images[0]]) == alone.caption([*images, images[0]])
        assert model.match(images, "a dog") == alone.match(images, "a dog")
        np.testing.assert_array_equal(model.vision_features(images), alone.vision_features(images))
    counters = model.counters()
    assert counters["image_misses"] == 4 + 3 and counters["image_bytes"] > 0
    assert "steps" not in counters
    model = blip2rt.load(tiny.path, threads=1, batching=True, cache_bytes=1 << 20)
    for question, kept in (("what is red", 0), ("who runs", Q + 2)):  # "Question :" is the template's
        answer = model.submit(Request(images[0].copy(), question=question, options=GREEDY))
        assert answer.result(30) and answer.usage.kept == kept
    talk = model.chat(images[0], num_beams=1)
    talk.ask("what is red", max_new_tokens=4)
    assert model.counters()["kept_positions"] > Q and 0 < model.counters()["kept_bytes"] <= 3 << 18


def test_cached_arrays_are_bounded() -> None:
    made: list[int] = []

    def make(numbers: list[int]) -> Any:
        made.extend(numbers)
        return np.stack([np.full(4, number, np.float32) for number in numbers])

    kept = FeatureCache(40)  # two arrays and a half
    np.testing.assert_array_equal(kept.rows([b"a", b"b", b"a"], make)[:, 0], [0, 1, 0])
    for name, count in ((b"a", 2), (b"c", 3), (b"a", 3), (b"b", 4)):  # c replaces b
        kept.rows([name], make)
        assert len(made) == count and kept.bytes == 32
    assert (kept.hits, kept.misses) == (2, 5)
    FeatureCache(8).rows([b"large"], make)


@pytest.mark.long(2, "threads that wait")
def test_closing_a_model_fails_running_requests(tiny: Tiny, photo: Photo) -> None:
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
    end = time.monotonic() + 60
    while backend() is not None:
        assert gc.collect() >= 0 and time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("batching", [False, True])
def test_an_answer_never_started_leaves_no_question(tiny: Tiny, tmp_path: Path, photo: Photo, batching: bool) -> None:
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


def test_closing_a_model_during_calls_is_named(tiny: Tiny, photo: Photo) -> None:
    image = photo()

    def call(model: blip2rt.Model) -> None:
        with pytest.raises(BackendError, match="closed"):
            while True:
                model.caption(image, max_new_tokens=1)

    for _ in range(12):
        model = blip2rt.load(tiny.path, threads=1)
        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(call, model) for _ in range(4)]
            model.close()
        for each in running:
            each.result()
