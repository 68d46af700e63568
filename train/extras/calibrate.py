"""How much a model's words weigh: `blip2rt-train calibrate MODEL --data dev.tsv --images FOLDER --out OUT`.

`Match.score` is itm_weight * log(p / (1 - p)) + cosine / temperature + likelihood_weight * likelihood. With an
itm_weight of 1 it ranks worse than the cosine alone where the matching head is surer of new images than it is right. So
the weights become those under which the images that texts were written of are likeliest among those that the contrast
puts first (paper section 4.4; Guo et al. 2017 of classifiers). A checkpoint of stage 1 gets its itm_weight. A bundle
that also generates gets both, by the texts of images too, and the mean_prefix, which stands for no image. Probability
and cosine stay as they are. Knows what a retrieval asks, the config and the manifest.
"""

from __future__ import annotations

from ..cli import run_command, run_main

if __name__ == "__main__":  # by its name, so that a package that is missing below is one line
    raise SystemExit(run_command("calibrate"))


import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from blip2rt import backends
from blip2rt import bundle as contract
from blip2rt.bundle.writer import BundleWriter
from blip2rt.command_line import Parser, nonempty, path, whole
from blip2rt.errors import Blip2rtError, OptionError
from blip2rt.model import Model
from blip2rt.modeling.checkpoints import CONFIG, WEIGHTS, locate, read_config
from blip2rt.pipeline import BATCH
from blip2rt.results import MatchWeights

from ..data.samples import BadSamples
from ..evaluation.annotations import CaptionedImage, read_captions, with_images
from ..evaluation.predictors import Predictor, open_predictor
from ..evaluation.retrieval import Candidates, candidates

MEAN_PREFIX = "mean_prefix.data"
_LEAST = 50  # texts, for a few numbers
_LIGHTEST = 0.01  # below, a part decides nothing
_FACTORS = (1.0, 1.5, 2.0, 2.5, 3.0)  # of the likelihood's weight


@dataclass(frozen=True)
class Choice:
    """What weights are learned from."""

    items: Sequence[CaptionedImage]  # images, of which the first text of each counts
    asking: int  # so many of them ask, among all
    best: int  # images by cosine that a text chooses from


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


def weigh(found: Candidates, own: np.ndarray, temperature: float) -> MatchWeights:
    """The weights under which the candidates at the places `own` are likeliest.

    A few texts that are unlikely whatever the image hold the likelihood's weight down. So of its multiples that one is
    taken under which most of the right ones come first.
    """
    log_odds = found.itm_logits[..., 1] - found.itm_logits[..., 0]
    parts = [found.cosine, log_odds] + ([] if found.likelihood is None else [found.likelihood])
    cosine, *others = fit(parts, own)
    weights = [each / cosine / temperature for each in others]
    fitted = MatchWeights(temperature, *(weight if weight >= _LIGHTEST else 0.0 for weight in weights))
    tried = [replace(fitted, likelihood=factor * fitted.likelihood) for factor in _FACTORS]

    def right(weights: MatchWeights) -> int:
        return int((weights.scores(found.itm_logits, found.cosine, found.likelihood).argmax(1) == own).sum())

    return max(tried, key=right)


def calibrate(
    model: str, data: Path, images: Path, out: Path, best: int, limit: int | None, split: str | None = None
) -> str:
    """Write the checkpoint or the bundle with other weights. Return what they change. Raise Blip2rtError.

    split: of a file that has several; None: "val", for what is learned from "test" cannot be measured there.
    """
    is_bundle = (Path(model) / contract.MANIFEST).is_file()
    if is_bundle:
        _check_bundle(model, out)
    elif not (locate(model) / WEIGHTS).is_file() or read_config(model).stage != 1:
        raise OptionError(f"{model} is no stage 1 of this project: give the folder of a checkpoint that matches")
    if best < 2:
        raise OptionError(f"best is {best}: give 2 or more images to choose from")
    items = with_images(data, read_captions(data, images, split, default="val"), BadSamples(0))
    choice = Choice(items, len(items[:limit]), min(best, len(items)))
    said = _calibrate_bundle(model, out, choice) if is_bundle else _calibrate_checkpoint(model, out, choice)
    return f"{said}: {out}"


def _calibrate_checkpoint(ckpt: str, out: Path, choice: Choice) -> str:
    weights, said = _learn(ckpt, open_predictor(ckpt), choice, False)
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(locate(ckpt) / WEIGHTS, out / WEIGHTS)
    (out / CONFIG).write_text(json.dumps(replace(read_config(ckpt), itm_weight=weights.itm).to_json(), indent=2))
    return said


