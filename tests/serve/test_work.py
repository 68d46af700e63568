"""The queue and the steps: who leaves ends the work within a token, places are never lost, texts are the library's."""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import blip2rt
from blip2rt.backends import ort
from blip2rt.serve.faults import Fault
from blip2rt.serve.metrics import Metrics
from blip2rt.serve.queueing import Work, _Slots
from blip2rt.serve.settings import Queue
from blip2rt.serve.work import Answer, Job, Piece, Stop, answer
from tests.seeds import new_seed


@pytest.fixture
def model(tiny: Any) -> Any:
    return blip2rt.load(tiny.path, threads=1)


def queued(model: Any, scenario: Callable[[Work], Awaitable[Any]], **queue: Any) -> Any:
    """Run a scenario with the queue of a model: two are computed at a time, three may wait."""

    async def main() -> Any:
        return await scenario(
            Work(model, Queue(**{"parallel": 2, "waiting": 3, "deadline": 60.0, **queue}), 50, Metrics())
        )

    return asyncio.run(main())


@pytest.fixture
def image(photo: Any, tmp_path: Any) -> bytes:
    from PIL import Image

    Image.fromarray(photo()).save(tmp_path / "x.png")
    return (tmp_path / "x.png").read_bytes()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each step of a generation."""
    taken: list[int] = []
    step = ort.Generation.step
    monkeypatch.setattr(ort.Generation, "step", lambda self: (taken.append(1), step(self))[1])
    return taken


def test_texts_are_the_librarys(model: Any, image: bytes) -> None:
    stop = Stop()
    for options in ({}, {"num_beams": 1}, {"num_beams": 3, "num_captions": 2},
                    {"min_new_tokens": 5, "forced_prefix": "a"},
                    {"do_sample": True, "seed": 4, "temperature": 2.0}):  # fmt: skip
        captions = model.caption(image, **options)
        found = answer(model, Job(image, options=options), 50, stop, None)
        assert found.texts == ([captions] if isinstance(captions, str) else captions)
        found = answer(model, Job(image, "who runs", options=options), 50, stop, None)
        asked = model.ask(image, "who runs", **options)
        assert found.texts == ([asked] if isinstance(asked, str) else asked)
    found = answer(model, Job(image, prompt="a dog"), 50, stop, None)
    assert found.texts == [model.caption(image, prompt="a dog")] and found.prompt_tokens == 3 + 2


def test_pieces_are_the_text(model: Any, image: bytes) -> None:
    for options in ({}, {"min_new_tokens": 8}, {"num_beams": 2}, {"do_sample": True, "seed": 1, "num_captions": 3}):
        pieces: list[Piece] = []
        found = answer(model, Job(image, options=options), 50, Stop(), pieces.append)
        for i, text in enumerate(found.texts):
            assert "".join(piece.text for piece in pieces if piece.index == i) == text


def test_a_length_is_told_from_an_end(model: Any, image: bytes) -> None:
    def finish(**options: Any) -> list[str]:
        return answer(model, Job(image, options=options), 50, Stop(), None).finish

    assert finish(min_new_tokens=4, max_new_tokens=4) == ["length"]
    longest = answer(model, Job(image, options={"min_new_tokens": 40, "max_new_tokens": 900}), 50,
                     Stop(), None)  # fmt: skip
    assert longest.completion_tokens <= 50, "the server's limit"
    natural = answer(model, Job(image, options={"num_beams": 1, "max_new_tokens": 50}), 50, Stop(), None)
    assert natural.finish == ["stop" if natural.completion_tokens < 50 else "length"]


@pytest.mark.parametrize("batching", [False, True])
def test_a_text_that_time_has_ended_says_so(tiny: Any, image: bytes, batching: bool) -> None:
    """In the library's words; OpenAI's and Ollama's clients know two alone."""
    model = blip2rt.load(tiny.path, threads=1, batching=batching)
    long = {"min_new_tokens": 9, "max_new_tokens": 9}
    for more in ({"num_beams": 1}, {"num_beams": 3}, {"do_sample": True, "seed": 3, "num_captions": 2}):
        for seconds, ended, tokens in ((0, "time", 1), (600, "length", 9)):
            options = {**long, **more, "max_time": seconds}
            texts = options.get("num_captions", 1)
            for tell in (None, lambda _: None):
                found = answer(model, Job(image, options=options), 50, Stop(), tell)
                assert found.finish == [ended] * texts and found.completion_tokens == tokens * texts
                assert found.reasons == ["length"] * texts
    free = {"num_beams": 1, "min_new_tokens": 1, "max_new_tokens": 40, "max_time": 600}
    scored = model.caption(image, scores=True, raw=True, **free)
    found = answer(model, Job(image, options=free), 50, Stop(), None)
    assert found.finish == ["length" if scored.truncated else "stop"]
    for word in scored.text.split()[:1]:  # it may have said nothing
        stopped = answer(model, Job(image, options={**free, "max_time": 0}, stops=(word,)), 50, Stop(), None)
        assert stopped.finish == ["stop"]


