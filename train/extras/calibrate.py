"""Fit the weights of Match.score, and probabilities: `blip2rt-train calibrate MODEL --data dev.tsv --images FOLDER
--out OUT`.

`Match.score` is itm_weight * log(p / (1 - p)) + cosine / temperature + likelihood_weight * likelihood. If the matching
head is overconfident on new images, an itm_weight of 1 ranks worse than the cosine alone. The weights become those
under which the right images are most likely among the contrast's best candidates (paper section 4.4; Guo et al. 2017
for classifiers). A stage-1 checkpoint gets its itm_weight. A bundle that also generates gets both, fitted on images'
texts too, and the mean_prefix, which shows no image. If the data also asks whether things are there, a bundle gets
calibrated probabilities, too (probabilities.py).
"""

from ..cli import run_command, run_main

if __name__ == "__main__":  # before the imports, so that a missing package is reported in one line
    raise SystemExit(run_command("calibrate"))


import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from blip2rt.bundle import MANIFEST, read
from blip2rt.bundle.writer import BundleWriter
from blip2rt.errors import Blip2rtError, OptionError
from blip2rt.modeling.checkpoint import CONFIG, WEIGHTS, Checkpoint
from blip2rt.native import native
from blip2rt.pipeline import BATCH
from blip2rt.results import MatchWeights

from ..data.samples import BadSamples
from ..evaluation.annotations import CaptionedImage, VqaQuestion, drop_unreadable_images, read_captions, read_questions
from ..evaluation.predictors import BundlePredictor, Predictor, open_predictor
from ..evaluation.retrieval import Candidates, candidates
from .arguments import calibrate_parser
from .probabilities import Fitting

MEAN_PREFIX = "mean_prefix.data"
_MIN_TEXTS = 50
_MIN_WEIGHT = 0.01  # a smaller one changes nothing
_FACTORS = (1.0, 1.5, 2.0, 2.5, 3.0)  # of the likelihood's weight


@dataclass(frozen=True)
class CalibrationData:
    """The data that weights are fitted on."""

    items: Sequence[CaptionedImage]  # images; the first text of each is used
    asking: int  # number of queries; all images are candidates
    best: int  # candidates per query, by cosine
    asked: Sequence[VqaQuestion] = ()  # questions whether something is there
    keep_score: bool = False  # leave the weights of Match.score and the mean_prefix as they are


def fit(parts: Sequence[np.ndarray], own: np.ndarray) -> list[float]:
    """Return a positive weight for each of the parts (texts, K) that minimizes the cross-entropy of their weighted sum,
    where own (texts) is the position of the right image among K.
    """
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
    """Return the weights under which the candidates at `own` are most likely.

    A few texts that are unlikely whatever the image hold the likelihood's weight down, so the multiple of it is taken
    that ranks most of the right candidates first.
    """
    log_odds = found.itm_logits[..., 1] - found.itm_logits[..., 0]
    parts = [found.cosine, log_odds] + ([] if found.likelihood is None else [found.likelihood])
    cosine, *others = fit(parts, own)
    weights = [each / cosine / temperature for each in others]
    fitted = MatchWeights(temperature, *(weight if weight >= _MIN_WEIGHT else 0.0 for weight in weights))
    tried = [replace(fitted, likelihood=factor * fitted.likelihood) for factor in _FACTORS]

    def right(weights: MatchWeights) -> int:
        return int((weights.scores(found.itm_logits, found.cosine, found.likelihood).argmax(1) == own).sum())

    return max(tried, key=right)


def calibrate(
    model: str,
    data: Path,
    images: Path | None,
    out: Path,
    best: int,
    limit: int | None,
    split: str | None = None,
    keep_score: bool = False,
) -> str:
    """Write the checkpoint or bundle with new weights. Return what they change. Raise Blip2rtError.

    split: of a file that has several; None: "val", because "test" must stay unseen.
    keep_score: fit a bundle's probabilities only.
    """
    images = images or data
    checkpoint = None if (Path(model) / MANIFEST).is_file() else Checkpoint(model)
    if checkpoint is None:
        _check_bundle(model, out)
    elif not (checkpoint.path / WEIGHTS).is_file() or checkpoint.config.stage != 1:
        raise OptionError(f"{model} is not a stage-1 checkpoint of this project: give one, or a bundle")
    if best < 2:
        raise OptionError(f"best is {best}: give 2 or more images to choose from")
    items = drop_unreadable_images(data, read_captions(data, images, split, default="val"), BadSamples(0))
    asked = _existence_questions(data, images) if checkpoint is None else []
    if keep_score and not asked:
        raise OptionError(
            f"--keep-score leaves only probabilities to fit, and {data} asks a bundle nothing: add questions whether "
            "something is there, with the answers yes and no"
        )
    if not keep_score:
        _require_enough(len(items[:limit]), checkpoint is None and read(model).manifest.llm is not None, data)
    fitted_on = CalibrationData(items, len(items[:limit]), min(best, len(items)), asked, keep_score)
    if checkpoint is None:
        summary = _calibrate_bundle(model, out, fitted_on)
    else:
        summary = _calibrate_checkpoint(checkpoint, out, fitted_on)
    return f"{summary}: {out}"


