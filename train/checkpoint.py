"""Checkpoints of a training in progress: model, optimizer, scaler and step; whole or not there at all.

Every draw follows from the seed and the step, so that the step is all there is to know of random states and of the
position in the data. Knows files, nothing about losses.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.checkpoints import list_checkpoints, load_weights, save_model

OPTIMIZER, STATE = "optimizer.safetensors", "trainer.json"


def save(
    out: Path,
    step: int,
    model: Blip2,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    settings: Any,
    keep: int,
) -> None:
    """Write step-NNNNNN under a temporary name, then give it its own; older ones than the last `keep` go afterwards.

    Raises Blip2rtError where it cannot be written, as on a full disk; earlier checkpoints are untouched then.
    """
    final = out / f"step-{step:06d}"
    partial = out / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        save_model(model, partial)
        save_file(_optimizer_state(model, optimizer), partial / OPTIMIZER)
        state = {"step": step, "scaler": scaler.state_dict(), "settings": vars(settings)}
        (partial / STATE).write_text(json.dumps(state))
        _sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise Blip2rtError(
            f"checkpoint {final} cannot be written: {error}; earlier checkpoints are whole; free some space and "
            "give the same command again"
        ) from error
    for old in list_checkpoints(out)[:-keep]:
        shutil.rmtree(old)


def _sync(folder: Path) -> None:
    """Bring the files to the disk before the folder gets its name, so that no crash leaves an empty one."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        with contextlib.closing(os.fdopen(descriptor)):
            os.fsync(descriptor)


def resume(out: Path, model: Blip2, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> int:
    """Load the newest checkpoint in `out`, if any; returns the step to go on from."""
    found = list_checkpoints(out)
    if not found:
        return 0
    load_weights(model, found[-1])
    try:
        state = load_file(found[-1] / OPTIMIZER)
        kept = json.loads((found[-1] / STATE).read_text())
    except (OSError, SafetensorError, ValueError) as error:
        raise Blip2rtError(
            f"checkpoint {found[-1]} is damaged ({error}); remove it to go on from the one before"
        ) from error
    for parameter, name in _names(model).items():
        values = {key: state[f"{name}|{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}|{key}" in state}
        if not values:
            raise Blip2rtError(f"checkpoint {found[-1]} has no optimizer state of {name}; give another folder as out")
        # AdamW keeps the step on the host
        optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in values.items()}
    if kept.get("scaler"):
        scaler.load_state_dict(kept["scaler"])
    return int(kept["step"])


def _names(model: nn.Module) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names = _names(model)
    return {
        f"{names[cast(nn.Parameter, parameter)]}|{key}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
