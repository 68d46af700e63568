"""Makes one graph in the bundle's folder: trace, calibrate, write, run, judge.

Keeps what the manifest and the table say of each graph. Knows targets, files and sessions, nothing about which graphs
a bundle has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from blip2rt.bundle import Component, TensorInfo

from .checks import calibration, verify
from .graphs import trace
from .graphs.trace import DataFile, Part
from .precision.activations import NO_RANGES, Ranges
from .precision.quantizer import BlockFormat, EncodeMatrix, Quantizer, round_to_nearest
from .precision.storage import stored_precision
from .progress import Progress
from .targets import Target

BLOCK = 64  # of the Q-Former's weights; the language model's is the checkpoint's

Signature = tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]  # inputs, outputs


@dataclass(frozen=True)
class Group:
    """Graphs that have one precision and share one data file."""

    precision: str
    blocks: BlockFormat
    data: DataFile


class GraphExporter:
    """A bundle's folder with the tools that make a graph.

    verified: whether graphs are compared with PyTorch. encode: how a matrix becomes blocks of integers.
    """

    def __init__(
        self,
        folder: Path,
        target: Target,
        progress: Progress,
        *,
        verified: bool = True,
        encode: EncodeMatrix = round_to_nearest,
    ) -> None:
        self.folder, self.target, self.progress = folder, target, progress
        self.verified, self.encode = verified, encode
        self.components: dict[str, Component] = {}
        self.rows: list[verify.Row] = []
        self.notes: list[str] = []  # what whoever exports should know
        self.sizes: dict[str, int] = {}  # component -> bytes of its graph and weights; shared weights count for each

    def graph(self, name: str) -> Path:
        """The file of a graph."""
        return self.folder / f"{name}.onnx"

    @contextlib.contextmanager
    def group(self, name: str, precision: str, block: int = BLOCK, activations: int = 8) -> Iterator[Group]:
        """Open a group's data file. `activations`: bits that int4 weights meet."""
        with contextlib.closing(DataFile(self.folder, f"{name}.data")) as data:
            yield Group(precision, BlockFormat(block, self.encode, activations), data)

    def trace(self, part: Part) -> ir.Model:
        """Trace a graph for the target."""
        self.progress.line(f"{part.name}: tracing")
        return trace.trace(part, self.target.opset)

    def calibrate(self, name: str, model: ir.Model, batches: Iterable[verify.Arrays]) -> Ranges:
        """Run the float32 graph on batches of its inputs. Return the ranges that int8 takes."""
        return calibration.batch_ranges(model, self.folder, name, batches, self.target.operands)

    def write(
        self, name: str, model: ir.Model, group: Group, seen: Ranges = NO_RANGES, signature: Signature | None = None
    ) -> None:
        """Bring the graph to the group's precision and write it.

        seen: ranges of its activations. signature: its inputs and outputs, where the graph has lost their shapes.
        """
        self.progress.line(f"{name}: writing in {group.precision}")

        def show(done: int, total: int) -> None:
            self.progress.bar(name, done, total)

        self.target.apply(model, group.precision, Quantizer(group.blocks, group.data.keep, show), seen)
        inputs, outputs = signature or trace.signature(model)
        self.sizes[name] = trace.save(model, self.graph(name), group.data)
        precision = stored_precision(model, group.precision)
        if precision != group.precision:
            self.notes.append(f"{name} is {precision}: it has nothing to be {group.precision} in")
        self.components[name] = Component(self.graph(name).name, precision, inputs, outputs)

    def run(self, name: str, inputs: verify.Arrays) -> dict[str, Any]:
        """Run a graph that is written. Return its outputs by name."""
        return verify.run(self.graph(name), inputs, self.target.open)

    def reference(self, part: Part, inputs: verify.Arrays) -> dict[str, Any]:
        """Return PyTorch's outputs by name; nothing where graphs are not verified."""
        return part.run(inputs) if self.verified else {}

    def precision(self, name: str) -> str:
        """The precision that a graph was written in."""
        return self.components[name].precision

    def judge(self, name: str, inputs: verify.Arrays, want: verify.Arrays) -> dict[str, Any]:
        """Compare a graph with PyTorch's outputs `want`. Return its own; nothing where graphs are not verified."""
        if not self.verified:
            return {}
        self.progress.line(f"{name}: verifying")
        got = self.run(name, inputs)
        self.rows.append(verify.judge(name, self.precision(name), verify.PYTORCH, got, want))
        return got

    def judge_exact(self, name: str, inputs: verify.Arrays, want: verify.Arrays) -> None:
        """Compare a graph, computing in float32, with PyTorch's outputs `want` of the very weights that it stores."""
        with verify.exact(self.graph(name)) as copy:
            got = verify.run(copy, inputs)
        self.rows.append(verify.judge(name, self.precision(name), verify.OWN, got, want))
