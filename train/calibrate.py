"""How much a stage 1's two words weigh: `python -m train.calibrate CKPT --data dev.tsv --images FOLDER --out OUT`.

`Match.score` is log(p / (1 - p)) + cosine / temperature. With the temperature that the contrast was trained with it
ranks worse than the cosine alone where the matching head is surer of new images than it is right. So the temperature
becomes the one under which the images that texts were written of are likeliest among those that the contrast puts first
(paper section 4.4; Guo et al. 2017 of classifiers). Probability and cosine stay as they are. Knows what
evaluate_retrieval asks, and the tensor that it changes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from blip2rt.errors import Blip2rtError, OptionError
from blip2rt.modeling.checkpoints import CONFIG, WEIGHTS, locate, read_config

from .annotations import read_captions, require_images
from .cli import run_main
from .evaluate_retrieval import candidates
from .predictors import open_predictor

_LEAST = 50  # texts, for two numbers
_COLDEST = 1e-3  # below, the matching head decides nothing


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
    """Writes the checkpoint with another temperature; says what it changes. Raises Blip2rtError."""
    folder = locate(ckpt)
    if not (folder / WEIGHTS).is_file() or read_config(ckpt).stage != 1:
        raise OptionError(f"{ckpt} is no stage 1 of this project: give the folder of a checkpoint that matches")
    if best < 2:
        raise OptionError(f"best is {best}: give 2 or more images to choose from")
    items = read_captions(data, images)[:limit]
    require_images(data, (item.path for item in items))
    found = candidates(open_predictor(ckpt), items, min(best, len(items)))
    here = found.images == found.own[:, None]
    inside = here.any(1)
    if inside.sum() < _LEAST:
        raise Blip2rtError(
            f"{data}: {inside.sum()} texts have their image among the best {best}; {_LEAST} or more are needed"
        )
    cosine, log_odds, own = found.cosine[inside], found.log_odds[inside], here[inside].argmax(1)
    a, b = fit(cosine, log_odds, own)
    temperature = b / a
    if temperature < _COLDEST:
        raise Blip2rtError(f"the matching head of {ckpt} says nothing that the cosine does not: rank by Match.cosine")
    state = load_file(folder / WEIGHTS)
    before = float(state["temperature"])
    state["temperature"].fill_(temperature)
    out.mkdir(parents=True, exist_ok=True)
    save_file(state, out / WEIGHTS)
    (out / CONFIG).write_bytes((folder / CONFIG).read_bytes())

    def first(scores: np.ndarray) -> str:
        return f"{100 * float((scores.argmax(1) == own).mean()):.1f}"

    scores = [first(cosine), *(first(cosine / t + log_odds) for t in (before, temperature))]
    return (
        f"{len(own)} of {len(inside)} texts have their image among the best {best}; of these it is first for "
        f"{scores[0]} % by the cosine, {scores[1]} % by the score so far, {scores[2]} % by the new score\n"
        f"temperature {before:.4f} -> {temperature:.4f}: {out}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The temperature with which Match.score ranks new images best.")
    parser.add_argument("ckpt", help="checkpoint of stage 1, or the folder of a training (its newest)")
    parser.add_argument("--data", type=Path, required=True, help="captions of images that it was not trained on")
    parser.add_argument("--images", type=Path, required=True, help="their folder")
    parser.add_argument("--best", type=int, default=32, help="images by cosine that a text chooses from [32]")
    parser.add_argument("--limit", type=int, help="use so many images [all]")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    return run_main(lambda: print(calibrate(args.ckpt, args.data, args.images, args.out, args.best, args.limit)))


if __name__ == "__main__":
    raise SystemExit(main())
