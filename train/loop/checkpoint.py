"""Checkpoints of a training in progress: model, optimizer, gradient scaler and step, written atomically.

All randomness follows from the seed and the step, so the step also restores random states and the data position.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from blip2rt.bundle.atomic import AtomicFolder, clean, discard
from blip2rt.errors import Blip2rtError, boundary
from blip2rt.modeling.blip2 import TrainableModel
from blip2rt.modeling.checkpoint import list_checkpoints, load_weights, save_model
from blip2rt.modeling.sources import read_json

from .parallel import match_sharding, this_process
from .run_folder import STATE

OPTIMIZER = "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save(
    out: Path,
    step: int,
    model: TrainableModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    record: Mapping[str, Any],
    keep: int,
    run: str = "",
) -> None:
    """Write step-NNNNNN under a temporary name, rename it, then remove all but the last `keep` checkpoints.

    Every process calls this; the main one writes unsharded tensors. record: all settings; run: the training's id.

    Raise Blip2rtError if writing fails, as on a full disk; earlier checkpoints stay untouched.
    """
    trained = this_process().gather_full(model.trained_state())
    moments = _optimizer_state(model, optimizer)
    if not this_process().main:
        return
    final = checkpoint_folder(out, step)
    try:
        with AtomicFolder(final) as whole:
            save_model(model, whole.folder, trained)
            save_file(moments, whole.folder / OPTIMIZER)
            state = {"step": step, "scaler": scaler.state_dict(), "settings": dict(record), "run": run}
            (whole.folder / STATE).write_text(json.dumps(state))
            whole.finish()
    except (OSError, SafetensorError) as error:
        raise Blip2rtError(
            f"checkpoint {final} cannot be written, earlier ones are whole ({error}): free some space and "
            "give the same command again"
        ) from error
    for old in list_checkpoints(out)[:-keep]:
        discard(old)
    for left in out.glob(".step-*.partial"):  # of a run that was killed while writing or removing
        clean(out / left.name.split(".")[1])


def checkpoint_folder(out: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return out / f"step-{step:06d}"


def resume_weights(out: Path, model: TrainableModel) -> None:
    """Load the weights of the newest checkpoint in `out`, if any, into a model that is not yet sharded."""
    for newest in list_checkpoints(out)[-1:]:
        load_weights(model, newest)


def resume(out: Path, model: TrainableModel, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> int:
    """Load everything but the weights from the newest checkpoint in `out`, if any. Return the step to resume at."""
    found = list_checkpoints(out)
    if not found:
        return 0
    with boundary(f"checkpoint {found[-1]} is damaged, remove it to resume from the previous one"):
        state = load_file(found[-1] / OPTIMIZER)
        saved = read_json(found[-1] / STATE)
        for parameter, name in _names(model).items():
            if f"{name}|step" not in state:
                raise Blip2rtError(
                    f"checkpoint {found[-1]} has no optimizer state of {name}: give another folder as out"
                )
            moments = {key: match_sharding(parameter, state[f"{name}|{key}"]) for key in MOMENTS}
            optimizer.state[parameter] = {"step": state[f"{name}|step"].to(parameter.device)} | moments
        if saved.get("scaler"):
            scaler.load_state_dict(saved["scaler"])
        return int(saved["step"])


def _names(model: nn.Module) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names = _names(model)
    found: dict[str, torch.Tensor] = {}
    for key in ("step", *MOMENTS):
        values = {names[cast(nn.Parameter, p)]: state[key] for p, state in optimizer.state.items() if key in state}
        found |= {f"{name}|{key}": value.contiguous() for name, value in this_process().gather_full(values).items()}
    return found
