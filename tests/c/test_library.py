"""libblip2rt gives the texts, tokens, scores and messages of the Python package."""

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
from blip2rt.bundle import embedded
from blip2rt.errors import Blip2rtError
from blip2rt.structured.picture import Picture
from tests.c.library import Callback, CError, CModel, library, make, texts_of
from tests.fuzz.files import OPTIONS
from tests.seeds import new_seed
from tests.tiny.bundle import Tiny, with_likelihood_weight, with_pool

pytestmark = pytest.mark.long(60, "the library as a process without Python, compared with Python")

PHOTO = Path(__file__).parents[2] / "docs" / "photo.jpg"
CAPTIONS = ["a dog runs on the red grass", "the red cat sits in the blue water", "the man runs", "a red dog runs"]
OPTIONS = {name: OPTIONS[name] for name in OPTIONS.keys() - {"max_time", "num_beam", "prompt", "seed"}}
WRONG: dict[str, list[Any]] = {"num_captions": [0, 101, "many"], "num_beams": [-1, 2.5], "max_new_tokens": [0, 70000]}
WRONG |= {"temperature": [0, "hot"], "repetition_penalty": [-1.5], "length_penalty": [1e39], "seed": [-1]}
Photo = Callable[..., np.ndarray]


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


@pytest.fixture(scope="module")
def opened(tiny: Tiny) -> Iterator[CModel]:
    model = CModel(tiny.path, threads=1)
    yield model
    model.close()


@pytest.fixture(scope="session", params=["pool", "t5", "instruct"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, CModel]]:
    """A bundle in Python and in C."""
    made = tmp_path_factory.mktemp(request.param)
    if request.param == "pool":
        folder = with_pool(shutil.copytree(request.getfixturevalue("tiny").path, made / "bundle"), CAPTIONS)
    else:
        pytest.importorskip("transformers")
        from tests.export.commands_in_process import export
        from tests.tiny import blip2

        config = blip2.TEXT_CONFIGS["llama" if request.param == "instruct" else request.param]()
        save = blip2.instruct if request.param == "instruct" else blip2.generative
        folder = export(save(made / "hf", config), made / "bundle")
    model = CModel(folder, threads=1)
    yield blip2rt.load(folder, threads=1), model
    model.close()


def test_texts_and_messages_equal_those_of_python(pair: tuple[Any, CModel], photo: Photo) -> None:
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


def test_the_core_runs_graphs_without_onnxruntime(tiny: Tiny, opened: CModel, photo: Photo) -> None:
    core, image = CModel(tiny.path, threads=2, runtime="core"), photo()
    for model in (opened, core):
        model.use(image)
    assert [each.tokens for each in core.caption(num_beams=2)] == [each.tokens for each in opened.caption(num_beams=2)]
    core.close()
    with pytest.raises(CError, match="^runtime is 'abacus': choose from core, onnxruntime$"):
        CModel(tiny.path, runtime="abacus")


def test_pieces_are_those_of_a_stream(pair: tuple[Any, CModel], photo: Photo) -> None:
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
    calls, options = [], {"num_beams": 1, "min_new_tokens": 6, "pool": False}
    [whole] = c.caption(max_new_tokens=6, **options)
    ended = c.caption(None, lambda piece: len(calls.append(piece) or calls) == 3, **options)
    assert ended[0].tokens == whole.tokens[:3] and len(calls) == 3
    [beams] = c.caption(None, lambda piece: 1, num_beams=3, min_new_tokens=6)
    assert len(beams.tokens) <= 1


def test_chats_say_what_they_say_in_python(pair: tuple[Any, CModel], photo: Photo) -> None:
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


def test_matches_and_embeddings_equal_those_of_python(tiny: Tiny, tmp_path: Path, photo: Photo) -> None:
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


def test_pools_are_named_or_the_bundles(tiny: Tiny, opened: CModel, tmp_path: Path, photo: Photo) -> None:
    own = with_pool(Path(shutil.copytree(tiny.path, tmp_path / "own")), CAPTIONS)
    python, guided = blip2rt.load(tiny.path, threads=1), CModel(own, threads=1)
    pool, image = own / "captions.pool", photo()
    opened.use(image)
    guided.use(image)
    wanted = outcome(python.caption, image, pool=pool, num_beams=3)
    assert outcome(guided.caption, num_beams=3) == outcome(opened.caption, pool=pool, num_beams=3) == wanted
    for no_pool in (False, "none"):
        assert outcome(guided.caption, pool=no_pool, num_beams=3) == outcome(python.caption, image, num_beams=3)
    damaged, foreign, data = tmp_path / "damaged.pool", tmp_path / "foreign.pool", pool.read_bytes()
    damaged.write_bytes(data[:-200])
    foreign.write_bytes(data[:16] + b"0" * 64 + data[80:])  # a fingerprint's digits
    faults = {damaged: "it is damaged", tmp_path / "none": "No such file", "": "give false, or"}
    for file, fault in {**faults, foreign: "it is of another model; build it again"}.items():
        with pytest.raises(CError, match=fault) as caught:
            guided.caption(pool=file)
        assert caught.value.kind == "argument"
    with pytest.raises(CError, match="unknown option pool"):
        opened.ask("what?", pool=False)
    guided.close()


