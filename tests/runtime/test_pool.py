"""Captions guided by a pool: the guide against its definition, built and plain pools, and every door that takes one."""

import io
import itertools
import json
import math
import random
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import blip2rt
from blip2rt import cli
from blip2rt.cli.info import describe
from blip2rt.errors import OptionError
from blip2rt.language import Prompt
from blip2rt.matching.pool import build_pool, read_pool
from blip2rt.native import native
from blip2rt.options import Options
from blip2rt.requests import Request
from blip2rt.serve.admission import CancelEvent
from blip2rt.serve.inference import TextJob, generate
from blip2rt.structured import fill
from tests.seeds import new_seed
from tests.tiny.bundle import Tiny, with_likelihood_weight, with_pool

CAPTIONS = ["A dog runs on the red grass.", "the red cat sits in the blue water", "the man runs", "a red dog runs"]
MORE_CAPTIONS = [
    *["a dog runs on the red grass", "the red cat sits in the blue water", "the man runs", "a red dog runs", "a man"],
    *["a cat in the grass", "the dog sits on a cat", "blue water", "the blue grass", "a man sits in the red water"],
]
VOCABULARY, END = 30, 2


@pytest.fixture
def model(tiny: Tiny, tmp_path: Path) -> blip2rt.Model:
    return blip2rt.load(with_likelihood_weight(tiny, tmp_path / "matches", 0.4), threads=1, batching=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "captions.txt"
    path.write_text("\n".join([*CAPTIONS, "", CAPTIONS[0]]) + "\n")
    return path


def agreement(text: list[int], others: list[list[int]], rarity: list[float]) -> float:
    """The mean similarity of a text to others, by definition."""

    def vector(tokens: list[int], order: int) -> Counter[tuple[int, ...]]:
        grams: Counter[tuple[int, ...]] = Counter()
        for i in range(len(tokens) - order + 1):
            grams[tuple(tokens[i : i + order])] += sum(rarity[token] for token in tokens[i : i + order]) / order
        return grams

    def cosine(one: Counter, other: Counter) -> float:
        norms = math.sqrt(sum(v * v for v in one.values()) * sum(v * v for v in other.values()))
        return sum(value * other[gram] for gram, value in one.items()) / norms if norms else 0.0

    total = 0.0
    for other in others:
        penalty = math.exp(-((len(text) - len(other)) ** 2) / 72)
        total += penalty * sum(cosine(vector(text, n), vector(other, n)) for n in range(1, 5)) / 4
    return total / len(others)


def guided(tokens: list[int], logits: list[float], texts: list[list[int]], weights: list[float]) -> list[float]:
    """Logits times the interpolated n-gram model of texts, by definition."""
    follow: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for text, weight in zip(texts, weights, strict=True):
        said = [-1, *text, END]
        for at in range(1, len(said)):
            for length in range(min(3, at) + 1):
                follow[tuple(said[at - length : at])][said[at]] += weight
    said, shares = [-1, *tokens], np.zeros(len(logits))
    for length in range(min(3, len(said)) + 1):
        counts = follow.get(tuple(said[len(said) - length :]))
        if counts is None:
            break
        total = sum(counts.values())
        trust = 1.0 if length == 0 else total / (total + 0.5 * len(counts))
        shares *= 1 - trust
        for token, count in counts.items():
            shares[token] += trust * count / total
    return [logit + 0.2 * math.log1p(share / 1e-3) for logit, share in zip(logits, shares, strict=True)]


def test_guide_is_a_product_with_the_n_grams_of_texts_that_agree():
    rng = random.Random(new_seed())
    texts = [[rng.randrange(3, 12) for _ in range(rng.randint(1, 9))] for _ in range(12)]
    rarity = [rng.uniform(0.1, 5) for _ in range(VOCABULARY)]
    guide = native.Guide(texts, rarity, END)
    for text in (*texts, [20, 3, 4], [25]):
        assert guide.agreement(text) == pytest.approx(agreement(text, texts, rarity), rel=1e-5, abs=1e-7)
    agreed = [agreement(text, texts[:i] + texts[i + 1 :], rarity) for i, text in enumerate(texts)]
    weights = [math.exp(50 * (each - max(agreed))) for each in agreed]
    for start in ([], texts[0][:1], texts[1][:4], [25], [*texts[2], 20], [25, 26, 27, *texts[3][:2]], [3, 4, 5, 3, 4]):
        logits = [rng.uniform(-5, 5) for _ in range(VOCABULARY)]
        want = guided(start, [*logits], texts, weights)
        np.testing.assert_allclose(guide.apply(start, logits), want, rtol=1e-4, atol=1e-4)


def answer_bias(model: blip2rt.Model, near: dict[str, float], asked: str, plural: bool) -> np.ndarray:
    """What is added to the logits of an answer's first token, by definition. near: captions and their weights."""
    language = model.pipeline.language
    asked_tokens = language.encode_more(Prompt(f" {asked}")) if " or " not in asked else []
    ends, texts = language.vocabulary.ends.view(np.uint64).tolist(), language.vocabulary.bytes
    names = [texts[start:end].tobytes().decode().strip() for start, end in itertools.pairwise(ends)]
    bias = np.empty(len(names))
    for token, name in enumerate(names):
        has = {caption: token in language.encode_more(Prompt(caption)) for caption in MORE_CAPTIONS}
        share = sum(weight for caption, weight in near.items() if has[caption]) / sum(near.values())
        pool_share = max(sum(has.values()), 1) / len(MORE_CAPTIONS)
        bias[token] = 0.7 * math.log((share + 0.003) / (pool_share + 0.003))
        bias[token] -= 3 * (token in asked_tokens) + 6 * (plural and name == "man")
    return bias


@pytest.mark.parametrize(
    ("question", "plural"),
    [
        ("what is on the grass?", False),
        ("is the dog red or blue?", False),
        ("What are in the water?", True),
        ("who were in it", True),
        ("what sit on the grass?", True),
        ("what are two dogs in?", False),
        ("what sits on the grass?", False),
        ("what are the man in?", False),
        ("what are", False),
        ("", False),
    ],
)
def test_guide_of_an_answer_biases_its_first_token(model, file, photo, question, plural):
    file.write_text("\n".join(MORE_CAPTIONS))
    pool, language = read_pool(file, model.pipeline), model.pipeline.language
    image, asked = model.embed_image(photo(5, 7)), language.encode_more(Prompt(f" {question}"))
    cosines = (np.stack(model.embed_text(MORE_CAPTIONS)) @ image.T).max(axis=1)
    nearest = [MORE_CAPTIONS.index(model.decode(tokens)) for tokens in pool.nearest(image)]
    weighed = {MORE_CAPTIONS[i]: math.exp(40 * (cosines[i] - cosines.max())) for i in nearest}
    logits = np.random.default_rng(new_seed()).normal(size=language.spec.vocab_size)
    assert native.asks_for_plural(question) == plural
    # An image that is like no caption has the first ones, alike. The pool's own cosines are off by up to 0.016.
    for embeds, near, within in ((0 * image, dict.fromkeys(MORE_CAPTIONS[:8], 1.0), 1e-4), (image, weighed, 0.9)):
        guide = pool.answer_guide(embeds, question, asked, language.vocabulary if plural else None)
        want = answer_bias(model, near, question, plural)
        np.testing.assert_allclose(guide.apply([], logits) - logits, want, atol=within)
        np.testing.assert_allclose(guide.apply([3], logits), logits, rtol=1e-6)
        assert guide.agreement([3, 4]) == 0


def test_answer_to_a_question_for_things_does_not_begin_with_one_thing(model, file):
    pairs = {" dog": " dogs", " baby": " babies", " bench": " benches", " person": " people", " box": " boxes"}
    names = [*pairs, *pairs.values(), " ze", " glass", " bus", "", " wander"]  # " ze" begins " zebras"
    file.write_text("\n".join(MORE_CAPTIONS))
    pool, size = read_pool(file, model.pipeline), model.pipeline.language.spec.vocab_size
    vocabulary = native.Vocabulary([*map(str.encode, names), *[b""] * (size - len(names))])
    embeds, zeros = 0 * model.embed_text(MORE_CAPTIONS[:1])[0][None], np.zeros(size)
    free, asked = (pool.answer_guide(embeds, "", [], each).apply([], zeros) for each in (None, vocabulary))
    np.testing.assert_allclose(np.subtract(free, asked), [6.0] * len(pairs) + [0.0] * (size - len(pairs)), atol=1e-5)


def test_guide_of_an_answer_needs_the_vocabulary_of_the_pool(model, file, photo):
    embeds = model.embed_image(photo(5, 7))
    with pytest.raises(RuntimeError, match="the vocabulary is not the pool's"):
        read_pool(file, model.pipeline).answer_guide(embeds, "what?", [], native.Vocabulary([b"a"]))


@pytest.mark.parametrize("texts", [[[3, VOCABULARY]], [[-1]]])
def test_guide_of_another_vocabulary_is_rejected(texts):
    with pytest.raises(RuntimeError, match="outside the vocabulary of 30"):
        native.Guide(texts, [1.0] * VOCABULARY, END)


def test_nearest_captions_are_those_of_the_embeddings(model, tmp_path):
    rng = random.Random(new_seed())
    words = "a the red blue dog cat man runs sits on grass in water".split()
    captions = [*{" ".join(rng.choices(words, k=rng.randint(3, 9))) for _ in range(40)}]
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(captions))
    pool, image = read_pool(file, model.pipeline), model.embed_image(np.zeros((8, 8, 3), np.uint8))
    cosines = (np.stack(model.embed_text(captions)) @ image.T).max(axis=1)
    order = [captions.index(model.decode(tokens)) for tokens in pool.nearest(image)]
    assert len(pool) == len(captions) and len(order) == 8
    np.testing.assert_allclose(cosines[order], np.sort(cosines)[::-1][:8], atol=0.02)  # 8-bit codes


