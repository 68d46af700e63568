"""Lower bounds for a decoding step and an encoder on NVIDIA boards, from data sheets: nothing is measured.

Assumes what good kernels reach: a step reads the weights once at 75 % of the memory bandwidth, and products run at half
of the dense tensor rate. `costs` counts both in the bundle's graphs; keys and values, a few per cent, are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..backends.trt import PlanSizes, plans
from ..bundle import Bundle
from ..errors import OptionError
from . import collect, costs
from .report import Table
from .stages import Workload

BANDWIDTH_SHARE, PRODUCT_SHARE = 0.75, 0.5
PROMPT = 8  # tokens after the image
_SYSTEM_BYTES = 2e9  # of shared memory, for the operating system and other programs


@dataclass(frozen=True)
class Board:
    """A data sheet. Rates are of dense products, two operations a multiply-add."""

    name: str
    sm: str
    read_bytes: float  # a second
    fp16_ops: float
    int8_ops: float
    memory: float  # bytes
    shared: bool = True  # with the CPU

    @property
    def rates(self) -> costs.Rates:
        """The rates that good kernels reach."""
        ops = PRODUCT_SHARE * self.int8_ops, PRODUCT_SHARE * self.fp16_ops
        return costs.Rates(BANDWIDTH_SHARE * self.read_bytes, *ops)


def _orin(name: str, multiprocessors: int, clock: float, read_bytes: float, memory: float) -> Board:
    """An Orin does 2048 float16 operations, or twice as many int8 ones, per cycle and multiprocessor."""
    fp16 = 2048 * multiprocessors * clock
    return Board(name, "SM87", read_bytes, fp16, 2 * fp16, memory)


BOARDS = {
    "orin-nano-4gb": _orin("Orin Nano 4 GB", 4, 1.020e9, 51e9, 4e9),
    "orin-nano": _orin("Orin Nano 8 GB", 8, 1.020e9, 102e9, 8e9),
    "orin-nx": _orin("Orin NX 16 GB", 8, 1.173e9, 102e9, 16e9),
    "agx-orin": _orin("AGX Orin 64 GB", 16, 1.300e9, 204.8e9, 64e9),
    "thor": Board("Thor T5000", "SM110", 273e9, 258e12, 517e12, 128e9),
    "rtx-4090": Board("RTX 4090", "SM89", 1008e9, 165e12, 661e12, 24e9, shared=False),
    "h100": Board("H100 SXM", "SM90", 3350e9, 989e12, 1979e12, 80e9, shared=False),
}
ALL = "all"


def estimate(bundle: Bundle, names: list[str]) -> Table:
    """Return a table with one row a board. Raises OptionError if the bundle is not for TensorRT or cannot caption."""
    if bundle.manifest.target != "trt" or bundle.manifest.llm is None:
        raise OptionError(
            f"--roofline needs a captioning bundle for TensorRT, and {bundle.path} is for {bundle.manifest.target}: "
            "give --geometry, or a --model exported with --target trt"
        )
    spec = bundle.manifest.llm
    one = Workload(str(bundle.path), "", 1, 1, 1, 1, 1)
    found = collect.stage_costs(bundle, one, spec.prefix_length + PROMPT)
    needed = plans.estimate(bundle, plans.resolve(bundle, PlanSizes(max_beams=1)))
    precisions = ", ".join(f"{name} {each.precision}" for name, each in bundle.manifest.components.items())
    rows = [_row(BOARDS[name], found, needed) for name in names]
    head = ("board", "GPU", "GB/s", "step ms", "encoder ms", "Q-Former ms", "prompt ms", "GB to run", "fits")
    title = f"{bundle.manifest.name}: {precisions}; at {BANDWIDTH_SHARE:.0%} of bandwidth, not measured"
    return Table(title, head, tuple(rows))


def _row(board: Board, found: dict[str, costs.Cost], needed: plans.Estimate) -> tuple[str, ...]:
    stages = ("decode step", "vision", "qformer", "prefill")
    times = [f"{1e3 * costs.limit(found[stage], board.rates)[0]:.1f}" for stage in stages]
    room = board.memory - (_SYSTEM_BYTES if board.shared else 0)
    fits = "yes" if needed.running <= room else "no"
    bandwidth, memory = f"{board.read_bytes / 1e9:.0f}", f"{needed.running / 1e9:.1f}"
    return (board.name, board.sm, bandwidth, *times, memory, fits)
