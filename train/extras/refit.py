"""A checkpoint reads another image encoder: `python -m train.extras.refit CKPT --vision-weights ENCODER ...`.

Keys and values of the image are led to what they were. A ridge regression, over the positions of some images, maps the
new encoder's features (normalised, as the Q-Former reads them) to the old one's. The map is linear, so it goes into the
matrices of keys and values, and nothing of the model changes but its numbers. A training that goes on from there begins
with captions instead of noise. Knows features and the Q-Former's first products.
"""

from __future__ import annotations

from ..cli import run_command, run_main

if __name__ == "__main__":  # by its name, so that a package that is missing below is one line
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

from blip2rt.command_line import Parser, nonempty, whole
from blip2rt.modeling import checkpoints
from blip2rt.modeling.blip2 import Blip2

from ..data.features import cached_features, drop_unreadable
from ..data.readers import read_data
from ..data.samples import BadSamples
from ..model import changed_vision

_BATCH = 50


def normalised(features: np.ndarray) -> torch.Tensor:
    """(b, N, C), as a LayerNorm without weights has them."""
    values = torch.from_numpy(np.array(features, np.float32))
    return F.layer_norm(values, values.shape[-1:])


def regridded(values: torch.Tensor, positions: int) -> torch.Tensor:
    """(b, N, C) -> (b, positions, C) on another square grid. A finer grid is averaged over the area of each position.

    What stands before the old grid, as [CLS], is left out; what stands before the new one is the mean of the grid.
    """
    if values.shape[1] == positions:
        return values
    own, side = math.isqrt(values.shape[1]), math.isqrt(positions)
    grid = values[:, values.shape[1] - own**2 :].transpose(1, 2).unflatten(2, (own, own))
    found = F.adaptive_avg_pool2d(grid, side) if side < own else F.interpolate(grid, (side, side), mode="bilinear")
    cells = found.flatten(2).transpose(1, 2)
    return torch.cat((cells.mean(1, keepdim=True).expand(-1, positions - side**2, -1), cells), 1)


def moments(new: np.ndarray, old: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """X'X and X'Y of [features, 1], on the old grid."""
    gram = cross = torch.zeros(())
    for start in range(0, len(new), _BATCH):
        y = normalised(old[start : start + _BATCH])
        x = regridded(normalised(new[start : start + _BATCH]), y.shape[1])
        x = F.pad(x.flatten(0, 1), (0, 1), value=1.0)
        gram, cross = gram + x.T @ x, cross + x.T @ y.flatten(0, 1)
    return gram.double(), cross.double()


@torch.no_grad()
def refit(model: Blip2, new: np.ndarray, old: np.ndarray, ridge: float) -> float:
    """Change vision_norm, vision_positions, keys and values, to the shape of the new features where it is another.

    Return the share of the old features' variance that the new ones tell, on the last tenth of the images, which the
    map has not seen.
    """
    seen = len(new) - len(new) // 10
    gram, cross = moments(new[:seen], old[:seen])
    width = gram.shape[0] - 1
    penalty = ridge * gram[-1, -1] * torch.eye(width + 1, dtype=torch.float64)
    penalty[-1, -1] = 0
    solution = torch.linalg.solve(gram + penalty, cross).float()
    linear, constant = solution[:-1].T, solution[-1]  # old = linear @ new + constant
    y = normalised(old[seen:])
    x = regridded(normalised(new[seen:]), y.shape[1])
    told = 1 - float((x @ linear.T + constant - y).square().mean() / y.flatten(0, 1).var(0).mean())

    gain, shift = model.vision_norm.weight, model.vision_norm.bias
    layers: Any = model.qformer.layers
    products = [product for layer in layers if layer.cross_attention is not None
                for product in (layer.cross_attention.key, layer.cross_attention.value)]  # fmt: skip
    before = torch.cat([product.weight for product in products])
    wanted = regridded((model.vision_positions @ before.T), new.shape[1])[0]  # what a position adds to keys and values
    for product in products:
        product.bias += product.weight @ (gain * constant + shift)
        product.weight = nn.Parameter(product.weight @ (gain[:, None] * linear))
    model.vision_norm = nn.LayerNorm(width, eps=model.vision_norm.eps)
    after = torch.cat([product.weight for product in products])
    small = 1e-4 * after.square().sum() / width * torch.eye(width)
    positions = torch.linalg.solve(after.T @ after + small, after.T @ wanted.T).T
    model.vision_positions = nn.Parameter(positions[None])
    return told


def _write(args: argparse.Namespace) -> None:
    model = checkpoints.load_model(Path(args.ckpt), vision=False, llm=False)
    paths = drop_unreadable(read_data(args.data, args.images), BadSamples(0)).paths
    asked = {name: value for name in ("vision_source", "vision_weights", "vision_size", "vision_mean", "vision_std")
             if (value := getattr(args, name)) is not None}  # fmt: skip
    vision = changed_vision(model.config, asked)
    [old], [new] = (cached_features(paths, config, args.features) for config in (model.config.vision, vision))
    told = refit(model, new[: args.count], old[: args.count], args.ridge)
    print(f"{told:.3f} of the old features' variance is told by the new ones")
    qformer = dataclasses.replace(model.config.qformer, vision_width=vision.features)
    model.config = dataclasses.replace(model.config, vision=vision, qformer=qformer)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    checkpoints.save_model(model, Path(args.out))


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0],
                    renamed={"--checkpoint": "", "--ckpt": "", "--model": ""})  # fmt: skip
    parser.add_argument("ckpt", type=nonempty, metavar="CKPT",
                        help="checkpoint of stage 1 or 2, or the folder of a training (its newest)")  # fmt: skip
    parser.add_argument("--vision-weights", metavar="FILE", help="weights of the new encoder; hf: has its own")
    parser.add_argument("--vision-source", type=nonempty, metavar="SOURCE",
                        help="timm:NAME or hf:PATH (default: of the same kind as the old)")  # fmt: skip
    parser.add_argument("--vision-size", type=whole(1), metavar="N", help="its image size (default: as the old)")
    for name in ("mean", "std"):
        parser.add_argument(f"--vision-{name}", type=float, nargs=3, metavar="X",
                            help=f"its {name} of each colour (default: as the old)")  # fmt: skip
    parser.add_argument("--data", type=nonempty, required=True, metavar="FILE", help="table of images and captions")
    parser.add_argument("--images", type=nonempty, required=True, metavar="FOLDER", help="folder of its images")
    parser.add_argument("--count", type=whole(1), default=2000, metavar="N", help="images that the map is made of")
    parser.add_argument("--ridge", type=float, default=1e-3, metavar="X", help="weight of the map's own size")
    parser.add_argument("--features", type=nonempty, default="runs/features", metavar="FOLDER",
                        help="folder where trainings cache features")  # fmt: skip
    parser.add_argument("--out", type=nonempty, required=True, metavar="FOLDER", help="folder to write")
    return parser


def main(argv: list[str] | None = None) -> int:
    return run_main(lambda: _write(_parser().parse_args(argv)))
