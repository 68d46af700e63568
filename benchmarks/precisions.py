"""Size, captions and CIDEr of every precision of every component: `python -m benchmarks.precisions`.

    python -m benchmarks.precisions --checkpoint runs/nano/stage2 --calibration photographs/ --data dev.tsv \
        --images images/ --limit 300 --out precisions.md

Each precision is exported once, and a row takes each component's graphs from one of these exports. CIDEr is computed as
`blip2rt-train evaluate` does, on greedy captions; `same` is the share of captions identical to those of fp32. Of the
target ort, `time` is the processor time of a caption of 12 tokens relative to fp32's, measured in turns on one thread.
Graphs for TensorRT (--target trt) run on ONNX Runtime's CPU, so their speed is not measured; they need a decoder-only
language model. `cosine` comes from the export's verification; a precision that it rejects is measured without it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

import blip2rt
from blip2rt.bundle import EMBED, LLM, QFORMER, VISION, Bundle, read
from blip2rt.bundle.writer import BundleWriter
from blip2rt.command_line import Parser, nonempty, path, run, whole
from blip2rt.errors import Blip2rtError
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.text import open_llm_tokenizer
from blip2rt_export import assemble, targets
from blip2rt_export.checks.sessions import unfused_session
from blip2rt_export.checks.stepper import TrtStepper
from blip2rt_export.graphs import vision
from blip2rt_export.options import ExportOptions, ModelSource
from blip2rt_export.progress import Progress
from blip2rt_train.data.readers import read_data
from blip2rt_train.data.samples import Dataset
from blip2rt_train.evaluation.metrics import caption_metrics

GROUPS = ("vision", "qformer", "llm")
_GRAPHS = {"vision": ("vision",), "qformer": ("qformer",), "llm": ("llm", "embed", "encoder")}  # of each group
_FLOAT = "fp32"
_NOT_CONVOLUTIONAL = ("int4", "int8-dynamic")  # unavailable for an encoder of convolutions
_HEAD = ("precision", "MB", "time", "cosine", "same", "CIDEr")
_TIMED = 12  # captions, and tokens of each
_BATCH, _MAX_TOKENS = 10, 30  # of captions by graphs for TensorRT

Precision = dict[str, str]  # group -> precision


def kinds_of(target: targets.Target) -> list[str]:
    return [kind for kind in target.precisions["llm"] if kind not in (_FLOAT, "int8")]


def fitted(kind: str, target: targets.Target, convolutional: bool) -> Precision:
    """All groups in a precision, or in fp32 where the group does not support it."""
    unsupported = {group for group in GROUPS if kind not in target.precisions[group]}
    unsupported |= {"vision"} if convolutional and kind in _NOT_CONVOLUTIONAL else set()
    return {group: _FLOAT if group in unsupported else kind for group in GROUPS}


def rows(target: targets.Target, convolutional: bool, kinds: list[str]) -> list[Precision]:
    """The precisions of each row: fp32, each group alone, all groups, other kinds with llm=int4, the defaults."""
    plain = dict.fromkeys(GROUPS, _FLOAT)
    fits = {kind: fitted(kind, target, convolutional) for kind in kinds}
    found = [plain, *({**plain, group: fits[kind][group]} for group in GROUPS for kind in kinds), *fits.values()]
    found += [{**fits[kind], "llm": "int4"} for kind in kinds if "int4" in kinds]
    defaults = {group: target.defaults[group] for group in GROUPS}
    found += [defaults] if set(defaults.values()) <= {_FLOAT, *kinds} else []
    return [row for i, row in enumerate(found) if row not in found[:i]]


def name(precision: Precision) -> str:
    values = set(precision.values())
    if len(values) == 1:
        return f"all {values.pop()}"
    return ", ".join(f"{group} {each}" for group, each in precision.items() if each != _FLOAT)


def export(options: ExportOptions, folder: Path, precision: Precision) -> Bundle:
    """Export into a folder that does not exist yet, unverified if the verification rejects the precision."""
    if not folder.exists():
        options = replace(options, out=folder, precision=precision)
        try:
            assemble.export(options, Progress())
        except Blip2rtError as error:
            print(f"precisions: {folder.name}: {error}", file=sys.stderr)
            assemble.export(replace(options, verify=False), Progress())
    return read(folder)


def combine(precision: Precision, exports: Mapping[str, Bundle], out: Path) -> Bundle:
    """Build a bundle of graphs from several exports; their files are linked, not copied."""
    base = exports[_FLOAT]
    components = dict(base.manifest.components)
    with BundleWriter(out, overwrite=True) as writer:
        taken = {"tokenizer.json": base.path / "tokenizer.json"}
        for group, kind in precision.items():
            source = exports[kind]
            components |= {own: source.manifest.components[own] for own in _GRAPHS[group] if source.has(own)}
            taken |= {file.name: file for own in (group, *_GRAPHS[group]) for file in source.path.glob(f"{own}.*")}
        for file in taken.values():
            os.link(file, writer.folder / file.name)
        return writer.finish(replace(base.manifest, name=name(precision), components=components, verification=()))


def ratio(model: blip2rt.Model, reference: blip2rt.Model, data: Dataset) -> float:
    """The median processor time of a caption, relative to that of another model on the same image."""
    found = []
    for image in data.paths[:1] + (data.paths * _TIMED)[:_TIMED]:
        spent = []
        for each in (model, reference):
            start = time.process_time()
            each.caption(image, num_beams=1, max_new_tokens=_TIMED, min_new_tokens=_TIMED)
            spent.append(time.process_time() - start)
        found.append(spent[0] / spent[1])
    return statistics.median(found[1:])  # the first caption loads the graphs


def trt_captions(bundle: Bundle, paths: Sequence[Path]) -> Iterator[str]:
    """Yield greedy captions of graphs for TensorRT, run on ONNX Runtime's CPU."""
    spec = bundle.manifest.llm
    assert spec is not None and not spec.encoder_decoder, "a decoder-only language model"
    tokenizer, ends = open_llm_tokenizer(bundle.file(spec.tokenizer), spec), list(spec.eos_token_ids)
    graphs = (unfused_session(bundle.graph(component)) for component in (VISION, QFORMER, EMBED, LLM))
    encoder, qformer, embed, llm = graphs
    prompt = np.array([tokenizer.encode(bundle.manifest.prompts.get("caption", ""))], np.int64)
    for start in range(0, len(paths), _BATCH):
        pixels = vision.pixels(paths[start : start + _BATCH], bundle.manifest.image)
        features = encoder.run(["vision_features"], {"pixels": pixels})[0]
        prefix = qformer.run(["prefix_embeds"], {"vision_features": features})[0]
        if prompt.size:
            words = embed.run(None, {"token_ids": prompt})[0]
            prefix = np.concatenate((prefix, np.repeat(words, len(prefix), 0)), 1)
        stepper = TrtStepper(llm, len(prefix), prefix.shape[1] + _MAX_TOKENS)
        logits = stepper.prefill(prefix, np.full(len(prefix), prefix.shape[1])).copy()
        logits[:, ends] = -np.inf  # at least one token
        tokens = [logits.argmax(-1)]
        while len(tokens) < _MAX_TOKENS and not np.isin(np.stack(tokens, 1), ends).any(1).all():
            ids = tokens[-1][:, None].astype(np.int64)
            tokens.append(stepper.step(embed.run(None, {"token_ids": ids})[0]).argmax(-1))
        for ids in np.stack(tokens, 1).tolist():
            stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
            yield tokenizer.decode(ids[:stop])


