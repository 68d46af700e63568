"""Export one graph at a time into a bundle's folder: trace and write; its Verifier compares.

Keeps what the manifest and the report say about each graph.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from blip2rt.bundle import EMBED, ENCODER, LLM, Component
from blip2rt.errors import Blip2rtError
from blip2rt.native import native

from .checks import calibration
from .checks.verify import Arrays, Verifier
from .graphs import trace
from .graphs.trace import DataFile, GraphSpec
from .precision.activations import NO_RANGES, Ranges
from .precision.quantizer import BlockFormat, EncodeMatrix, Quantizer, round_to_nearest
from .precision.storage import stored_precision
from .progress import Progress
from .targets import Target

Outputs = dict[str, np.ndarray]

BLOCK = 64  # block size of the Q-Former's weights; the checkpoint has the language model's


@dataclass(frozen=True)
class Group:
    """Graphs of one precision that share a data file."""

    precision: str
    blocks: BlockFormat
    data: DataFile


class GraphExporter:
    """Exports graphs for one target into `folder`.

    verified: compare graphs with PyTorch. encode: how a matrix becomes blocks of integers.
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
        self.encode = encode
        self.verifier = Verifier(folder, target.open, progress.line, enabled=verified)
        self.notes: list[str] = []  # for the user
        self.sizes: dict[str, int] = {}  # component -> bytes of its graph and weights, including shared weights

    @contextlib.contextmanager
    def group(self, name: str, precision: str, block: int = BLOCK, activations: int = 8) -> Iterator[Group]:
        """Open a group's data file. activations: bits that activations have where they meet int4 weights."""
        with contextlib.closing(DataFile(self.folder, f"{name}.data")) as data:
            yield Group(precision, BlockFormat(block, self.encode, activations), data)

    def export(
        self,
        name: str,
        precision: str,
        parts: Sequence[GraphSpec],
        inputs: Arrays,
        batches: Callable[[], Iterable[Arrays]],
    ) -> dict[str, tuple[Outputs, Outputs]]:
        """Write the graphs of a group and compare them on `inputs`. Return the outputs of PyTorch and of each graph, by
        its name; both are empty without verification.

        batches: yields what int8-static is calibrated on, for each graph anew.
        """
        wants: dict[str, Outputs] = {part.name: part.run(inputs) if self.verifier.enabled else {} for part in parts}
        with self.group(name, precision) as group:
            for part in parts:
                self.progress.line(f"{part.name}: tracing")
                model, seen = trace.trace(part, self.target.opset), NO_RANGES
                if precision == "int8-static":
                    self.progress.line(f"{part.name}: calibrating int8")
                    seen = calibration.batch_ranges(model, self.folder, part.name, batches())
                self.write(part.name, model, group, seen)
        return {part: (want, self.verifier.compare(part, inputs, want)) for part, want in wants.items()}

    def write(self, name: str, model: ir.Model, group: Group, seen: Ranges = NO_RANGES) -> None:
        """Bring a graph to the group's precision and write it. seen: measured ranges of its activations, for int8."""
        self.progress.line(f"{name}: writing in {group.precision}")
        show, path = partial(self.progress.bar, name), self.verifier.graph(name)
        self.target.apply(model, group.precision, Quantizer(group.blocks, group.data.store_large, show, seen))
        inputs, outputs = trace.signature(model)
        self.sizes[name] = trace.save(model, path, group.data)
        precision = stored_precision(model, group.precision)
        if precision != group.precision:
            self.notes.append(f"{name} is {precision}: nothing in it can be {group.precision}")
        self.verifier.components[name] = Component(path.name, precision, inputs, outputs)
        self._check_operators(name, path)

    def _check_operators(self, name: str, path: Path) -> None:
        """Reject a language model's graph that blip2rt.load would reject; add a note for any other graph."""
        try:
            native.check_graph(str(path))
        except native.GraphError as error:
            reason = str(error).partition(" is rejected: ")[2]
            if name in (EMBED, LLM, ENCODER) and self.target.name == "ort":
                reason = reason.partition(": if the graph is your own")[0]
                raise Blip2rtError(f"the graph {name!r} cannot run: {reason}: use another language model") from None
            self.notes.append(f"{name}: {reason}")
