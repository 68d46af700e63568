"""Generate questions and short answers from captions by rule: `blip2rt-train questions --data T --images FOLDER --out
T2`.

Captions imply answers: "a brown dog" tells the dog's colour, "two men" their number. The written table repeats the
captions and adds rows of answer and question, for stage 2.
"""

from ..cli import run_command, run_main

if __name__ == "__main__":  # before the imports, so that a missing package is reported in one line
    raise SystemExit(run_command("questions"))


import argparse
import random
import re
from collections.abc import Iterator
from pathlib import Path

from blip2rt.command_line import Parser, nonempty, whole
from blip2rt.errors import Blip2rtError
from blip2rt.native import native

from ..data.readers import read_data
from ..data.samples import Dataset, repeat_answers, table_text

COLOURS = "black white brown red blue green yellow orange pink purple gray grey tan golden".split()
THINGS = (
    "dog man woman boy girl child shirt jacket dress hat coat shorts pants ball car truck bike bicycle bird cat horse "
    "helmet umbrella collar toy frisbee boat kayak swimsuit uniform sweater vest jeans bucket slide rope couch bench "
    "wall building grass water hair bag backpack motorcycle raft surfboard sweatshirt"
).split()
PLURALS = dict(
    pair.split(":")
    for pair in (
        "dogs:dog men:man women:woman boys:boy girls:girl children:child kids:kid people:person players:player "
        "birds:bird horses:horse bikers:biker"
    ).split()
)
NUMBERS = "two three four five six".split()
# Words that leave "is there a KEY?" open if the key itself is not mentioned.
PRESENCE = {
    "dog": "dog dogs puppy puppies poodle terrier labrador retriever greyhound animal animals",
    "man": "man men guy guys person people adult couple player players biker climber surfer someone crowd he his him",
    "woman": "woman women lady ladies person people adult couple player players someone crowd she her",
    "child": "child children kid kids boy boys girl girls baby toddler infant people person",
    "ball": "ball balls basketball football soccer baseball tennis volleyball softball rugby game",
    "snow": "snow snowy snowboard snowboarder ski skier skiing sled winter ice icy white",
    "water": "water ocean sea lake river pool wave waves beach swim swimming splash splashing stream pond surf wet "
    "boat",
    "bike": "bike bikes bicycle bicycles biker bikers cyclist cyclists cycling motorcycle motorbike bmx",
    "car": "car cars truck van vehicle street road race racing traffic",
    "horse": "horse horses pony rodeo bull cowboy animal animals",
}
PLACES = "snow grass water beach street sand pool field park ocean woods sidewalk road air mountain couch bench".split()

_COLOUR = re.compile(rf"\b((?:{'|'.join(COLOURS)})(?: and (?:{'|'.join(COLOURS)}))?) ({'|'.join(THINGS)})\b")
_COUNT = re.compile(rf"\b({'|'.join(NUMBERS)}) (?:\w+ )?({'|'.join(PLURALS)})\b")
_DOING = re.compile(
    r"^(?:a|the|an|one) (?:\w+ )?(?:and \w+ )?(dog|man|woman|boy|girl|child) (?:is )?(\w+ing\b(?: \w+){0,4})"
)
_DANGLING = re.compile(
    r"(?: (?:a|an|the|on|in|of|with|and|to|at|by|for|from|through|over|its|his|her|is|while|as|\w+ing))+$"
)
_WHERE = re.compile(rf"\b((?:in|on|through|at) the (?:{'|'.join(PLACES)}))\b")

Question = tuple[str, str]


def questions(captions: list[str], rng: random.Random) -> Iterator[Question]:
    """Yield (question, answer) pairs that the captions of one image answer."""
    words = {word for caption in captions for word in caption.split()}
    for caption in captions:
        for colour, thing in _COLOUR.findall(caption):
            yield f"what {rng.choice(['color', 'colour'])} is the {thing}?", colour
        for number, things in _COUNT.findall(caption):
            yield f"how many {things} are there?", number
        doing = _DOING.match(caption)
        if doing:
            yield f"what is the {doing[1]} doing?", _DANGLING.sub("", doing[2])
            where = _WHERE.search(caption)
            if where:
                yield f"where is the {doing[1]}?", where[1]
    for things, thing in PLURALS.items():
        mentions = sum(bool(re.search(rf"\b(a|the|one) (\w+ )?{thing}\b", caption)) for caption in captions)
        if mentions >= 3 and things not in words and not words & set(NUMBERS):
            yield f"how many {things} are there?", "one"
    for thing, related in PRESENCE.items():
        mentions = sum(thing in caption.split() for caption in captions)
        if mentions >= 2:
            yield _presence(thing, rng), "yes"
        elif not words & set(related.split()) and rng.random() < 0.1:  # balance yes and no
            yield _presence(thing, rng), "no"


def _presence(thing: str, rng: random.Random) -> str:
    article = "" if thing in ("snow", "water") else "a "
    return f"is there {article}{thing}{rng.choice(['', ' in the picture', ' in the image'])}?"


def with_questions(data: Dataset, root: Path, per_image: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """Yield rows (image, caption or answer, question or nothing): those of the data, then at most `per_image` questions
    per image, kinds mixed. Images are named relative to the folder `root`.
    """
    for image, samples in enumerate(data.by_image()):
        rng = random.Random(f"{seed}-{image}")
        path = data.paths[image]
        name = str(path.relative_to(root) if path.is_relative_to(root) else path)  # a list may contain absolute paths
        for sample in repeat_answers(samples):
            yield name, sample.text, sample.prompt
        found = list(dict(questions([native.clean_caption(s.text) for s in samples if not s.prompt], rng)).items())
        rng.shuffle(found)
        kinds: dict[str, list[Question]] = {}
        for question, answer in found:
            kinds.setdefault(" ".join(question.split()[:2]), []).append((question, answer))
        rounds = [item for depth in range(per_image) for kind in kinds.values() for item in kind[depth : depth + 1]]
        for question, answer in rounds[:per_image]:
            yield name, answer, question


def _write(args: argparse.Namespace) -> None:
    data = read_data(args.data, args.images)
    rows = list(with_questions(data, Path(args.images), args.per_image, args.seed))
    out = Path(args.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(table_text(rows), encoding="utf-8")
    except OSError as error:
        raise Blip2rtError(f"--out {args.out!r} cannot be written: {error.strerror}") from error
    count = sum(bool(row[2]) for row in rows)
    print(f"{args.out}: {len(rows) - count} captions, {count} questions")


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0], renamed={"--table": "--data"})
    parser.add_argument("--data", type=nonempty, required=True, metavar="FILE", help="TSV of image, caption")
    parser.add_argument("--images", type=nonempty, required=True, metavar="FOLDER", help="folder of the images")
    written = "TSV to write: image, caption or answer, question"
    parser.add_argument("--out", type=nonempty, required=True, metavar="FILE", help=written)
    parser.add_argument("--per-image", type=whole(0), default=3, metavar="N", help="most questions per image")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the choice and wording")
    return parser


def main(argv: list[str] | None = None) -> int:
    return run_main(lambda: _write(_parser().parse_args(argv)))
