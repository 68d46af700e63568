"""`blip2rt-export`: read the command line, call `assemble.export`, print the table.

Exit codes: 0 all went well, 2 a mistake in the input (one line says which), 130 interrupted.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from blip2rt.bundle import TARGETS
from blip2rt.command_line import Parser, nonempty, path, run
from blip2rt.errors import OptionError

if TYPE_CHECKING:
    from .assemble import Result

# transformers' bars would tear our lines.
_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}

TARGET_NAMES = (*TARGETS, "trt-native")  # the keys of targets.TARGETS, which is not imported for --help

_EPILOG = """\
CKPT is a folder that training wrote, a Hugging Face folder or hub id of Blip2ForConditionalGeneration or
Blip2ForImageTextRetrieval, or a .pth file of LAVIS. One that generates gives the graphs vision, qformer, embed, llm
(caption, ask); one that matches, alone or as --retrieval-checkpoint, gives image_embed, text_embed, itm (match, embed).

precisions: fp32; fp16 (stored so, computed in fp32); int8w (8-bit weights, computed in fp32); int4 (4-bit block-wise
weights); int8-dynamic (8-bit weights and activations, the latter as they come); int8-static, not for retrieval (the
same, calibrated with --calibration); int8 (static with --calibration, else dynamic). Every graph is compared with
PyTorch, and all together; one that deviates too far fails the export.
Default: vision=int8w,qformer=int4,llm=int4,retrieval=int4.

docs/export.md has what each costs in size, time and captions.

--target trt makes the graphs for TensorRT, strongly typed, with a cache of fixed capacity. precisions there: fp32; fp16
(computed so, with norms, softmax and sums in fp32); int8 (8-bit weights and activations, with --calibration, not for
retrieval); int4, for llm (4-bit block-wise weights, computed in fp16).
Default: vision=fp16,qformer=fp32,llm=fp16,retrieval=fp32.

examples:
  blip2rt-export --checkpoint Salesforce/blip2-opt-2.7b --out opt --precision vision=int8,qformer=fp32,llm=int4
  blip2rt-export --checkpoint blip2_pretrained_opt2.7b.pth --vision eva_vit_g.pth --llm opt-2.7b/ --out opt
  blip2rt-export --checkpoint runs/nano/stage2 --retrieval-checkpoint runs/nano/stage1 --out nano --calibration photos/
"""


def main(argv: list[str] | None = None) -> int:
    """Run `blip2rt-export` with `argv`, or the process's own; return the exit code."""
    return run("blip2rt-export", lambda: export(_parser().parse_args(argv)), extra="export",
               interrupted="interrupted, nothing was written")  # fmt: skip


