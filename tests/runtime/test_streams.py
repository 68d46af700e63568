"""Options of generation, streams and chats of a model."""

import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import blip2rt
from blip2rt.bundle import MANIFEST
from blip2rt.errors import ImageError, OptionError
from blip2rt.image import to_pixels
from blip2rt.native import native
from blip2rt.requests import Request
from tests.tiny import bundle as tiny_bundles
from tests.tiny.bundle import EOS, WORDS, Tiny


def spoken(model, image, **options) -> tuple[str, list[int]]:
    """A greedy caption, and its tokens."""
    ids: list[int] = []
    text = model.caption(image, num_beams=1, max_new_tokens=6, on_token=lambda *new: ids.append(new[2]), **options)
    return text, ids


def test_bad_words_stop_strings_and_forced_prefixes(model, photo):
    image = photo()
    ids = spoken(model, image)[1]
    assert ids[0] > EOS
    word = WORDS[ids[0]]
    assert ids[0] not in spoken(model, image, bad_words=word)[1]
    assert spoken(model, image, stop_strings=[f" {word}", "xyz"])[1] == ids[:1]
    text, more = spoken(model, image, forced_prefix="a red")
    assert text.startswith("a red") and more == spoken(model, image, prompt="a red")[1]
    repeated = spoken(model, image, no_repeat_ngram_size=1, repetition_penalty=2.0)[1]
    assert len(set(repeated)) == len(repeated)


