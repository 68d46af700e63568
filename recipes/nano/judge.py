"""Judge a bundle's probabilities on photographs that they were not fitted on, for its card.

    python recipes/nano/judge.py BUNDLE --data presence-all.tsv --fitted presence.tsv --root data --out judged.txt

Both tables are presence.py's, with captions: the first about all photographs, the second about those of the fit.
Writes how many nouns that are there, and that are not, are judged to be there; the same of captions, an image's own and
one of another image; how many numbers are right; precision and recall of labels beside those that human captions name;
and, of the most confident captions, how many are wrong (CIDEr below RIGHT_CIDER).
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from presence import captions_of

import blip2rt
from blip2rt.bundle.atomic import write_file
from blip2rt.command_line import Parser, run_script, whole
from blip2rt.native import native
from blip2rt_train.evaluation.annotations import read_questions
from blip2rt_train.evaluation.metrics import caption_metrics
from blip2rt_train.extras.probabilities import RIGHT_CIDER
from blip2rt_train.progress import bar

_LEAST = (0.7, 0.5, 0.3, 0.2)  # probabilities of labels
_COVERAGE = (10, 25, 50, 75, 90, 100)  # per cent of the captions


def judge(args: argparse.Namespace) -> Iterator[str]:
    """Yield the lines."""
    fitted, groups = captions_of(args.fitted), captions_of(args.data)
    sets = groupby(sorted(groups.keys() - fitted.keys()), lambda name: name.partition("/")[0])
    images = [name for _, names in sets for name in list(names)[: args.limit]]
    yield f"{len(images)} images: {dict(Counter(name.partition('/')[0] for name in images))}"
    model, rng = blip2rt.load(args.model), random.Random(0)
    of, right = Counter[str](), Counter[str]()

    def count(name: str, judged: bool) -> None:
        of[name], right[name] = of[name] + 1, right[name] + judged

    asked, chosen = read_questions(args.data, None, args.root).items, {args.root / name for name in images}
    for question in bar([each for each in asked if each.path in chosen]):
        folder = question.path.relative_to(args.root).parts[0]
        [answer] = set(question.answers)
        short = native.short_question(question.question)
        if short is not None and short.kind == "number":
            count(f"number {answer}", model.ask(question.path, question.question) == answer)
        elif short is not None and short.kind == "presence":
            count(f"nouns, {folder}, {answer}", model.sees(question.path, short.text))
    predicted = list(bar(model.caption_each((args.root / name for name in images), scores=True), total=len(images)))
    ciders = caption_metrics([groups[name] for name in images], list(map(str, predicted)))[1]
    tags, named, labels = [], [], native.Labels.everyday()
    for name in bar(images):
        other = rng.choice(groups[rng.choice([each for each in images if each != name])])
        for kind, text in (("own", rng.choice(groups[name])), ("of another image", other)):
            count(f"captions, {kind}", model.sees(args.root / name, text))
        tags.append({str(tag): tag.probability for tag in model.tag(args.root / name, top=30, threshold=min(_LEAST))})
        truth = zip(labels.entries, labels.named_in(groups[name]), strict=True)
        named.append({label for (label, _, _), there in truth if there})
    for name in sorted(of):
        yield f"{name}: {right[name]} of {of[name]}, {right[name] / of[name]:.1%}"
    for least in _LEAST:
        given = [{name for name, probability in each.items() if probability >= least} for each in tags]
        hits, total = sum(len(a & b) for a, b in zip(given, named, strict=True)), sum(map(len, given))
        precision, recall = hits / max(total, 1), hits / sum(map(len, named))
        yield f"labels of {least}: {total / len(images):.1f} an image, precision {precision:.0%}, recall {recall:.0%}"
    confidence = np.array([each.confidence for each in predicted])
    order, wrong = np.argsort(-confidence), np.array(ciders) < RIGHT_CIDER
    for coverage in _COVERAGE:
        most = order[: max(1, round(coverage / 100 * len(order)))]
        yield f"most confident {coverage} % (from {confidence[most].min():.2f}): {wrong[most].mean():.0%} wrong"


def _write(args: argparse.Namespace) -> None:
    lines = "\n".join(judge(args))
    write_file(args.out, f"{lines}\n".encode())
    print(lines)


if __name__ == "__main__":
    parser = Parser(prog="judge.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", metavar="BUNDLE", help="the bundle")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="presence.py's table of all images")
    parser.add_argument("--fitted", type=Path, required=True, metavar="FILE", help="its table of those of the fit")
    parser.add_argument("--root", type=Path, required=True, metavar="FOLDER", help="folder above the images")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="images of each set (default: all)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="text to write")
    run_script(parser, _write)