def _check_bundle(path: str, out: Path) -> None:
    if contract.read(path).manifest.retrieval is None:
        raise OptionError(f"the bundle {path} does not match images and texts: give one that has a stage 1")
    if (out / contract.MANIFEST).exists():
        raise OptionError(f"{out} exists already: name another folder")


def _calibrate_bundle(path: str, out: Path, choice: Choice) -> str:
    """Write the bundle once more, with other weights in its manifest and its mean_prefix beside it."""
    bundle = contract.read(path)
    manifest, retrieval = bundle.manifest, bundle.manifest.retrieval
    assert retrieval is not None and manifest.files is not None
    with BundleWriter(out) as writer:
        for name in manifest.files:
            (writer.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, writer.folder / name)
        if manifest.llm is not None:
            mean = _mean_prefix(Model(bundle, backends.create("ort", bundle)), choice.items[: choice.asking])
            mean.tofile(writer.folder / MEAN_PREFIX)
            retrieval = replace(retrieval, mean_prefix=MEAN_PREFIX)
        copy = replace(bundle, path=writer.folder, manifest=replace(manifest, retrieval=retrieval))
        weights, said = _learn(path, Model(copy, backends.create("ort", copy)), choice, manifest.llm is not None)
        retrieval = replace(retrieval, itm_weight=weights.itm, likelihood_weight=weights.likelihood)
        writer.finish(replace(manifest, retrieval=retrieval))
    return said


def _mean_prefix(model: Model, items: Sequence[CaptionedImage]) -> np.ndarray:
    """The mean prefix_embeds (Q, D) of images, float32."""
    paths = [item.path for item in items]
    chunks = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    sums = [model.caption_prefix(model.vision_features(chunk)).sum(0, np.float64) for chunk in chunks]
    return (sum(sums) / len(paths)).astype("<f4")


def _learn(model: str, predictor: Predictor, choice: Choice, likely: bool) -> tuple[MatchWeights, str]:
    """New weights, and what they change. Raise Blip2rtError where there is too little to learn from."""
    found = candidates(predictor, choice.items, choice.best, choice.asking, likely)
    this_process = found.found == found.own[:, None]
    inside = this_process.any(1)
    if inside.sum() < _LEAST:
        raise Blip2rtError(
            f"{inside.sum()} texts have their image among the best {choice.best}; {_LEAST} or more are needed"
        )
    found, own = found.of(inside), this_process[inside].argmax(1)
    old = predictor.match_weights
    new = weigh(found, own, old.temperature)
    if not new.itm and not new.likelihood:
        raise Blip2rtError(f"{model} says nothing that its cosine does not: rank by Match.cosine")

    def first(weights: MatchWeights, way: str) -> str:
        scores = weights.scores(found.itm_logits, found.cosine, found.likelihood)
        right = (scores.argmax(1) == own)[found.way == way]
        return f"{100 * float(right.mean()):.1f} %"

    lines = []
    for way, asks, finds in (("t2i", "texts have their image", "images"), ("i2t", "images have their text", "texts")):
        rows = found.way == way
        if rows.any():
            lines.append(
                f"{rows.sum()} of {choice.asking} {asks} among the best {choice.best} {finds}; of these it is first "
                f"for {first(MatchWeights(old.temperature, 0), way)} by the cosine, {first(old, way)} by the score "
                f"so far, {first(new, way)} by the new score"
            )
    changes = f"itm_weight {old.itm:.3g} -> {new.itm:.3g}"
    if likely:
        changes += f", likelihood_weight {old.likelihood:.3g} -> {new.likelihood:.3g}"
    return new, "\n".join([*lines, changes])


def _parser() -> Parser:
    parser = Parser(description="Find the weights with which Match.score ranks new images best.",
                    renamed={"--checkpoint": "", "--ckpt": "", "--model": ""})  # fmt: skip
    parser.add_argument("model", type=nonempty, metavar="MODEL",
                        help="checkpoint of stage 1, the folder of a training (its newest), or a bundle")  # fmt: skip
    parser.add_argument("--data", type=path, required=True, metavar="FILE",
                        help="captions of images that it was not trained on")  # fmt: skip
    parser.add_argument("--images", type=path, required=True, metavar="FOLDER", help="folder of these images")
    parser.add_argument("--split", type=nonempty, help="split of Karpathy's files (default: val)")
    parser.add_argument("--out", type=path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--best", type=int, default=32, metavar="N", help="images by cosine that a text chooses from")
    parser.add_argument(
        "--limit", type=whole(1), metavar="N", help="ask of the first N images, among all (default: all)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    def work() -> None:
        args = _parser().parse_args(argv)
        print(calibrate(args.model, args.data, args.images, args.out, args.best, args.limit, args.split))

    return run_main(work)
