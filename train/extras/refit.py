"""Adapt a checkpoint to another image encoder: `python -m train.extras.refit CKPT --vision-weights ENCODER ...`.

A ridge regression over the positions of some images maps the new encoder's features (normalized, as the Q-Former reads
them) to the old ones. The map is linear, so it is merged into the matrices of keys and values, which then stay close to
what they were. A training from there starts with captions instead of noise.
"""

from __future__ import annotations

from ..cli import run_command, run_main

if __name__ == "__main__":  # before the imports, so that a missing package is reported in one line
    raise SystemExit(run_command("refit"))


import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.checkpoint import Checkpoint, save_model

from ..data.features import cached_features, drop_unreadable
from ..data.readers import read_data
from ..data.samples import BadSamples
from ..warm_start import changed_vision
from .arguments import refit_parser

_BATCH = 50


def normalize(features: np.ndarray) -> torch.Tensor:
    """Normalize (b, N, C) like a LayerNorm without weights."""
    values = torch.from_numpy(np.array(features, np.float32))
    return F.layer_norm(values, values.shape[-1:])


def resample_grid(values: torch.Tensor, positions: int) -> torch.Tensor:
    """Resample (b, N, C) to another square grid, (b, positions, C); a finer grid is averaged over the area of each
    position.

    Positions before the old grid, such as [CLS], are dropped; those before the new one are the mean of the grid.
    """
    if values.shape[1] == positions:
        return values
    own, side = math.isqrt(values.shape[1]), math.isqrt(positions)
    grid = values[:, values.shape[1] - own**2 :].transpose(1, 2).unflatten(2, (own, own))
    found = F.adaptive_avg_pool2d(grid, side) if side < own else F.interpolate(grid, (side, side), mode="bilinear")
    cells = found.flatten(2).transpose(1, 2)
    return torch.cat((cells.mean(1, keepdim=True).expand(-1, positions - side**2, -1), cells), 1)


def moments(new: np.ndarray, old: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return X'X and X'Y of [features, 1], on the old grid."""
    gram = cross = torch.zeros(())
    for start in range(0, len(new), _BATCH):
        y = normalize(old[start : start + _BATCH])
        x = resample_grid(normalize(new[start : start + _BATCH]), y.shape[1])
        x = F.pad(x.flatten(0, 1), (0, 1), value=1.0)
        gram, cross = gram + x.T @ x, cross + x.T @ y.flatten(0, 1)
    return gram.double(), cross.double()


@torch.no_grad()
def refit(model: Blip2, new: np.ndarray, old: np.ndarray, ridge: float) -> float:
    """Change vision_norm, vision_positions, keys and values to fit the new features, also if their shape differs.

    Return the share of the old features' variance that the new ones explain on the last tenth of the images, which the
    regression does not see.
    """
    seen = len(new) - len(new) // 10
    gram, cross = moments(new[:seen], old[:seen])
    width = gram.shape[0] - 1
    penalty = ridge * gram[-1, -1] * torch.eye(width + 1, dtype=torch.float64)
    penalty[-1, -1] = 0
    solution = torch.linalg.solve(gram + penalty, cross).float()
    linear, constant = solution[:-1].T, solution[-1]  # old = linear @ new + constant
    y = normalize(old[seen:])
    x = resample_grid(normalize(new[seen:]), y.shape[1])
    explained = 1 - float((x @ linear.T + constant - y).square().mean() / y.flatten(0, 1).var(0).mean())

    gain, shift = model.vision_norm.weight, model.vision_norm.bias
    layers: Any = model.qformer.layers
    attentions = [layer.cross_attention for layer in layers if layer.cross_attention is not None]
    products = [product for attention in attentions for product in (attention.key, attention.value)]
    before = torch.cat([product.weight for product in products])
    target = resample_grid((model.vision_positions @ before.T), new.shape[1])[
        0
    ]  # contribution of positions to keys and values
    for product in products:
        product.bias += product.weight @ (gain * constant + shift)
        product.weight = nn.Parameter(product.weight @ (gain[:, None] * linear))
    model.vision_norm = nn.LayerNorm(width, eps=model.vision_norm.eps)
    after = torch.cat([product.weight for product in products])
    small = 1e-4 * after.square().sum() / width * torch.eye(width)
    positions = torch.linalg.solve(after.T @ after + small, after.T @ target.T).T
    model.vision_positions = nn.Parameter(positions[None])
    return explained


def _write(args: argparse.Namespace) -> None:
    model = Checkpoint(Path(args.ckpt)).load(vision=False, llm=False)
    paths = drop_unreadable(read_data(args.data, args.images or ""), BadSamples(0)).paths
    fields = ("vision_source", "vision_weights", "vision_size", "vision_mean", "vision_std")
    changes = {name: getattr(args, name) for name in fields if getattr(args, name) is not None}
    vision = changed_vision(model.config, changes)
    [old], [new] = (cached_features(paths, config, args.features) for config in (model.config.vision, vision))
    explained = refit(model, new[: args.count], old[: args.count], args.ridge)
    print(f"the new features explain {explained:.3f} of the old features' variance")
    qformer = dataclasses.replace(model.config.qformer, vision_width=vision.features)
    model.config = dataclasses.replace(model.config, vision=vision, qformer=qformer)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    save_model(model, Path(args.out))


def main(argv: list[str] | None = None) -> int:
    return run_main(lambda: _write(refit_parser().parse_args(argv)))
