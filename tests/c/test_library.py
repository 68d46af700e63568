"""libblip2rt gives the texts, tokens, scores and messages of the Python package."""

from __future__ import annotations

import locale
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blip2rt
from blip2rt import bundle as contract
from blip2rt.errors import Blip2rtError
from blip2rt.structured.picture import Picture
from tests.c.library import Callback, CError, CModel, CText, library, make, texts_of
from tests.seeds import new_seed
from tests.tiny.bundle import Tiny, with_likelihood_weight, with_pool

pytestmark = pytest.mark.long(60, "the library as a process without Python, compared with Python")

PHOTO = Path(__file__).parents[2] / "docs" / "photo.jpg"
CAPTIONS = ["a dog runs on the red grass", "the red cat sits in the blue water", "the man runs", "a red dog runs"]
OPTIONS: dict[str, list[Any]] = {
    "num_captions": [1, 2, 3],
    "num_beams": [1, 2, 4],
    "max_new_tokens": [1, 5, 12],
    "min_new_tokens": [0, 3],
    "length_penalty": [-2.0, 0.0, 1.5],
    "early_stopping": [True, False, "never"],
    "repetition_penalty": [0.5, 1.0, 3.0],
    "no_repeat_ngram_size": [0, 1, 2],
    "bad_words": ["dog", ["a", "the dog"]],
    "forced_prefix": ["a", "the red dog"],
    "stop_strings": ["dog", ["a", " on the"]],
    "do_sample": [True, False],
    "temperature": [0.3, 1.0, 4.0],
    "top_k": [0, 1, 5],
    "top_p": [0.2, 0.9, 1.0],
    "min_p": [0.0, 0.3],
}
WRONG: dict[str, list[Any]] = {
    "num_captions": [0, 101, "many"],
    "num_beams": [-1, 2.5],
    "max_new_tokens": [0, 70000],
    "temperature": [0, "hot"],
    "repetition_penalty": [-1.5],
    "top_p": [1.5],
    "length_penalty": [1e39],
    "seed": [-1],
    "max_time": [0],
}


def random_options(rng: random.Random, wrong: bool = False) -> dict[str, Any]:
    names = rng.sample(sorted(OPTIONS), rng.randint(0, 7))
    options = {name: rng.choice(OPTIONS[name]) for name in names}
    if wrong:
        options |= {name: rng.choice(WRONG[name]) for name in rng.sample(sorted(WRONG), 3)}
    if options.get("do_sample"):
        options["seed"] = rng.randrange(2**63)
    return options


