"""Command-line flags of the parts that a checkpoint lacks."""

from __future__ import annotations

import argparse
from dataclasses import fields

from ..command_line import nonempty
from .sources import ExternalParts


def add_parts(parser: argparse.ArgumentParser) -> None:
    """Add options for parts that a checkpoint lacks."""
    add = parser.add_argument_group("parts that a checkpoint lacks").add_argument
    tokenizer = (
        "tokenizer of the language model, or of a checkpoint that only matches: folder or hub id (default: the "
        "checkpoint's)"
    )
    add("--tokenizer", type=nonempty, metavar="FOLDER", help=tokenizer)
    qformer = (
        "the Q-Former's tokenizer: folder or hub id (default: the checkpoint's; bert-base-uncased for a .pth file)"
    )
    add("--qformer-tokenizer", type=nonempty, metavar="FOLDER", help=qformer)
    add = parser.add_argument_group(".pth files of LAVIS").add_argument
    vision = "frozen image encoder: eva_vit_g.pth or clip_vit_L.pth"
    add("--vision", type=nonempty, metavar="FILE", help=vision)
    add("--llm", type=nonempty, metavar="FOLDER", help="frozen language model: folder or hub id")
    layers = "layers of the encoder (default: all but the last of a frozen one)"
    add("--vision-layers", type=int, metavar="N", help=layers)
    add("--vision-heads", type=int, default=16, metavar="N", help="attention heads of the encoder")
    heads = "attention heads of the Q-Former (default: one per 64 channels)"
    add("--qformer-heads", type=int, metavar="N", help=heads)


def parts(args: argparse.Namespace) -> ExternalParts:
    """The parts that the flags name."""
    return ExternalParts(**{field.name: getattr(args, field.name) for field in fields(ExternalParts)})
