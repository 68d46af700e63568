"""Training against weights as they will ship."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from blip2rt.modeling.blip2 import Blip2Config
from blip2rt.modeling.checkpoint import Checkpoint, list_checkpoints
from blip2rt.modeling.quantize import dequantize_blockwise, quantize_blockwise
from blip2rt_train import stage1, stage2
from blip2rt_train.loop.rounding import Rounding
from blip2rt_train.recipe import parse
from blip2rt_train.stage2 import Stage2, Stage2Settings
from tests.train.arguments import options

from ..tiny.training import NANO_STAGE2, llm_folder, tiny_settings


def rounded(weight: torch.Tensor) -> torch.Tensor:
    return dequantize_blockwise(quantize_blockwise(weight, 4, 16))


def rounded_model(parts: dict[str, nn.Module]) -> Any:
    model: Any = nn.ModuleDict(parts)
    model.config = Blip2Config(qformer_bits=4, qformer_block=16)
    return model


def test_step_updates_exact_weights_with_gradients_of_rounded_ones() -> None:
    torch.manual_seed(0)
    model = rounded_model(
        {"qformer": nn.Linear(40, 8), "vision": nn.Sequential(nn.Linear(40, 8)), "norm": nn.LayerNorm(8)}
    )
    layer = model["qformer"]
    exact, frozen, x = layer.weight.detach().clone(), model["vision"][0].weight.detach().clone(), torch.randn(3, 40)
    rounding = Rounding(model)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with rounding.active():
        assert torch.equal(layer.weight, rounded(exact)) and not torch.equal(layer.weight, exact)
        assert torch.equal(model["vision"][0].weight, frozen)
        model["norm"](layer(x)).square().sum().backward()
    assert torch.equal(layer.weight, exact)
    other = nn.Linear(40, 8)
    other.load_state_dict({"weight": rounded(exact), "bias": layer.bias})
    model["norm"](other(x)).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, other.weight.grad)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), exact - 0.1 * other.weight.grad)


def test_weights_on_a_grid_stay_there() -> None:
    for steps in (12, 13, 14, 15):  # between the least and the greatest code of a block
        codes = torch.randint(0, steps + 1, (50, 16))
        codes[:, :2] = torch.tensor([0, steps])
        weight = (codes - codes[:, 2:3]) * (0.1 + torch.rand(50, 1)).half().float()
        assert torch.equal(rounded(weight), weight), steps


@pytest.mark.long(6, "a whole training")
def test_stage2_trains_and_evaluates_with_rounded_weights(tmp_path: Path) -> None:
    llm_folder(tmp_path / "llm")
    arguments = [
        *tiny_settings(tmp_path),
        *NANO_STAGE2,
        *options(llm_source=tmp_path / "llm", end="<|end|>", dropout=0),
    ]
    arguments += ["--qformer_bits", "4", "--qformer_block", "16", "--out", str(tmp_path / "run")]
    assert stage2.main(arguments) == 0
    kept = load_file(list_checkpoints(tmp_path / "run")[-1] / "model.safetensors")
    name = "qformer.layers.0.attention.query.weight"
    assert not torch.equal(rounded(kept[name]), kept[name])
    loaded = Checkpoint(tmp_path / "run").load(vision=False)
    assert torch.equal(dict(loaded.named_parameters())[name], rounded(kept[name]))  # as an export reads it

    started = [*arguments, "--start", str(tmp_path / "run"), "--out", str(tmp_path / "again")]
    assert Stage2(parse(Stage2Settings, started, "")).model.config.qformer_bits == 4
    plain = Stage2(parse(Stage2Settings, [*started, "--qformer_bits", "0"], "")).model
    assert torch.equal(dict(plain.named_parameters())[name], rounded(kept[name])) and not plain.config.qformer_bits

    stage = Stage2(parse(Stage2Settings, arguments, ""))
    matrices = {id(weight) for weight in stage.trainer.rounding.weights}
    named = {key for key, value in stage.model.named_parameters() if id(value) in matrices}
    assert {name, "projection.weight"} <= named and not any(key.startswith(("llm.", "vision.")) for key in named)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--qformer_bits", "3"], "qformer_bits is 3: give 0, 4 or 8"),
        (["--qformer_bits", "4", "--shard", "all"], "whole"),
    ],
)
def test_unsupported_rounding_is_rejected(flags: list[str], words: str, tmp_path: Path, error_of: Any) -> None:
    arguments = [*tiny_settings(tmp_path), "--out", str(tmp_path / "run"), *flags]
    for more in ([], ["--dry-run"]):
        assert words in error_of(stage1.main, [*arguments, *more])
