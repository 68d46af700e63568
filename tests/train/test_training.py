"""Both stages end to end on tiny parts: training, frozen parts, and exact resume after an interruption."""

import json
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.bert import BertSource
from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.checkpoint import Checkpoint, list_checkpoints
from blip2rt.native import native
from blip2rt_train import stage1, stage2
from blip2rt_train.evaluation.generation import itg_captions
from blip2rt_train.loop.run_folder import settings_conflict
from blip2rt_train.loop.trainer import learning_rate, parameter_groups
from blip2rt_train.settings import OptimizerSettings

from ..tiny.training import NANO_STAGE2, bert_folder, llm_folder, tiny_settings
from .runs import STAGES, assert_equal, interrupt_and_resume, weights


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("parts")
    llm_folder(folder / "llm")
    return folder, tiny_settings(folder)


@pytest.fixture(scope="module")
def stage1_run(parts: tuple[Path, list[str]]) -> Path:
    folder, settings = parts
    assert stage1.main([*settings, "--out", str(folder / "stage1")]) == 0
    return folder / "stage1"


def stage2_settings(parts: tuple[Path, list[str]], start: Path) -> list[str]:
    folder, settings = parts
    return [*settings, *NANO_STAGE2, "--stage1", str(start), "--llm_source", str(folder / "llm"), "--end", "<|end|>"]


def test_stage1_writes_checkpoint_metrics_and_plot(stage1_run: Path) -> None:
    lines = [json.loads(line) for line in (stage1_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert {"itc", "itm", "itg", "query_cosine", "lr"} <= lines[0].keys()
    assert (
        all(lines[0][f"{each}_per_second"] > 0 for each in ("images", "tokens", "tflops")) and lines[0]["peak_gb"] > 0
    )
    assert any("dev_t2i_r@1" in line and "dev_itm_accuracy" in line for line in lines)
    assert max(line["query_cosine"] for line in lines if "query_cosine" in line) < 0.95, "queries do not collapse"
    assert_samples(lines)
    assert (stage1_run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not list(stage1_run.glob(".*partial"))
    model = Checkpoint(stage1_run).load(vision=False)
    assert not model.training and model.config.stage == 1


def assert_samples(lines: list[dict[str, Any]]) -> None:
    """Assert that every evaluation logs texts of the same images."""
    said = [line["samples"] for line in lines if "samples" in line]
    assert len(said) == sum("dev_query_cosine" in line or "dev_loss" in line for line in lines)
    assert all(set(texts) == {f"{i}.jpg" for i in range(8)} for texts in said)
    assert all(isinstance(text, str) for texts in said for text in texts.values())


@pytest.mark.long(3, "a whole training")
def test_stage2_trains_only_the_query_branch(
    parts: tuple[Path, list[str]], stage1_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = parts[0] / "stage2"
    assert stage2.main([*stage2_settings(parts, stage1_run), "--out", str(out), "--eval_every", "3"]) == 0
    shown = capfd.readouterr().err
    assert "images/s=" in shown and "waiting=" in shown
    assert_samples([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()])
    trained, before = weights(out), weights(stage1_run)
    assert not [name for name in trained if name.startswith(("llm.", "vision.")) or "text" in name]
    assert not torch.equal(trained["qformer.query_tokens"], before["qformer.query_tokens"])
    model = Checkpoint(out).load(vision=False)
    assert isinstance(model, Blip2) and model.llm is not None
    model.train()
    assert not model.llm.training, "a frozen LLM stays in eval mode"
    assert not any(parameter.requires_grad for parameter in model.llm.parameters())


@pytest.mark.long(7, "three trainings, compared bit for bit")
@pytest.mark.parametrize("stage", STAGES)
def test_resume_continues_bit_for_bit(parts: tuple[Path, list[str]], stage1_run: Path, stage: str) -> None:
    folder, settings = parts
    out, whole = folder / f"resumed-{stage}", stage1_run
    if stage == "stage2":
        settings, whole = stage2_settings(parts, stage1_run), folder / "whole2"
        assert stage2.main([*settings, "--out", str(whole)]) == 0
    interrupt_and_resume(stage, settings, out)
    assert_equal(weights(out), weights(whole))
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines() if '"lr"' in line]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_sigkill_at_any_time_loses_nothing(parts: tuple[Path, list[str]], stage1_run: Path) -> None:
    folder, settings = parts
    out = folder / "killed"
    command = [sys.executable, "-m", "blip2rt_train.stage1", *settings, "--out", str(out), "--save-every", "1"]
    command += ["--keep", "9"]
    for saved in range(1, 4):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while len(list_checkpoints(out)) < saved and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert subprocess.run(command, check=False).returncode == 0
    assert_equal(weights(out), weights(stage1_run))


def test_learning_rate_warms_up_and_follows_a_cosine() -> None:
    settings = OptimizerSettings(steps=110, warmup=10, lr=1.0, min_lr=0.1)
    rates = [learning_rate(step, 1.0, settings) for step in range(111)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_scalars_biases_and_norms_do_not_decay(stage1_run: Path) -> None:
    model = Checkpoint(stage1_run).load(vision=False)
    settings = OptimizerSettings(weight_decay=0.05)
    decay = {
        id(p): g["weight_decay"] for g in parameter_groups(model, settings, {"itm_head": 1.0}) for p in g["params"]
    }
    named = dict(model.named_parameters())
    for name in ("temperature", "itm_head.bias", "qformer.query_norm.weight"):
        assert decay[id(named[name])] == 0.0
    for name in ("itm_head.weight", "qformer.query_tokens", "qformer.layers.0.attention.query.weight"):
        assert decay[id(named[name])] == 0.05


ENCODER = ["--vision_source", "timm:test_efficientnet", "--vision_size", "64"]
FILE = [*ENCODER, "--vision_weights", "encoder.pt"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "no/such.yaml"], ["no/such.yaml", "blip2rt-train recipes"]),
        (["--recipe", "paper/stage1-vitg"], ["did you mean paper/stage1-vit-g?"]),
        ([], ["missing", "--out"]),
        (["--out", "{}/x", "--images", "y", "--train_table", "no.tsv", *FILE], ["no.tsv", "does not exist"]),
        (["--out", "{}/x", "--images", "y", "--train_table", "no.tsv"], ["vision_weights is missing", "vit:g"]),
        (["--out", "{}/x", "--images", "y", "--train_table", "no.tsv", *ENCODER], ["vision_weights is", "timm:"]),
    ],
)
def test_wrong_settings_are_one_line(arguments: list[str], words: list[str], error_of: Any, tmp_path: Path) -> None:
    init = ["--qformer_init", bert_folder(tmp_path / "bert")]
    error = error_of(stage1.main, [argument.format(tmp_path) for argument in arguments] + init)
    assert all(word in error for word in words), error


def test_resume_never_rejects_existing_checkpoints(
    parts: tuple[Path, list[str]], stage1_run: Path, tmp_path: Path, error_of: Any
) -> None:
    _, settings = parts
    error = error_of(stage1.main, [*settings, "--out", stage1_run, "--resume", "never"])
    assert str(stage1_run) in error and "--resume auto" in error
    error = error_of(stage1.main, [*settings, "--out", tmp_path / "x", "--resume", "sometimes"])
    assert "auto, always or never" in error


@pytest.mark.parametrize(("field", "value"), [("hidden_act", "gelu_new"), ("position_embedding_type", "relative_key")])
def test_unsupported_bert_is_rejected(field: str, value: str, tmp_path: Path) -> None:
    bert = bert_folder(tmp_path / "bert")
    said = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**said, field: value}))
    with pytest.raises(Blip2rtError, match=f"{field} is '{value}', but a Q-Former has .*: give"):
        assert BertSource(str(bert)).geometry


