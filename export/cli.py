"""`blip2rt-export`: reads the command line, calls `assemble.export`, prints the table."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from blip2rt.bundle import TARGETS
from blip2rt.errors import Blip2rtError

if TYPE_CHECKING:
    from .assemble import Result

_EPILOG = """\
CKPT is a folder that training wrote, a Hugging Face folder or hub id of Blip2ForConditionalGeneration or
Blip2ForImageTextRetrieval, or a .pth file of LAVIS. One that generates gives the graphs vision, qformer, embed, llm
(caption, ask); one that matches, alone or as --retrieval-ckpt, gives image_embed, text_embed, itm (match, embed).

precisions: fp32; fp16 (stored so, computed in fp32); int8w (8-bit weights, computed in fp32); int4 (4-bit block-wise
weights); int8-dynamic (8-bit weights and activations, the latter as they come); int8-static, not for retrieval (the
same, calibrated on --calib); int8 (static with --calib, else dynamic). Every graph is compared with PyTorch, and all
together; one that deviates too far fails the export. Default: vision=int8w,qformer=int4,llm=int4,retrieval=int4.

--target trt makes the graphs for TensorRT, strongly typed, with a cache of fixed capacity. precisions there: fp32; fp16
(computed so, with norms, softmax and sums in fp32); int8 (8-bit weights and activations by --calib, not for retrieval);
int4, for llm (4-bit block-wise weights, computed in fp16).
Default: vision=fp16,qformer=fp32,llm=fp16,retrieval=fp32.

examples:
  blip2rt-export --ckpt Salesforce/blip2-opt-2.7b --out opt --precision vision=int8,qformer=fp32,llm=int4
  blip2rt-export --ckpt blip2_pretrained_opt2.7b.pth --vision eva_vit_g.pth --llm opt-2.7b/ --out opt
  blip2rt-export --ckpt runs/nano/stage2 --retrieval-ckpt runs/nano/stage1 --out nano --calib photographs/
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Blip2rtError(f"{message}; see blip2rt-export --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="blip2rt-export", description="Checkpoint -> bundle of ONNX graphs, verified against PyTorch.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--ckpt", required=True, metavar="CKPT", help="checkpoint: folder, .pth file or hub id")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="BUNDLE", help="the bundle's folder, written whole or not at all"
    )
    parser.add_argument("--retrieval-ckpt", metavar="CKPT", help="a second checkpoint, for match and embed")
    add_parts(parser)
    parser.add_argument("--image-size", type=int, metavar="PIXELS",
                        help="other than the checkpoint's; position embeddings are interpolated")  # fmt: skip
    parser.add_argument("--name", help="the bundle's name (default: its folder's)")
    parser.add_argument("--target", choices=TARGETS, default=TARGETS[0],
                        help="the engine that the graphs are for: ONNX Runtime or TensorRT (default: ort)")  # fmt: skip
    parser.add_argument("--precision", default="", metavar="GROUP=P,...",
                        help="of the groups vision, qformer, llm, retrieval; see below")  # fmt: skip
    parser.add_argument(
        "--calib", type=Path, metavar="FOLDER", help="photographs: int8 calibration, and to verify with"
    )
    parser.add_argument("--card", type=Path, metavar="FILE", help="copied in as MODEL_CARD.md")
    parser.add_argument("--max-positions", type=int, default=1024, metavar="N",
                        help="prefix, prompt and new tokens together, at most (default: 1024)")  # fmt: skip
    parser.add_argument("--length-penalty", type=float, default=1.0, metavar="X",
                        help="of captions, the bundle's default: lower is shorter (default: 1)")  # fmt: skip
    parser.add_argument("--llm-activations", type=int, choices=(8, 16), metavar="BITS",
                        help="that meet the language model's int4 weights: 16 is as good as exact, a step up to a fifth"
                        " slower (default: 16 below a billion parameters, else 8)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle at --out")
    parser.add_argument("--no-verify", action="store_true", help="skip the comparison with PyTorch")
    return parser


