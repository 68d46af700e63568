"""Captions chosen with a pool: consensus against numpy, built and plain pools, and by every door that takes one."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import blip2rt
from blip2rt import cli
from blip2rt.errors import OptionError
from blip2rt.matching.pool import CaptionPool, build_pool, read_pool
from tests.seeds import new_seed
from tests.tiny.bundle import Tiny, with_likelihood_weight

pytest.importorskip("blip2rt._native")

CAPTIONS = ["A dog runs on the red grass.", "the red cat sits in the blue water", "the man runs", "a red dog runs"]


@pytest.fixture
def model(tiny: Tiny, tmp_path: Path) -> blip2rt.Model:
    return blip2rt.load(with_likelihood_weight(tiny, tmp_path / "matches", 0.4), threads=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "captions.txt"
    path.write_text("\n".join([*CAPTIONS, "", CAPTIONS[0]]) + "\n")
    return path


def consensus(pool: list[str], candidate: str, references: list[str]) -> float:
    """The mean similarity of a caption to others, by definition."""
    words = {text: text.lower().replace(".", " ").split() for text in [*pool, candidate, *references]}
    seen = Counter(word for text in dict.fromkeys(pool) for word in set(words[text]))

    def vector(text: str, order: int) -> Counter[tuple[str, ...]]:
        grams: Counter[tuple[str, ...]] = Counter()
        for i in range(len(words[text]) - order + 1):
            gram = tuple(words[text][i : i + order])
            grams[gram] += sum(math.log(len(pool) / max(seen[word], 1)) for word in gram) / order
        return grams

    def cosine(one: Counter, other: Counter) -> float:
        norms = math.sqrt(sum(v * v for v in one.values()) * sum(v * v for v in other.values()))
        return sum(value * other[gram] for gram, value in one.items()) / norms if norms else 0.0

    total = 0.0
    for reference in references:
        penalty = math.exp(-((len(words[candidate]) - len(words[reference])) ** 2) / 72)
        total += penalty * sum(cosine(vector(candidate, n), vector(reference, n)) for n in range(1, 5)) / 4
    return total / len(references)


def test_choice_follows_the_consensus_of_the_nearest():
    rng = random.Random(new_seed())
    words = "a the red blue dog cat man runs sits on grass in water".split()
    pool = [*{" ".join(rng.choices(words, k=rng.randint(3, 9))) for _ in range(20)}]
    embeds = np.random.default_rng(new_seed()).normal(size=(len(pool) + 3, 16)).astype(np.float32)
    embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
    codes = np.rint(embeds[3:] * 127).astype(np.int8)
    image = embeds[3:5]
    beams = [" ".join(rng.choices(words, k=6)) for _ in range(3)]
    cosines = (codes.astype(np.float32) / 127 @ image.T).max(axis=1)
    nearest = np.argsort(-cosines)[:8]
    near = [pool[i] for i in nearest]
    floor = (embeds[:3] @ image.T).max() - 0.05
    scores = {
        text: consensus(pool, text, [other for j, other in enumerate(near) if j != i])
        for i, text in enumerate(near)
        if cosines[nearest[i]] >= floor
    }
    own = {i: consensus(pool, beam, near) + 0.03 for i, beam in enumerate(beams)}
    best = max([*scores, *own], key=lambda each: scores[each] if isinstance(each, str) else own[each])
    assert CaptionPool(pool, codes).choose(image, beams, embeds[:3]) == best


def test_built_pool_holds_what_its_file_holds(model, file, tmp_path):
    out, seen = tmp_path / "built.pool", []
    assert build_pool(file, out, model.matcher, lambda *done: seen.append(done)) == 4
    assert seen == [(4, 4)]
    built, plain = read_pool(out, model.matcher), read_pool(file, model.matcher)
    assert built.captions == plain.captions == CAPTIONS
    image = model.embed_image(np.zeros((8, 8, 3), np.uint8))
    np.testing.assert_array_equal(built.nearest(image)[1], plain.nearest(image)[1])


def test_caption_is_a_beam_or_a_caption_of_the_pool(model, file, photo):
    images = [photo(5, 7), photo(20, 30), photo(9, 9), *[photo(8, n) for n in range(2, 10)]]
    beams = model.caption(images, num_beams=3, num_captions=3)
    for image, caption, own in zip(images, model.caption(images, num_beams=3, pool=file), beams, strict=True):
        pool = read_pool(file, model.matcher)
        chosen = pool.choose(model.embed_image(image), own, model.embed_text([str(each) for each in own]))
        assert caption == (chosen if isinstance(chosen, str) else own[chosen])
        if isinstance(chosen, str):
            prefix = model.caption_prefix(model.vision_features([image]))
            likelihood = model.pipeline.language.likelihoods(prefix, [0], [chosen])[0]
            assert caption.score == pytest.approx(likelihood / (len(caption.tokens) + 1) ** 1.0, rel=1e-4)
        else:
            assert (caption.score, caption.tokens) == (own[chosen].score, own[chosen].tokens)


@pytest.mark.parametrize("options", [{"num_captions": 2}, {"do_sample": True}, {"prompt": "a"}, {"bad_words": "dog"}])
def test_what_a_pool_cannot_choose_is_rejected(model, file, photo, options):
    with pytest.raises(OptionError, match="pool"):
        model.caption(photo(5, 7), pool=file, **options)


def test_damaged_pools_and_those_of_other_models_are_rejected(model, file, tmp_path, tiny):
    out = tmp_path / "built.pool"
    build_pool(file, out, model.matcher)
    data = out.read_bytes()
    rng = random.Random(new_seed())
    for _ in range(200):
        changed = bytearray(data)
        changed[rng.randrange(15, len(data))] ^= 1 << rng.randrange(8)
        out.write_bytes(changed[: rng.choice([len(data), rng.randrange(15, len(data))])])
        with pytest.raises(OptionError, match="is damaged|is of another model"):
            read_pool(out, model.matcher)
    out.write_bytes(data.replace(b'"model": "', b'"model": "0'))
    with pytest.raises(OptionError, match="another model"):
        read_pool(out, model.matcher)


@pytest.mark.parametrize(
    ("content", "fault"), [(b"\xff\xfe", "UTF-8"), (b"\n \n", "no captions"), (b"a" * 2000, "2,000")]
)
def test_bad_caption_files_are_rejected(model, tmp_path, content, fault):
    file = tmp_path / "captions.txt"
    file.write_bytes(content)
    with pytest.raises(OptionError, match=fault):
        read_pool(file, model.matcher)


def test_commands(model, file, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.full((9, 9, 3), 90, np.uint8)).save(photo)
    folder = str(model.bundle.path)
    assert cli.main(["pool", "build", str(file), "--out", str(tmp_path / "p"), "--model", folder]) == 0
    assert capsys.readouterr().out.endswith("p: 4 captions\n")
    assert cli.main(["caption", str(photo), "--pool", str(tmp_path / "p"), "--model", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["caption"] == model.caption(photo, pool=file)
    for more in (["--stream"], ["--ask", "what is it?"], ["--num-captions", "2"]):
        assert cli.main(["caption", str(photo), "--pool", str(file), "--model", folder, *more]) == 2
        assert "pool" in capsys.readouterr().err
