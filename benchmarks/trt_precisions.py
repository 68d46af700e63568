"""What the precisions of the target trt cost in CIDEr: greedy captions of the graphs themselves, on ONNX Runtime's CPU.

    python -m benchmarks.trt_precisions --checkpoint runs/nano/stage2 --calibration photographs/ \
        --data dev.tsv --limit 300

The model is traced once and its graphs are brought to each precision as blip2rt-export does it. In the first row the
language model's graph is that of the target ort, in fp32; `same` counts captions that are word for word those.
No engine is built, and no time measured, which a CPU could not tell. Takes decoder-only language models.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from blip2rt.bundle import PAST_MASK, ImageSpec, LlmSpec
from blip2rt.command_line import Parser, nonempty, path, run, whole
from blip2rt.modeling import checkpoints
from blip2rt.text import LlmTokenizer
from export import assemble, describe, targets
from export.checks import calibration
from export.checks.stepper import Stepper, unfused_session
from export.checks.trt_stepper import TrtStepper
from export.graphs import qformer, trace, vision
from export.precision.activations import NO_RANGES, Ranges
from export.precision.quantizer import BlockFormat, Quantizer
from train.data.samples import Dataset, read_table
from train.evaluation.metrics import caption_metrics

GROUPS = ("vision", "qformer", "llm")
ROWS = (
    ("fp32", "fp32", "fp32 (ort)"), ("fp32", "fp32", "fp32"), ("fp16", "fp32", "fp16"),
    ("int8", "int8", "int8"), ("int8", "int8", "int4"), ("fp16", "fp32", "int4"), ("int8", "int8", "fp16"),
    ("fp32", "fp32", "int8"), ("int8", "fp32", "fp32"), ("fp32", "int8", "fp32"), ("fp16", "fp16", "fp16"),
)  # fmt: skip
_HEAD = ("vision", "qformer", "llm", "MB", "CIDEr", "same")
_BATCH = 10  # images at once
_TOKENS = 30  # of a caption, at most
_POSITIONS = 256


class Exports:
    """Graphs of a checkpoint on disk: group and precision -> its graphs by name."""

    def __init__(self, ckpt: str, calib: Path, folder: Path) -> None:
        self.folder = folder
        model: Any = checkpoints.load_model(ckpt)
        self.image: ImageSpec = describe.image_spec(model.config.vision)
        self.block = model.config.llm.block
        self.llm: LlmSpec
        self.llm, prompts = describe.llm_spec(model, model.llm, folder, _POSITIONS)
        self.tokenizer = LlmTokenizer(folder / self.llm.tokenizer, self.llm)
        self.prompt = np.array([self.tokenizer.encode(model.config.llm.caption_prompt)], np.int64)
        self.traced: dict[str, dict[str, ir.Model]] = {
            "vision": {"vision": trace.trace(vision.vision_part(model.vision, self.image), targets.TRT.opset)},
            "qformer": {"qformer": trace.trace(qformer.generative_parts(model)[0], targets.TRT.opset)},
            "llm": dict(targets.TRT.llm_graphs(model.llm, _POSITIONS)),
            "llm (ort)": dict(targets.ORT.llm_graphs(model.llm, _POSITIONS)),
        }
        self.ranges = self._ranges(model.llm, prompts.calibrating, calib)
        self.written: dict[tuple[str, str], dict[str, Path]] = {}

    def _ranges(self, language: Any, prompts: list[list[int]], calib: Path) -> dict[str, Ranges]:
        """Graph -> the ranges of its activations over the photographs."""
        files, operands = vision.photographs(calib), targets.TRT.operands
        prefixes: list[np.ndarray] = []
        with (
            calibration.recorder(self.traced["vision"]["vision"].clone(), self.folder, "vision", operands) as see,
            calibration.recorder(self.traced["qformer"]["qformer"].clone(), self.folder, "qformer", operands) as query,
        ):
            for start in range(0, len(files), 3):
                pixels = vision.pixels(files[start : start + 3], self.image)
                features = see.run(["vision_features"], {"pixels": pixels})[0]
                if start < assemble.CALIBRATED:
                    prefixes += [query.run(["prefix_embeds"], {"vision_features": features})[0]]
        found = np.concatenate(prefixes)
        rows = describe.llm_inputs(language, (prompts * len(found))[: len(found)], found)
        copies = {name: graph.clone() for name, graph in self.traced["llm"].items()}
        said = calibration.language_ranges(copies, self.folder, rows, None, operands)
        return {"vision": see.ranges, "qformer": query.ranges, **said}

    def get(self, group: str, precision: str) -> dict[str, Path]:
        if (group, precision) not in self.written:
            self.written[group, precision] = self._write(group, precision)
        return self.written[group, precision]

    def _write(self, group: str, precision: str) -> dict[str, Path]:
        source, _, target = precision.partition(" ")
        kind = {"int8": "int8-static"}.get(source, source)
        folder = self.folder / f"{group}-{precision.replace(' ', '')}"
        folder.mkdir()
        with contextlib.closing(trace.DataFile(folder, f"{group}.data")) as data:
            for name, traced in self.traced[f"{group} {target}".strip()].items():
                graph, apply = traced.clone(), (targets.ORT if target else targets.TRT).apply
                apply(graph, kind, Quantizer(BlockFormat(self.block), data.keep), self.ranges.get(name, NO_RANGES))
                trace.save(graph, folder / f"{name}.onnx", data)
        return {path.stem: path for path in folder.glob("*.onnx")}


def captions(exports: Exports, row: Sequence[str], paths: Sequence[Path], threads: int) -> Iterator[str]:
    """Greedy captions by the graphs of a row."""
    files = {name: path for group, p in zip(GROUPS, row, strict=True) for name, path in exports.get(group, p).items()}
    see, query, embed, llm = (unfused_session(files[name], threads) for name in ("vision", "qformer", "embed", "llm"))
    ours = PAST_MASK in {value.name for value in llm.get_inputs()}
    step: Callable[..., Any] = TrtStepper if ours else Stepper
    ends = list(exports.llm.eos_token_ids)
    for start in range(0, len(paths), _BATCH):
        pixels = vision.pixels(paths[start : start + _BATCH], exports.image)
        features = see.run(["vision_features"], {"pixels": pixels})[0]
        rows = query.run(["prefix_embeds"], {"vision_features": features})[0]
        if exports.prompt.size:
            words = embed.run(None, {"token_ids": exports.prompt})[0]
            rows = np.concatenate((rows, np.repeat(words, len(rows), 0)), 1)
        stepper = step(llm, len(rows), rows.shape[1] + _TOKENS)
        logits = stepper.prefill(rows, np.full(len(rows), rows.shape[1])).copy()
        logits[:, ends] = -np.inf  # a caption has one token at least
        said = [logits.argmax(-1)]
        while len(said) < _TOKENS and not np.isin(np.stack(said, 1), ends).any(1).all():
            ids = said[-1][:, None].astype(np.int64)
            said.append(stepper.step(embed.run(None, {"token_ids": ids})[0]).argmax(-1))
        for ids in np.stack(said, 1).tolist():
            stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
            yield exports.tokenizer.decode(ids[:stop])


def measure(exports: Exports, data: Dataset, threads: int) -> Iterator[tuple[str, ...]]:
    references = [[sample.text for sample in samples] for samples in data.by_image()]
    exact: list[str] = []
    for row in ROWS:
        texts = list(captions(exports, row, data.paths, threads))
        exact = exact or texts
        folders = [next(iter(exports.get(group, p).values())).parent for group, p in zip(GROUPS, row, strict=True)]
        size = sum(file.stat().st_size for folder in folders for file in folder.iterdir())
        same = sum(one == two for one, two in zip(texts, exact, strict=True))
        cider = caption_metrics(references, texts)[0]["cider"]
        yield (*row, f"{size / 1e6:.0f}", f"{cider:.1f}", f"{same}/{len(texts)}")


def main() -> int:
    return run("python -m benchmarks.trt_precisions", lambda: _run(_parser().parse_args()))


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0],
                    renamed={"--ckpt": "--checkpoint", "--calib": "--calibration"})  # fmt: skip
    parser.add_argument("--checkpoint", type=nonempty, required=True, metavar="CKPT",
                        help="a checkpoint that generates, with a decoder-only language model")  # fmt: skip
    parser.add_argument("--data", type=nonempty, required=True, metavar="FILE", help="TSV of image, caption")
    parser.add_argument("--images", type=nonempty, metavar="FOLDER",
                        help="folder of the images (default: images beside the table)")  # fmt: skip
    parser.add_argument("--calibration", type=path, required=True, metavar="FOLDER",
                        help="photographs to calibrate int8 on")  # fmt: skip
    parser.add_argument("--limit", type=whole(1), default=300, metavar="N", help="use the first N images only")
    parser.add_argument("--threads", type=whole(0), metavar="N", default=0,
                        help="threads of ONNX Runtime; 0 is its own choice")  # fmt: skip
    return parser


def _run(args: argparse.Namespace) -> None:
    data = read_table(args.data, args.images or str(Path(args.data).parent / "images"))
    data = Dataset(data.paths[: args.limit], [sample for sample in data.samples if sample.image < args.limit])
    with tempfile.TemporaryDirectory() as folder:
        exports = Exports(args.checkpoint, args.calibration, Path(folder))
        print("| " + " | ".join(_HEAD) + " |\n|" + "---|" * len(_HEAD), flush=True)
        for cells in measure(exports, data, args.threads):
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
