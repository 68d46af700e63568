"""What a step of an exported language model launches and reads, counted from its graph: nothing is run.

    python -m export.synthetic --geometry blip2-opt-2.7b --target trt --precision llm=int4 --out build/opt
    python -m benchmarks.count_step build/opt

A row a bundle. DequantizeLinear and Constant, which are the weights' own, are not operators here. Products are of
weights, the shifts of 4-bit weights among them, or of attention, between activations.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from blip2rt import onnx_protobuf
from blip2rt.bench import costs
from blip2rt.bench.report import Table, markdown_table
from blip2rt.bundle import EMBED, LLM, read
from blip2rt.command_line import Parser, path, run

_OWN = ("DequantizeLinear", "Constant")
_KINDS = (".codes", ".scales", ".offsets", ".zeros")  # how the names of what 4-bit weights are stored in end
_MB = 1e6


@dataclass(frozen=True)
class Step:
    """One step of a language model."""

    operators: int
    of_weights: int  # products
    of_attention: int
    attention: int  # operators that attend by themselves
    read: int  # bytes of weights
    kinds: dict[str, int]  # bytes of tensors by how their names end
    embed: int  # bytes of the table of `embed`, of which a step reads a row


def count(bundle: Path) -> Step:
    """Count a bundle's step. Raises BundleError."""
    made = read(bundle)
    graph, table = onnx_protobuf.read(made.graph(LLM)), onnx_protobuf.read(made.graph(EMBED))
    operators = Counter(node.op_type for node in graph.nodes if node.op_type not in _OWN)
    held = {out for node in graph.nodes if node.op_type == _OWN[0] for out in node.outputs} | graph.initializers.keys()
    of_weights = sum(node.op_type == "MatMul" and node.inputs[1] in held for node in graph.nodes)
    kinds = {kind: sum(tensor.nbytes for name, tensor in graph.initializers.items() if name.endswith(kind))
             for kind in _KINDS}  # fmt: skip
    return Step(
        operators.total(), of_weights, operators["MatMul"] - of_weights, operators["Attention"],
        costs.of_graph(made.graph(LLM), {}, 1).weight_bytes, kinds,
        sum(tensor.nbytes for tensor in table.initializers.values()),
    )  # fmt: skip


def main() -> int:
    return run("python -m benchmarks.count_step", lambda: _run(_parser().parse_args()))


def _parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=path, metavar="BUNDLE",
                        help="a folder that blip2rt-export --target trt or trt-native wrote")  # fmt: skip
    return parser


def _run(args: argparse.Namespace) -> None:
    head = ("bundle", "operators", "products", "of weights and shifts", "of attention", "Attention", "MB a step",
            *(f"MB of {kind[1:]}" for kind in _KINDS), "MB of embed")  # fmt: skip
    rows = []
    for bundle in args.bundles:
        step = count(bundle)
        sizes = (step.read, *step.kinds.values(), step.embed)
        numbers = (step.operators, step.of_weights + step.of_attention, step.of_weights, step.of_attention,
                   step.attention)  # fmt: skip
        rows.append((bundle.name, *(f"{number:,}" for number in numbers), *(f"{size / _MB:,.0f}" for size in sizes)))
    print(markdown_table(Table("A step, counted", head, tuple(rows))))


if __name__ == "__main__":
    sys.exit(main())
