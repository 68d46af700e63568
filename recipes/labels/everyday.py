"""Tidy the list of everyday labels by what people name in captions: `everyday.py --captions FILE...`.

    python recipes/labels/everyday.py --captions coco/captions-pool.txt flickr8k/train.tsv web/train.tsv

FILE has a caption a line, as its last column if it is a table. engines/english/everyday_labels.h, edited by hand,
has labels with their synonyms and parents; the installed core reads them. The script removes labels that captions name
less often than --least times in all, and verbs: words in -ing, other than sports, that seldom follow an article, a
number or a preposition. It sorts the others by how often they are named, and prints frequent nouns of the captions that
are missing. A missing word counts as a noun if it mostly follows an article or a preposition and precedes a word that
cannot continue a noun phrase.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blip2rt.command_line import Parser, run, whole
from blip2rt.errors import Blip2rtError
from blip2rt.native import native

EVERYDAY = Path(__file__).parents[2] / "engines" / "runtime" / "everyday_labels.h"
_BEFORE = set("a an the two three four some several many his her their its of with on in by near".split())
_AFTER = _BEFORE | set(
    """at and to is are for over under while next up down off into out through behind beside between around along
    against across as that who which has have was were or but . ,""".split()
)
_LINE = 100
_NOUN_SHARE = 0.15  # of a noun's uses, at least, follow a word of _BEFORE


class Label(NamedTuple):
    """An entry of native.Labels."""

    name: str
    parents: list[str]
    synonyms: list[str]


def words_of(label: Label) -> set[str]:
    """A label, its synonyms, and their plurals."""
    return {form for name in (label.name, *label.synonyms) for form in (name, native.plural_of(name))}


def count_phrases(captions: list[list[str]], longest: int) -> Counter[str]:
    """In how many captions each phrase of up to `longest` words is."""
    counts: Counter[str] = Counter()
    for words in captions:
        ends = range(1, longest + 1)
        counts.update({" ".join(words[i : i + n]) for n in ends for i in range(len(words) - n + 1)})
    return counts


def nouns(captions: list[list[str]], counts: Counter[str], least: int) -> list[str]:
    """Words that are mostly used as nouns, and occur `least` times or more; the most frequent first."""
    found: Counter[str] = Counter()
    for words in captions:
        places = range(len(words) - 1)
        found.update(
            {words[i] for i in places if words[i + 1] in _AFTER and not _BEFORE.isdisjoint(words[max(0, i - 2) : i])}
            - _AFTER
        )
    return [word for word, count in found.most_common() if count >= least and count > 0.5 * counts[word]]


def is_verb(label: Label, captions: list[list[str]]) -> bool:
    """Whether captions use a label's name as a verb, as in "a man sitting on a bench"."""
    if not re.fullmatch("[a-z]+ing", label.name) or label.parents[0] == "sport":
        return False
    before = [words[i - 1] in _BEFORE for words in captions for i in range(1, len(words)) if words[i] == label.name]
    return sum(before) < _NOUN_SHARE * len(before)


def lines_of(head: str, labels: list[Label]) -> Iterator[str]:
    """Yield lines of whole labels, each with the head."""
    line = ""
    for entry in ("/".join((label.name, *label.synonyms)) for label in labels):
        if line and len(f"{head}{line}, {entry}") > _LINE:
            yield head + line
            line = ""
        line = f"{line}, {entry}" if line else entry
    yield head + line


def tidy(args: argparse.Namespace) -> None:
    absent = [str(path) for path in args.captions if not path.is_file()]
    if absent:
        raise Blip2rtError(f"{', '.join(absent)} does not exist: give text files with one caption a line")
    lines = [line for path in args.captions for line in path.read_text(encoding="utf-8").lower().splitlines()]
    captions = [[*re.findall(r"[a-z][a-z'-]*|[.,]", line.rpartition("\t")[2]), "."] for line in lines]
    labels = [Label(*entry) for entry in native.Labels.everyday().entries]
    forms = {label.name: words_of(label) for label in labels}
    counts = count_phrases(captions, max(name.count(" ") for label in labels for name in forms[label.name]) + 1)
    named = {label.name: sum(counts[form] for form in forms[label.name]) for label in labels}
    kept = [label for label in labels if named[label.name] >= args.least and not is_verb(label, captions)]
    groups: dict[tuple[str, ...], list[Label]] = {}
    for label in sorted(kept, key=lambda label: -named[label.name]):
        groups.setdefault(tuple(label.parents), []).append(label)
    text = ""
    for parents, members in sorted(groups.items()):
        text += "".join(f"{line}\n" for line in lines_of(" > ".join(parents) + ": ", members))
    head, opening, rest = EVERYDAY.read_text(encoding="utf-8").partition('R"(\n')
    args.out.write_text(head + opening + text + rest[rest.index(')";') :], encoding="utf-8")
    known = set().union(*forms.values(), *(parents for parents in groups))
    missing = [word for word in nouns(captions, counts, 10 * args.least) if word not in known]
    print(f"{args.out}: {len(kept)} labels; {len(labels) - len(kept)} removed")
    print("nouns that are missing:", " ".join(missing[: args.missing]))


def main() -> int:
    parser = Parser(prog="everyday.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captions", type=Path, nargs="+", required=True, metavar="FILE", help="a caption a line")
    parser.add_argument("--out", type=Path, default=EVERYDAY, metavar="FILE", help="list to write (default: in place)")
    parser.add_argument("--least", type=whole(1), default=8, metavar="N", help="captions that name a label")
    parser.add_argument("--missing", type=whole(0), default=60, metavar="N", help="missing nouns to print")
    return run("everyday.py", lambda: tidy(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
