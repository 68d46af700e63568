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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from blip2rt.command import Parser, nonempty, whole
from blip2rt.modeling import checkpoints
from blip2rt.modeling.blip2 import Blip2

from ..data.features import cached_features, readable
from ..data.readers import read_data
from ..data.samples import Bad

_BATCH = 50


def normalised(features: np.ndarray) -> torch.Tensor:
    """(b, N, C) -> (b * N, C), as a LayerNorm without weights has them."""
    values = torch.from_numpy(np.array(features, np.float32)).flatten(0, 1)
    return F.layer_norm(values, values.shape[-1:])


def moments(new: np.ndarray, old: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """X'X and X'Y of [features, 1]."""
    gram = cross = torch.zeros(())
    for start in range(0, len(new), _BATCH):
        x = F.pad(normalised(new[start : start + _BATCH]), (0, 1), value=1.0)
        gram, cross = gram + x.T @ x, cross + x.T @ normalised(old[start : start + _BATCH])
    return gram.double(), cross.double()


@torch.no_grad()
def refit(model: Blip2, new: np.ndarray, old: np.ndarray, ridge: float) -> float:
    """Change vision_norm, vision_positions, keys and values.

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
    x, y = normalised(new[seen:]), normalised(old[seen:])
    told = 1 - float((x @ linear.T + constant - y).square().mean() / y.var(0).mean())

    gain, shift = model.vision_norm.weight.clone(), model.vision_norm.bias.clone()
    layers: Any = model.qformer.layers
    products = [product for layer in layers if layer.cross_attention is not None
                for product in (layer.cross_attention.key, layer.cross_attention.value)]  # fmt: skip
    before = torch.cat([product.weight for product in products])
    wanted = model.vision_positions[0] @ before.T  # what a position adds to keys and values
    for product in products:
        product.bias += product.weight @ (gain * constant + shift)
        product.weight.copy_(product.weight @ (gain[:, None] * linear))
    model.vision_norm.weight.fill_(1.0)
    model.vision_norm.bias.zero_()
    after = torch.cat([product.weight for product in products])
    small = 1e-4 * after.square().sum() / width * torch.eye(width)
    model.vision_positions[0] = torch.linalg.solve(after.T @ after + small, after.T @ wanted.T).T
    return told


def _write(args: argparse.Namespace) -> None:
    model = checkpoints.load_model(Path(args.ckpt), vision=False, llm=False)
    paths = readable(read_data(args.data, args.images), Bad(0)).paths
    vision = dataclasses.replace(model.config.vision, weights=args.vision_weights)
    [old], [new] = (cached_features(paths, config, args.features) for config in (model.config.vision, vision))
    told = refit(model, new[: args.count], old[: args.count], args.ridge)
    print(f"{told:.3f} of the old features' variance is told by the new ones")
    model.config = dataclasses.replace(model.config, vision=vision)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    checkpoints.save_model(model, Path(args.out))


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0], renamed={"--checkpoint": "", "--ckpt": ""})
    parser.add_argument("ckpt", type=nonempty, metavar="CKPT",
                        help="checkpoint of stage 1 or 2, or the folder of a training (its newest)")  # fmt: skip
    parser.add_argument("--vision-weights", type=nonempty, required=True, metavar="FILE",
                        help="weights of the new encoder, of the same kind as the old")  # fmt: skip
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