@pytest.mark.long(5, "a process for each setting")
def test_changed_settings_are_rejected(
    parts: tuple[Path, list[str]], stage1_run: Path, tmp_path: Path, error_of: Any
) -> None:
    _, settings = parts
    out = tmp_path / "run"
    shutil.copytree(stage1_run, out)
    changed = [*settings, "--out", str(out), "--seed", "9", "--views", "3", "--lr", "3e-5"]
    error = error_of(stage1.main, changed)
    assert "(seed was 0 and is 9, views was 2 and is 3): give another folder" in error and "--resume always" in error
    error = error_of(stage1.main, [*settings, "--out", out, "--start", stage1_run])
    assert f"start was '' and is {str(stage1_run)!r}" in error
    again = ["--steps", "7", "--lr", "3e-5", "--log-every", "2", "--recompute", "--dev-table", ""]
    assert stage1.main([*settings, "--out", str(out), *again]) == 0, "how far and how it runs may change"
    assert stage1.main([*changed, "--steps", "8", "--resume", "always"]) == 0
    state = json.loads((list_checkpoints(out)[-1] / "trainer.json").read_text())
    assert state["step"] == 8 and state["settings"]["seed"] == 9


def test_missing_settings_are_not_compared(tmp_path: Path) -> None:
    checkpoint = tmp_path / "step-000003"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "trainer.json").write_text(json.dumps({"settings": {"seed": 1, "train_data": [{"path": "a"}]}}))
    record = {"seed": 1, "queries": 3, "train_data": ({"path": "a"},), "resume": "auto"}
    assert settings_conflict(tmp_path, record) == ""
    assert "seed was 1 and is 2" in settings_conflict(tmp_path, {"seed": 2})
    assert settings_conflict(tmp_path, {"seed": 2, "resume": "always"}) == ""
    (checkpoint / "trainer.json").write_text(json.dumps({"settings": {"max_text_tokens": 32}}))
    assert "clean_answers was True and is False" in settings_conflict(tmp_path, {"clean_answers": False}), "it was so"


def test_itg_captions_are_greedy_and_end_at_the_separator(stage1_run: Path) -> None:
    """Each token is the likeliest after those before it, by the forward pass that ITG is trained with."""
    checkpoint = Checkpoint(stage1_run)
    model, tokenizer = checkpoint.load(vision=False), checkpoint.bert.tokenizer
    features = torch.randn(3, model.config.vision.positions, model.config.vision.features)
    captions = itg_captions(model, tokenizer, features)
    assert captions == [itg_captions(model, tokenizer, row[None])[0] for row in features]
    for row, caption in zip(features, captions, strict=True):
        _, query_kv = model.qformer.encode_image(model.vision_kv(row[None]), 1)
        ids = [tokenizer.bos_token_id]
        while len(ids) < 21 and ids[-1] != tokenizer.sep_token_id:
            given = torch.tensor([ids])
            hidden = model.qformer.decode_text(given, torch.ones_like(given), query_kv)
            ids.append(int(model.lm_head(hidden, model.qformer.word_embeddings.weight)[0, -1].argmax()))
        assert caption == native.tidied(tokenizer.decode(ids, skip_special_tokens=True))