def test_built_pool_guides_as_its_file(model, file, tmp_path, photo):
    out, seen = tmp_path / "built.pool", []
    assert build_pool(file, out, model.pipeline, lambda *done: seen.append(done)) == 4
    assert seen == [(4, 4)]
    image = photo(5, 7)
    assert model.caption(image, pool=out) == model.caption(image, pool=file)


def test_every_door_guides_alike(model, file, photo):
    images = [photo(5, 7), photo(20, 30), photo(9, 9), *[photo(8, n) for n in range(2, 10)]]
    plain, changed = model.caption(images, num_beams=3), 0
    for image, alone, caption in zip(images, plain, model.caption(images, num_beams=3, pool=file), strict=True):
        ranked = model.caption(image, num_beams=3, num_captions=3, pool=file)
        guide = read_pool(file, model.pipeline).guide(
            model.embed_image(image), model.pipeline.language.spec.eos_token_ids[0]
        )
        agreed = [guide.agreement(each.tokens) for each in ranked]
        assert caption == ranked[0] and agreed == sorted(agreed, reverse=True)
        assert "".join(model.stream(image, num_beams=3, pool=file)) == caption
        changed += caption != alone
    assert changed


def test_pool_of_a_bundle_guides_without_being_named(model, file, photo, tmp_path):
    folder = shutil.copytree(model.bundle.path, tmp_path / "with-pool")
    own = blip2rt.load(with_pool(folder, CAPTIONS), threads=1, batching=True)
    for image in (photo(5, 7), photo(20, 30), photo(9, 9)):
        want = model.caption(image, pool=file, num_beams=3)
        assert own.caption(image, num_beams=3) == want == "".join(own.stream(image, num_beams=3))
        answer = own.submit(Request(image, options=Options(num_beams=3)))
        assert "".join(answer) == want == answer.result()[0]
        assert fill(own, image, form_of("caption"))["caption"] == own.caption(image)
        for no_pool in (False, "none"):
            assert own.caption(image, pool=no_pool, num_beams=3) == model.caption(image, num_beams=3)
        assert own.caption(image, prompt="a") == model.caption(image, prompt="a")