def _parser() -> Parser:
    parser = Parser(
        description="Checkpoint -> bundle of ONNX graphs, verified against PyTorch.", epilog=_EPILOG,
        renamed={"--ckpt": "--checkpoint", "--retrieval-ckpt": "--retrieval-checkpoint", "--calib": "--calibration"},
    )  # fmt: skip
    parser.add_argument("--checkpoint", type=nonempty, required=True, metavar="CKPT",
                        help="checkpoint: folder, .pth file or hub id")  # fmt: skip
    parser.add_argument("--out", type=path, required=True, metavar="BUNDLE",
                        help="the bundle's folder, written whole or not at all")  # fmt: skip
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options but the checkpoint and the bundle."""
    parser.add_argument("--retrieval-checkpoint", type=nonempty, metavar="CKPT",
                        help="a second checkpoint, for match and embed")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle at --out")
    parser.add_argument("--no-verify", action="store_true", help="skip the comparison with PyTorch")
    graphs = parser.add_argument_group("graphs")
    graphs.add_argument("--target", choices=TARGET_NAMES, default=TARGET_NAMES[0],
                        help="what runs the graphs: ONNX Runtime, TensorRT, or TensorRT 10.15 and later, "
                        "whose own layers write the cache")  # fmt: skip
    graphs.add_argument("--precision", default="", metavar="GROUP=P,...",
                        help="precisions of the groups vision, qformer, llm, retrieval, or one for all of them that "
                        "may have it, as int8; see below and docs/export.md")  # fmt: skip
    graphs.add_argument("--calibration", type=path, metavar="FOLDER",
                        help="photographs: int8 is calibrated on them, and graphs are verified with them")  # fmt: skip
    graphs.add_argument("--image-size", type=int, metavar="PIXELS",
                        help="size of the images, to which position embeddings are interpolated (default: the "
                        "checkpoint's)")  # fmt: skip
    graphs.add_argument("--max-positions", type=int, default=1024, metavar="N",
                        help="longest prefix, prompt and new tokens together")  # fmt: skip
    graphs.add_argument("--llm-activations", type=int, choices=(8, 16), metavar="BITS",
                        help="bits of the activations that meet the language model's int4 weights; 16 is as good as "
                        "exact and makes a step slower (default: 16 below a billion parameters, "
                        "else 8)")  # fmt: skip
    about = parser.add_argument_group("what the bundle says of itself")
    about.add_argument("--name", type=nonempty, help="its name (default: its folder's)")
    about.add_argument("--card", type=path, metavar="FILE", help="model card, copied in as MODEL_CARD.md")
    about.add_argument("--length-penalty", type=float, default=1.0, metavar="X",
                       help="length penalty of its captions; lower is shorter")  # fmt: skip
    add_parts(parser)


def add_parts(parser: argparse.ArgumentParser) -> None:
    """Add options for what a checkpoint leaves out."""
    group = parser.add_argument_group("for what a checkpoint lacks")
    group.add_argument("--tokenizer", type=nonempty, metavar="FOLDER",
                       help="the language model's tokenizer, or that of a checkpoint that only matches: folder or hub "
                       "id (default: the checkpoint's)")  # fmt: skip
    group.add_argument("--qformer-tokenizer", type=nonempty, metavar="FOLDER",
                       help="the Q-Former's tokenizer: folder or hub id (default: the checkpoint's; of a .pth file "
                       "bert-base-uncased)")  # fmt: skip
    group = parser.add_argument_group("for .pth files of LAVIS")
    group.add_argument("--vision", type=nonempty, metavar="FILE",
                       help="frozen image encoder: eva_vit_g.pth or clip_vit_L.pth")  # fmt: skip
    group.add_argument("--llm", type=nonempty, metavar="FOLDER", help="frozen language model: folder or hub id")
    group.add_argument("--vision-layers", type=int, metavar="N",
                       help="layers of the encoder (default: a frozen one's but the last)")  # fmt: skip
    group.add_argument("--vision-heads", type=int, default=16, metavar="N", help="attention heads of the encoder")
    group.add_argument("--qformer-heads", type=int, metavar="N",
                       help="attention heads of the Q-Former (default: so many that each is 64 wide)")  # fmt: skip


def parts(args: argparse.Namespace) -> Any:
    """blip2rt.modeling.lavis.Parts of the flags."""
    from blip2rt.modeling.lavis import Parts

    return Parts(
        args.vision, args.llm, args.qformer_tokenizer, args.vision_layers, args.vision_heads, args.qformer_heads,
        args.tokenizer,
    )  # fmt: skip


def export(args: argparse.Namespace) -> None:
    """Export what the command line says, and print the table. Raises Blip2rtError."""
    if args.max_positions < 64:
        raise OptionError(f"--max-positions is {args.max_positions}: give 64 or more")
    if not math.isfinite(args.length_penalty):
        raise OptionError(f"--length-penalty is {args.length_penalty}: give a number, such as 0.5")
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from . import assemble, choices, targets
    from .progress import Progress

    target = targets.TARGETS[args.target]
    options = choices.ExportOptions(
        source=choices.ModelSource(args.checkpoint, args.retrieval_checkpoint, parts(args), args.image_size),
        out=args.out,
        target=target,
        precision=parse_precision(args.precision, target.precisions),
        calib=args.calibration,
        llm=choices.LlmOptions(args.max_positions, args.llm_activations),
        about=choices.About(args.name, args.card, args.length_penalty),
        overwrite=args.overwrite,
        verify=not args.no_verify,
    )
    print("\n".join(table(assemble.export(options, Progress()))))


def parse_precision(given: str, choices: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """ "vision=int8,llm=int4" -> {"vision": "int8", "llm": "int4"}; "int8" -> every group that may be; all faults."""
    chosen: dict[str, str] = {}
    faults = []
    known = {precision for allowed in choices.values() for precision in allowed}
    for item in filter(None, (item.strip() for item in given.split(","))):
        group, _, precision = (word.strip() for word in item.partition("="))
        if item in known:
            chosen = {group: item for group, allowed in choices.items() if item in allowed} | chosen
            continue
        if group not in choices:
            near = f"the groups are {', '.join(choices)}" if "=" in item else f"choose from {', '.join(sorted(known))}"
            faults.append(f"{item!r}: {near}")
        elif precision not in choices[group]:
            faults.append(f"{item!r}: {group} may be {', '.join(choices[group])}")
        chosen[group] = precision
    if faults:
        raise OptionError(f"--precision: {'; '.join(faults)}")
    return chosen


def table(result: Result) -> list[str]:
    """What was written, and how far it is from PyTorch."""
    lines = [("graph", "precision", "against", "largest error", "mean cosine", "size", "")]
    for row in result.rows:
        listed = row.component in result.sizes and row.against == "PyTorch"
        size = f"{result.sizes[row.component] / 1e6:.1f} MB" if listed else ""
        note = "" if row.agreement is None else f"{row.agreement:.0%} of greedy tokens agree"
        lines.append((row.component, row.precision, row.against, f"{row.max_abs_error:.2e}",
                      "" if row.cosine is None else f"{row.cosine:.6f}", size, note))  # fmt: skip
    if not result.rows:
        components = result.bundle.manifest.components
        lines += [(n, c.precision, "not verified", "", "", f"{result.sizes[n] / 1e6:.1f} MB", "")
                  for n, c in components.items()]  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    rows += [f"note: {note}" for note in result.notes]
    return [*rows, f"{result.bundle.path}: {result.bundle.size / 1e6:.1f} MB in all"]


if __name__ == "__main__":
    sys.exit(main())
