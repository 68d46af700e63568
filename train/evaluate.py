"""Measure a model: `blip2rt-train evaluate caption|vqa|retrieval --model MODEL --data FILE --images FOLDER`.

MODEL is a bundle, run by the runtime, or a checkpoint of any format, run by PyTorch. Prints the totals as JSON; can
write a report with pictures, the predictions as they come, and the official results file. Under torchrun, processes
share the captions, the answers and the re-ranking; each embeds all images of a retrieval.
"""

from __future__ import annotations

from .cli import run_command, run_main

if __name__ == "__main__":  # before the imports, so that a missing package is reported in one line
    raise SystemExit(run_command("evaluate"))


import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip2rt.command_line import Parser, flags_named, nonempty, path, whole
from blip2rt.errors import Blip2rtError, OptionError
from blip2rt.modeling.sources import add_parts, parts

from .data.samples import BadSamples
from .evaluation import report
from .evaluation.annotations import (
    CaptionedImage,
    Item,
    VqaQuestion,
    VqaQuestions,
    drop_unreadable_images,
    in_half,
    read_captions,
    read_questions,
)
from .evaluation.metrics import coco_scorers
from .evaluation.predictions import Predictions, require_writable, write_atomically
from .evaluation.predictors import Predictor, open_predictor
from .evaluation.retrieval import evaluate_retrieval
from .evaluation.scores import ALL, Scores, score_answers, score_captions
from .progress import announce, bar
from .recipe import DEVICE

if TYPE_CHECKING:
    from .loop.parallel import Parallel

# Options of texts whose faults the core reports by their names.
_FLAGS = {
    "num_beams": "--beams",
    "max_new_tokens": "--max-new-tokens",
    "min_new_tokens": "--min-new-tokens",
    "length_penalty": "--length-penalty",
    "repetition_penalty": "--repetition-penalty",
}


def predict(
    items: Sequence[Item], ask: Callable[[Sequence[Item]], Sequence[str]], done: Predictions, batch: int, unit: str
) -> list[str]:
    """Return the prediction of `ask` for each item; saved ones are reused, and processes share the others."""
    todo = done.share(sorted((item for item in items if item.id not in done.found), key=lambda item: item.path))
    with bar(total=len(items), initial=len(items) - len(todo), unit=unit) as shown:
        for start in range(0, len(todo), batch):
            chunk = todo[start : start + batch]  # questions of one image are adjacent, and it is encoded once
            done.add([item.id for item in chunk], ask(chunk))
            shown.update(len(chunk))
    done.complete()
    return [done.found[item.id] for item in items]


def _run(args: argparse.Namespace) -> None:
    if args.predictions is None and (output := args.json or args.report):
        args.predictions = output.with_suffix(".predictions.jsonl")
    if args.compare is not None and not args.compare.is_file():
        raise OptionError(f"--compare {args.compare} does not exist: name what an earlier --json wrote")
    require_writable(args.json, args.report, args.predictions, getattr(args, "results", None))
    prompt = getattr(args, "prompt", None)
    if prompt is not None and ("{}" in prompt) != (args.task == "vqa"):
        raise Blip2rtError(f"--prompt is {prompt!r}: put {{}} where a question goes; for captions, leave it out")
    bad = BadSamples(args.max_bad, _bad_file(args))
    items, graded = _items(args, bad)
    options = _options(args)
    known = all(item.references if isinstance(item, CaptionedImage) else item.answers for item in items)
    if not known and (args.task == "retrieval" or args.results is None):
        missing = "answers" if args.task == "vqa" else "captions"
        fix = "give --annotations, another file, or --results FILE to write predictions for submission"
        raise Blip2rtError(f"{args.data} has no {missing} to compare with: {fix}")
    if known and args.task == "caption":
        coco_scorers()  # fail now, not after all predictions
    about = {"task": args.task, "model": args.model or "the embedded bundle", "data": str(args.data), **options}
    done = Predictions(args.predictions, about | _depends(args), parallel=_processes())
    announce(f"loading {about['model']}")
    predictor = open_predictor(args.model, parts(args), args.precision, prompt)
    started = time.perf_counter()
    texts: list[str] = []
    if args.task == "retrieval":
        scores = evaluate_retrieval(predictor, items, args.rerank, done)
    else:
        texts = _predict_texts(args, predictor, items, options, done)
    done.close()
    if not _main():
        return
    if args.task != "retrieval":
        scores = Scores({}, [], {})
        if known and args.task == "caption":
            scores = score_captions(items, texts)
        elif known:
            scores = score_answers(VqaQuestions(items, graded), texts)
        if args.results:
            write_atomically(args.results, json.dumps(_results(items, texts)) + "\n")
    about |= {"images": len({item.path for item in items}), **scores.about}
    if bad.found:
        about["left_out"] = len(bad.found)
    about["seconds"] = round(time.perf_counter() - started, 1)
    _report(args, about, scores)


