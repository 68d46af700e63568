"""Captions are drawn from the distribution that the model has, and learned by their advantage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from blip2rt.modeling.blip2 import Blip2Config
from blip2rt.modeling.checkpoint import list_checkpoints
from blip2rt_train import stage2
from blip2rt_train.extras import average, self_critical
from blip2rt_train.extras.self_critical import CiderReward, SelfCriticalSettings, SelfCriticalTraining, draw
from blip2rt_train.recipe import parse
from tests.seeds import new_seed

from ..tiny.training import NANO_STAGE2, llm_folder, tiny_settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a training that starts from a few steps of stage 2."""
    folder = tmp_path_factory.mktemp("likelihood")
    llm = [*NANO_STAGE2, "--llm_source", str(llm_folder(folder / "llm")), "--end", "<|end|>"]
    given = [*tiny_settings(folder), *llm, "--dropout", "0"]
    assert stage2.main([*given, "--out", str(folder / "run")]) == 0
    return [*given, "--start", str(folder / "run"), "--cider_samples", "3"]


@pytest.mark.long(10, "a whole training with samples")
def test_training_uses_the_cider_of_its_samples(settings: list[str], tmp_path: Path) -> None:
    assert self_critical.main([*settings, "--out", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["cider"] <= 1000 for line in lines if "loss" in line)
    assert any("dev_cider" in line and "dev_loss" in line for line in lines)
    [step] = list_checkpoints(tmp_path)[-1:]
    before = list_checkpoints(Path(settings[settings.index("--start") + 1]))[-1]
    trained, started = (load_file(folder / "model.safetensors") for folder in (step, before))
    assert trained.keys() == started.keys() and any(not torch.equal(trained[name], started[name]) for name in started)
    assert json.loads((step / "trainer.json").read_text())["settings"]["cider_samples"] == 3


@torch.no_grad()
def test_loss_weighs_samples_by_advantage(settings: list[str], tmp_path: Path) -> None:
    """Computed again for each sample alone, from the logits of a plain forward pass."""
    training = SelfCriticalTraining(parse(SelfCriticalSettings, [*settings, "--out", str(tmp_path)], ""))
    stage, sampled = training.stage, training.sampled
    _, [micro] = next(iter(stage.batches()))
    drawn: list[list[list[int]]] = []
    original = sampled._generate

    def kept(*given: Any) -> list[list[int]]:
        drawn.append(original(*given))
        return drawn[-1]

    sampled._generate = kept  # type: ignore[method-assign]
    told = training.loss(micro)
    features, images = micro.images.vision_features, micro.images.image_ids.tolist()
    groups = stage.loader.groups  # type: ignore[union-attr]
    reward = CiderReward([[f"{self_critical.tokenize(s.text)} </s>" for s in group] for group in groups])
    prefix = stage.model.prefix_embeds(stage.model.query_output(features))
    llm: Any = stage.model.llm
    total, count, rewards = 0.0, 0, []
    for row, image in enumerate(images):
        texts = drawn[0][3 * row : 3 * row + 3]
        found = [reward(image, sampled._reward_text(ids)) for ids in texts]
        rewards += found
        for number, ids in enumerate(texts):
            others = [value for other, value in enumerate(found) if other != number]
            embeds = torch.cat((prefix[row], llm.get_input_embeddings()(torch.tensor(ids))))[None, :-1]
            logits = llm(inputs_embeds=embeds).logits[0, -len(ids) :] / 0.6
            likelihood = logits.log_softmax(1)[range(len(ids)), ids].sum()
            total -= float((found[number] - sum(others) / 2) * likelihood)
            count += len(ids)
    assert float(told["loss"]) == pytest.approx(total / count, rel=1e-3, abs=1e-4)
    assert float(told["cider"]) == pytest.approx(100 * sum(rewards) / len(rewards))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--cider_samples", "1"], ["cider_samples is 1", "2 or more"]),
        (["--shard", "all"], ["shard is all", "--shard trained"]),
        (["--no-cache-features"], ["captions cannot be sampled", "cached features"]),
    ],
)
def test_unsupported_sampling_is_one_line(
    settings: list[str], tmp_path: Path, error_of: Any, more: list[str], words: list[str]
) -> None:
    error = error_of(self_critical.main, [*settings, *more, "--out", tmp_path])
    assert all(word in error for word in words)


@pytest.mark.parametrize("vocabulary", [2, 7, 50, 64])
def test_draws_follow_the_softmax(vocabulary: int) -> None:
    seed = new_seed()
    torch.manual_seed(seed)
    logits = 2 * torch.randn(1, vocabulary)
    count = 20_000
    drawn = np.bincount(draw(logits.expand(count, -1)).numpy(), minlength=vocabulary)
    expected = count * logits.softmax(1)[0].double().numpy()
    chi_square = float(((drawn - expected) ** 2 / expected).sum())
    freedom = vocabulary - 1
    assert chi_square < freedom + 6 * (2 * freedom) ** 0.5 + 15  # about six standard deviations


def checkpoint(folder: Path, **tensors: torch.Tensor) -> str:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(Blip2Config().to_json()))
    return str(folder)


def test_average_of_every_tensor(tmp_path: Path) -> None:
    tensors = {name: torch.randn(3, 4) for name in "abc"}
    sources = [checkpoint(tmp_path / name, w=tensor) for name, tensor in tensors.items()]
    assert average.main([*sources, "--out", str(tmp_path / "e")]) == 0
    mean = load_file(tmp_path / "e" / "model.safetensors")["w"]
    torch.testing.assert_close(mean, sum(tensors.values()) / 3)
    assert (tmp_path / "e" / "config.json").read_text() == (tmp_path / "a" / "config.json").read_text()


def test_checkpoints_that_do_not_fit_are_rejected(tmp_path: Path, error_of: Any) -> None:
    first, other = checkpoint(tmp_path / "a", w=torch.zeros(1)), checkpoint(tmp_path / "b", w=torch.zeros(2))
    for second, words in ((other, "different models (w)"), (tmp_path / "none", "none")):
        assert words in error_of(average.main, [first, second, "--out", tmp_path / "c"])
    assert not (tmp_path / "c").exists()
