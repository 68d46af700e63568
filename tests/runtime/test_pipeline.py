"""The pipeline on a tiny bundle, compared with numpy; its errors."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import blip2rt
from blip2rt.errors import BundleError, CapabilityError, ImageError, OptionError
from blip2rt.image import to_pixels
from blip2rt.native import native
from blip2rt.options import Options
from tests.tiny.bundle import EOS, WORDS, E, Q, Tiny, write_bundle


def expected(tiny: Tiny, model, image: np.ndarray, prompt: str, most: int) -> str:
    """Greedy text computed in numpy."""
    pixels = to_pixels([image], model.bundle.manifest.image)
    prefix = tiny.prefix(tiny.vision(pixels))[0]
    ids = tiny.greedy(prefix, [WORDS.index(word) for word in prompt.split()], most)
    return " ".join(WORDS[i] for i in ids if i > EOS)


def test_greedy_captions_equal_numpy(tiny, model, photo):
    images = [photo(*size) for size in [(5, 7), (20, 30), (8, 12), (1, 1), (40, 3)] * 4]
    got = model.caption(images, num_beams=1, max_new_tokens=6)
    assert got == [native.tidied(expected(tiny, model, image, "", 6)) for image in images]
    assert model.caption(images[0], num_beams=1, max_new_tokens=6) == got[0]
    assert list(model.caption_each(iter(images), num_beams=1, max_new_tokens=6)) == got


def test_prompt_goes_before_the_caption(tiny, model, photo):
    image = photo()
    got = model.caption(image, prompt="a red dog", num_beams=1, max_new_tokens=4)
    assert got == native.tidied(expected(tiny, model, image, "a red dog", 4))


def test_answers_equal_numpy(tiny, model, photo):
    images, questions = [photo() for _ in range(11)], ["what is red", "who runs"] * 5 + ["is the dog in the water"]
    got = model.ask(images, questions, num_beams=1)
    want = [expected(tiny, model, i, f"Question : {q} Answer :", 4) for i, q in zip(images, questions, strict=True)]
    assert got == want
    assert model.ask(images[0], questions[:3], num_beams=1) == [
        model.ask(images[0], question, num_beams=1) for question in questions[:3]
    ]
    assert model.ask(images[:2], questions[0], num_beams=1)[0] == got[0]


def test_beams_give_several_captions(model, photo):
    images = [photo() for _ in range(3)]
    best = model.caption(images)
    several = model.caption(images, num_captions=3)
    assert [len(captions) for captions in several] == [3, 3, 3]
    assert [captions[0] for captions in several] == best
    assert isinstance(model.caption(images[0], num_captions=2), list)
    scored = model.caption(images[0], num_captions=3, scores=True)
    assert [one.text for one in scored] == several[0]
    assert scored == sorted(scored, key=lambda one: -one.score) and scored[0].score < 0
    assert model.ask(images[0], "who runs", scores=True).text == model.ask(images[0], "who runs")


def test_match_equals_numpy(tiny, model, photo):
    images, texts = [photo() for _ in range(10)], ["a dog runs", "A RED CAT"] * 4 + ["A RED CAT", "a dog runs"]
    got = model.match(images, texts)
    w = tiny.weights
    features = tiny.vision(to_pixels(images, model.bundle.manifest.image))
    ids = [[2, 4, 5, 7, 3], [2, 4, 8, 6, 3]] * 4 + [[2, 4, 8, 6, 3], [2, 4, 5, 7, 3]]
    for match, feature, row in zip(got, features, ids, strict=True):
        pooled = w["text_table"][row].sum(0)
        logits = feature.mean(0) @ w["image_itm"] + pooled @ w["text_itm"]
        embeds = w["queries"] @ feature @ w["image_project"]
        cosine = (embeds @ pooled / np.linalg.norm(embeds, axis=1) / np.linalg.norm(pooled)).max()
        assert match.probability == pytest.approx(np.exp(logits[1]) / np.exp(logits).sum(), abs=1e-4)
        assert match.cosine == pytest.approx(cosine, abs=1e-4)
    single = model.match(images[0], texts[0])
    assert single.probability == pytest.approx(got[0].probability, abs=1e-5)
    assert len(model.match(images[0], texts)) == 10
    assert len(model.match(images, texts[0])) == 10


def test_embeddings_equal_numpy(model, photo):
    images = [photo() for _ in range(9)]
    embeds = model.embed_image(images)
    assert embeds.shape == (9, Q, E) and embeds.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeds, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(model.embed_image(images[3]), embeds[3], atol=1e-5)
    texts = ["a dog", "a very long text of which only the beginning fits", "", "red"]
    assert model.embed_text(texts).shape == (4, E)
    assert model.embed_text("a dog").shape == (E,)
    np.testing.assert_allclose(model.embed_text("a dog"), model.embed_text(texts)[0], atol=1e-6)
    match = model.match(images[0], "a dog")
    assert match.cosine == pytest.approx((embeds[0] @ model.embed_text("a dog")).max(), abs=1e-5)


def test_empty_lists_give_empty_lists(model):
    assert model.caption([]) == [] and model.ask([], []) == [] and model.match([], []) == []
    assert model.match_features(model.vision_features([]), []) == []
    assert model.embed_image([]).shape == (0, Q, E) and model.embed_text([]).shape == (0, E)


def test_keep_going_returns_errors_in_place(model, photo):
    images = [photo(), "/no/such.jpg", photo(), b""]
    results = list(model.caption_each(images, keep_going=True))
    assert [isinstance(result, ImageError) for result in results] == [False, True, False, True]
    assert results[0] == model.caption(images[0])
    with pytest.raises(ImageError, match="no such file"):
        model.caption(images)


BAD_OPTIONS = [
    ({"num_beams": 0}, ["num_beams is 0", "from 1 to 100"]),
    ({"num_beams": 2.0, "max_new_tokens": -1}, ["num_beams is 2.0", "max_new_tokens is -1"]),
    ({"num_captions": 4, "num_beams": 2}, ["num_captions is 4", "num_beams, 2"]),
    ({"min_new_tokens": 5, "max_new_tokens": 4}, ["min_new_tokens is 5", "max_new_tokens, 4"]),
    ({"max_new_tokens": 62}, ["only 61 fit"]),
    ({"length_penalty": float("nan")}, ["length_penalty is nan"]),
    ({"num_beans": 3, "top": 1}, ["unknown option num_beans, top", "choose from num_captions, num_beams"]),
    ({"temperature": 0.5, "seed": 3}, ["temperature is 0.5", "seed is 3", "set do_sample"]),
    ({"do_sample": 1, "top_p": 2, "top_k": -1}, ["do_sample is 1", "top_p is 2", "top_k is -1"]),
    ({"repetition_penalty": 0}, ["repetition_penalty is 0"]),
    ({"no_repeat_ngram_size": 1.5}, ["no_repeat_ngram_size is 1.5"]),
    ({"bad_words": [""], "stop_strings": 3}, ["bad_words is ['']", "stop_strings is 3"]),
    ({"forced_prefix": 3, "max_time": -1}, ["forced_prefix is 3", "max_time is -1"]),
    ({"early_stopping": "maybe"}, ["early_stopping is 'maybe'", "'never'"]),
    ({"forced_prefix": "a red dog", "max_new_tokens": 59}, ["only 58 fit"]),
    ({"max_new_tokens": 99, "num_captions": 9, "num_beams": 2}, ["only 61 fit", "num_captions is 9"]),
    ({"num_beans": 3, "top_p": 7, "num_beams": 0}, ["unknown option num_beans:", "top_p is 7", "num_beams is 0"]),
    ({"prompt": "a dog " * 40}, ["no token fits behind the image (", "the prompt (", "in all: shorten them"]),
    ({"forced_prefix": "a dog " * 40}, ["no token fits", "the forced prefix (", "shorten them"]),
    ({"min_new_tokens": 62}, ["min_new_tokens is 62, but only 61 fit behind the image ("]),
    ({"do_sample": True, "top_k": 3 * 10**9, "temperature": 1e-300}, ["top_k is 3000000000", "temperature is 1e-300"]),
    ({"on_token": 5, "num_beams": 1}, ["on_token is 5"]),
    ({"raw": 1, "pool": 3}, ["raw is 1: give True or False", "pool is 3: give False, or the path of a file"]),
    ({"prompt": 3}, ["a text is int"]),
    ({"prompt": "\ud800"}, ["not valid Unicode"]),
]


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS)
def test_bad_options_are_named_before_any_image_is_read(model, options, words):
    with pytest.raises(OptionError) as caught:
        model.caption("/no/such.jpg", **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_core_knows_the_options_of_python(model):
    names = ", ".join(field.name for field in fields(Options))
    with pytest.raises(OptionError, match=f"^unknown option beams: choose from {names}; top_p is 2: give"):
        native.CallerOptions({"beams": 1, "top_p": 2})
    numbers = {"num_beams": np.int64(3), "length_penalty": np.float32(0.5), "repetition_penalty": 2, "max_time": 10**30}
    settings = model.task(**numbers, seed=None).settings
    assert (settings.num_beams, settings.max_time, settings.do_sample) == (3, 1e30, False)


def test_non_iterables_are_rejected(model, photo):
    """An open file is one image, although it is iterable; a path is not a sequence of letters."""
    stream = io.BytesIO()
    Image.fromarray(photo()).save(stream, "PNG")
    assert model.caption(stream) == model.caption(stream.getvalue())
    assert model.match(stream, "a dog") == model.match(stream.getvalue(), "a dog")
    for images in ("a.jpg", Path("a.jpg"), b"x", None, stream):
        with pytest.raises(ImageError, match="give a list"):
            model.caption_each(images)


@pytest.mark.parametrize("texts", [None, 5, b"x", ["a dog", 5, None]])
def test_non_texts_are_rejected(model, photo, texts):
    for call in (model.embed_text, lambda texts: model.match(photo(), texts)):
        with pytest.raises(OptionError, match="texts contain (NoneType, int|NoneType|int|bytes): give a str"):
            call(texts)


@pytest.mark.parametrize("text", ["", " ", "...", "!?", ["a dog", " "]])
def test_text_without_words_is_rejected(model, photo, text):
    with pytest.raises(OptionError, match="a text has no words"):
        model.match(photo(), text)


def test_bad_pairs_are_named(model, photo):
    with pytest.raises(OptionError, match="2 images and 3 questions"):
        model.ask([photo(), photo()], ["a", "b", "c"])
    with pytest.raises(OptionError, match="a question is empty"):
        model.ask(photo(), " ")


def test_missing_components_are_named(tiny, tmp_path, photo):
    write_bundle(tmp_path / "captions", tiny.weights, retrieval=False)
    write_bundle(tmp_path / "matches", tiny.weights, generative=False)
    captions, matches = blip2rt.load(tmp_path / "captions"), blip2rt.load(tmp_path / "matches")
    assert captions.caption(photo()) is not None and matches.match(photo(), "a dog") is not None
    for call in (captions.embed_image, captions.embed_text):
        with pytest.raises(CapabilityError, match="stage-1"):
            call("x")
    with pytest.raises(CapabilityError, match="cannot match: it lacks image_embed, text_embed, itm"):
        captions.match(photo(), "a dog")
    with pytest.raises(CapabilityError, match="cannot caption: it lacks qformer, embed, llm; .*stage-2"):
        matches.caption(photo())
    with pytest.raises(CapabilityError, match="cannot ask"):
        matches.ask(photo(), "who?")


def test_only_the_needed_graphs_are_opened(tiny, tmp_path, photo):
    write_bundle(tmp_path / "b", tiny.weights)
    for name in ("itm", "text_embed"):  # right size, inputs and outputs, but no operator that exists
        file = tmp_path / "b" / f"{name}.onnx"
        file.write_bytes(file.read_bytes().replace(b"ReduceSum", b"ReduceSun"))
    model = blip2rt.load(tmp_path / "b")
    assert model.caption(photo()) is not None and model.embed_image(photo()) is not None
    with pytest.raises(BundleError, match=r"text_embed\.onnx is rejected: node .*exports do not use this operator"):
        model.embed_text("a dog")


def test_load_names_its_faults(tiny, monkeypatch):
    for threads in (0, -1, 1.5, True, "2"):
        with pytest.raises(OptionError, match="threads is"):
            blip2rt.load(tiny.path, threads=threads)
    with pytest.raises(BundleError, match="the bundle is '': give its folder"):
        blip2rt.load("")
    monkeypatch.setenv("BLIP2RT_NUM_THREADS", "many")
    with pytest.raises(OptionError, match="BLIP2RT_NUM_THREADS is 'many'"):
        blip2rt.load(tiny.path)
    monkeypatch.setenv("BLIP2RT_NUM_THREADS", "1")
    blip2rt.load(tiny.path)


def test_one_default_model_for_all_threads(tiny, monkeypatch, photo):
    loads = []
    monkeypatch.setattr("blip2rt.loading._shared", None)
    real = blip2rt.load
    monkeypatch.setattr("blip2rt.loading.load", lambda: loads.append(1) or real(tiny.path))
    image = photo()
    with ThreadPoolExecutor(5) as pool:
        assert len(set(pool.map(blip2rt.caption, [image] * 5))) == 1 and len(loads) == 1
    assert isinstance(blip2rt.ask(image, "who?"), str) and 0 <= blip2rt.match(image, "a dog").probability <= 1
    blip2rt.close()
    assert blip2rt.close() is None and isinstance(blip2rt.caption(image), str) and len(loads) == 2
