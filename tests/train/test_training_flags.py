"""Precision, compilation and recomputation change results only by rounding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from blip2rt.modeling.checkpoint import list_checkpoints

from ..tiny.training import NANO_STAGE2, llm_folder, tiny_settings
from .processes import make_distinct
from .runs import STAGES, assert_equal, interrupt_and_resume, weights

pytestmark = pytest.mark.long(30, "whole trainings with each flag, compared with one without")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("parts")
    llm_folder(folder / "llm")
    settings = [*tiny_settings(folder), "--save_every", "3", "--keep", "9"]
    make_distinct(folder)
    return folder, settings


def trained(parts: tuple[Path, list[str]], stage: str, name: str, flags: list[str]) -> Path:
    """Return the folder of a training of six steps, trained once per name."""
    out = parts[0] / f"{stage}-{name}"
    if not out.exists():
        assert STAGES[stage].main([*arguments(parts, stage), *flags, "--out", str(out)]) == 0
    return out


def arguments(parts: tuple[Path, list[str]], stage: str) -> list[str]:
    folder, settings = parts
    own = [*NANO_STAGE2, "--llm_source", str(folder / "llm"), "--end", "<|end|>"]
    return [*settings, *own] if stage == "stage2" else settings


def losses(run: Path) -> torch.Tensor:
    """(6, 2): loss and norm of the gradient at every step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([[line["loss"], line["gradient_norm"]] for line in lines if "loss" in line])


@pytest.mark.parametrize("stage", STAGES)
def test_recomputed_activations_are_equal_bit_for_bit(parts: tuple[Path, list[str]], stage: str) -> None:
    flags = ["--dropout", "0.3"]  # drawn again alike
    plain = weights(trained(parts, stage, "dropout", flags))
    again = weights(trained(parts, stage, "recompute", [*flags, "--recompute"]))
    assert_equal(plain, again)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.005), ("bf16", 0.03)])
def test_half_precision_trains_similarly(
    parts: tuple[Path, list[str]], stage: str, precision: str, tolerance: float
) -> None:
    single = losses(trained(parts, stage, "plain", ["--dropout", "0"]))
    half = losses(trained(parts, stage, precision, ["--dropout", "0", "--precision", precision]))
    assert not torch.equal(single, half)
    torch.testing.assert_close(half[:, 0], single[:, 0], rtol=tolerance, atol=0)
    apart = (half[:, 1] / single[:, 1] - 1).abs()
    # The median: where two queries of an image are equally near to a text, rounding decides which of them has ITC's
    # gradient, and one step's norm is another while its loss is not.
    assert apart.median() < 5 * tolerance


@pytest.mark.parametrize("stage", STAGES)
def test_fp16_resumes_bit_for_bit_scaler_and_all(parts: tuple[Path, list[str]], stage: str) -> None:
    folder, _ = parts
    whole = trained(parts, stage, "fp16", ["--dropout", "0", "--precision", "fp16"])
    out = folder / f"{stage}-fp16-resumed"
    interrupt_and_resume(stage, [*arguments(parts, stage), "--dropout", "0", "--precision", "fp16"], out)
    assert_equal(weights(out), weights(whole))
    scalers = [json.loads((list_checkpoints(run)[-1] / "trainer.json").read_text())["scaler"] for run in (out, whole)]
    assert scalers[0] == scalers[1] and scalers[0]["scale"] > 1
    assert torch.equal(losses(out), losses(whole))