def chat_bundle(tiny: Tiny, folder, turn: str, monkeypatch) -> blip2rt.Model:
    """The tiny bundle, to whose tokenizer the word `turn` is what opens a turn of a chat."""

    def save(path) -> None:
        words = {"<|im_start|>" if word == turn else word: i for i, word in enumerate(WORDS)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.add_special_tokens(["<pad>", "</s>", "<|im_start|>"])
        tokenizer.save(str(path))

    monkeypatch.setattr(tiny_bundles, "save_llm_tokenizer", save)
    tiny_bundles.write_bundle(folder, tiny.weights)
    return blip2rt.load(folder, threads=1)


def test_a_chat_model_stops_at_the_next_turn(tiny, model, photo, tmp_path, monkeypatch):
    options = {"min_new_tokens": 6, "max_new_tokens": 6}
    while True:
        image = photo()
        ids = []
        model.caption(image, num_beams=1, on_token=lambda *new: ids.append(new[2]), **options)  # noqa: B023
        later = [i for i in range(1, 5) if ids[i] > EOS and ids[i] not in ids[:i]]
        if later:
            break
    first = later[0]
    chat = chat_bundle(tiny, tmp_path / "chat", WORDS[ids[first]], monkeypatch)
    tokenizer = chat.pipeline.language.tokenizer
    want = tokenizer.decode(ids[:first])
    greedy = []
    assert chat.caption(image, num_beams=1, on_token=lambda *new: greedy.append(new[2]), **options) == want
    assert greedy == ids[: first + 1], "the ids are those of every model, and the turn ends them"
    assert "".join(chat.stream(image, num_beams=1, **options)) == want
    assert chat.decode(ids) == want
    for caption in chat.caption(image, num_captions=3, **options):
        assert WORDS[ids[first]] not in caption.split() and "<|im_start|>" not in caption
    with_batches = blip2rt.load(tmp_path / "chat", threads=1, batching=True)
    assert with_batches.caption(image, num_beams=1, **options) == want
    request = Request(image, options=blip2rt.Options(num_beams=1, **options))
    answer = with_batches.submit(request)
    assert "".join(answer) == answer.result()[0].text == want


def test_sampling_repeats_under_a_seed(model, photo):
    images = [photo() for _ in range(11)]
    options = {"do_sample": True, "temperature": 20.0, "top_k": 0, "seed": 3, "max_new_tokens": 8}
    captions = model.caption(images, **options)
    assert captions == model.caption(images, **options)
    assert captions != model.caption(images, **{**options, "seed": 4})
    same = model.caption([images[0]] * 11, **options)
    assert len(set(same)) > 1 and same[0] == captions[0]
    draws = model.caption(images[0], num_captions=5, **options)
    assert len(draws) == 5 and len(set(draws)) > 1
    assert isinstance(model.caption(images[0], do_sample=True), str)


def test_on_token_is_given_every_token(tiny, model, photo):
    images, seen = [photo() for _ in range(10)], []
    options = {"num_beams": 1, "max_new_tokens": 4, "min_new_tokens": 4}
    captions = model.caption(images, on_token=lambda *new: seen.append(new), **options)
    assert len(seen) == 40 and {image for image, _, _ in seen} == set(range(10))
    for number, caption in enumerate(captions):
        ids = [token for image, _, token in seen if image == number]
        assert model.pipeline.language.tokenizer.decode(ids) == caption
    first = model.caption(images[0], num_beams=1, max_new_tokens=1)
    assert model.caption(images[0], on_token=lambda *_: False, **options) == first
    with pytest.raises(OptionError, match="on_token with num_beams 3"):
        model.caption(images[0], on_token=print)
    with pytest.raises(KeyError, match="mine"):
        model.caption(images[0], on_token=lambda *_: {}["mine"], **options)


def test_joined_pieces_are_the_text(model, photo):
    image = photo()
    sampled = {"do_sample": True, "seed": 1, "forced_prefix": "the dog"}
    for options in ({}, {"num_beams": 1}, {"num_beams": 5, "length_penalty": -1.0}, {"prompt": "a red"}, sampled):
        assert "".join(model.stream(image, **options)) == model.caption(image, **options)
    question = "what is red"
    assert "".join(model.stream(image, question=question)) == model.ask(image, question)


def test_beams_settle_on_tokens_of_the_result(model, photo):
    backend, early = model.pipeline.backend, 0
    for beams in (2, 3, 4):
        task = model.task(num_beams=beams, max_new_tokens=12, length_penalty=random.choice([-1.0, 0.0, 1.0, 2.0]))
        prefix = model.pipeline.prefix_embeds([model.prepare(photo())], [task.question])
        generation, told = backend.begin(prefix, [model.pipeline.language.encode(task.prompt)], task.settings), []
        while not generation.done:
            before = len(told)
            told += [token for _, _, token in generation.step()]
            early += len(told) > before and not generation.done
            best = generation.results()[0][0][0]
            assert told == best[: len(told)]
        assert told == best
    assert early


def test_a_stream_on_one_line_keeps_its_spaces(model):
    """Whatever a space stands before, a piece never takes one that the whole text lacks."""
    spec = model.bundle.manifest.llm
    for text in ("a cat , isn 't it ? yes .", "it 's 3 .5 m . n 't", "don n't do no not , .", " 've  \n two  lines\n"):
        stream = native.TextStream(native.LlmTokenizer("t", spelling_tokenizer(text), spec), single_line=True)
        pieces = [stream.push(sorted({*text}).index(character)) for character in text]
        assert "".join([*pieces, stream.end()]) == native.tidied(text), text


def spelling_tokenizer(text: str):
    """The core's tokenizer whose tokens are the characters of a text."""
    library = Tokenizer(models.WordLevel({character: i for i, character in enumerate(sorted({*text}))}))
    library.decoder = decoders.Fuse()
    return native.Tokenizer(library.to_str().encode())


def test_leaving_a_stream_stops_computing(model, photo, monkeypatch):
    steps = []
    real = model.pipeline.backend.begin

    def begin(*arguments):
        generation = real(*arguments)
        step = generation.step
        generation.step = lambda: steps.append(1) or step()
        return generation

    monkeypatch.setattr(model.pipeline.backend, "begin", begin)
    left = 0
    for count, _piece in enumerate(model.stream(photo(), num_beams=1, max_new_tokens=30, min_new_tokens=30), 1):
        if count == 2:
            left = len(steps)
            break
    assert 2 <= left == len(steps) < 30  # pieces may take several tokens; beams may agree late


def test_streams_check_options_before_reading_the_image(model):
    for options, words in (
        ({"question": "x", "prompt": "y"}, "both given"),
        ({"num_captions": 2, "do_sample": True, "num_beams": None}, "leave num_captions at 1"),
    ):
        with pytest.raises(OptionError, match=words):
            model.stream("/no/such.jpg", **options)
    with pytest.raises(ImageError):
        model.stream("/no/such.jpg")


def test_chat_equals_recomputation(tiny, model, photo):
    image = photo()
    prefix = tiny.prefix(tiny.vision(to_pixels([image], model.bundle.manifest.image)))[0]
    chat = model.chat(image, num_beams=1, max_new_tokens=4)
    said: list[int] = []  # token ids: an answer may hold some that its text does not show

    def recomputed(question: str, most: int) -> str:
        said.extend(WORDS.index(word) for word in f"Question : {question} Answer :".split())
        answer = [i for i in tiny.greedy(prefix, said, most) if i != EOS]
        said.extend(answer)
        return " ".join(WORDS[i] for i in answer if i > EOS)

    for question in ("what is red", "who runs", "is the dog in the water"):
        assert chat.ask(question) == recomputed(question, 4)
    streamed = "".join(chat.stream("who is the cat", max_new_tokens=2))
    assert streamed == recomputed("who is the cat", 2)


def test_a_full_chat_and_bad_options_are_named(model, photo):
    chat = model.chat(photo(), num_beams=2)
    wrong = [({"num_beams": 3}, "at most 2 beams"), ({"num_captions": 2}, "gives 1 answer")]
    for options, words in (*wrong, ({"beams": 1}, "unknown option beams")):
        with pytest.raises(OptionError, match=words):
            chat.ask("who runs", **options)
    with pytest.raises(OptionError, match="a question is empty"):
        chat.ask(" ")
    with pytest.raises(OptionError, match=r"what was said \(\d+\).*start a new chat"):
        for _ in range(12):
            chat.ask("what is red", min_new_tokens=2)
    with pytest.raises(OptionError, match="num_beams is 0"):
        model.chat("/no/such.jpg", num_beams=0)


FUNCTION_WORDS = {"a", "the", "in", "on", "is", "who"}


def test_captions_say_no_content_word_twice_where_the_manifest_asks(tiny: Tiny, tmp_path: Path, photo) -> None:
    folder = shutil.copytree(tiny.path, tmp_path / "strict")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["decoding"]["caption"]["no_repeat_words"] = True
    (folder / MANIFEST).write_text(json.dumps(manifest))
    strict, free = blip2rt.load(folder, threads=1), blip2rt.load(tiny.path, threads=1)
    pictures = [photo() for _ in range(8)]
    options = {"max_new_tokens": 12, "min_new_tokens": 10, "num_beams": 2}

    def repeated(texts: list[str]) -> set[str]:
        counts = [Counter(re.findall("[a-zA-Z]+", text)) for text in texts]
        return {word for each in counts for word, count in each.items() if count > 1} - FUNCTION_WORDS

    assert not repeated(strict.caption(pictures, **options))
    assert not repeated(strict.caption(pictures, max_new_tokens=12, min_new_tokens=10, do_sample=True))
    assert repeated(free.caption(pictures, **options))
    assert repeated(strict.ask(pictures, "what is on the grass?", **options))  # answers may


@pytest.mark.parametrize(
    ("text", "again", "other"),
    [
        ("a boat with a", " boat", " boats"),
        ("boat with a", " boat", " dog"),  # the first word has no space before it
        ("a man wearing a t-shirt and a t-", "shirt", "ree"),
        ("a man, a", " man", " the"),
        ("a dog on a", " dog", " on"),
    ],
)
def test_rule_forbids_the_last_token_of_a_repeated_word(text: str, again: str, other: str) -> None:
    language = blip2rt.load(threads=1).pipeline.language
    rule = native.RepeatedWords(language.vocabulary)
    tokens, (forbidden,), (allowed,) = (language.encode_more(each) for each in (text, again, other))
    logits = rule.forbid(tokens, [0.0] * len(language.vocabulary))
    assert logits[forbidden] == -np.inf and logits[allowed] == 0
