"""Generation for requests: texts as the library's, ended at stop strings and when cancelled, and what fits."""

import re
from typing import Any

import pytest

import blip2rt
from blip2rt.backends import ort
from blip2rt.serve.admission import CancelEvent
from blip2rt.serve.inference import Answer, Piece, TextJob, TextOutput, generate


@pytest.fixture
def model(tiny: Any) -> Any:
    return blip2rt.load(tiny.path, threads=1)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each step of a generation."""
    taken: list[int] = []
    step = ort.CoreGeneration.step
    monkeypatch.setattr(ort.CoreGeneration, "step", lambda self: (taken.append(1), step(self))[1])
    return taken


def run(model: Any, job: TextJob, max_tokens: int = 50, emit: Any = None) -> Answer:
    return generate(model, job, max_tokens, CancelEvent(), emit)


def as_list(texts: Any) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 1},
        {"num_beams": 3, "num_captions": 2},
        {"min_new_tokens": 5, "forced_prefix": "a"},
        {"do_sample": True, "seed": 4, "temperature": 2.0},
    ],
)
def test_texts_equal_the_librarys(model: Any, small: bytes, options: Any) -> None:
    assert run(model, TextJob(small, options=options)).texts == as_list(model.caption(small, **options))
    asked = run(model, TextJob(small, "who runs", options=options)).texts
    assert asked == as_list(model.ask(small, "who runs", **options))
    prompted = run(model, TextJob(small, prompt="a dog", options=options))
    assert prompted.texts == as_list(model.caption(small, prompt="a dog", **options))
    assert prompted.prompt_tokens == 3 + 2 + ("forced_prefix" in options)


def test_pieces_join_to_the_text(model: Any, small: bytes) -> None:
    for options in ({}, {"min_new_tokens": 8}, {"num_beams": 2}, {"do_sample": True, "seed": 1, "num_captions": 3}):
        pieces: list[Piece] = []
        answer = run(model, TextJob(small, options=options), emit=pieces.append)
        for i, text in enumerate(answer.texts):
            assert "".join(piece.text for piece in pieces if piece.index == i) == text


@pytest.mark.parametrize("batching", [False, True])
def test_finish_reasons_tell_stop_length_and_time_apart(tiny: Any, small: bytes, batching: bool) -> None:
    """OpenAI's and Ollama's clients read "length"."""
    model = blip2rt.load(tiny.path, threads=1, batching=batching)
    for more in ({"num_beams": 1}, {"num_beams": 3}, {"do_sample": True, "seed": 3, "num_captions": 2}):
        for seconds, ended, tokens in ((1e-9, "time", 1), (600, "length", 9)):
            options = {"min_new_tokens": 9, "max_new_tokens": 9, **more, "max_time": seconds}
            texts = options.get("num_captions", 1)
            for emit in (None, lambda _: None):
                answer = run(model, TextJob(small, options=options), emit=emit)
                assert answer.finish == [ended] * texts and answer.completion_tokens == tokens * texts
                assert answer.finish_reasons == ["length"] * texts
    longest = run(model, TextJob(small, options={"min_new_tokens": 40, "max_new_tokens": 900}))
    assert longest.completion_tokens <= 50, "the server's limit"
    free = {"num_beams": 1, "min_new_tokens": 1, "max_new_tokens": 40, "max_time": 600}
    scored = model.caption(small, scores=True, raw=True, **free)
    assert run(model, TextJob(small, options=free)).finish == ["length" if scored.truncated else "stop"]
    for word in scored.text.split()[:1]:  # the text may be empty
        assert run(model, TextJob(small, options={**free, "max_time": 1e-9}, stop_strings=(word,))).finish == ["stop"]


def test_stop_strings_end_the_generation(model: Any, small: bytes, steps: list[int]) -> None:
    options = {"min_new_tokens": 30, "num_beams": 1}
    whole = run(model, TextJob(small, options=options)).texts[0]
    words = re.findall(r"\w+|[^\w\s]", whole)  # a caption is tidied: the model wrote "red :" for "red:"
    word = [each for each in words if each.isalpha()][2]
    steps.clear()
    answer = run(model, TextJob(small, options=options, stop_strings=(word,)))
    assert answer.finish == ["stop"] and answer.texts[0] == whole.partition(word)[0].rstrip()
    assert len(steps) <= words.index(word) + 2


def test_cancelling_ends_the_generation_within_a_step(model, small, steps, monkeypatch):
    cancelled, pieces = CancelEvent(), []

    def emit(piece: Piece) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            steps.clear()
            cancelled.set()

    generate(model, TextJob(small, options={"min_new_tokens": 40, "max_new_tokens": 40}), 50, cancelled, emit)
    assert len(steps) <= 1
    shared, cancelled = blip2rt.load(model.bundle.path, threads=1, batching=True), CancelEvent()
    backend, begin = shared.pipeline.backend, shared.pipeline.backend.begin
    monkeypatch.setattr(backend, "begin", lambda *given: (begin(*given), cancelled.set())[0])
    assert generate(shared, TextJob(small), 50, cancelled, None).texts == [""], "before the first token"


@pytest.mark.parametrize(("question", "history"), [(None, ()), ("who runs", ()), ("who runs", (("who is", "a dog"),))])
def test_forced_prefixes_take_room(model: Any, small: bytes, question: Any, history: Any) -> None:
    """Of 64 positions the prefix takes most: fewer tokens than the default fit behind it."""
    options = {"forced_prefix": "a dog runs on the grass " * 9, "num_beams": 1}
    answer = run(model, TextJob(small, question, None, history, options))
    assert answer.texts[0].startswith("a dog runs") and answer.prompt_tokens + answer.completion_tokens <= 64


def test_history_that_does_not_fit_is_dropped(model: Any, small: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest questions stay within 64 positions, and the older ones are not even encoded."""
    turns = tuple(("what is the dog on", "grass in the water") for _ in range(9))
    alone, short, long = (run(model, TextJob(small, "who runs", history=turns[:n]), 8).prompt_tokens for n in (0, 1, 9))
    assert alone < short < long < 64
    encoded: list[object] = []
    language = model.pipeline.language
    encode_more = language.encode_more
    monkeypatch.setattr(language, "encode_more", lambda text: encoded.append(text) or encode_more(text))
    job = TextJob(small, "who is", history=(("what is", "a dog runs"),) * 500, options={"max_new_tokens": 3})
    assert run(model, job, 9).texts
    assert 2 < len(encoded) < 40


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "stopped"),
    [
        (["a cat", " on a mat"], [" on"], "a cat", True),
        (["a cat o", "n a mat"], [" on"], "a cat", True),
        (["a cat o", "r dog"], [" on"], "a cat or dog", False),
        (["aaab"], ["aab"], "a", True),
        (["aa", "ab"], ["aab"], "a", True),
        (["a", "b"], [], "ab", False),
        (["xyz"], ["z", "y"], "x", True),
        (["ends with o"], [" on", "over"], "ends with o", False),
    ],
)
def test_texts_are_cut_before_the_first_stop_string(pieces, stops, text, stopped):
    class Stream:
        push = staticmethod(pieces.__getitem__)

    emitted: list[Piece] = []
    output = TextOutput([Stream], stops, emitted.append)
    for i in range(len(pieces)):
        output.push(0, i)
        joined = "".join(piece.text for piece in emitted)
        assert text.startswith(joined)
    assert output.finish(["".join(pieces)]) == [text] and output.stopped == [stopped]
    assert "".join(piece.text for piece in emitted) == text