def form_of(field: str) -> dict:
    return {"properties": {field: {"type": "string"}}}


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_pool_of_a_bundle_guides_answers_at_every_door(model, photo, tmp_path):
    folder = with_pool(shutil.copytree(model.bundle.path, tmp_path / "with-pool"), CAPTIONS)
    own, options = blip2rt.load(folder, threads=1, batching=True), {"num_beams": 3}
    images = [photo(8, n) for n in range(2, 42)]
    questions = ["what is on the blue grass?", "who runs?", "what are in it?", "who is red on the grass?"] * 10
    plain, answers = model.ask(images, questions, **options), own.ask(images, questions, **options)
    assert answers != plain
    for image, question, alone, answer in zip(images, questions, plain, answers, strict=True):
        assert own.ask(image, question, **options) == answer == own.chat(image, **options).ask(question)
        assert "".join(own.stream(image, question=question, **options)) == answer
        assert "".join(own.submit(Request(image, question=question, options=Options(**options)))) == answer
        job = TextJob(png(image), question, options=options)
        assert generate(own, job, 20, CancelEvent(), None).texts == [answer]
        assert "".join(own.stream(image, question=question, pool=False, **options)) == alone
        filled, answer = fill(own, image, form_of("answer"), question)["answer"], own.ask(image, question)
        assert "".join(filled.split()) == "".join((answer.strip() or own.caption(image)).split())  # tidied
    for options in ({"do_sample": True, "seed": 3}, {"forced_prefix": "a"}):
        assert own.ask(images, questions, **options) == model.ask(images, questions, **options)