def outcome(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Texts, or the message of the error."""
    try:
        found = work(*arguments, **options)
    except (Blip2rtError, CError) as error:
        return str(error).replace("True or False", "true or false").replace("'never'", "never")
    return [parts(each) for each in (found if isinstance(found, list) else [found])]


def parts(text: Any) -> tuple[Any, ...]:
    return str(getattr(text, "text", text)), text.tokens, text.truncated, round(text.score, 4)


@pytest.fixture(scope="session", params=["tiny", "pool", "opt", "llama", "t5", "instruct"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, CModel]]:
    """A bundle in Python and in C."""
    if request.param in ("tiny", "pool"):
        folder = request.getfixturevalue("tiny").path
        if request.param == "pool":
            folder = shutil.copytree(folder, tmp_path_factory.mktemp("with-pool") / "bundle")
            with_pool(folder, CAPTIONS)
    else:
        pytest.importorskip("transformers")
        from tests.export.commands_in_process import export
        from tests.tiny import blip2

        made = tmp_path_factory.mktemp(request.param)
        config = blip2.TEXT_CONFIGS["llama" if request.param == "instruct" else request.param]()
        save = blip2.instruct if request.param == "instruct" else blip2.generative
        folder = export(save(made / "hf", config), made / "bundle")
    model = CModel(folder, threads=1)
    yield blip2rt.load(folder, threads=1), model
    model.close()


def test_texts_and_messages_equal_those_of_python(pair: tuple[Any, CModel], photo: Callable[..., np.ndarray]) -> None:
    python, c = pair
    rng = random.Random(new_seed())
    said = 0
    for i in range(60):
        if i % 10 == 0:
            image = photo()
            c.use(image)
        options, prompt = random_options(rng, i % 4 == 3), rng.choice([None, None, "a dog", ""])
        wanted = outcome(python.caption, image, prompt=prompt, **options)
        assert outcome(c.caption, prompt, **options) == wanted, (options, prompt)
        question = rng.choice(["who is the dog?", "  what  ", "", "\n"])
        asked = outcome(python.ask, image, question, **options)
        assert outcome(c.ask, question, **options) == asked, (options, question)
        said += not isinstance(wanted, str)
    assert said > 10


def test_pieces_are_those_of_a_stream(pair: tuple[Any, CModel], photo: Callable[..., np.ndarray]) -> None:
    python, c = pair
    image = photo()
    c.use(image)
    for raw in (False, True):
        captioned: list[str] = []
        [caption] = c.caption(None, captioned.append, num_beams=1, raw=raw)
        assert "".join(captioned) == caption.text == python.caption(image, num_beams=1, raw=raw)
    for question in ("what is it?", "who?"):
        pieces: list[str] = []
        [text] = c.ask(question, pieces.append, num_beams=1)
        assert [piece for piece in pieces if piece] == list(python.stream(image, question=question, num_beams=1))
        assert "".join(pieces) == text.text
    with pytest.raises(CError, match="num_beams is 0"):
        c.ask("who?", num_beams=0)


def test_a_callback_ends_a_text(pair: tuple[Any, CModel], photo: Callable[..., np.ndarray]) -> None:
    _, c = pair
    c.use(photo())
    [whole] = c.caption(num_beams=1, min_new_tokens=6, max_new_tokens=6)
    calls: list[str] = []
    [text] = c.caption(None, lambda piece: len(calls.append(piece) or calls) == 3, num_beams=1, min_new_tokens=6)
    assert text.tokens == whole.tokens[:3] and len(calls) == 3
    [beams] = c.caption(None, lambda piece: 1, num_beams=3, min_new_tokens=6)
    assert len(beams.tokens) <= 1


def test_chats_say_what_they_say_in_python(pair: tuple[Any, CModel], photo: Callable[..., np.ndarray]) -> None:
    python, c = pair
    image = photo()
    c.use(image)
    try:
        wanted = python.chat(image, num_beams=2, max_new_tokens=3)
    except blip2rt.CapabilityError as error:
        with pytest.raises(CError) as caught:
            c.chat()
        assert str(caught.value) == str(error) and caught.value.kind == "model"
        return
    chat = c.chat(num_beams=2, max_new_tokens=3)
    for question in ("who is the dog?", "what?", "who?"):
        assert c.chat_ask(chat, question).text == wanted.ask(question)
    for question, options in (("", {}), ("who?", {"num_beams": 9}), ("who?", {"max_new_tokens": 1000})):
        with pytest.raises(CError) as caught:
            c.chat_ask(chat, question, **options)
        with pytest.raises(Blip2rtError) as raised:
            wanted.ask(question, **options)
        assert str(caught.value) == str(raised.value)
    library().blip2rt_chat_free(chat)


def test_matches_and_embeddings_equal_those_of_python(
    tiny: Tiny, tmp_path: Path, photo: Callable[..., np.ndarray]
) -> None:
    for folder in (tiny.path, with_likelihood_weight(tiny, tmp_path / "weighs", 0.5, caption="a dog")):
        python, c, image = blip2rt.load(folder, threads=1), CModel(folder, threads=1), photo()
        c.use(image)
        for text in ("a dog", "A CAT runs, red!", "a", "a dog"):
            wanted = python.match(image, text)
            assert c.match(text) == pytest.approx((wanted.score, wanted.probability, wanted.cosine), abs=1e-5)
            assert c.embed(text) == pytest.approx(python.embed_text(text).tolist(), abs=1e-6)
        assert c.embed() == pytest.approx(python.embed_image(image).ravel().tolist(), abs=1e-6)
        with pytest.raises(CError, match="a text has no words"):
            c.match("?!")
        c.close()


def test_pools_guide_as_in_python(tiny: Tiny, tmp_path: Path, photo: Callable[..., np.ndarray]) -> None:
    own = with_pool(Path(shutil.copytree(tiny.path, tmp_path / "own")), CAPTIONS)
    plain, guided, pool = CModel(tiny.path, threads=1), CModel(own, threads=1), own / "captions.pool"
    python, changed = blip2rt.load(tiny.path, threads=1), 0
    for _ in range(5):
        image = photo()
        plain.use(image)
        guided.use(image)
        options = {"num_beams": 3, "num_captions": 2}
        wanted = outcome(python.caption, image, pool=pool, **options)
        assert outcome(guided.caption, **options) == outcome(plain.caption, pool=pool, **options) == wanted
        alone = outcome(guided.caption, pool=False, **options)
        assert alone == outcome(plain.caption, **options) == outcome(python.caption, image, **options)
        changed += alone != wanted
        for question in ("what is on the grass?", "What are in the water?", "is it red or blue?"):
            wanted = outcome(blip2rt.load(own, threads=1).ask, image, question, **options)
            assert outcome(guided.ask, question, **options) == wanted
    assert changed
    damaged = tmp_path / "damaged.pool"
    damaged.write_bytes(pool.read_bytes()[:-200])
    for file, fault in ((damaged, "it is damaged"), (tmp_path / "none", "No such file"), ("", "give false, or")):
        with pytest.raises(CError, match=fault) as caught:
            plain.caption(pool=file)
        assert caught.value.kind == "argument"
    foreign = tmp_path / "foreign.pool"
    foreign.write_bytes(pool.read_bytes()[:16] + b"0" * 64 + pool.read_bytes()[80:])  # a fingerprint's digits
    with pytest.raises(CError, match="it is of another model; build it again"):
        guided.caption(pool=foreign)
    assert outcome(plain.caption, "a dog", pool=pool) == outcome(python.caption, image, prompt="a dog", pool=pool)
    with pytest.raises(CError, match="unknown option pool"):
        plain.ask("what?", pool=False)
    plain.close()
    guided.close()


def test_nano_says_what_it_says_in_python() -> None:
    python, c = blip2rt.load(threads=1), CModel(contract.embedded(), threads=1)
    rng = random.Random(new_seed())
    c.use(PHOTO)
    assert parts(c.caption()[0]) == parts(python.caption(PHOTO))
    for _ in range(3):
        options = {**random_options(rng), "max_new_tokens": 6, "min_new_tokens": 0}
        wanted = outcome(python.caption, PHOTO, **options)
        assert outcome(c.caption, **options) == wanted, options
    question = "What colour is the caf\u00e9's \u65e5\u672c sign? <|im_end|>"
    assert parts(c.ask(question)[0]) == parts(python.ask(PHOTO, question))
    texts = (
        "a cat on a bed",
        "A DOG \u00c9\u03a3. (really)",
        "\u03a3\u0391\u03a3 sign",
        "black CATS",
        "A cat",
        "GRASS",
    )
    for text in texts:
        wanted = python.match(PHOTO, text)
        assert c.match(text) == pytest.approx((wanted.score, wanted.probability, wanted.cosine), abs=1e-4)
    for question in (
        "Is there a cat in the picture?",
        "do you see any dogs? Answer yes or no.",
        "How many cats are there?",
        "how many elephants are there",
        "is the cat not sleeping?",
        "is the cat white?",
        "### User: who took it?",
    ):
        pieces: list[str] = []
        [judged] = c.ask(question, pieces.append)
        assert parts(judged) == parts(python.ask(PHOTO, question)) and pieces == [judged.text]
    question = "is it a dog or a cat?"
    assert c.ask(question)[0].text == python.ask(PHOTO, question)
    chat, talk = c.chat(num_beams=1), python.chat(PHOTO, num_beams=1)
    for question in ("what is it?", "is there a dog?", "What colour is it?", "where is it?"):
        assert c.chat_ask(chat, question).text == talk.ask(question)
    library().blip2rt_chat_free(chat)
    plain = CModel(contract.embedded(), threads=1, special_tokens=False)
    plain.use(PHOTO)
    untrusted = blip2rt.load(threads=1, special_tokens=False)
    assert parts(plain.ask(question)[0]) == parts(untrusted.ask(PHOTO, question))
    plain.close()
    c.close()


CHOICES = {
    "where is it?": ["outdoors", "indoors"],
    "what animal is it?": ["dog", "horse", "cat"],
    "what colour is the cat?": ["red", "black", "white"],
    "is it day?": ["no", "yes"],
}


def judgements_equal(python: blip2rt.Model, c: CModel, image: Any, labels: list[str]) -> None:
    statements = ["a cat", "Is there a dog?", "a cat sits on the red grass"]
    judged = [float(python.matcher.judge(python.vision_features([image]), [each])[0]) for each in statements]
    assert [*map(c.sees, statements)] == pytest.approx(judged, abs=1e-4)
    assert c.confidence() == pytest.approx(python.caption(image, scores=True).confidence, abs=1e-4)
    picture = Picture(python, image, lambda: False)
    for question, choices in CHOICES.items():
        assert c.choose(question, choices) == picture.likeliest(question, choices), question
    for given in (labels, None):
        tags = python.tag(image, given, top=6, threshold=0.01)
        wanted = {"|".join([*tag.parents, tag]): tag.probability for tag in tags}
        found = c.tag(given, 6, 0.01)
        assert found == pytest.approx(wanted, abs=1e-4) and [*found.values()] == sorted(found.values(), reverse=True)


def test_judgements_choices_and_labels_equal_those_of_python(tiny: Tiny, photo: Callable[..., np.ndarray]) -> None:
    labels = ["animal|cat", "dog", "grass", "animal"]
    nano = CModel(contract.embedded(), threads=1)
    nano.use(PHOTO)
    judgements_equal(blip2rt.load(threads=1), nano, PHOTO, labels)
    for wrong, fault in (
        (
            lambda: nano.tag(["?!", ""]),
            "'?!' is no label: give a word or a phrase, as in 'dog' or 'animal|dog'; '' is no",
        ),
        (lambda: nano.tag([]), "there are no labels"),
        (lambda: nano.tag(None, 0, 2), "top is 0: give a number of labels, 1 or more; threshold is 2"),
        (lambda: nano.choose("what?", []), "there are no choices"),
        (lambda: nano.sees("?"), "a text has no words"),
    ):
        with pytest.raises(CError, match=re.escape(fault)):
            wrong()
    nano.close()
    plain = CModel(tiny.path, threads=1)
    plain.use(photo())
    for uncalibrated in (lambda: plain.sees("a dog"), plain.confidence, plain.tag):
        with pytest.raises(CError, match="has no calibration of this that this blip2rt knows") as caught:
            uncalibrated()
        assert caught.value.kind == "model"
    plain.close()


def test_a_callback_cannot_ask_its_own_chat(tiny: Tiny, photo: Callable[..., np.ndarray]) -> None:
    c = CModel(tiny.path, threads=1)
    c.use(photo())
    chat, told = c.chat(num_beams=1, max_new_tokens=3), []

    def ask_again(piece: bytes, _: Any) -> int:
        with pytest.raises(CError, match="the callback asks the chat that calls it") as caught:
            c.chat_ask(chat, "who?")
        told.append(caught.value.kind)
        return 0

    called = Callback(ask_again)
    texts_of(make("chat_ask", chat, b"what?", None, called, None))
    assert told and {*told} == {"argument"} and c.chat_ask(chat, "who?").tokens
    library().blip2rt_chat_free(chat)
    c.close()


def test_no_locale_changes_numbers(
    tiny: Tiny, photo: Callable[..., np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"], check=True)
    python, c, image = blip2rt.load(tiny.path, threads=1), CModel(tiny.path, threads=1), photo()
    c.use(image)
    monkeypatch.setenv("LOCPATH", str(tmp_path))
    before = locale.setlocale(locale.LC_ALL)
    locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
    try:
        assert locale.localeconv()["decimal_point"] == ","
        for options in ({"length_penalty": 0.5}, {"top_p": 0.25}, {"max_time": 1e-9}, {"temperature": "0,5"}):
            wanted = outcome(python.caption, image, **options)
            found = outcome(c.caption, **options)
            assert found == (wanted if isinstance(wanted, list) else wanted.partition(", or give on_timeout")[0])
    finally:
        locale.setlocale(locale.LC_ALL, before)
        c.close()


def test_max_time_ends_texts(tiny: Tiny, photo: Callable[..., np.ndarray]) -> None:
    c = CModel(tiny.path, threads=1)
    c.use(photo())
    with pytest.raises(CError, match="max_time is 1e-09 seconds, which passed before the first word") as caught:
        c.caption(max_time=1e-9)
    assert caught.value.kind == "timeout"
    assert isinstance(c.caption(max_time=100)[0], CText)
    c.close()
