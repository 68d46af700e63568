"""Ask what human captions answer, about presence, number and truth: `presence.py --data TABLE... --out TABLE2`.

    python recipes/nano/presence.py --data data/coco/dev.tsv --out runs/nano/tables/coco-dev-presence.tsv

As POPE does (Li et al. 2023, arXiv 2305.10355), each image gets as many nouns that are there as nouns that are not; the
absent ones are drawn by how many images have them, and by how often they are seen with what is there. Captions leave
things out: a noun counts as absent if no caption of the image has it or a word that suggests it, and as there if two
have it, or the only one. Numbers are those that two captions agree on; "one" is asked as often as "two". TABLE has the
columns image and caption; TABLE2 image, caption (the answer), prompt (the question) and kind (frequency,
co-occurrence or number; verb, place, clothes or colour of the statements of statements.py). A "yes" has the kind of its
"no".
"""

import argparse
import csv
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from statements import statements

from blip2rt.command_line import Parser, run_script, whole
from blip2rt.errors import Blip2rtError
from blip2rt.native import native
from blip2rt_train.evaluation.truth import NOUNS, Noun

_NUMBERS = {"two": 2, "three": 3, "four": 4}
_ENDINGS = ("", "", " in the picture", " in the image", " in the photo")
_UNCOUNTED = {"broccoli", "snow"}
_MANY = {"skis", "sheep"}
_KINDS = ("frequency", "co-occurrence")  # of the absent nouns
_NEIGHBOURS = 10  # absent nouns seen most with those there, among which one is drawn


_PLURALS = {
    plural: single
    for noun in NOUNS[1:]  # after persons, which are people
    for single, plural in pairwise(noun.words)
    if plural in (f"{single}s", f"{single}es", f"{single}ren", single.replace("man", "men"))
} | {"people": "person"}
_PLURAL = re.compile(rf"\b({'|'.join(_NUMBERS)}) (?:\w+ )?({'|'.join(_PLURALS)})\b")


def presence(captions: Sequence[str]) -> tuple[list[Noun], list[Noun]]:
    """The nouns that are there, and those that are not, by all the captions of an image (cleaned)."""
    said = [set(caption.split()) for caption in captions]
    every = set().union(*said)
    there = [noun for noun in NOUNS if sum(not words.isdisjoint(noun.words) for words in said) >= min(2, len(said))]
    return there, [noun for noun in NOUNS if every.isdisjoint((*noun.words, *noun.hints))]


