"""Captions of the first photographs of a table, for docs/nano.md.

    python recipes/nano/examples.py --data data/coco/dev.tsv --images data/coco/images --count 24

Prints a Markdown table of the first COUNT images by file name: nano's caption, the probability that it is right, nano's
labels, and a human caption.
"""

import argparse
from itertools import islice
from pathlib import Path

from presence import captions_of

import blip2rt
from blip2rt.command_line import Parser, run_script, whole


def _print(args: argparse.Namespace) -> None:
    groups = dict(islice(sorted(captions_of(args.data).items()), args.count))
    model = blip2rt.load(args.model)
    print("| photograph | nano | confidence | labels | a human |\n| -- | -- | -- | -- | -- |")
    captions = model.caption_each((args.images / name for name in groups), scores=True)
    for (image, human), caption in zip(groups.items(), captions, strict=True):
        labels = ", ".join(model.tag(args.images / image))
        print(f"| {image} | {caption} | {caption.confidence:.2f} | {labels} | {human[0]} |")


if __name__ == "__main__":
    parser = Parser(prog="examples.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="TSV of image, caption")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="their folder")
    parser.add_argument("--model", metavar="BUNDLE", help="the bundle (default: nano)")
    parser.add_argument("--count", type=whole(1), default=24, metavar="N", help="rows of the table (default: 24)")
    run_script(parser, _print)
