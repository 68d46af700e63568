"""Two processes (gloo) train as one does, dropout included: the same losses and weights, whatever divides the batch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from blip2rt.modeling.checkpoint import list_checkpoints
from blip2rt_train import stage1, stage2
from blip2rt_train.loop.trainer import check_batch
from blip2rt_train.settings import BatchSettings

from ..tiny.training import NANO_STAGE2, llm_folder, t5_folder, tiny_settings
from .processes import (
    FIVE_STEPS,
    ROOT,
    TIMEOUT,
    assert_same_moments,
    assert_same_training,
    make_distinct,
    train_together,
)
from .runs import STAGES, assert_equal, interrupt_and_resume, weights

pytestmark = pytest.mark.long(95, "whole trainings in several processes and precisions, compared with one")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("parts")
    llm_folder(folder / "llm")
    settings = [*tiny_settings(folder), *FIVE_STEPS]
    make_distinct(folder)
    return folder, settings


@pytest.fixture(scope="module")
def one(parts: tuple[Path, list[str]]) -> Path:
    """Stage 1 in one process."""
    folder, settings = parts
    assert stage1.main([*settings, "--out", str(folder / "one")]) == 0
    return folder / "one"


@pytest.fixture(scope="module")
def one2(parts: tuple[Path, list[str]]) -> Path:
    """Stage 2 in one process."""
    folder, settings = parts
    assert stage2.main([*settings, *stage2_fields(folder), "--out", str(folder / "one2")]) == 0
    return folder / "one2"


def stage2_fields(folder: Path, llm: str = "llm") -> list[str]:
    return [*NANO_STAGE2, "--llm_source", str(folder / llm), "--end", "<|end|>", "--hidden_positions", "0.3"]


@pytest.mark.parametrize(("shard", "accumulate"), [("none", 1), ("trained", 2)])
def test_stage1_gathers_itc_and_negatives_from_all_processes(
    parts: tuple[Path, list[str]], one: Path, shard: str, accumulate: int, tmp_path: Path
) -> None:
    folder, settings = parts
    arguments = [*settings, "--accumulate", str(accumulate), "--shard", shard, "--out", str(folder / shard)]
    train_together("blip2rt_train.stage1", arguments, tmp_path)
    assert_same_training(one, folder / shard)
    assert_same_moments(one, folder / shard)


def test_micro_batches_contrast_with_the_whole_batch(parts: tuple[Path, list[str]], one: Path) -> None:
    folder, settings = parts
    assert stage1.main([*settings, "--accumulate", "4", "--out", str(folder / "four")]) == 0
    assert_same_training(one, folder / "four")
    assert_same_moments(one, folder / "four")


def test_accelerate_trains_the_same(parts: tuple[Path, list[str]], one: Path) -> None:
    folder, settings = parts
    flags = "--cpu --num_processes=2 --num_machines=1 --mixed_precision=no --dynamo_backend=no -m blip2rt_train.stage1"
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags.split()]
    arguments = [*settings, "--out", str(folder / "launched")]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_training(one, folder / "launched")


@pytest.mark.parametrize("shard", ["none", "all"])
def test_stage2_weighs_tokens_equally(parts: tuple[Path, list[str]], one2: Path, shard: str, tmp_path: Path) -> None:
    folder, settings = parts
    fields = [*stage2_fields(folder), "--accumulate", "2", "--shard", shard]
    train_together("blip2rt_train.stage2", [*settings, *fields, "--out", str(folder / f"{shard}2")], tmp_path)
    assert_same_training(one2, folder / f"{shard}2")


def test_prefixes_of_an_encoder_decoder_split_alike(parts: tuple[Path, list[str]], tmp_path: Path) -> None:
    """A caption's split depends on its row of the whole batch."""
    folder, settings = parts
    t5_folder(folder / "t5")
    arguments = [*settings, *stage2_fields(folder, "t5")]
    assert stage2.main([*arguments, "--out", str(folder / "one-t5")]) == 0
    train_together("blip2rt_train.stage2", [*arguments, "--accumulate", "2", "--out", str(folder / "two-t5")], tmp_path)
    assert_same_training(folder / "one-t5", folder / "two-t5")


