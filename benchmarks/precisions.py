"""What each precision of each component costs: the table of size, speed, captions and CIDEr, a bundle a row.

    python -m benchmarks.precisions --checkpoint runs/nano/stage2 --calibration photographs/ --data dev.tsv \
        --images images/ --limit 300 --out precisions.md

Each precision is exported once, and a row takes each component's graphs from one of these exports. CIDEr is by
`train.evaluate`, greedy. `time` is the processor time of a caption of 12 tokens beside that of fp32, the two taken turn
by turn on one thread, which other programs disturb least; `cosine` is the export's own report on what changed. A
precision that the export refuses is measured all the same, without that report.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import blip2rt
from blip2rt.bundle import Bundle, read
from blip2rt.bundle.writer import BundleWriter
from blip2rt.command_line import Parser, nonempty, path, run, whole
from blip2rt.errors import Blip2rtError
from blip2rt.modeling import checkpoints
from export import assemble, choices, targets
from export.progress import Progress
from train.data.samples import Dataset, read_table
from train.evaluation.metrics import caption_metrics

GROUPS = ("vision", "qformer", "llm")
_OWN = {"vision": ("vision",), "qformer": ("qformer",), "llm": ("llm", "embed", "encoder")}  # graphs of a group
_FLOAT = "fp32"
_ALONE = ("int4", "int8-dynamic")  # that an encoder of convolutions does not have
_KINDS = tuple(kind for kind in targets.ORT.precisions["llm"] if kind not in (_FLOAT, "int8"))
_HEAD = ("precision", "MB", "time", "cosine", "same captions", "CIDEr")
_TIMED = 12  # captions, and tokens of each

Precision = dict[str, str]  # group -> precision


def rows(convolutional: bool, kinds: list[str]) -> list[Precision]:
    """Precisions of each row, fp32 first: one group changed to each of `kinds`, then all of them."""
    plain = dict.fromkeys(GROUPS, _FLOAT)
    fits = {group: [k for k in kinds if not (group == "vision" and convolutional and k in _ALONE)] for group in GROUPS}
    single = [{**plain, group: each} for group in GROUPS for each in fits[group]]
    whole = [dict.fromkeys(GROUPS, each) for each in kinds if all(each in fits[group] for group in GROUPS)]
    shipped = {group: targets.ORT.defaults[group] for group in GROUPS}
    return [plain, *single, *whole, *([shipped] if set(shipped.values()) <= set(kinds) else [])]


def name(precision: Precision) -> str:
    values = set(precision.values())
    if len(values) == 1:
        return f"all {values.pop()}"
    return ", ".join(f"{group} {each}" for group, each in precision.items() if each != _FLOAT)


def export(source: choices.ModelSource, calib: Path | None, out: Path, convolutional: bool) -> Bundle:
    """Export with all groups in the precision that `out` is named by, or the encoder in fp32 where it has no such."""
    kind = out.name
    if not out.exists():
        vision = _FLOAT if convolutional and kind in _ALONE else kind
        precision = {"vision": vision, "qformer": kind, "llm": kind}
        options = choices.ExportOptions(source, out, precision=precision, calib=calib)
        try:
            assemble.export(options, Progress())
        except Blip2rtError as error:
            print(f"precisions: {kind}: {error}", file=sys.stderr)
            assemble.export(replace(options, verify=False), Progress())
    return read(out)


def combine(precision: Precision, exports: Mapping[str, Bundle], out: Path) -> Bundle:
    """A bundle of graphs from several exports; their files are linked, not copied."""
    base = exports[_FLOAT]
    components = dict(base.manifest.components)
    with BundleWriter(out, overwrite=True) as writer:
        taken = {"tokenizer.json": base.path / "tokenizer.json"}
        for group, kind in precision.items():
            source = exports[kind]
            components |= {own: source.manifest.components[own] for own in _OWN[group] if source.has(own)}
            taken |= {file.name: file for own in (group, *_OWN[group]) for file in source.path.glob(f"{own}.*")}
        for file in taken.values():
            os.link(file, writer.folder / file.name)
        return writer.finish(replace(base.manifest, name=name(precision), components=components, verification=()))


def ratio(model: blip2rt.Model, beside: blip2rt.Model, data: Dataset) -> float:
    """Median processor time of a caption in units of the other model's on the same image."""
    found = []
    for image in data.paths[:1] + (data.paths * _TIMED)[:_TIMED]:
        spent = []
        for each in (model, beside):
            start = time.process_time()
            each.caption(image, num_beams=1, max_new_tokens=_TIMED, min_new_tokens=_TIMED)
            spent.append(time.process_time() - start)
        found.append(spent[0] / spent[1])
    return statistics.median(found[1:])  # the first caption loads the graphs


