"""How much a stage 1's two words weigh: `blip2rt-train calibrate CKPT --data dev.tsv --images FOLDER --out OUT`.

`Match.score` is itm_weight * log(p / (1 - p)) + cosine / temperature. With a weight of 1 it ranks worse than the cosine
alone where the matching head is surer of new images than it is right. So the weight becomes the one under which the
images that texts were written of are likeliest among those that the contrast puts first (paper section 4.4; Guo et al.
2017 of classifiers). Probability and cosine stay as they are. Knows what a retrieval asks, and the config.
"""

from __future__ import annotations

from ..cli import run_command, run_main

if __name__ == "__main__":  # by its name, so that a package that is missing below is one line
    raise SystemExit(run_command("calibrate"))


import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from blip2rt.command import Parser, nonempty, path, whole
from blip2rt.errors import Blip2rtError, OptionError, boundary
from blip2rt.modeling.checkpoints import CONFIG, WEIGHTS, locate, read_config
from blip2rt.pipeline import match_scores

from ..data.samples import Bad
from ..evaluation.annotations import read_captions, with_images
from ..evaluation.predictors import open_predictor
from ..evaluation.retrieval import candidates

_LEAST = 50  # texts, for two numbers
_LIGHTEST = 0.01  # below, the matching head decides nothing


def fit(cosine: np.ndarray, log_odds: np.ndarray, own: np.ndarray) -> tuple[float, float]:
    """(a, b), above 0, under which the softmax of a * cosine + b * log_odds, (texts, K) each, gives most to the right
    one of K images, whose place is own (texts)."""
    values = torch.from_numpy(np.stack([cosine, log_odds], -1)).double()
    logs = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logs], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        unlikely = F.cross_entropy(values @ logs.exp(), torch.from_numpy(own))
        unlikely.backward()
        return unlikely

    optimizer.step(loss)
    a, b = logs.exp().tolist()
    return a, b


def calibrate(ckpt: str, data: Path, images: Path, out: Path, best: int, limit: int | None) -> str:
    """Write the checkpoint with another itm_weight. Return what it changes. Raise Blip2rtError."""
    folder = locate(ckpt)
    if not (folder / WEIGHTS).is_file() or read_config(ckpt).stage != 1:
        raise OptionError(f"{ckpt} is no stage 1 of this project: give the folder of a checkpoint that matches")
    if best < 2:
        raise OptionError(f"best is {best}: give 2 or more images to choose from")
    items = with_images(data, read_captions(data, images)[:limit], Bad(0))
    found = candidates(open_predictor(ckpt), items, min(best, len(items)))
    here = found.images == found.own[:, None]
    inside = here.any(1)
    if inside.sum() < _LEAST:
        raise Blip2rtError(
            f"{data}: {inside.sum()} texts have their image among the best {best}; {_LEAST} or more are needed"
        )
    cosine, itm_logits, own = found.cosine[inside], found.itm_logits[inside], here[inside].argmax(1)
    log_odds = itm_logits[..., 1] - itm_logits[..., 0]
    a, b = fit(cosine, log_odds, own)
    config = read_config(ckpt)
    with boundary(f"{folder / WEIGHTS} holds no temperature, name a whole checkpoint"):
        [temperature] = load_file(folder / WEIGHTS)["temperature"].reshape(1).tolist()
    weight = b / a / temperature
    if weight < _LIGHTEST:
        raise Blip2rtError(f"the matching head of {ckpt} says nothing that the cosine does not: rank by Match.cosine")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / WEIGHTS, out / WEIGHTS)
    (out / CONFIG).write_text(json.dumps(replace(config, itm_weight=weight).to_json(), indent=2))

    def first(itm_weight: float) -> str:
        scores = match_scores(itm_logits, cosine, itm_weight, temperature)
        return f"{100 * float((scores.argmax(1) == own).mean()):.1f} %"

    return (
        f"{len(own)} of {len(inside)} texts have their image among the best {best}; of these it is first for "
        f"{first(0)} by the cosine, {first(config.itm_weight)} by the score so far, {first(weight)} by the new score\n"
        f"itm_weight {config.itm_weight:.3g} -> {weight:.3g}: {out}"
    )


def _parser() -> Parser:
    parser = Parser(description="Find the itm_weight with which Match.score ranks new images best.",
                    renamed={"--checkpoint": "", "--ckpt": ""})  # fmt: skip
    parser.add_argument("ckpt", type=nonempty, metavar="CKPT",
                        help="checkpoint of stage 1, or the folder of a training (its newest)")  # fmt: skip
    parser.add_argument("--data", type=path, required=True, metavar="FILE",
                        help="captions of images that it was not trained on")  # fmt: skip
    parser.add_argument("--images", type=path, required=True, metavar="FOLDER", help="folder of these images")
    parser.add_argument("--out", type=path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--best", type=int, default=32, metavar="N", help="images by cosine that a text chooses from")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="use the first N images (default: all)")
    return parser


def main(argv: list[str] | None = None) -> int:
    def work() -> None:
        args = _parser().parse_args(argv)
        print(calibrate(args.ckpt, args.data, args.images, args.out, args.best, args.limit))

    return run_main(work)