def _require_enough(images: int, both_ways: bool, data: Path) -> None:
    """Raise Blip2rtError, before minutes of work, if `_learn` would find too few. both_ways: images find texts too."""
    needed = _MIN_TEXTS // (1 + both_ways)
    if images < needed:
        raise Blip2rtError(f"{data} has {images} images with captions, of which {needed} are needed: give more")


def _existence_questions(data: Path, images: Path) -> list[VqaQuestion]:
    """The questions of a table whether something is there, and how many; none if it has only captions."""
    try:
        asked = read_questions(data, None, images).items
    except Blip2rtError:
        return []
    return [each for each in asked if native.short_question(each.question)]


def _calibrate_checkpoint(checkpoint: Checkpoint, out: Path, data: CalibrationData) -> str:
    weights, summary = _learn(checkpoint.source, open_predictor(checkpoint.source), data, False)
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(checkpoint.path / WEIGHTS, out / WEIGHTS)
    config = replace(checkpoint.config, itm_weight=weights.itm)
    (out / CONFIG).write_text(json.dumps(config.to_json(), indent=2))
    return summary


def _check_bundle(path: str, out: Path) -> None:
    if read(path).manifest.retrieval is None:
        raise OptionError(f"the bundle {path} cannot match images and texts: give one with a stage 1")
    if (out / MANIFEST).exists():
        raise OptionError(f"{out} already exists: give another folder")


def _calibrate_bundle(path: str, out: Path, data: CalibrationData) -> str:
    """Write a copy of the bundle with new weights in its manifest, and its mean_prefix."""
    bundle = read(path)
    manifest, retrieval = bundle.manifest, bundle.manifest.retrieval
    assert retrieval is not None and manifest.files is not None
    with BundleWriter(out) as writer:
        for name in manifest.files:
            (writer.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, writer.folder / name)
        if manifest.llm is not None and not data.keep_score:
            mean = _mean_prefix(BundlePredictor.of(bundle), data.items[: data.asking])
            mean.tofile(writer.folder / MEAN_PREFIX)
            retrieval = replace(retrieval, mean_prefix=MEAN_PREFIX)
        copy = replace(bundle, path=writer.folder, manifest=replace(manifest, retrieval=retrieval))
        predictor = BundlePredictor.of(copy)
        lines = []
        if not data.keep_score:
            weights, summary = _learn(path, predictor, data, manifest.llm is not None)
            retrieval = replace(retrieval, itm_weight=weights.itm, likelihood_weight=weights.likelihood)
            lines.append(summary)
        calibration = manifest.calibration
        if data.asked:
            calibration, fits = Fitting(predictor, data.items[: data.asking], data.asked).fit()
            lines += fits
        else:
            lines.append("no questions whether something is there, so probabilities were not fitted")
        writer.finish(replace(manifest, retrieval=retrieval, calibration=calibration))
    return "\n".join(lines)


def _mean_prefix(model: BundlePredictor, items: Sequence[CaptionedImage]) -> np.ndarray:
    """Return the mean prefix_embeds (Q, D) of images, float32."""
    paths = [item.path for item in items]
    chunks = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    sums = [model.caption_prefix(model.vision_features(chunk)).sum(0, np.float64) for chunk in chunks]
    return (sum(sums) / len(paths)).astype("<f4")


def _learn(model: str, predictor: Predictor, data: CalibrationData, likely: bool) -> tuple[MatchWeights, str]:
    """Return new weights, and what they change. Raise Blip2rtError if there is too little data."""
    found = candidates(predictor, data.items, data.best, data.asking, likely)
    is_own = found.found == found.own[:, None]
    inside = is_own.any(1)
    if inside.sum() < _MIN_TEXTS:
        raise Blip2rtError(
            f"only {inside.sum()} texts have their image among the best {data.best}: give data for {_MIN_TEXTS} or more"
        )
    found, own = found.of(inside), is_own[inside].argmax(1)
    old = predictor.match_weights
    new = weigh(found, own, old.temperature)
    if not new.itm and not new.likelihood:
        raise Blip2rtError(f"{model} adds nothing to its cosine: rank by Match.cosine")

    def first(weights: MatchWeights, way: str) -> str:
        scores = weights.scores(found.itm_logits, found.cosine, found.likelihood)
        right = (scores.argmax(1) == own)[found.way == way]
        return f"{100 * float(right.mean()):.1f} %"

    lines = []
    for way, asks, finds in (("t2i", "texts have their image", "images"), ("i2t", "images have their text", "texts")):
        rows = found.way == way
        if rows.any():
            by_cosine = first(MatchWeights(old.temperature, 0), way)
            lines.append(
                f"{rows.sum()} of {data.asking} {asks} among the best {data.best} {finds}; of these it is first for "
                f"{by_cosine} by the cosine, {first(old, way)} by the old score, {first(new, way)} by the new score"
            )
    changes = f"itm_weight {old.itm:.3g} -> {new.itm:.3g}"
    if likely:
        changes += f", likelihood_weight {old.likelihood:.3g} -> {new.likelihood:.3g}"
    return new, "\n".join([*lines, changes])


def main(argv: list[str] | None = None) -> int:
    return run_main(lambda: print(calibrate(**vars(calibrate_parser().parse_args(argv)))))