def test_a_stop_string_ends_the_generation(model: Any, image: bytes, steps: list[int]) -> None:
    options = {"min_new_tokens": 30, "num_beams": 1}
    whole = answer(model, Job(image, options=options), 50, Stop(), None)
    said = re.findall(r"\w+|[^\w\s]", whole.texts[0])  # a caption is tidied: its "red:" was said as "red :"
    word = [each for each in said if each.isalpha()][2]
    steps.clear()
    found = answer(model, Job(image, options=options, stops=(word,)), 50, Stop(), None)
    assert found.finish == ["stop"] and found.texts[0] == whole.texts[0].partition(word)[0].rstrip()
    assert len(steps) <= said.index(word) + 2


def test_who_leaves_ends_the_generation_within_a_step(model: Any, image: bytes, steps: list[int]) -> None:
    options = {"min_new_tokens": 40, "max_new_tokens": 40}
    stop, told = Stop(), 0

    def tell(_: Piece) -> None:
        nonlocal told
        told += 1
        if told == 3:
            steps.clear()
            stop.set()

    answer(model, Job(image, options=options), 50, stop, tell)
    assert len(steps) <= 1


def test_a_stream_that_is_left_ends_the_generation(
    model: Any, image: bytes, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ort.Generation.step
    monkeypatch.setattr(ort.Generation, "step", lambda self: (time.sleep(0.02), step(self))[1])  # as a large model

    async def leave(work: Work) -> int:
        job = Job(image, options={"min_new_tokens": 45, "max_new_tokens": 45})
        stream = work.stream(job)
        async for _ in stream:
            break
        await stream.aclose()
        while work.running:
            await asyncio.sleep(0.001)
        return len(steps)

    assert queued(model, leave) < 20


def test_the_queue_takes_so_many_and_no_more(model: Any) -> None:
    async def scenario(work: Work) -> None:
        door, begun = threading.Event(), []

        def wait(_: Stop) -> int:
            begun.append(1)
            door.wait(60)
            return 7

        calls = [asyncio.ensure_future(work.run(wait)) for _ in range(5)]
        while work.waiting < 3:
            await asyncio.sleep(0.001)
        with pytest.raises(Fault) as raised:
            await work.run(wait)
        assert raised.value.status == 429 and raised.value.retry_after is not None
        assert (work.running, work.waiting, len(begun)) == (2, 3, 2)
        calls[4].cancel()
        await asyncio.sleep(0.01)
        assert work.waiting == 2
        door.set()
        assert await asyncio.gather(*calls[:4]) == [7] * 4
        await asyncio.sleep(0)
        assert (work.running, work.waiting, work._slots.free) == (0, 0, 2)

    queued(model, scenario)


def test_a_deadline_holds_while_waiting_and_while_computed(model: Any) -> None:
    async def scenario(work: Work) -> None:
        stops: list[Stop] = []

        def wait(stop: Stop) -> None:
            stops.append(stop)
            stop.wait(60)

        results = await asyncio.gather(work.run(wait), work.run(wait), return_exceptions=True)
        assert [each.status for each in results if isinstance(each, Fault)] == [504, 504]
        assert stops[0].is_set(), "it is told to end"

    queued(model, scenario, parallel=1, deadline=0.2)


def test_what_is_under_way_is_cut_at_the_servers_end(model: Any) -> None:
    async def scenario(work: Work) -> None:
        stops: list[Stop] = []

        def wait(stop: Stop) -> None:
            stops.append(stop)
            stop.wait(60)

        calls = [asyncio.ensure_future(work.run(wait)) for _ in range(4)]
        while work.waiting < 2:
            await asyncio.sleep(0.001)
        work.cut()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [each.code for each in results if isinstance(each, Fault)] == ["ending"] * 4
        assert all(stop.is_set() for stop in stops)

    queued(model, scenario)


def test_an_error_gives_its_place_back(model: Any) -> None:
    async def scenario(work: Work) -> None:
        for _ in range(5):
            with pytest.raises(blip2rt.ImageError):
                await work.answer(Job(b"no image"))
        with pytest.raises(blip2rt.OptionError):
            await work.answer(Job(b"", options={"num_beams": 0}))
        await asyncio.sleep(0)
        assert work._slots.free == 2

    queued(model, scenario)


def test_no_place_is_lost_whoever_leaves() -> None:
    rng = random.Random(new_seed())

    async def scenario() -> None:
        told: list[int] = []
        slots = _Slots(3, told.append)

        async def late(turn: asyncio.Future[None], seconds: float) -> None:
            await asyncio.wait({turn}, timeout=seconds)
            if not turn.done():
                raise Fault(504, "late", "late")

        async def call() -> None:
            await slots.take(lambda turn: late(turn, rng.random() * 0.01))
            try:
                await asyncio.sleep(rng.random() * 0.004)
            finally:
                slots.give()

        calls = []
        for _ in range(400):
            calls.append(asyncio.ensure_future(call()))
            if rng.random() < 0.3:
                rng.choice(calls).cancel()
            if rng.random() < 0.2:
                await asyncio.sleep(rng.random() * 0.003)
        await asyncio.gather(*calls, return_exceptions=True)
        assert slots.free == 3 and not slots.waiters and told[-1] == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("history", [(), (("who is", "a dog"),)])
def test_a_forced_prefix_takes_its_part_of_the_room(model: Any, image: bytes, history: Any) -> None:
    """64 positions, of which the prefix takes most: fewer tokens than by default fit behind it."""
    options = {"forced_prefix": "a dog runs on the grass " * 9, "num_beams": 1}
    for question in (None, "who runs"):
        found = answer(model, Job(image, question, None, history, options), 50, Stop(), None)
        assert found.texts[0].startswith("a dog runs") and found.prompt_tokens + found.completion_tokens <= 64


def test_history_that_does_not_fit_is_left_out(model: Any, image: bytes) -> None:
    """64 positions: the newest questions stay."""
    turns = tuple(("what is the dog on", "grass in the water") for _ in range(9))
    short = answer(model, Job(image, "who runs", history=turns[:1]), 8, Stop(), None)
    long = answer(model, Job(image, "who runs", history=turns), 8, Stop(), None)
    alone = answer(model, Job(image, "who runs"), 8, Stop(), None)
    assert alone.prompt_tokens < short.prompt_tokens < long.prompt_tokens < 64
    assert isinstance(long, Answer)


def test_a_long_history_is_read_no_further_than_it_fits(
    model: Any, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question was encoded anew for each that stood before it."""
    encoded: list[object] = []
    kind = type(model.pipeline.language)
    whole = kind.encode_more
    monkeypatch.setattr(kind, "encode_more", lambda self, prompt: encoded.append(prompt) or whole(self, prompt))
    job = Job(image, "who is", history=(("what is", "a dog runs"),) * 500, options={"max_new_tokens": 3})
    assert answer(model, job, 9, Stop(), None).texts
    assert 2 < len(encoded) < 40
