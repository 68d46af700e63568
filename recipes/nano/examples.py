"""Captions of the first photographs of a table, for docs/nano.md, and how often captions name what is not there.

    python recipes/nano/examples.py --data data/coco/dev.tsv --images data/coco/images --count 24

Prints a Markdown table of the first COUNT images by file name: nano's caption, the probability that it is right, nano's
labels, and a human caption. Then, for all images (or the first --limit), CHAIR (Rohrbach et al. 2018, arXiv 1809.02156)
with human captions as the truth: the share of captions with a noun of presence.py that no human caption of the image
names or suggests, and the share of such nouns.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

from presence import NOUNS, captions_of

import blip2rt
from blip2rt.command_line import Parser, run, whole
from blip2rt.native import native

_PERSON = NOUNS[0].name  # "a man" is also a person: counted once, as what it says


def mentioned(caption: str) -> list[str]:
    """The names of the nouns in a cleaned caption; a person only if it names no man, woman or child."""
    words = set(caption.split())
    found = [noun.name for noun in NOUNS if not words.isdisjoint(noun.words)]
    specific = {"man", "woman", "child"} & set(found)
    return [name for name in found if name != _PERSON or not specific]


def missing(caption: str, human: list[str]) -> list[str]:
    """The nouns of a cleaned caption that no cleaned human caption names or suggests."""
    said = set(" ".join(human).split())
    hints = {noun.name: {*noun.words, *noun.hints} for noun in NOUNS}
    return [name for name in mentioned(caption) if said.isdisjoint(hints[name])]


def _print(args: argparse.Namespace) -> None:
    groups = dict(islice(sorted(captions_of(args.data).items()), args.limit))
    model = blip2rt.load(args.model)
    nouns = wrong = wrong_captions = 0
    print("| photograph | nano | confidence | labels | a human |\n| -- | -- | -- | -- | -- |")
    captions = model.caption_each((args.images / name for name in groups), scores=True)
    for number, ((image, human), caption) in enumerate(zip(groups.items(), captions, strict=True)):
        text = native().clean_caption(caption)
        absent = missing(text, [native().clean_caption(each) for each in human])
        nouns, wrong = nouns + len(mentioned(text)), wrong + len(absent)
        wrong_captions += bool(absent)
        if number < args.count:
            labels = ", ".join(model.tag(args.images / image))
            print(f"| {image} | {caption} | {caption.confidence:.2f} | {labels} | {human[0]} |")
    print(f"\n{len(groups)} images, {nouns} nouns: ", end="")
    print(f"CHAIR {wrong_captions / len(groups):.1%} of captions, {wrong / max(nouns, 1):.1%} of nouns")


def main() -> int:
    parser = Parser(prog="examples.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="TSV of image, caption")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="their folder")
    parser.add_argument("--model", metavar="BUNDLE", help="the bundle (default: nano)")
    parser.add_argument("--count", type=whole(0), default=24, metavar="N", help="rows of the table (default: 24)")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="images of CHAIR (default: all)")
    return run("examples.py", lambda: _print(parser.parse_args()), extra="train")


if __name__ == "__main__":
    raise SystemExit(main())
