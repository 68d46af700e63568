"""Arguments of `calibrate`. Imports no torch, so that mistakes are found at once."""

from pathlib import Path

from blip2rt.command_line import Parser, nonempty, path, whole
from blip2rt.errors import OptionError
from blip2rt.modeling.sources import is_local, resolve


def check(name: str, argv: list[str] | None) -> None:
    """Parse the arguments of a command. Raise OptionError, which names everything that does not exist."""
    args = calibrate_parser().parse_args(argv)
    given = {"--data": args.data} | ({} if args.images is None else {"--images": args.images})
    given |= {"MODEL": args.model} if is_local(args.model) else {}
    missing = [
        f"{flag} {str(each)!r} does not exist" for flag, each in given.items() if not Path(resolve(str(each))).exists()
    ]
    if missing:
        raise OptionError(f"{'; '.join(missing)}: give another path")
    if args.images is None and not Path(args.data).is_dir():
        raise OptionError(f"--images is missing: give the folder of the images in {str(args.data)!r}")


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