def measure(
    exports: Mapping[str, Bundle], precisions: list[Precision], data: Dataset, folder: Path, trt: bool
) -> Iterator[tuple[str, ...]]:
    """Yield the cells of one row after the other."""
    reference, exact = None if trt else blip2rt.load(exports[_FLOAT].path, threads=1), list[str]()
    for precision in precisions:
        bundle = combine(precision, exports, folder / "row")
        if reference is None:
            captions, relative = list(trt_captions(bundle, data.paths)), ""
        else:
            model = blip2rt.load(bundle.path, threads=1)
            captions = [str(text) for text in model.caption_each(data.paths, num_beams=1)]
            relative = f"{ratio(model, reference, data):.2f}"
        scores, _ = caption_metrics([[sample.text for sample in group] for group in data.by_image()], captions)
        exact = exact or captions
        same = sum(a == b for a, b in zip(captions, exact, strict=True)) / len(captions)
        cosine = exported_cosine(precision, exports)
        yield name(precision), f"{bundle.size / 1e6:.1f}", relative, cosine, f"{same:.0%}", f"{scores['cider']:.1f}"


def exported_cosine(precision: Precision, exports: Mapping[str, Bundle]) -> str:
    """The cosine of the export's verification, for one changed group or all; otherwise ""."""
    changed = {group: kind for group, kind in precision.items() if kind != _FLOAT}
    if len(set(changed.values())) != 1:
        return ""
    part = next(iter(changed)) if len(changed) == 1 else "all"
    checks = exports[next(iter(changed.values()))].manifest.verification
    return next((f"{check.cosine:.5f}" for check in checks if check.component == part), "")


def main() -> int:
    return run("python -m benchmarks.precisions", lambda: _run(_parser().parse_args()))


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=nonempty, required=True, metavar="CKPT", help="a generative checkpoint")
    parser.add_argument("--target", choices=("ort", "trt"), default="ort", help="target of the exports")
    parser.add_argument("--data", type=nonempty, required=True, metavar="FILE", help="TSV of image, caption")
    images = "folder of the images (default: images next to the table)"
    parser.add_argument("--images", type=nonempty, metavar="FOLDER", help=images)
    calibration = "photographs for calibration; int8-static needs them"
    parser.add_argument("--calibration", type=path, metavar="FOLDER", help=calibration)
    parser.add_argument("--limit", type=whole(1), default=300, metavar="N", help="use only the first N images")
    kinds = kinds_of(targets.ORT)
    only = f"only these precisions, of {', '.join(kinds)} (default: all)"
    parser.add_argument("--kinds", nargs="+", choices=kinds, metavar="KIND", help=only)
    parser.add_argument("--keep", type=path, metavar="FOLDER", help="folder of the exports; existing ones are reused")
    parser.add_argument("--out", type=path, metavar="FILE", help="also write the table here")
    return parser


def _run(args: argparse.Namespace) -> None:
    target = targets.TARGETS[args.target]
    kinds = [kind for kind in kinds_of(target) if kind in (args.kinds or kinds_of(target))]
    kinds = [kind for kind in kinds if args.calibration is not None or kind != "int8-static"]
    data = read_data(args.data, args.images or str(Path(args.data).parent / "images"))
    data = Dataset(data.paths[: args.limit], [sample for sample in data.samples if sample.image < args.limit])
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    convolutional = Checkpoint(args.checkpoint).config.vision.vit is None
    fits = partial(fitted, target=target, convolutional=convolutional)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        source = ModelSource(args.checkpoint)
        options = ExportOptions(source, folder, target=target, calib=args.calibration)
        exports = {kind: export(options, folder / kind, fits(kind)) for kind in (_FLOAT, *kinds)}
        for cells in measure(exports, rows(target, convolutional, kinds), data, folder, args.target == "trt"):
            lines.append("| " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    print("\n".join(lines))
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
