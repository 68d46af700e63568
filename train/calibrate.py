"""Scale a stage-1 model's ITM head to what it is worth on unseen images: `python -m train.calibrate --ckpt RUN ...`.

ITM is trained on negatives drawn in proportion to exp(ITC), so that its log-odds and the logit of ITC add up to one
score (the paper's sum). The sum is right as far as both tell the truth; on little data ITM is surer of itself than what
it knows of new images allows. One factor on its head, fitted on images that were not trained on, mends that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.checkpoints import load_model, qformer_tokenizer, save_model
from blip2rt.text import clean_caption

from .cli import run_main
from .data import Dataset, read_table
from .features import cached_features
from .losses import similarity


def candidates(sim: torch.Tensor, owner: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` most similar images (T, count) of each text, from sim (images, T), for the texts whose own image is
    among them; and its place there (T)."""
    best = sim.t().topk(min(count, len(sim)), 1).indices
    found = best == owner[:, None]
    return best, torch.where(found.any(1), found.int().argmax(1), -1)


def fit_scale(itc: torch.Tensor, itm: torch.Tensor, place: torch.Tensor) -> float:
    """The factor f >= 0 for which softmax(itc + f * itm) over each row of candidates (T, K) gives the right image,
    place (T), the highest likelihood; both are logits, and the likelihood is concave in f."""
    low, high = 0.0, 4.0
    for _ in range(40):
        middle = (low + high) / 2
        scale = torch.tensor(middle, requires_grad=True)
        (slope,) = torch.autograd.grad(torch.nn.functional.cross_entropy(itc + scale * itm, place), scale)
        low, high = (low, middle) if slope > 0 else (middle, high)
    return (low + high) / 2


@torch.no_grad()
def score_candidates(
    model: Blip2, data: Dataset, features: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ITC's logits and ITM's log-odds (T, count) of the best images by ITC of each image's first text, and the place of
    the right one (T); texts whose image is not among the best are left out. features (images, N, C)."""
    tokenizer = qformer_tokenizer(model.config)

    def tokens(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        clean = [clean_caption(text) for text in texts]
        encoded = tokenizer(
            clean, padding=True, truncation=True, max_length=model.config.max_text_length, return_tensors="pt"
        )
        return encoded["input_ids"], encoded["attention_mask"]

    texts = [group[0].text for group in data.by_image()]
    image_embeds = torch.cat([model.image_embeds(model.query_output(part)) for part in features.split(50)])
    text_embeds = torch.cat([model.text_embeds(*tokens(texts[i : i + 100])) for i in range(0, len(texts), 100)])
    sim = similarity(image_embeds, text_embeds)
    best, place = candidates(sim, torch.arange(len(texts)), count)
    kept = (place >= 0).nonzero().flatten()
    log_odds = []
    for text in tqdm(kept.tolist(), desc="ITM", unit="text"):
        logits = model.itm_logits(features[best[text]], *tokens([texts[text]] * best.shape[1])).float()
        log_odds.append(logits[:, 1] - logits[:, 0])
    itc = sim.t().gather(1, best)[kept] / model.temperature
    return itc, torch.stack(log_odds), place[kept]


def _run(args: argparse.Namespace) -> None:
    model = load_model(args.ckpt, vision=False)
    if model.config.stage != 1:
        raise Blip2rtError(f"--ckpt {args.ckpt!r} is of stage {model.config.stage}; ITM is stage 1's")
    data = read_table(args.data, args.images)
    features = torch.from_numpy(cached_features(data.paths, model.config.vision, args.features)[0][:]).float()
    itc, itm, place = score_candidates(model, data, features, args.rerank)
    scale = fit_scale(itc, itm, place)
    for name, score in (("ITC", itc), ("ITC + ITM", itc + itm), ("ITC + scaled ITM", itc + scale * itm)):
        first = 100 * (score.argmax(1) == place).float().mean()
        print(f"{name}: the right image of {itm.shape[1]} first for {first:.1f} % of {len(place)} texts")
    with torch.no_grad():
        model.itm_head.weight.mul_(scale)
        model.itm_head.bias.mul_(scale)
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_model(model, out)
    except OSError as error:
        raise Blip2rtError(f"--out {args.out!r} cannot be written: {error.strerror}") from error
    print(f"{out}: ITM's head scaled by {scale:.3f}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ckpt", required=True, help="stage-1 checkpoint or the folder of its training")
    parser.add_argument("--data", required=True, help="TSV of image, caption: images that were not trained on")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--features", default="features", help="folder for cached vision features")
    parser.add_argument("--rerank", type=int, default=32, help="best images by ITC that ITM orders")
    parser.add_argument("--out", required=True, help="folder for the scaled checkpoint")
    return run_main(lambda: _run(parser.parse_args(argv)))


if __name__ == "__main__":
    raise SystemExit(main())
