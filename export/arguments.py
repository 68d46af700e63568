"""What can be known of an export before torch is imported, which takes seconds: precisions, and paths."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

from blip2rt.bundle.writer import check_destination
from blip2rt.errors import OptionError, collected
from blip2rt.modeling.sources import fetch, is_local, locate

_FLOATS = ("fp32", "fp16")

Precisions = Mapping[str, tuple[str, ...]]  # group -> choices

ORT_PRECISIONS: Precisions = dict.fromkeys(
    ("vision", "qformer", "llm", "retrieval"), (*_FLOATS, "int8", "int8-dynamic", "int8w", "int4")
)
TRT_PRECISIONS: Precisions = {
    **dict.fromkeys(("vision", "qformer"), (*_FLOATS, "int8")),
    "llm": (*_FLOATS, "int8", "int4"),
    "retrieval": _FLOATS,
}
PRECISIONS = {"ort": ORT_PRECISIONS, "trt": TRT_PRECISIONS}  # as --target has them


def check(args: argparse.Namespace) -> None:
    """Raise OptionError for all mistakes that need no torch to be found. A hub id is downloaded later."""
    found: list[str] = []
    if args.max_positions < 64:
        found.append(f"--max-positions is {args.max_positions}: give 64 or more")
    if not math.isfinite(args.length_penalty):
        found.append(f"--length-penalty is {args.length_penalty}: give a number, such as 0.5")
    with collected(found):
        parse_precision(args.precision, PRECISIONS[args.target])
    with collected(found):
        check_destination(Path(args.out), args.overwrite)
    for source, find in (
        (args.checkpoint, locate),
        (args.retrieval_checkpoint, locate),
        *((each, fetch) for each in (args.vision, args.llm, args.tokenizer, args.qformer_tokenizer)),
    ):
        with collected(found):
            if source and is_local(source):
                find(source)
    if args.card is not None and not args.card.is_file():
        found.append(f"--card {args.card} is not a file: name one")
    if found:
        raise OptionError("; ".join(dict.fromkeys(found)))


def parse_precision(given: str, choices: Precisions) -> dict[str, str]:
    """ "vision=int8,llm=int4" -> {"vision": "int8", "llm": "int4"}; "int8" -> all groups that support it.

    Raises OptionError, which lists all faults.
    """
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
