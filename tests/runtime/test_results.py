"""Scored texts, max_time, and errors of bad images."""

import copy
import pickle
import time

import numpy as np
import pytest

import blip2rt
from blip2rt.errors import DeadlineError, ImageError
from blip2rt.requests import Request
from blip2rt.results import Timings
from tests.tiny.bundle import EOS, WORDS, E, Q, Tiny


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "batching"])
def model(request: pytest.FixtureRequest, tiny: Tiny) -> blip2rt.Model:
    return blip2rt.load(tiny.path, threads=1, batching=request.param)


def test_scored_text_has_tokens_and_timings(model, photo):
    for beams in (1, 3):
        one = model.caption(photo(), scores=True, num_beams=beams, max_new_tokens=5, min_new_tokens=5)
        text, score = one
        assert (one.text, one.score) == (text, score)
        assert model.decode(one.tokens) == text and len(one.tokens) == 5 and EOS not in one.tokens
        assert isinstance(one.timings, Timings) and min(one.timings) > 0
        for other in (pickle.loads(pickle.dumps(one)), copy.copy(one)):
            assert (other, other.tokens, other.truncated, other.timings) == (one, one.tokens, True, one.timings)


def test_truncated_texts_were_cut(model, photo):
    for _ in range(40):
        image = photo()
        long = model.caption(image, scores=True, num_beams=1, max_new_tokens=30, raw=True)
        assert long.truncated == (len(long.tokens) == 30)
        if len(long.tokens) > 1:
            short = model.caption(image, scores=True, num_beams=1, max_new_tokens=len(long.tokens) - 1)
            assert short.truncated and short.tokens == long.tokens[:-1]
            word = WORDS[long.tokens[0]]
            stopped = model.caption(image, scores=True, num_beams=1, max_new_tokens=1, stop_strings=word)
            assert not stopped.truncated and len(stopped.tokens) == 1


@pytest.mark.parametrize("beams", [1, 3])
def test_no_word_within_max_time_raises_or_is_none(model, photo, beams):
    options = {"num_beams": beams, "max_new_tokens": 20, "min_new_tokens": 20, "max_time": 1e-9}
    images = [photo() for _ in range(10)]
    for call, given in ((model.caption, ()), (model.caption_each, ()), (model.ask, ("what",))):
        with pytest.raises(TimeoutError, match=r"^max_time is 1e-09 seconds, which passed before the first word: "):
            list(call(images, *given, **options))
        assert list(call(images, *given, **options, on_timeout=None)) == [None] * 10
    assert model.caption(images[0], scores=True, num_captions=beams, on_timeout=None, **options) is None
    with pytest.raises(DeadlineError, match="first word"):
        model.stream(images[0], **{**options, "num_beams": 1})
    with pytest.raises(DeadlineError, match="first word"):
        model.chat(images[0], **options).ask("what")
    for wrong in ({"on_timeout": "none"}, {"max_time": 0}):
        with pytest.raises(blip2rt.OptionError, match=f"^{next(iter(wrong))} is"):
            model.caption(images, **wrong)


def test_max_time_includes_the_encoder(tiny, photo, monkeypatch):
    model = blip2rt.load(tiny.path, threads=1)
    real = model.pipeline.backend.vision

    def slow(pixels):
        time.sleep(0.3)
        return real(pixels)

    monkeypatch.setattr(model.pipeline.backend, "vision", slow)
    options = {"num_beams": 1, "max_new_tokens": 30, "min_new_tokens": 30, "max_time": 0.2}
    assert model.caption(photo(), on_timeout=None, **options) is None
    assert model.ask(photo(), "what", on_timeout=None, **options) is None
    with pytest.raises(DeadlineError):
        model.stream(photo(), **options)
    prepared, task = [model.prepare(photo())], model.task(**options)
    assert model.generate(prepared, task) == [None]
    batching = blip2rt.load(tiny.path, threads=1, batching=True)
    monkeypatch.setattr(batching.pipeline.backend, "vision", slow)
    [said] = batching.submit(Request(photo(), options=blip2rt.Options(**options))).result()
    assert said.truncated and len(said.tokens) == 1


def test_bad_images_leave_the_others(model, photo):
    good = [photo() for _ in range(9)]
    images = [b"noise", *good[:4], "nowhere.jpg", *good[4:]]
    places = [0, 5]

    def check(found, want, same):
        assert [i for i, each in enumerate(found) if isinstance(each, ImageError)] == places
        kept = [each for i, each in enumerate(found) if i not in places]
        assert len(kept) == len(want) and all(map(same, kept, want))

    question, close = "what is red", lambda a, b: np.allclose(a, b, atol=1e-5)
    check(model.ask(images, question, keep_going=True), model.ask(good, question), lambda a, b: a == b)
    matches, want = model.match(images, "a dog", keep_going=True), model.match(good, "a dog")
    check(matches, want, lambda a, b: close([a.score, a.cosine], [b.score, b.cosine]))
    check(model.embed_image(images, keep_going=True), model.embed_image(good), close)
    assert model.embed_image([], keep_going=True) == [] and model.match([], [], keep_going=True) == []
    assert model.embed_image(good[0], keep_going=True).shape == (Q, E)
    for call, given in ((model.ask, (question,)), (model.match, ("a dog",)), (model.embed_image, ())):
        assert isinstance(call(b"noise", *given, keep_going=True), ImageError)
        with pytest.raises(ImageError):
            call(images, *given)
