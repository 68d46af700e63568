"""Groups of alike images, and targets that say what else fits: against NumPy, and in a training."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from train import stage1
from train.data import Dataset, Sample, alike_batches
from train.likeness import Likeness
from train.soft_targets import group_itm, soft_contrast, soft_targets

from .numpy_blip2 import log_softmax, softmax
from .tiny_parts import WORDS, bert_folder, tiny_settings

TEXTS = [3, 1, 2, 2, 4, 2]  # of each image


@pytest.fixture(scope="module")
def rng() -> np.random.Generator:
    seed = random.randrange(2**31)
    print("seed", seed)
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def data(rng: np.random.Generator) -> Dataset:
    samples = [Sample(i, " ".join(rng.choice(WORDS, 6))) for i, count in enumerate(TEXTS) for _ in range(count)]
    order = rng.permutation(len(samples))  # an image's texts need not be together
    return Dataset([Path(f"{i}.jpg") for i in range(len(TEXTS))], [samples[i] for i in order])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_folder(tmp_path_factory.mktemp("bert"))


def test_likeness_is_the_smooth_maximum_over_the_other_texts(
    data: Dataset, bert: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    likeness = Likeness(data, str(bert), tmp_path)
    model, tokenizer = AutoModel.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    embeds = []
    for sample in data.samples:  # one at a time, without padding
        with torch.no_grad():
            mean = model(**tokenizer(sample.text, return_tensors="pt")).last_hidden_state[0].double().mean(0).numpy()
        embeds.append(mean / np.linalg.norm(mean))
    images, texts = rng.permutation(len(TEXTS)), rng.permutation(len(data.samples))
    got = likeness(torch.from_numpy(images), torch.from_numpy(texts)).numpy()
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            others = [k for k, sample in enumerate(data.samples) if sample.image == image and k != text]
            cosines = np.array([embeds[k] @ embeds[text] for k in others])
            want = np.log(np.exp(10 * cosines).mean()) / 10 if others else 1.0
            assert got[i, j] == pytest.approx(want, abs=1e-5)
    again = Likeness(data, str(bert), tmp_path)
    assert torch.equal(again.embeds, likeness.embeds) and len(list(tmp_path.iterdir())) == 1
    near = likeness.neighbours(3)
    means = np.stack([sum(embeds[k] for k in rows) for rows in likeness.of_image])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    for image, found in enumerate(near):
        alike = means @ means[image]
        others = [i for i in np.argsort(-alike) if i != image]
        np.testing.assert_allclose(alike[found], alike[others[:3]], atol=1e-5)


def test_groups_are_of_alike_images_and_go_on_where_they_stopped(rng: np.random.Generator) -> None:
    images, group, batch = 10, 4, 8
    near = np.stack([rng.permutation(np.delete(np.arange(images), i))[:5] for i in range(images)])
    texts = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(images)]
    lengths = rng.integers(4, 20, 3 * images)
    stream = alike_batches(near, lengths, texts, batch, group, 7, 0)
    steps = [next(stream) for _ in range(10)]
    later = alike_batches(near, lengths, texts, batch, group, 7, 6)
    firsts, spread, drawn = [], [], set()
    for step, rows in steps:
        if step >= 6:
            again, same = next(later)
            assert again == step and np.array_equal(rows, same)
        for part in rows.reshape(-1, group):
            first, *others = part // 3
            assert len({first, *others}) == group and set(others) <= set(near[first])
            firsts.append(first)
        spread.append(lengths[rows].std())
        drawn |= set(rows.tolist())
    for epoch in (firsts[:10], firsts[10:]):
        assert sorted(epoch) == list(range(images))  # each comes first once
    assert np.mean(spread) < lengths.std() and len(drawn) > 2 * images  # of similar length, and not always the same


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_losses_equal_numpy(share: float, rng: np.random.Generator) -> None:
    logits, likeness = rng.normal(size=(6, 6)), rng.uniform(0, 1, (6, 6))
    ids = np.array([0, 1, 0, 2, 3, 4])
    same = ids[:, None] == ids
    want = 0.0
    for scores, like in ((logits, likeness), (logits.T, likeness.T)):
        target = (1 - share) * same / same.sum(1, keepdims=True) + share * softmax(like / 0.04)
        want -= (target * log_softmax(scores)).sum(1).mean() / 2
    tensors = [torch.from_numpy(x) for x in (logits, likeness, same)]
    assert soft_contrast(*tensors, share).item() == pytest.approx(want)
    assert soft_targets(tensors[1], tensors[2], share).sum(1).numpy() == pytest.approx(np.ones(6))

    odds, alike = rng.normal(size=(3, 4, 4)), rng.uniform(0, 1, (3, 4, 4))
    right, wrong, first = [], [], []
    contrast = 0.0
    for log_odds, like in zip(odds, alike, strict=True):
        first += [log_odds[:, text].argmax() == text for text in range(4)]
        for image in range(4):
            for text in range(4):
                chance = 1 / (1 + np.exp(-log_odds[image, text]))
                if image == text:
                    right.append(-np.log(chance))
                    continue
                for own in (like[text, text], like[image, image]):  # the text's right image, the image's right text
                    fits = share / (1 + np.exp((own - like[image, text]) / 0.04))
                    wrong.append(-fits * np.log(chance) - (1 - fits) * np.log(1 - chance))
        for scores, of in ((log_odds, like), (log_odds.T, like.T)):
            target = (1 - share) * np.eye(4) + share * softmax(of / 0.04)
            contrast -= (target * log_softmax(scores)).sum(1).mean() / 2 / 3
    got, accuracy = group_itm(torch.from_numpy(odds), torch.from_numpy(alike), share)
    assert got.item() == pytest.approx((np.mean(right) + 2 * np.mean(wrong)) / 3 + contrast)
    assert accuracy.item() == pytest.approx(np.mean(first))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return tiny_settings(tmp_path_factory.mktemp("parts"))


def likeness_fields(settings: list[str]) -> list[str]:
    bert = settings[settings.index("--qformer_init") + 1]
    return ["--likeness", bert, "--group", "2", "--neighbours", "3"]


def test_a_training_learns_by_likeness(settings: list[str], tmp_path: Path) -> None:
    assert stage1.main([*settings, *likeness_fields(settings), "--out", str(tmp_path), "--soft_targets", "0.3"]) == 0
    assert (tmp_path / "step-000006" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (["--group", "4"], ["group", "likeness"]),
        (["--likeness", "{bert}", "--group", "1"], ["group is 1"]),
        (["--likeness", "{bert}", "--group", "4", "--neighbours", "2"], ["neighbours is 2", "3 or more"]),
        (["--likeness", "{bert}", "--group", "2", "--neighbours", "8"], ["neighbours is 8", "8 images"]),
        (["--likeness", "{bert}", "--group", "3", "--neighbours", "4"], ["4 rows", "groups of 3"]),
        (["--likeness", "{bert}", "--itm_ramp", "5"], ["itm_ramp"]),
        (["--likeness", "{bert}", "--no-cache_features"], ["cached features"]),
        (["--likeness", "{bert}", "--group", "2", "--soft_targets", "2"], ["soft_targets is 2", "0 to 1"]),
        (["--likeness", "no/such", "--group", "2", "--neighbours", "3"], ["no/such"]),
        (["--likeness", "{images}", "--group", "2", "--neighbours", "3"], ["images", "sentence encoder"]),
    ],
)
def test_wrong_fields_are_one_line(
    fields: list[str], words: list[str], settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {name: settings[settings.index(f"--{field}") + 1] for name, field in
             (("bert", "qformer_init"), ("images", "images"))}  # fmt: skip
    given = [field.format(**named) for field in fields]
    capsys.readouterr()
    assert stage1.main([*settings, *given, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert last.startswith("error: ") and all(word in last for word in words), error
    assert "Traceback" not in error
