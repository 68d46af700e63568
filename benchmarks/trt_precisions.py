"""What the precisions of the target trt cost in CIDEr: greedy captions of the graphs themselves, on ONNX Runtime's CPU.

    python -m benchmarks.trt_precisions --ckpt runs/nano/stage2 --calib photographs/ --data dev.tsv --limit 300

Each precision is exported once, and a row takes each group's graphs from one of these exports. The first row is the
target ort in fp32 by the runtime itself; `same` counts captions that are word for word those.
Knows decoder-only language models; no engine is built, and no time measured, which a CPU could not tell.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

import blip2rt
from blip2rt.bundle import Bundle, read
from blip2rt.errors import Blip2rtError
from blip2rt.image import to_pixels
from blip2rt.text import LlmTokenizer
from export import assemble, choices, targets
from export.progress import Progress
from export.stepping import session
from export.trt_stepping import TrtStepper
from train.data import Dataset, read_table
from train.metrics import caption_metrics

GROUPS = ("vision", "qformer", "llm")
ROWS = (
    ("fp32", "fp32", "fp32"), ("fp16", "fp16", "fp16"), ("fp16", "fp32", "fp16"), ("int8", "fp32", "fp32"),
    ("fp32", "int8", "fp32"), ("fp32", "fp32", "int8"), ("fp32", "fp32", "int4"), ("int8", "int8", "int8"),
    ("int8", "int8", "fp16"), ("int8", "int8", "int4"), ("fp16", "fp32", "int4"),
)  # fmt: skip
_HEAD = ("vision", "qformer", "llm", "MB", "CIDEr", "same")
_BATCH = 10  # images at once
_TOKENS = 30  # of a caption, at most


def export(args: argparse.Namespace, folder: Path, target: targets.Target, precision: str) -> Bundle:
    """All groups in `precision`; where a group has no such precision, in its default."""
    chosen = {group: precision for group in GROUPS if precision in target.precisions[group]}
    out = folder / f"{target.name}-{precision}"
    if not out.exists():
        options = choices.Options(
            ckpt=args.ckpt, out=out, target=target, precision=chosen, calib=args.calib, verify=args.verify
        )
        assemble.export(options, Progress())
    return read(out)


def captions(graphs: Mapping[str, Path], bundle: Bundle, paths: Sequence[Path]) -> Iterator[str]:
    """Greedy captions by the graphs vision, qformer, embed and llm of the target trt."""
    llm = bundle.manifest.llm
    assert llm is not None
    tokenizer, ends = LlmTokenizer(bundle.path / llm.tokenizer, llm), list(llm.eos_token_ids)
    vision, qformer, embed, decoder = (session(graphs[name]) for name in ("vision", "qformer", "embed", "llm"))
    prompt = np.array([tokenizer.encode(bundle.manifest.prompts["caption"])], np.int64)
    for start in range(0, len(paths), _BATCH):
        pixels = to_pixels(list(paths[start : start + _BATCH]), bundle.manifest.image)
        features = vision.run(["vision_features"], {"pixels": pixels})[0]
        rows = qformer.run(["prefix_embeds"], {"vision_features": features})[0]
        if prompt.size:
            words = embed.run(None, {"token_ids": prompt})[0]
            rows = np.concatenate((rows, np.repeat(words, len(rows), 0)), 1)
        stepper = TrtStepper(decoder, len(rows), rows.shape[1] + _TOKENS)
        logits = stepper.prefill(rows, np.full(len(rows), rows.shape[1])).copy()
        logits[:, ends] = -np.inf  # a caption has one token at least
        said = [logits.argmax(-1)]
        while len(said) < _TOKENS and not np.isin(np.stack(said, 1), ends).any(1).all():
            ids = said[-1][:, None].astype(np.int64)
            said.append(stepper.step(embed.run(None, {"token_ids": ids})[0]).argmax(-1))
        for row in np.stack(said, 1).tolist():
            stop = next((i for i, token in enumerate(row) if token in ends), len(row))
            yield tokenizer.decode(row[:stop])


def graphs_of(row: Sequence[str], bundles: Mapping[str, Bundle]) -> tuple[dict[str, Path], int]:
    """Component -> graph, of the precisions of GROUPS; and the bytes of graphs and weights."""
    vision, qformer, llm = (bundles[precision] for precision in row)
    chosen = {"vision": vision, "qformer": qformer, "embed": llm, "llm": llm}
    size = sum(
        entry.size
        for group, bundle in zip(GROUPS, (vision, qformer, llm), strict=True)
        for name, entry in (bundle.manifest.files or {}).items()
        if name.startswith(group) and name.endswith((".onnx", ".data"))
    )
    return {component: bundle.graph(component) for component, bundle in chosen.items()}, size


def measure(args: argparse.Namespace, folder: Path, data: Dataset) -> Iterator[tuple[str, ...]]:
    references = [[sample.text for sample in samples] for samples in data.by_image()]

    def cells(row: Sequence[str], size: int, texts: list[str]) -> tuple[str, ...]:
        same = sum(one == two for one, two in zip(texts, exact, strict=True))
        cider = caption_metrics(references, texts)["cider"]
        return (*row, f"{size / 1e6:.0f}", f"{cider:.1f}", f"{same}/{len(texts)}")

    ort = export(args, folder, targets.ORT, "fp32")
    exact = list(blip2rt.load(ort.path).caption_each(data.paths, num_beams=1, max_new_tokens=_TOKENS))
    yield cells(("fp32 (ort)",) * 3, graphs_of(["ort"] * 3, {"ort": ort})[1], exact)
    bundles = {each: export(args, folder, targets.TRT, each) for each in ("fp32", "fp16", "int8", "int4")}
    for row in ROWS:
        graphs, size = graphs_of(row, bundles)
        yield cells(row, size, list(captions(graphs, bundles["fp32"], data.paths)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ckpt", required=True, help="a checkpoint that generates, with a decoder-only language model")
    parser.add_argument("--data", required=True, help="TSV of image, caption")
    parser.add_argument("--images", help="folder of the images [images/ beside the table]")
    parser.add_argument("--calib", type=Path, required=True, help="photographs to calibrate int8 on")
    parser.add_argument("--limit", type=int, default=300, help="first N images only (default: 300)")
    parser.add_argument("--keep", type=Path, help="folder of the exports, used again where they are there")
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="do not compare exports with PyTorch")
    args = parser.parse_args()
    data = read_table(args.data, args.images or str(Path(args.data).parent / "images"))
    data = Dataset(data.paths[: args.limit], [sample for sample in data.samples if sample.image < args.limit])
    try:
        with tempfile.TemporaryDirectory() as passing:
            print("| " + " | ".join(_HEAD) + " |\n|" + "---|" * len(_HEAD))
            for cells in measure(args, args.keep or Path(passing), data):
                print("| " + " | ".join(cells) + " |", flush=True)
    except Blip2rtError as error:
        print(f"trt_precisions: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