def main(argv: list[str] | None = None) -> int:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers' bars would tear our lines
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        result = _run(_parser().parse_args(argv))
    except Blip2rtError as error:
        print(f"blip2rt-export: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("blip2rt-export: interrupted, nothing was written", file=sys.stderr)
        return 130
    except MemoryError:
        print("blip2rt-export: error: not enough memory", file=sys.stderr)
        return 2
    print("\n".join(table(result)))
    return 0


def add_parts(parser: argparse.ArgumentParser) -> None:
    """Flags for what LAVIS' files leave out."""
    group = parser.add_argument_group("for .pth files of LAVIS")
    group.add_argument("--vision", metavar="FILE", help="frozen image encoder: eva_vit_g.pth or clip_vit_L.pth")
    group.add_argument("--llm", metavar="FOLDER", help="frozen language model: folder or hub id")
    group.add_argument("--qformer-tokenizer", metavar="FOLDER", default="bert-base-uncased",
                       help="folder or hub id of the Q-Former's tokenizer (default: bert-base-uncased)")  # fmt: skip
    group.add_argument(
        "--vision-layers", type=int, metavar="N", help="of the encoder (default: a frozen one's but the last)"
    )
    group.add_argument("--vision-heads", type=int, default=16, metavar="N", help="attention heads (default: 16)")
    group.add_argument("--qformer-heads", type=int, metavar="N", help="attention heads (default: 64 wide each)")


def parts(args: argparse.Namespace) -> Any:
    """blip2rt.modeling.lavis.Parts of the flags."""
    from blip2rt.modeling.lavis import Parts

    return Parts(
        args.vision, args.llm, args.qformer_tokenizer, args.vision_layers, args.vision_heads, args.qformer_heads
    )


def _run(args: argparse.Namespace) -> Result:
    if args.max_positions < 64:
        raise Blip2rtError(f"--max-positions is {args.max_positions}: give 64 or more")
    if not math.isfinite(args.length_penalty):
        raise Blip2rtError(f"--length-penalty is {args.length_penalty}: give a number, such as 0.5")
    try:
        from . import assemble, choices, targets
        from .progress import Progress
    except ModuleNotFoundError as error:
        raise Blip2rtError(f"{error.name} is not installed; pip install 'blip2rt[export]'") from error
    target = targets.TARGETS[args.target]
    options = choices.ExportOptions(
        source=choices.ModelSource(args.ckpt, args.retrieval_ckpt, parts(args), args.image_size),
        out=args.out,
        target=target,
        precision=parse_precision(args.precision, target.precisions),
        calib=args.calib,
        llm=choices.LlmOptions(args.max_positions, args.llm_activations),
        about=choices.About(args.name, args.card, args.length_penalty),
        overwrite=args.overwrite,
        verify=not args.no_verify,
    )
    return assemble.export(options, Progress())


def parse_precision(text: str, choices: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """ "vision=int8,llm=int4" -> {"vision": "int8", "llm": "int4"}; all faults at once."""
    chosen, faults = {}, []
    for item in filter(None, (item.strip() for item in text.split(","))):
        group, _, precision = (word.strip() for word in item.partition("="))
        if group not in choices:
            faults.append(f"{item!r}: the groups are {', '.join(choices)}")
        elif precision not in choices[group]:
            faults.append(f"{item!r}: {group} may be {', '.join(choices[group])}")
        chosen[group] = precision
    if faults:
        raise Blip2rtError(f"--precision: {'; '.join(faults)}")
    return chosen


def table(result: Result) -> list[str]:
    """What was written, and how far it is from PyTorch."""
    lines = [("graph", "precision", "against", "largest error", "mean cosine", "size", "")]
    for row in result.rows:
        listed = row.component in result.sizes and row.against == "PyTorch"
        size = f"{result.sizes[row.component] / 1e6:.1f} MB" if listed else ""
        note = "" if row.agreement is None else f"{row.agreement:.0%} of greedy tokens agree"
        lines.append((row.component, row.precision, row.against, f"{row.max_abs_error:.2e}", f"{row.cosine:.6f}", size,
                      note))  # fmt: skip
    if not result.rows:
        components = result.bundle.manifest.components
        lines += [(n, c.precision, "not verified", "", "", f"{result.sizes[n] / 1e6:.1f} MB", "")
                  for n, c in components.items()]  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return [*text, f"{result.bundle.path}: {result.bundle.size / 1e6:.1f} MB in all"]


if __name__ == "__main__":
    sys.exit(main())
