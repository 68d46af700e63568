"""Lower bounds for a decode step on NVIDIA boards, from data sheets: nothing is measured.

Assumes what good kernels reach: a step reads the weights once at 75 % of the memory bandwidth. Keys and values, a few
per cent, are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..backends.trt import PlanSizes, plans
from ..bundle import Bundle
from ..errors import OptionError
from .collect import step_bytes
from .report import Table

BANDWIDTH_SHARE = 0.75
_SYSTEM_BYTES = 2e9  # of shared memory, for the operating system and other programs


@dataclass(frozen=True)
class Board:
    """A data sheet."""

    name: str
    sm: str
    read_bytes: float  # a second
    memory: float  # bytes
    shared: bool = True  # with the CPU


BOARDS = {
    "orin-nano-4gb": Board("Orin Nano 4 GB", "SM87", 51e9, 4e9),
    "orin-nano": Board("Orin Nano 8 GB", "SM87", 102e9, 8e9),
    "orin-nx": Board("Orin NX 16 GB", "SM87", 102e9, 16e9),
    "agx-orin": Board("AGX Orin 64 GB", "SM87", 204.8e9, 64e9),
    "thor": Board("Thor T5000", "SM110", 273e9, 128e9),
    "rtx-4090": Board("RTX 4090", "SM89", 1008e9, 24e9, shared=False),
    "h100": Board("H100 SXM", "SM90", 3350e9, 80e9, shared=False),
}
ALL = "all"


def estimate(bundle: Bundle, names: list[str]) -> Table:
    """Return a table with one row a board. Raises OptionError if the bundle is not for TensorRT or cannot caption."""
    if bundle.manifest.target != "trt" or bundle.manifest.llm is None:
        raise OptionError(
            f"--roofline needs a captioning bundle for TensorRT, and {bundle.path} is for {bundle.manifest.target}: "
            "give --geometry, or a --model exported with --target trt"
        )
    needed = plans.estimate(bundle, plans.resolve(bundle, PlanSizes(max_beams=1))).running
    precisions = ", ".join(f"{name} {each.precision}" for name, each in bundle.manifest.components.items())
    rows = [_row(BOARDS[name], step_bytes(bundle), needed) for name in names]
    title = f"{bundle.manifest.name}: {precisions}; at {BANDWIDTH_SHARE:.0%} of bandwidth, not measured"
    return Table(title, ("board", "GPU", "GB/s", "step ms", "GB to run", "fits"), tuple(rows))


def _row(board: Board, read_bytes: int, needed: int) -> tuple[str, ...]:
    step = f"{1e3 * read_bytes / (BANDWIDTH_SHARE * board.read_bytes):.1f}"
    fits = "yes" if needed <= board.memory - (_SYSTEM_BYTES if board.shared else 0) else "no"
    return board.name, board.sm, f"{board.read_bytes / 1e9:.0f}", step, f"{needed / 1e9:.1f}", fits