def test_number_of_processes_may_change_on_resume(parts: tuple[Path, list[str]], one: Path, tmp_path: Path) -> None:
    folder, settings = parts
    sharded, back = folder / "sharded", folder / "back"
    until(2, one, sharded)
    arguments = [*settings, "--save_every", "1", "--keep", "9"]
    train_together("blip2rt_train.stage1", [*arguments, "--shard", "trained", "--out", str(sharded)], tmp_path)
    assert_same_training(one, sharded)
    until(4, sharded, back)
    assert stage1.main([*arguments, "--out", str(back)]) == 0
    assert_same_training(one, back)
    assert_same_moments(one, back)


def until(step: int, run: Path, out: Path) -> None:
    """A training as it was after `step`."""
    shutil.copytree(run, out)
    for checkpoint in list_checkpoints(out):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


def test_indivisible_batch_is_one_line(parts: tuple[Path, list[str]], error_of: Any) -> None:
    folder, settings = parts
    error = error_of(stage1.main, [*settings, "--out", folder / "odd", "--accumulate", "3"])
    assert "batch_size 8" in error and "accumulate 3" in error
    check_batch(BatchSettings(batch_size=12, accumulate=3), 2)


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("six_steps")
    llm_folder(folder / "llm")
    settings = [*tiny_settings(folder), "--save_every", "3", "--keep", "9"]
    make_distinct(folder)
    return folder, settings


def trained(six_steps: tuple[Path, list[str]], stage: str, name: str, flags: list[str]) -> Path:
    """Return the folder of a training of six steps, trained once per name."""
    out = six_steps[0] / f"{stage}-{name}"
    if not out.exists():
        assert STAGES[stage].main([*arguments(six_steps, stage), *flags, "--out", str(out)]) == 0
    return out


def arguments(six_steps: tuple[Path, list[str]], stage: str) -> list[str]:
    folder, settings = six_steps
    own = [*NANO_STAGE2, "--llm_source", str(folder / "llm"), "--end", "<|end|>"]
    return [*settings, *own] if stage == "stage2" else settings


def losses(run: Path) -> torch.Tensor:
    """(6, 2): loss and norm of the gradient at every step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([[line["loss"], line["gradient_norm"]] for line in lines if "loss" in line])


@pytest.mark.parametrize("stage", STAGES)
def test_recomputed_activations_are_equal_bit_for_bit(six_steps: tuple[Path, list[str]], stage: str) -> None:
    flags = ["--dropout", "0.3"]  # drawn again alike
    plain = weights(trained(six_steps, stage, "dropout", flags))
    again = weights(trained(six_steps, stage, "recompute", [*flags, "--recompute"]))
    assert_equal(plain, again)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.005), ("bf16", 0.03)])
def test_half_precision_trains_similarly(
    six_steps: tuple[Path, list[str]], stage: str, precision: str, tolerance: float
) -> None:
    single = losses(trained(six_steps, stage, "plain", ["--dropout", "0"]))
    half = losses(trained(six_steps, stage, precision, ["--dropout", "0", "--precision", precision]))
    assert not torch.equal(single, half)
    torch.testing.assert_close(half[:, 0], single[:, 0], rtol=tolerance, atol=0)
    apart = (half[:, 1] / single[:, 1] - 1).abs()
    # The median: where two queries of an image are equally near to a text, rounding decides which of them has ITC's
    # gradient, and one step's norm is another while its loss is not.
    assert apart.median() < 5 * tolerance


@pytest.mark.parametrize("stage", STAGES)
def test_fp16_resumes_bit_for_bit_scaler_and_all(six_steps: tuple[Path, list[str]], stage: str) -> None:
    folder, _ = six_steps
    whole = trained(six_steps, stage, "fp16", ["--dropout", "0", "--precision", "fp16"])
    out = folder / f"{stage}-fp16-resumed"
    interrupt_and_resume(stage, [*arguments(six_steps, stage), "--dropout", "0", "--precision", "fp16"], out)
    assert_equal(weights(out), weights(whole))
    scalers = [json.loads((list_checkpoints(run)[-1] / "trainer.json").read_text())["scaler"] for run in (out, whole)]
    assert scalers[0] == scalers[1] and scalers[0]["scale"] > 1
    assert torch.equal(losses(out), losses(whole))