def counts(captions: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield (things, number) of which two captions agree, and "one" if most say "a thing" and none another number."""
    text = " ; ".join(captions)
    numbers = Counter((things, _NUMBERS[word]) for word, things in re.findall(_PLURAL, text))
    for things in sorted({things for things, _ in numbers}):
        found = [(number, times) for (other, number), times in numbers.items() if other == things]
        if len(found) == 1 and found[0][1] >= 2:
            yield things, found[0][0]
    if any(word in text.split() for word in (*_NUMBERS, "five", "several", "many", "group", "couple", "other")):
        return
    for things, thing in _PLURALS.items():
        single = sum(bool(re.search(rf"\b(?:a|one) (?:\w+ )?{thing}\b", caption)) for caption in captions)
        if single >= 3 and things not in text.split():
            yield things, 1


def questions(groups: dict[str, list[str]], per_image: int, seed: int) -> Iterator[tuple[str, str, str, str]]:
    """Yield rows (image, answer, question, kind) about images and their cleaned captions."""
    found = {image: presence(captions) for image, captions in groups.items()}
    frequency = Counter(noun.name for there, _ in found.values() for noun in there)
    together = Counter(
        (one.name, other.name) for there, _ in found.values() for one in there for other in there if one != other
    )
    numbers = {image: dict(counts(captions)) for image, captions in groups.items()}
    twos = sum(number == 2 for each in numbers.values() for number in each.values())
    ones = sum(number == 1 for each in numbers.values() for number in each.values())
    words = {1: "one"} | {number: word for word, number in _NUMBERS.items()}
    for image, (there, absent) in found.items():
        rng = random.Random(f"{seed}-{image}")
        absent = [noun for noun in absent if frequency[noun.name]]
        there = rng.sample(there, min(per_image, len(there), len(absent)))
        rows = [(noun.name, "yes", _KINDS[number % 2]) for number, noun in enumerate(there)]
        for number in range(len(there)):
            chosen = {row[0] for row in rows}
            absent = [noun for noun in absent if noun.name not in chosen]
            weight = [float(frequency[noun.name]) for noun in absent]
            kind = _KINDS[number % 2]
            if kind == "co-occurrence":
                near = [sum(together[one.name, noun.name] / frequency[one.name] for one in there) for noun in absent]
                least = sorted(near, reverse=True)[:_NEIGHBOURS][-1]
                weight = [value if value >= least else 0.0 for value in near] if sum(near) else weight
            rows.append((rng.choices(absent, weight)[0].name, "no", kind))
        for name, answer, kind in rows:
            article = "" if name in (*_UNCOUNTED, *_MANY) else "an " if name[0] in "aeiou" else "a "
            question = f"{'are' if name in _MANY else 'is'} there {article}{name}{rng.choice(_ENDINGS)}?"
            yield image, answer, question, kind
        for things, number in numbers[image].items():
            if number > 1 or rng.random() < twos / max(ones, 1):
                yield image, words[number], f"how many {things} are there{rng.choice(_ENDINGS)}?", "number"


def captions_of(file: Path) -> dict[str, list[str]]:
    """The captions of each image of a table, as written; answers to questions are left out."""
    if not file.is_file():
        raise Blip2rtError(f"{file} does not exist: give a table of image and caption")
    groups: dict[str, list[str]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            if not row.get("prompt"):
                groups.setdefault(row["image"], []).append(row["caption"])
    return groups


def _rows(file: Path, args: argparse.Namespace) -> list[tuple[str, str, str, str]]:
    """The rows about a table's images, or some of them."""
    seen = captions_of(args.seen) if args.seen else {}
    written = {image: texts for image, texts in captions_of(file).items() if image not in seen}
    groups = {image: [native.clean_caption(text) for text in texts] for image, texts in written.items()}
    rows = [*questions(groups, args.per_image, args.seed), *statements(groups, args.seed)]
    if args.captions:
        rows += [(image, text, "", "") for image, texts in written.items() for text in texts]
    some = random.Random(args.seed).sample(sorted(written), min(args.limit or len(written), len(written)))
    above = "" if args.root is None else f"{(file.parent / 'images').relative_to(args.root).as_posix()}/"
    chosen = set(some)
    return [(f"{above}{image}", *more) for image, *more in sorted(rows, key=lambda row: row[0]) if image in chosen]


def _write(args: argparse.Namespace) -> None:
    rows = [row for file in args.data for row in _rows(file, args)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    lines = ["image\tcaption\tprompt\tkind", *map("\t".join, rows)]
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    asked = Counter(answer for _, answer, question, _ in rows if question)
    counts = f"{len({image for image, *_ in rows})} images, {len(rows) - asked.total()} captions"
    print(f"{args.out}: {counts}, {asked.total()} questions:", dict(asked))


if __name__ == "__main__":
    parser = Parser(prog="presence.py", description=(__doc__ or "").splitlines()[0])
    about = "TSV of image, caption; several for one table of all"
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE", help=about)
    about = "folder above the tables, whose images are in a folder `images` beside each: names begin from here"
    parser.add_argument("--root", type=Path, metavar="FOLDER", help=about)
    parser.add_argument("--seen", type=Path, metavar="FILE", help="TSV of images to leave out: those of a training")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="images of each table, at random (default: all)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="TSV to write: image, answer, question")
    parser.add_argument("--captions", action="store_true", help="write the captions, too")
    parser.add_argument("--per-image", type=whole(1), default=3, metavar="N", help="most nouns that are there")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the choice and wording")
    run_script(parser, _write)
