"""Trainings of either stage in this process: what they learned, and an interruption with a resume."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from blip2rt.modeling.checkpoint import list_checkpoints
from blip2rt_train import stage1, stage2
from blip2rt_train.recipe import parse

from ..tiny.training import interrupt

STAGES = {"stage1": stage1, "stage2": stage2}


def build(stage: str, arguments: list[str]) -> Any:
    """Return the Stage1 or Stage2 of a command line, before its first step."""
    module, name = STAGES[stage], stage.capitalize()
    return getattr(module, name)(parse(getattr(module, f"{name}Settings"), arguments, ""))


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Load the trained tensors of a training's newest checkpoint."""
    return load_file(list_checkpoints(run)[-1] / "model.safetensors")


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def interrupt_and_resume(stage: str, arguments: list[str], out: Path) -> Any:
    """Interrupt a training after its checkpoint of step 3, resume it, and return the interrupted one."""
    run = build(stage, [*arguments, "--out", str(out)])
    interrupt(run)
    assert STAGES[stage].main([*arguments, "--out", str(out)]) == 0
    return run
