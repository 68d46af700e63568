"""`blip2rt-export`: reads the command line, calls `assemble.export`, prints the table."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from blip2rt.errors import Blip2rtError

if TYPE_CHECKING:
    from .assemble import Result

_PRECISION = "vision=int8w,qformer=int4,llm=int4,retrieval=int4"
_EPILOG = """\
A stage-2 checkpoint gives the graphs vision, qformer, embed, llm (caption, ask); a stage-1 checkpoint, alone or as
--retrieval-ckpt, gives image_embed, text_embed, itm (match, embed).

precisions: fp32; fp16 (stored so, computed in fp32); int8w (8-bit weights, computed in fp32: block-wise, for vision the
large tensors); int4 (block-wise weights), not for vision; for vision int8 (weights and activations, calibrated on
--calib). Every graph is compared with PyTorch; one that deviates too far fails the export.

example: blip2rt-export --ckpt runs/nano/stage2 --retrieval-ckpt runs/nano/stage1 --out nano \\
           --precision vision=int8 --calib photographs/
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Blip2rtError(f"{message}; see blip2rt-export --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="blip2rt-export", description="Checkpoint -> bundle of ONNX graphs, verified against PyTorch.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--ckpt", type=Path, required=True, metavar="CKPT", help="checkpoint, or a training's folder")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="BUNDLE", help="the bundle's folder, written whole or not at all"
    )
    parser.add_argument("--retrieval-ckpt", type=Path, metavar="STAGE1", help="stage-1 checkpoint for match and embed")
    parser.add_argument("--name", help="the bundle's name (default: its folder's)")
    parser.add_argument("--precision", default="", metavar="GROUP=P,...", help=f"of each group (default: {_PRECISION})")
    parser.add_argument(
        "--calib", type=Path, metavar="FOLDER", help="photographs: int8 calibration, and to verify with"
    )
    parser.add_argument("--card", type=Path, metavar="FILE", help="copied in as MODEL_CARD.md")
    parser.add_argument("--max-positions", type=int, default=1024, metavar="N",
                        help="prefix, prompt and new tokens together, at most (default: 1024)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle at --out")
    parser.add_argument("--no-verify", action="store_true", help="skip the comparison with PyTorch")
    return parser


def main(argv: list[str] | None = None) -> int:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers' bars would tear our lines
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    start = time.monotonic()

    def report(line: str) -> None:
        print(f"[{time.monotonic() - start:6.1f} s] {line}", file=sys.stderr, flush=True)

    try:
        result = _run(_parser().parse_args(argv), report)
    except Blip2rtError as error:
        print(f"blip2rt-export: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("blip2rt-export: interrupted, nothing was written", file=sys.stderr)
        return 130
    print("\n".join(table(result)))
    return 0


def _run(args: argparse.Namespace, report: object) -> Result:
    if args.max_positions < 64:
        raise Blip2rtError(f"--max-positions is {args.max_positions}: give 64 or more")
    try:
        from . import assemble
    except ImportError as error:
        raise Blip2rtError(f"{error.name} is not installed; pip install 'blip2rt[export]'") from error
    options = assemble.Options(
        ckpt=args.ckpt, out=args.out, retrieval_ckpt=args.retrieval_ckpt, name=args.name,
        precision=parse_precision(args.precision, assemble.PRECISIONS), calib=args.calib, card=args.card,
        max_positions=args.max_positions, overwrite=args.overwrite, verify=not args.no_verify,
    )  # fmt: skip
    return assemble.export(options, report)  # type: ignore[arg-type]


def parse_precision(text: str, choices: dict[str, tuple[str, ...]]) -> dict[str, str]:
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
        size = f"{result.sizes[row.component] / 1e6:.1f} MB" if row.against == "PyTorch" else ""
        lines.append((row.component, row.precision, row.against, f"{row.max_abs_error:.2e}", f"{row.cosine:.6f}", size,
                      row.note))  # fmt: skip
    if not result.rows:
        components = result.bundle.manifest.components
        lines += [(n, c.precision, "not verified", "", "", f"{result.sizes[n] / 1e6:.1f} MB", "")
                  for n, c in components.items()]  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return [*text, f"{result.bundle.path}: {result.bundle.size / 1e6:.1f} MB in all"]


if __name__ == "__main__":
    sys.exit(main())