def measure(
    exports: Mapping[str, Bundle], wanted: list[Precision], data: Dataset, folder: Path
) -> Iterator[tuple[str, ...]]:
    """Yield a row after the other, as cells."""
    plain, before = blip2rt.load(exports[_FLOAT].path, threads=1), None
    for precision in wanted:
        bundle = combine(precision, exports, folder / "row")
        model = blip2rt.load(bundle.path, threads=1)
        captions = list(model.caption_each(data.paths, num_beams=1))
        scores, _ = caption_metrics([[sample.text for sample in group] for group in data.by_image()], captions)
        before = before or captions
        changed = [group for group in GROUPS if precision[group] != _FLOAT]
        kind = precision[changed[0]] if len({precision[group] for group in changed}) == 1 else None
        part = changed[0] if len(changed) == 1 else "all"
        cosines = {check.component: check.cosine for check in exports[kind].manifest.verification} if kind else {}
        cosine = cosines.get(part)
        same = sum(a == b for a, b in zip(captions, before, strict=True)) / len(captions)
        yield (
            name(precision), f"{bundle.size / 1e6:.1f}", f"{ratio(model, plain, data):.2f}",
            "" if cosine is None else f"{cosine:.5f}",
            f"{same:.0%}", f"{scores['cider']:.1f}",
        )  # fmt: skip


def main() -> int:
    return run("python -m benchmarks.precisions", lambda: _run(_parser().parse_args()))


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0],
                    renamed={"--ckpt": "--checkpoint", "--calib": "--calibration"})  # fmt: skip
    parser.add_argument("--checkpoint", type=nonempty, required=True, metavar="CKPT",
                        help="a checkpoint that generates")  # fmt: skip
    parser.add_argument("--data", type=nonempty, required=True, metavar="FILE", help="TSV of image, caption")
    parser.add_argument("--images", type=nonempty, metavar="FOLDER",
                        help="folder of the images (default: images beside the table)")  # fmt: skip
    parser.add_argument("--calibration", type=path, metavar="FOLDER",
                        help="photographs to calibrate on; without them int8-static is left out")  # fmt: skip
    parser.add_argument("--limit", type=whole(1), default=300, metavar="N", help="use the first N images only")
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, help="these precisions only (default: all)")
    parser.add_argument("--keep", type=path, metavar="FOLDER",
                        help="folder of the exports, used again where they are there")  # fmt: skip
    parser.add_argument("--out", type=path, metavar="FILE", help="write the table here, too")
    return parser


def _run(args: argparse.Namespace) -> None:
    args.kinds = args.kinds or [kind for kind in _KINDS if args.calibration is not None or kind != "int8-static"]
    data = read_table(args.data, args.images or str(Path(args.data).parent / "images"))
    data = Dataset(data.paths[: args.limit], [sample for sample in data.samples if sample.image < args.limit])
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    convolutional = checkpoints.read_config(args.checkpoint).vision.vit is None
    with tempfile.TemporaryDirectory() as passing:
        folder, source = args.keep or Path(passing), choices.ModelSource(args.checkpoint)
        exports = {
            kind: export(source, args.calibration, folder / kind, convolutional) for kind in (_FLOAT, *args.kinds)
        }
        for cells in measure(exports, rows(convolutional, args.kinds), data, folder):
            lines.append("| " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    print("\n".join(lines))
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
