"""How much a model's words weigh: `blip2rt-train calibrate MODEL --data dev.tsv --images FOLDER --out OUT`.

`Match.score` is itm_weight * log(p / (1 - p)) + cosine / temperature + likelihood_weight * likelihood. With an
itm_weight of 1 it ranks worse than the cosine alone where the matching head is surer of new images than it is right. So
the weights become those under which the images that texts were written of are likeliest among those that the contrast
puts first (paper section 4.4; Guo et al. 2017 of classifiers). A checkpoint of stage 1 gets its itm_weight; a bundle
that also generates gets both. Probability, cosine and likelihood stay as they are. Knows what a retrieval asks, the
config and the manifest.
"""

from __future__ import annotations

from ..cli import run_command, run_main

if __name__ == "__main__":  # by its name, so that a package that is missing below is one line
    raise SystemExit(run_command("calibrate"))


import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from blip2rt import bundle as contract
from blip2rt.bundle.writer import BundleWriter
from blip2rt.command import Parser, nonempty, path, whole
from blip2rt.errors import Blip2rtError, OptionError
from blip2rt.modeling.checkpoints import CONFIG, WEIGHTS, locate, read_config
from blip2rt.pipeline import Weights

from ..data.samples import Bad
from ..evaluation.annotations import read_captions, with_images
from ..evaluation.predictors import open_predictor
from ..evaluation.retrieval import Candidates, candidates

_LEAST = 50  # texts, for a few numbers
_LIGHTEST = 0.01  # below, a part decides nothing


def fit(parts: Sequence[np.ndarray], own: np.ndarray) -> list[float]:
    """A weight above 0 for each of the parts (texts, K), under which the softmax of their weighted sum gives most to
    the right one of K images, whose place is own (texts)."""
    values = torch.from_numpy(np.stack(parts, -1)).double()
    logs = torch.zeros(len(parts), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logs], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        unlikely = F.cross_entropy(values @ logs.exp(), torch.from_numpy(own))
        unlikely.backward()
        return unlikely

    optimizer.step(loss)
    weights: list[float] = logs.exp().tolist()
    return weights


def calibrate(model: str, data: Path, images: Path, out: Path, best: int, limit: int | None) -> str:
    """Write the checkpoint or the bundle with other weights. Return what they change. Raise Blip2rtError."""
    is_bundle = (Path(model) / contract.MANIFEST).is_file()
    likely = is_bundle and _check_bundle(model)
    if not is_bundle:
        _check_checkpoint(model)
    if best < 2:
        raise OptionError(f"best is {best}: give 2 or more images to choose from")
    items = with_images(data, read_captions(data, images)[:limit], Bad(0))
    predictor = open_predictor(model)
    found = candidates(predictor, items, min(best, len(items)), likely)
    here = found.images == found.own[:, None]
    inside = here.any(1)
    if inside.sum() < _LEAST:
        raise Blip2rtError(
            f"{data}: {inside.sum()} texts have their image among the best {best}; {_LEAST} or more are needed"
        )
    old, own = predictor.match_weights, here[inside].argmax(1)
    found = Candidates(*(None if part is None else part[inside] for part in vars(found).values()))
    new = weigh(found, own, old.temperature)
    if not new.itm and not new.likelihood:
        raise Blip2rtError(f"{model} says nothing that its cosine does not: rank by Match.cosine")
    (_write_bundle if is_bundle else _write_checkpoint)(model, out, new)

    def first(weights: Weights) -> str:
        scores = weights.scores(found.itm_logits, found.cosine, found.likelihood)
        return f"{100 * float((scores.argmax(1) == own).mean()):.1f} %"

    changes = f"itm_weight {old.itm:.3g} -> {new.itm:.3g}"
    if likely:
        changes += f", likelihood_weight {old.likelihood:.3g} -> {new.likelihood:.3g}"
    cosine = Weights(old.temperature, 0)
    return (
        f"{len(own)} of {len(inside)} texts have their image among the best {best}; of these it is first for "
        f"{first(cosine)} by the cosine, {first(old)} by the score so far, {first(new)} by the new score\n"
        f"{changes}: {out}"
    )


def weigh(found: Candidates, own: np.ndarray, temperature: float) -> Weights:
    """The weights under which the image that each text is of, at the place `own` of its candidates, is likeliest."""
    log_odds = found.itm_logits[..., 1] - found.itm_logits[..., 0]
    parts = [found.cosine, log_odds] + ([] if found.likelihood is None else [found.likelihood])
    cosine, *others = fit(parts, own)
    weights = [each / cosine / temperature for each in others]
    return Weights(temperature, *(weight if weight >= _LIGHTEST else 0.0 for weight in weights))


def _check_checkpoint(ckpt: str) -> None:
    if not (locate(ckpt) / WEIGHTS).is_file() or read_config(ckpt).stage != 1:
        raise OptionError(f"{ckpt} is no stage 1 of this project: give the folder of a checkpoint that matches")


def _check_bundle(path: str) -> bool:
    """Whether a bundle that matches also generates. Raises OptionError where it does not match."""
    bundle = contract.read(path)
    if bundle.manifest.retrieval is None:
        raise OptionError(f"the bundle {path} does not match images and texts: give one that has a stage 1")
    return bundle.manifest.llm is not None


def _write_checkpoint(ckpt: str, out: Path, weights: Weights) -> None:
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(locate(ckpt) / WEIGHTS, out / WEIGHTS)
    (out / CONFIG).write_text(json.dumps(replace(read_config(ckpt), itm_weight=weights.itm).to_json(), indent=2))


def _write_bundle(path: str, out: Path, weights: Weights) -> None:
    """The bundle once more, with other weights in its manifest."""
    bundle = contract.read(path)
    retrieval, files = bundle.manifest.retrieval, bundle.manifest.files
    assert retrieval is not None and files is not None
    retrieval = replace(retrieval, itm_weight=weights.itm, likelihood_weight=weights.likelihood)
    with BundleWriter(out) as writer:
        for name in files:
            (writer.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, writer.folder / name)
        writer.finish(replace(bundle.manifest, retrieval=retrieval))


def _parser() -> Parser:
    parser = Parser(description="Find the weights with which Match.score ranks new images best.",
                    renamed={"--checkpoint": "", "--ckpt": ""})  # fmt: skip
    parser.add_argument("model", type=nonempty, metavar="MODEL",
                        help="checkpoint of stage 1, the folder of a training (its newest), or a bundle")  # fmt: skip
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
        print(calibrate(args.model, args.data, args.images, args.out, args.best, args.limit))

    return run_main(work)
