"""`blip2rt-export`: parse the command line, call `assemble.export`, print the table.

Exit status: 0 for success, 2 for a mistake in the input (explained in one line), 130 if interrupted.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from blip2rt.command_line import Parser, nonempty, path, run
from blip2rt.modeling.sources import add_parts, parts

from .arguments import PRECISIONS, check, parse_precision

if TYPE_CHECKING:
    from .assemble import Result

# transformers' progress bars would break up our lines.
_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}

_EPILOG = """\
CKPT is a folder that training wrote, a Hugging Face folder or hub id of Blip2ForConditionalGeneration or
Blip2ForImageTextRetrieval, or a .pth file of LAVIS. One that generates gives the graphs vision, qformer, embed, llm
(caption, ask); one that matches, alone or as --retrieval-checkpoint, gives image_embed, text_embed, itm (match, embed).

precisions: fp32; fp16 (stored so, computed in fp32); int8w (8-bit weights, computed in fp32); int4 (4-bit block-wise
weights); int8 or int8-dynamic (8-bit weights and activations, the latter as they come). Every graph is compared with
PyTorch, and all together; one that deviates too far fails the export.
Default: vision=int8w,qformer=int4,llm=int4,retrieval=int4.

--target trt makes the graphs for TensorRT, strongly typed, with a cache of fixed capacity. precisions there: fp32; fp16
(computed so, with norms, softmax and sums in fp32); int8 (8-bit weights and activations, with --calibration, not for
retrieval); int4, for llm (4-bit block-wise weights, computed in fp16).
Default: vision=fp16,qformer=fp32,llm=fp16,retrieval=fp32.

examples:
  blip2rt-export --checkpoint Salesforce/blip2-opt-2.7b --out opt --precision vision=int8,qformer=int8,llm=int4
  blip2rt-export --checkpoint blip2_pretrained_opt2.7b.pth --vision eva_vit_g.pth --llm opt-2.7b/ --out opt
  blip2rt-export --checkpoint runs/nano/stage2 --retrieval-checkpoint runs/nano/stage1 --out nano
"""


def main(argv: list[str] | None = None) -> int:
    """Run `blip2rt-export` with `argv`, or the process's own; return the exit code."""
    interrupted = "interrupted, nothing was written"
    return run("blip2rt-export", lambda: export(_parser().parse_args(argv)), extra="export", interrupted=interrupted)


def _parser() -> Parser:
    parser = Parser(
        description="Checkpoint -> bundle of ONNX graphs, verified against PyTorch.",
        epilog=_EPILOG,
        renamed={"--ckpt": "--checkpoint", "--retrieval-ckpt": "--retrieval-checkpoint", "--calib": "--calibration"},
        explained={"--device": "exports run on the CPU; --target chooses what the bundle runs on"},
    )
    add = parser.add_argument
    add("--checkpoint", type=nonempty, required=True, metavar="CKPT", help="checkpoint: folder, .pth file or hub id")
    add("--out", type=path, required=True, metavar="BUNDLE", help="the bundle's folder, written atomically")
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options except the checkpoint and the bundle."""
    add = parser.add_argument
    add("--retrieval-checkpoint", type=nonempty, metavar="CKPT", help="a second checkpoint, for match and embed")
    add("--overwrite", action="store_true", help="replace the bundle at --out")
    add("--dry-run", action="store_true", help="check everything and estimate the size; write nothing")
    add("--no-verify", action="store_true", help="skip the comparison with PyTorch")
    add = parser.add_argument_group("graphs").add_argument
    target = (
        "what runs the graphs: ONNX Runtime, TensorRT, or TensorRT 10.15 and later, whose own layers write the cache"
    )
    add("--target", choices=list(PRECISIONS), default="ort", help=target)
    precision = (
        "precisions of the groups vision, qformer, llm, retrieval, or one for all groups that support it, e.g. int8; "
        "see below"
    )
    add("--precision", default="", metavar="GROUP=P,...", help=precision)
    calibration = "photographs to calibrate int8 on, with --target trt"
    add("--calibration", type=path, metavar="FOLDER", help=calibration)
    size = "image size, to which position embeddings are interpolated (default: the checkpoint's)"
    add("--image-size", type=int, metavar="PIXELS", help=size)
    positions = "maximum of prefix, prompt and new tokens together"
    add("--max-positions", type=int, default=1024, metavar="N", help=positions)
    activations = (
        "bits of the activations that the language model's int4 weights multiply; 16 is nearly exact, but slower "
        "(default: 16 below a billion parameters, else 8)"
    )
    add("--llm-activations", type=int, choices=(8, 16), metavar="BITS", help=activations)
    add = parser.add_argument_group("metadata of the bundle").add_argument
    add("--name", type=nonempty, help="its name (default: its folder's)")
    add("--card", type=path, metavar="FILE", help="model card, copied as MODEL_CARD.md")
    penalty = "length penalty of captions; lower is shorter"
    add("--length-penalty", type=float, default=1.0, metavar="X", help=penalty)
    add_parts(parser)


def export(args: argparse.Namespace) -> None:
    """Export with parsed arguments, and print the table. Raises Blip2rtError."""
    check(args)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from . import assemble, dry_run, options, targets
    from .progress import Progress

    target = targets.TARGETS[args.target]
    given = options.ExportOptions(
        source=options.ModelSource(args.checkpoint, args.retrieval_checkpoint, parts(args), args.image_size),
        out=args.out,
        target=target,
        precision=parse_precision(args.precision, target.precisions),
        calibration=args.calibration,
        llm=options.LlmOptions(args.max_positions, args.llm_activations),
        info=options.BundleInfo(args.name, args.card, args.length_penalty),
        overwrite=args.overwrite,
        verify=not args.no_verify,
    )
    if args.dry_run:
        lines = dry_run.describe(given, options.resolve(given))
    else:
        with Progress() as progress:
            lines = table(assemble.export(given, progress))
    print("\n".join(lines))


def table(result: Result) -> list[str]:
    """The written graphs, and their deviation from PyTorch."""
    sizes = {name: f"{size / 1e6:.1f} MB" for name, size in result.sizes.items()}
    lines = [("graph", "precision", "against", "largest error", "mean cosine", "size", "")]
    for row in result.rows:
        size = sizes.get(row.component, "") if row.against == "PyTorch" else ""
        cosine = "" if row.cosine is None else f"{row.cosine:.6f}"
        note = "" if row.agreement is None else f"{row.agreement:.0%} of greedy tokens agree"
        lines.append((row.component, row.precision, row.against, f"{row.max_abs_error:.2e}", cosine, size, note))
    if not result.rows:
        components = result.bundle.manifest.components
        lines += [(n, c.precision, "not verified", "", "", sizes[n], "") for n, c in components.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    rows += [f"note: {note}" for note in result.notes]
    rows += [f"verdict: {result.verdict}"] * bool(result.verdict)
    return [*rows, f"{result.bundle.path}: {result.bundle.size / 1e6:.1f} MB in all"]