QUESTIONS = ["Is there a cat in the picture?", "How many cats are there?", "how many elephants are there"]
QUESTIONS += ["is the cat not sleeping?", "### User: who took it?"]


def test_nano_says_what_it_says_in_python() -> None:
    python, c = blip2rt.load(threads=1), CModel(embedded(), threads=1)
    c.use(PHOTO)
    assert parts(c.caption()[0]) == parts(python.caption(PHOTO))
    for text in ("a cat on a bed", "A DOG \u00c9\u03a3. (really)", "\u03a3\u0391\u03a3 sign", "black CATS"):
        wanted = python.match(PHOTO, text)
        assert c.match(text) == pytest.approx((wanted.score, wanted.probability, wanted.cosine), abs=1e-4)
    for question in (odd := "What colour is the caf\u00e9's \u65e5\u672c sign? <|im_end|>", *QUESTIONS):
        pieces: list[str] = []
        [answer] = c.ask(question, pieces.append)
        assert parts(answer) == parts(python.ask(PHOTO, question)) and (question == odd or pieces == [answer.text])
    assert c.ask("is it a dog or a cat?")[0].text == python.ask(PHOTO, "is it a dog or a cat?")
    chat, talk = c.chat(num_beams=1), python.chat(PHOTO, num_beams=1)
    for question in ("what is it?", "is there a dog?", "What colour is it?", "where is it?"):
        assert c.chat_ask(chat, question).text == talk.ask(question)
    library().blip2rt_chat_free(chat)
    c.close()
    plain = CModel(embedded(), threads=1, special_tokens=False)
    plain.use(PHOTO)
    untrusted = blip2rt.load(threads=1, special_tokens=False)
    assert plain.ask("<|im_end|> who?")[0].text == untrusted.ask(PHOTO, "<|im_end|> who?")
    plain.close()


CHOICES = {"where is it?": ["outdoors", "indoors"], "what animal is it?": ["dog", "horse", "other"]}


def test_judgements_choices_and_labels_equal_those_of_python(opened: CModel, photo: Photo) -> None:
    python, nano = blip2rt.load(threads=1), CModel(embedded(), threads=1)
    nano.use(PHOTO)
    statements = ["a cat", "Is there a dog?", "a cat sits on the red grass"]
    judged = [float(python.matcher.judge(python.vision_features([PHOTO]), [each])[0]) for each in statements]
    assert [*map(nano.sees, statements)] == pytest.approx(judged, abs=1e-4)
    captions = python.caption(PHOTO, scores=True, num_captions=2)
    assert nano.confidences(2) == pytest.approx([each.confidence for each in captions], abs=1e-4)
    picture = Picture(python, PHOTO, lambda: False)
    for question, choices in CHOICES.items():
        assert nano.choose(question, choices) == picture.likeliest(question, choices), question
    for given in (["animal|cat", "dog", "grass", "animal"], None):
        tags = python.tag(PHOTO, given, top=6, threshold=0.01)
        found = nano.tag(given, 6, 0.01)
        assert found == pytest.approx({"|".join([*tag.parents, tag]): tag.probability for tag in tags}, abs=1e-4)
        assert [*found.values()] == sorted(found.values(), reverse=True)
    opened.use(photo())
    labels = "'?!' is no label: give a word or a phrase, as in 'dog' or 'animal|dog'; '' is no"
    uncalibrated = "has no calibration of this that this blip2rt knows"
    for call, fault, kind in (
        (lambda: nano.tag(["?!", ""]), labels, "argument"),
        (lambda: nano.tag([]), "there are no labels", "argument"),
        (lambda: nano.tag(None, 0, 2), "top is 0: give a number of labels, 1 or more; threshold is 2", "argument"),
        (lambda: nano.choose("what?", []), "there are no choices", "argument"),
        (lambda: nano.sees("?"), "a text has no words", "argument"),
        (lambda: opened.sees("a dog"), uncalibrated, "model"),
        (opened.confidences, uncalibrated, "model"),
        (opened.tag, uncalibrated, "model"),
        (lambda: opened.caption(max_time=1e-9), "max_time is 1e-09 seconds, which passed before the first", "timeout"),
    ):
        with pytest.raises(CError, match=re.escape(fault)) as caught:
            call()
        assert caught.value.kind == kind
    nano.close()


def test_a_callback_cannot_ask_its_own_chat(opened: CModel, photo: Photo) -> None:
    c = opened
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


def test_no_locale_changes_numbers(tiny: Tiny, opened: CModel, photo: Photo, tmp_path: Path, monkeypatch: Any) -> None:
    subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"], check=True)
    python, image = blip2rt.load(tiny.path, threads=1), photo()
    opened.use(image)
    monkeypatch.setenv("LOCPATH", str(tmp_path))
    before = locale.setlocale(locale.LC_ALL)
    locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
    try:
        assert locale.localeconv()["decimal_point"] == ","
        for options in ({"length_penalty": 0.5}, {"top_p": 0.25}, {"max_time": 1e-9}, {"temperature": "0,5"}):
            wanted = outcome(python.caption, image, **options)
            found = outcome(opened.caption, **options)
            assert found == (wanted if isinstance(wanted, list) else wanted.partition(", or give on_timeout")[0])
    finally:
        locale.setlocale(locale.LC_ALL, before)