def _main() -> bool:
    """Whether this process reports, among those of torchrun."""
    return os.environ.get("RANK", "0") == "0"


def _processes() -> Parallel | None:
    """The processes of torchrun; None for a single one, which needs no torch to run a bundle."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from .loop.parallel import this_process

    return this_process()


def _depends(args: argparse.Namespace) -> dict[str, Any]:
    """Return what predictions depend on, besides the facts in the totals."""
    files = [] if args.model is None else [Path(args.model), *Path(args.model).rglob("*")]
    written = [file.stat().st_mtime for file in files if file.is_file()]
    lists = {"data_sha256": args.data, "annotations_sha256": getattr(args, "annotations", None)}
    depends = {"images": str(args.images), "precision": args.precision, "prompt": getattr(args, "prompt", None)}
    depends |= {"split": getattr(args, "split", None)} | ({"half": args.half} if args.half else {})
    depends |= {name: None if source is None else _digest(source) for name, source in lists.items()}
    if written:  # another checkpoint may be at the same path
        depends["model_written"] = datetime.fromtimestamp(max(written)).isoformat(" ", "seconds")
    return depends | ({"limit": args.limit, "pairs": "both logits"} if args.task == "retrieval" else {})


def _digest(source: Path) -> str:
    """Return the first digits of a list's SHA-256; of a folder's, over its file names and texts."""
    if source.is_file():
        return hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    digest = hashlib.sha256()
    for file in sorted(source.rglob("*")):
        digest.update(f"{file.relative_to(source)}\n".encode("utf-8", "surrogateescape"))
        if file.suffix == ".txt" and file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _bad_file(args: argparse.Namespace) -> Path | None:
    """Return the file that lists unusable samples, beside the other output."""
    output = args.json or args.report or args.predictions
    if output is None or not _main():
        return None
    file: Path = output.with_suffix(".bad_samples.tsv")
    file.unlink(missing_ok=True)
    return file


def _items(args: argparse.Namespace, bad: BadSamples) -> tuple[list[Any], bool]:
    """Return the items to evaluate, and whether answers are graded."""
    images = args.images = args.images or args.data.parent / "images"
    graded = False
    items: list[Any]
    if args.task == "vqa":
        questions = read_questions(args.data, args.annotations, images, bad)
        items, graded = questions.items, questions.graded
    else:
        items = read_captions(args.data, images, args.split, bad)
    items = [item for item in items if in_half(item.path.name, args.half)]
    return drop_unreadable_images(args.data, items[: args.limit], bad), graded


def _predict_texts(
    args: argparse.Namespace, predictor: Predictor, items: list[Any], options: dict[str, Any], done: Predictions
) -> list[str]:
    def caption(part: Sequence[CaptionedImage]) -> list[str]:
        return list(predictor.caption([item.path for item in part], **options))

    def answer(part: Sequence[VqaQuestion]) -> list[str]:
        return list(predictor.ask([item.path for item in part], [item.question for item in part], **options))

    if args.task == "caption":
        return predict(items, caption, done, args.batch_size, "img")
    return predict(items, answer, done, args.batch_size, "question")


def _results(items: Sequence[CaptionedImage | VqaQuestion], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the evaluation servers take."""
    key, value = ("image_id", "caption") if isinstance(items[0], CaptionedImage) else ("question_id", "answer")
    return [{key: item.id, value: text} for item, text in zip(items, texts, strict=True)]


def _options(args: argparse.Namespace) -> dict[str, Any]:
    if args.task == "retrieval":
        return {"rerank": args.rerank}
    if not 0 <= args.min_new_tokens <= args.max_new_tokens:
        raise OptionError(
            f"--min-new-tokens is {args.min_new_tokens}: give 0 to --max-new-tokens, which is {args.max_new_tokens}"
        )
    return {name: getattr(args, flag[2:].replace("-", "_")) for name, flag in _FLAGS.items()}


