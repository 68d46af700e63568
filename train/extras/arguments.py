"""Arguments of `refit` and `calibrate`. Imports no torch, so that mistakes are found at once."""

from __future__ import annotations

from pathlib import Path

from blip2rt.command_line import Parser, nonempty, path, whole
from blip2rt.errors import OptionError
from blip2rt.modeling.sources import is_local, resolve


def check(name: str, argv: list[str] | None) -> None:
    """Parse the arguments of a command. Raise OptionError, which names everything that does not exist."""
    args = (refit_parser() if name == "refit" else calibrate_parser()).parse_args(argv)
    source = args.ckpt if name == "refit" else args.model
    given = {"--data": args.data} | ({} if args.images is None else {"--images": args.images})
    given |= {name.upper(): source for name in ("ckpt", "model") if name in args and is_local(source)}
    missing = [
        f"{flag} {str(each)!r} does not exist" for flag, each in given.items() if not Path(resolve(str(each))).exists()
    ]
    if missing:
        raise OptionError(f"{'; '.join(missing)}: give another path")
    if args.images is None and not Path(args.data).is_dir():
        raise OptionError(f"--images is missing: give the folder of the images in {str(args.data)!r}")


def refit_parser() -> Parser:
    renamed = {"--checkpoint": "", "--ckpt": "", "--model": ""}
    parser = Parser(description="Adapt a checkpoint to another image encoder.", renamed=renamed)
    ckpt = "checkpoint of stage 1 or 2, or the folder of a training (its newest)"
    parser.add_argument("ckpt", type=nonempty, metavar="CKPT", help=ckpt)
    parser.add_argument("--vision-weights", metavar="FILE", help="the new encoder's weights; an hf: source has its own")
    source = "timm:NAME or hf:PATH (default: the old encoder's)"
    parser.add_argument("--vision-source", type=nonempty, metavar="SOURCE", help=source)
    parser.add_argument("--vision-size", type=whole(1), metavar="N", help="its image size (default: the old one)")
    for name in ("mean", "std"):
        about = f"its {name} per colour (default: the old one)"
        parser.add_argument(f"--vision-{name}", type=float, nargs=3, metavar="X", help=about)
    table = "table of images and captions, or a folder of images with .txt files"
    parser.add_argument("--data", type=nonempty, required=True, metavar="FILE", help=table)
    parser.add_argument("--images", type=nonempty, metavar="FOLDER", help="folder of a table's images")
    parser.add_argument("--count", type=whole(1), default=2000, metavar="N", help="images for the regression")
    parser.add_argument("--ridge", type=float, default=1e-3, metavar="X", help="weight of the ridge penalty")
    cache = "folder where trainings cache features"
    parser.add_argument("--features", type=nonempty, default="runs/features", metavar="FOLDER", help=cache)
    parser.add_argument("--out", type=nonempty, required=True, metavar="FOLDER", help="folder to write")
    return parser


def calibrate_parser() -> Parser:
    renamed = {"--checkpoint": "", "--ckpt": "", "--model": ""}
    parser = Parser(
        description="Fit the weights of Match.score, and a bundle's probabilities, on unseen images.", renamed=renamed
    )
    model = "stage-1 checkpoint, the folder of a training (its newest), or a bundle"
    parser.add_argument("model", type=nonempty, metavar="MODEL", help=model)
    captions = "captions of images that the model was not trained on"
    parser.add_argument("--data", type=path, required=True, metavar="FILE", help=captions)
    parser.add_argument("--images", type=path, metavar="FOLDER", help="folder of these images, unless DATA is one")
    parser.add_argument("--split", type=nonempty, help="split of Karpathy's files (default: val)")
    parser.add_argument("--out", type=path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--best", type=int, default=32, metavar="N", help="candidates per query, by cosine")
    keep = "of a bundle, fit only the probabilities; keep the weights of Match.score and the mean prefix"
    parser.add_argument("--keep-score", action="store_true", help=keep)
    parser.add_argument("--limit", type=whole(1), metavar="N", help="query with the first N images only, among all")
    return parser
