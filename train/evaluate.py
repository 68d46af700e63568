"""Quality of a bundle as it ships: `python -m train.evaluate caption|retrieval --model BUNDLE --data TABLE`.

Runs the runtime, never PyTorch, over a table of image and caption; prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import blip2rt
from blip2rt.errors import Blip2rtError
from blip2rt.pipeline import Model

from .cli import run_main
from .data import Dataset, read_table
from .metrics import caption_metrics
from .retrieval import recall


def evaluate_captions(model: Model, data: Dataset, options: dict[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Metrics of the model's captions against all captions of each image, and the captions."""
    captions = list(tqdm(model.caption_each(data.paths, **options), total=len(data.paths), unit="img"))
    references = [[sample.text for sample in samples] for samples in data.by_image()]
    return caption_metrics(references, captions), captions


def evaluate_retrieval(model: Model, data: Dataset, rerank: int, texts_per_image: int) -> dict[str, float]:
    """Recall by ITC over all images and texts; then, for the first `texts_per_image` texts of each image, the `rerank`
    best images by ITC are ordered again by ITM + ITC (the paper's sum, in logits), against ITC alone on these texts."""
    features, embeds = [], []
    for start in tqdm(range(0, len(data.paths), 64), desc="images", unit="batch"):
        part = model.vision_features(data.paths[start : start + 64])
        embeds.append(model.embed_features(part))
        features.append(part)
    texts = [sample.text for sample in data.samples]
    owner = np.array([sample.image for sample in data.samples])
    text_embeds = model.embed_text(texts)
    sim = np.stack([(part @ text_embeds.T).max(0) for part in np.concatenate(embeds)])  # (images, texts)
    scores = {f"itc_{name}": value for name, value in recall(sim, owner).items()}
    if rerank:
        kept = np.concatenate([np.flatnonzero(owner == image)[:texts_per_image] for image in range(len(data.paths))])
        before, after = _rerank(model, np.concatenate(features), sim, owner, kept, texts, rerank)
        for k in (1, 5, 10):
            scores[f"itc_subset_t2i_r@{k}"] = 100.0 * float((before < k).mean())
            scores[f"itm_subset_t2i_r@{k}"] = 100.0 * float((after < k).mean())
    return scores


def _rerank(
    model: Model, features: np.ndarray, sim: np.ndarray, owner: np.ndarray, kept: np.ndarray, texts: list[str], top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each kept text's own image, by ITC alone and with the best `top` ordered by ITM + ITC."""
    before, after = np.zeros(len(kept), int), np.zeros(len(kept), int)
    for row, text in enumerate(tqdm(kept, desc="re-ranking", unit="text")):
        order = np.argsort(-sim[:, text], kind="stable")
        best = order[:top]
        matches = model.match_features(features[best], [texts[text]] * len(best))
        score = np.array([match.score for match in matches])
        reordered = np.concatenate((best[np.argsort(-score, kind="stable")], order[top:]))
        before[row] = int(np.flatnonzero(order == owner[text])[0])
        after[row] = int(np.flatnonzero(reordered == owner[text])[0])
    return before, after


def _run(args: argparse.Namespace) -> None:
    images = args.images or str(Path(args.data).parent / "images")
    data = read_table(args.data, images)
    if args.limit:
        data = Dataset(data.paths[: args.limit], [s for s in data.samples if s.image < args.limit])
    model = blip2rt.load(args.model)
    started = time.perf_counter()
    report: dict[str, Any] = {"task": args.task, "images": len(data.paths), "texts": len(data.samples)}
    if args.task == "caption":
        options = {"num_beams": args.beams, "max_new_tokens": args.max_new_tokens}
        scores, captions = evaluate_captions(model, data, options)
        if args.captions:
            lines = [f"{path.name}\t{caption}\n" for path, caption in zip(data.paths, captions, strict=True)]
            Path(args.captions).write_text("".join(lines), encoding="utf-8")
        report["distinct_captions"] = len(set(captions))
    else:
        scores = evaluate_retrieval(model, data, args.rerank, args.texts_per_image)
    report |= {name: round(value, 2) for name, value in scores.items()}
    report["seconds"] = round(time.perf_counter() - started, 1)
    if args.json:
        try:
            Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise Blip2rtError(f"--json {args.json!r} cannot be written: {error.strerror}") from error
    print(json.dumps(report, indent=2))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", choices=("caption", "retrieval"))
    parser.add_argument("--model", default=None, help="bundle; default: the embedded model")
    parser.add_argument("--data", required=True, help="TSV of image, caption")
    parser.add_argument("--images", default=None, help="folder of the images [images/ beside the table]")
    parser.add_argument("--limit", type=int, default=0, help="first N images only")
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=None)
    parser.add_argument("--captions", default=None, help="write image<TAB>caption here")
    parser.add_argument("--rerank", type=int, default=32, help="images re-ranked by ITM for each text; 0: none")
    parser.add_argument("--texts-per-image", type=int, default=1, help="texts of each image that are re-ranked")
    parser.add_argument("--json", default=None, help="write the report here")
    return run_main(lambda: _run(parser.parse_args(argv)))


if __name__ == "__main__":
    raise SystemExit(main())