def _report(args: argparse.Namespace, about: dict[str, Any], scores: Scores) -> None:
    columns = {
        name: {measure: round(value, 2) for measure, value in column.items()} for name, column in scores.columns.items()
    }
    totals = {**about, **columns.get(ALL, {}), **{name: c for name, c in columns.items() if name != ALL}}
    changes = {} if args.compare is None else report.changes(args.compare, totals)
    text = json.dumps(totals, indent=2) + "\n"
    if args.json:
        write_atomically(args.json, text)
    if args.report:
        title = f"{args.task}: {about['model']} on {args.data.name}"
        tables = {"": scores.columns} if scores.tables is None else scores.tables
        write_atomically(args.report, report.render(title, about, tables, scores.rows, args.report_rows))
    print(text, end="")
    for name, (before, after) in changes.items():
        print(f"{name}: {before:g} -> {after:g} ({after - before:+.2f})")


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    captions = "COCO's, NoCaps' or Karpathy's JSON, or a list: .tsv, .csv, .jsonl, a folder"
    questions = "questions: VQAv2's, OK-VQA's or GQA's JSON, or a list with the column question"
    split = "split of Karpathy's files (default: test)"
    data = _add_task(tasks, "caption", "BLEU, ROUGE-L and CIDEr of captions", captions)
    data.add_argument("--split", type=nonempty, help=split)
    data = _add_task(tasks, "vqa", "accuracy of answers, zero-shot", questions)
    data.add_argument("--annotations", type=path, metavar="FILE", help="VQAv2's and OK-VQA's answers")
    for name, texts, length, penalty in (("caption", "captions", 30, 1.0), ("vqa", "answers", 10, -1.0)):
        _add_decoding(tasks.choices[name], texts, length, penalty)
    data = _add_task(tasks, "retrieval", "recall of images by texts, and of texts by images", captions)
    data.add_argument("--split", type=nonempty, help=split)
    rerank = "re-rank the N best by ITC with ITM; 0: none"
    data.add_argument("--rerank", type=whole(0), default=128, metavar="N", help=rerank)
    return parser


def _add_task(tasks: Any, name: str, about: str, data: str) -> argparse._ArgumentGroup:
    """Add a task with the options that all tasks have; return the group of its data options."""
    renamed = {"--checkpoint": "--model", "--ckpt": "--model", "--num-beams": "--beams"}
    parser = tasks.add_parser(
        name, help=about, description=f"{about[0].upper()}{about[1:]}.", renamed=renamed, explained={"--device": DEVICE}
    )
    group: argparse._ArgumentGroup = parser.add_argument_group("data")
    group.add_argument("--data", type=path, required=True, metavar="FILE", help=data)
    images = "folder of the images (default: images beside the data)"
    group.add_argument("--images", type=path, metavar="FOLDER", help=images)
    group.add_argument("--limit", type=whole(1), metavar="N", help="use the first N images or questions only")
    half = "use half of the images: constants are tuned on one, figures reported of the other"
    group.add_argument("--half", choices=("tune", "report"), help=half)
    bad = "allowed unusable samples, which are skipped and listed beside --json"
    group.add_argument("--max-bad", type=whole(0), default=0, metavar="N", help=bad)
    group_of_model = parser.add_argument_group("model")
    model = "bundle, or checkpoint: folder, .pth or hub id (default: the embedded model, nano)"
    group_of_model.add_argument("--model", type=nonempty, metavar="MODEL", help=model)
    precision = "precision of a checkpoint (default: fp32 on CPUs, bf16 on GPUs)"
    group_of_model.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help=precision)
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=path, metavar="FILE", help="write the totals to FILE")
    output.add_argument("--report", type=path, metavar="FILE.html", help="write a page with pictures")
    compare = "show the changes since an earlier --json"
    output.add_argument("--compare", type=path, metavar="FILE", help=compare)
    rows = "pictures in the report, the worst ones"
    output.add_argument("--report-rows", type=whole(1), default=200, metavar="N", help=rows)
    predictions = "save predictions here; the same command resumes from them (default: beside --json)"
    output.add_argument("--predictions", type=path, metavar="FILE.jsonl", help=predictions)
    add_parts(parser)
    return group


def _add_decoding(parser: Parser, texts: str, length: int, penalty: float) -> None:
    group = parser.add_argument_group("decoding")
    group.add_argument("--prompt", metavar="TEXT", help=f"prompt of {texts} (default: the model's own)")
    group.add_argument("--beams", type=whole(1), default=5, metavar="N", help="beam width; 1 is greedy")
    group.add_argument("--max-new-tokens", type=whole(1), default=length, metavar="N", help="longest text, in tokens")
    group.add_argument("--min-new-tokens", type=int, default=1, metavar="N", help="shortest text, in tokens")
    favours = "with beams, above 0 favours longer texts and below 0 shorter ones"
    group.add_argument("--length-penalty", type=float, default=penalty, metavar="X", help=favours)
    repeats = "above 1 makes tokens of the prompt and the text so far less likely"
    group.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help=repeats)
    group.add_argument("--batch-size", type=whole(1), default=8, metavar="N", help="images or questions per call")
    group.add_argument("--results", type=path, metavar="FILE", help=f"write {texts} in the official servers' format")


def main(argv: list[str] | None = None) -> int:
    return run_main(flags_named(_FLAGS)(lambda: _run(_parser().parse_args(argv))))
