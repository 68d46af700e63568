"""Half of an image encoder that a training has changed, half of the one that it began with:

    python recipes/nano/mean_encoder.py CKPT WEIGHTS OUT

CKPT is of `train.extras.distill`, WEIGHTS what its vision_weights were. nano's second distillation begins with the
mean.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from blip2rt.command import Parser, run


def mean_encoder(ckpt: str, weights: str, out: Path) -> None:
    """Write a checkpoint of the encoder alone, every tensor the mean of two."""
    from blip2rt.errors import OptionError
    from blip2rt.modeling.blip2 import Blip2Config, Trained
    from blip2rt.modeling.checkpoints import read_config, save_model
    from blip2rt.modeling.vision import VisionEncoder

    config = read_config(ckpt)
    if not config.vision_trained:
        raise OptionError(f"{ckpt} holds no image encoder: give a checkpoint of train.extras.distill")
    before = replace(config.vision, weights=weights)
    model = Trained(Blip2Config(vision=before, vision_trained=True, sources=config.sources))
    model.vision = encoder = VisionEncoder(config.vision)
    other = VisionEncoder(before).state_dict()
    encoder.load_state_dict(
        {name: ((tensor.double() + other[name].double()) / 2).to(tensor.dtype)
         for name, tensor in encoder.state_dict().items()}
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    save_model(model, out)


def main() -> int:
    parser = Parser(prog="mean_encoder.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ckpt", help="checkpoint of train.extras.distill, or its folder: the newest one in it")
    parser.add_argument("weights", help="what it began with: a file or pkg:PACKAGE/FILE")
    parser.add_argument("out", type=Path, help="folder to write")

    def work() -> None:
        args = parser.parse_args()
        mean_encoder(args.ckpt, args.weights, args.out)

    return run("mean_encoder.py", work, extra="train")


if __name__ == "__main__":
    raise SystemExit(main())