def test_info_describes_the_pool(tiny, tmp_path):
    folder = with_pool(Path(shutil.copytree(tiny.path, tmp_path / "with-pool")), CAPTIONS)
    size = (folder / "captions.pool").stat().st_size
    assert f"\npool: 4 captions, {size / 1e6:.2f} MB, captions.pool\n" in describe(blip2rt.bundle.read(folder))
    (folder / "captions.pool").write_bytes(bytes(size))
    assert "\npool: unusable, it is not a pool of this version, " in describe(blip2rt.bundle.read(folder))


def test_pool_and_prompt_are_rejected(model, file, photo):
    with pytest.raises(OptionError, match="leave out the prompt, or the pool"):
        model.caption(photo(5, 7), pool=file, prompt="a")


def test_damaged_pools_and_those_of_other_models_end_in_an_error(model, file, tmp_path, photo):
    out = tmp_path / "built.pool"
    build_pool(file, out, model.pipeline)
    data = out.read_bytes()
    rng = random.Random(new_seed())
    for _ in range(200):
        changed = bytearray(data)
        changed[rng.randrange(16, len(data))] ^= 1 << rng.randrange(8)
        out.write_bytes(changed[: rng.choice([len(data), rng.randrange(16, len(data))])])
        try:
            model.caption(photo(5, 7), pool=out)  # a changed caption or code only guides otherwise
        except (OptionError, blip2rt.BackendError) as error:
            assert any(fault in str(error) for fault in ("damaged", "another model", "vocabulary", "wide", "finite"))
    out.write_bytes(data[:16] + b"0" * 64 + data[80:])
    with pytest.raises(OptionError, match="another model"):
        read_pool(out, model.pipeline)


@pytest.mark.parametrize(
    ("content", "fault"), [(b"\xff\xfe", "UTF-8"), (b"\n \n", "no captions"), (b"a" * 2000, "2,000")]
)
def test_bad_caption_files_are_rejected(model, tmp_path, content, fault):
    file = tmp_path / "captions.txt"
    file.write_bytes(content)
    with pytest.raises(OptionError, match=fault):
        read_pool(file, model.pipeline)


def test_commands(model, file, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.full((9, 9, 3), 90, np.uint8)).save(photo)
    folder = str(model.bundle.path)
    assert cli.main(["pool", "build", str(file), "--out", str(tmp_path / "p"), "--model", folder]) == 0
    assert capsys.readouterr().out.endswith("p: 4 captions\n")
    for pool in (str(tmp_path / "p"), "none"):
        assert cli.main(["caption", str(photo), "--pool", pool, "--model", folder, "--json"]) == 0
        want = model.caption(photo, pool=pool if pool == "none" else file)
        assert json.loads(capsys.readouterr().out)["caption"] == want
    for more in (["--stream"], ["--ask", "what is it?"], ["--prompt", "a"]):
        assert cli.main(["caption", str(photo), "--pool", str(file), "--model", folder, *more]) == 2
        assert "pool" in capsys.readouterr().err
