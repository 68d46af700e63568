"""Small random ONNX graphs of each kind that exports have."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Model = onnx.ModelProto
Constants = dict[str, np.ndarray]
CONTRIB = ("MatMulNBits", "DynamicQuantizeMatMul", "GroupQueryAttention")  # operators of com.microsoft
VERSION = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
OVERFLOWS = VERSION < (1, 30)  # without VNNI, ONNX Runtime sums two 8-bit products in 16 bits
LARGEST_CODE = 63 if OVERFLOWS else 127  # whose sums do not overflow


@dataclass(frozen=True)
class Sizes:
    k: int = 40
    n: int = 24
    block: int = 32
    heads: int = 2
    width: int = 16  # of a head
    hidden: int = 16
    words: int = 19
    positions: int = 5

    @property
    def joined(self) -> int:
        return self.heads * self.width


DEFAULT = Sizes()


def op(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node. Names are separated by spaces; `_` is an omitted input."""
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), domain="com.microsoft" * (kind in CONTRIB), **attributes)


def value(name: str, shape: list[Any], dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: Constants) -> Model:
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def node(model: Model, kind: str) -> onnx.NodeProto:
    """The model's first node of this type."""
    return next(node for node in model.graph.node if node.op_type == kind)


def normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float = 0.3) -> np.ndarray:
    return rng.normal(0, scale, shape).astype(np.float32)


def int4_constants(rng: np.random.Generator, k: int, n: int, block: int) -> Constants:
    blocks = -(-k // block)
    return {
        "codes": rng.integers(0, 256, (n, blocks, block // 2), dtype=np.uint8),
        "scales": rng.uniform(0.01, 0.1, (n, blocks)).astype(np.float16),
        "zeros": rng.integers(0, 256, (n, (blocks + 1) // 2), dtype=np.uint8),
    }


def int4(rng: np.random.Generator, sizes: Sizes = DEFAULT) -> Model:
    """x (B, K) -> y (B, N) by MatMulNBits."""
    k, n, block = sizes.k, sizes.n, sizes.block
    nodes = [
        op("Cast", "scales", "wide", to=TensorProto.FLOAT),
        op("MatMulNBits", "x codes wide zeros", "y", K=k, N=n, bits=4, block_size=block, accuracy_level=4),
    ]
    constants = int4_constants(rng, k, n, block)
    return model(nodes, [value("x", ["B", k])], [value("y", ["B", n])], constants)


def int8(rng: np.random.Generator, sizes: Sizes = DEFAULT) -> Model:
    """x (B, S, K) -> y (B, S, H*hd): DynamicQuantizeMatMul and the attention of a vision transformer."""
    largest, joined = LARGEST_CODE, sizes.joined
    constants = {
        "codes": rng.integers(-largest, largest + 1, (3 * joined, sizes.k), dtype=np.int8),
        "scales": rng.uniform(0.001, 0.003, 3 * joined).astype(np.float32),
        "bias": normal(rng, (3 * joined,), 1),
        "heads": np.array([-1, sizes.positions, sizes.heads, sizes.width]),
        "joined": np.array([-1, sizes.positions, joined]),
        "scale": np.float32(sizes.width**-0.5),
    }
    nodes = [
        op("Transpose", "codes", "columns", perm=[1, 0]),
        op("DynamicQuantizeMatMul", "x columns scales _ bias", "qkv"),
        op("Split", "qkv", "q k v", axis=2, num_outputs=3),
    ]
    for name, order in {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}.items():
        nodes.append(op("Reshape", f"{name} heads", f"{name}h"))
        nodes.append(op("Transpose", f"{name}h", f"{name}t", perm=order))
    nodes += [
        op("MatMul", "qt kt", "scores"),
        op("Mul", "scores scale", "scaled"),
        op("Softmax", "scaled", "weights", axis=-1),
        op("MatMul", "weights vt", "sum"),
        op("Transpose", "sum", "back", perm=[0, 2, 1, 3]),
        op("Reshape", "back joined", "y"),
    ]
    return model(nodes, [value("x", ["B", "S", sizes.k])], [value("y", ["B", "S", joined])], constants)


def decoder(rng: np.random.Generator, crosses: bool, sizes: Sizes = DEFAULT) -> Model:
    """The contract's llm with one layer of GroupQueryAttention. crosses: it also attends to an encoder."""
    heads, width, hidden, joined = sizes.heads, sizes.width, sizes.hidden, sizes.joined
    constants: Constants = {name: normal(rng, (hidden, joined if name == "q" else width)) for name in "qkv"}
    constants |= {name: rng.uniform(-1, 1, (64, width // 2)).astype(np.float32) for name in ("cos", "sin")}
    constants |= {"o": normal(rng, (joined, hidden)), "head": normal(rng, (hidden, sizes.words), 1)}
    constants["last"] = np.array([-1])
    inputs = "q_ k_ v_ past_key_0 past_value_0 seqlens_k total_sequence_length cos sin"
    outputs = "mixed present_key_0 present_value_0"
    nodes = [
        *(op("MatMul", f"inputs_embeds {name}", f"{name}_") for name in "qkv"),
        op("GroupQueryAttention", inputs, outputs, num_heads=heads, kv_num_heads=1, do_rotary=1, scale=0.3),
    ]
    if crosses:
        constants |= {"heads": np.array([0, 0, heads, width]), "joined": np.array([0, 0, joined])}
        constants |= {"one": np.float32(1), "far": np.float32(-1e4), "axes": np.array([1, 2])}
        nodes += [
            op("Cast", "encoder_mask", "kept", to=TensorProto.FLOAT),
            op("Sub", "one kept", "gone"),
            op("Mul", "gone far", "low"),
            op("Unsqueeze", "low axes", "mask"),
            op("Reshape", "mixed heads", "mh"),
            op("Transpose", "mh", "query", perm=[0, 2, 1, 3]),
            op("Transpose", "cross_key_0", "keys", perm=[0, 1, 3, 2]),
            op("MatMul", "query keys", "scores"),
            op("Add", "scores mask", "sums"),
            op("Softmax", "sums", "weights", axis=-1),
            op("MatMul", "weights cross_value_0", "seen"),
            op("Transpose", "seen", "st", perm=[0, 2, 1, 3]),
            op("Reshape", "st joined", "attended"),
        ]
    nodes += [
        op("MatMul", f"{'attended' if crosses else 'mixed'} o", "y"),
        op("Unsqueeze", "last_index last", "index"),
        op("GatherND", "y index", "row", batch_dims=1),
        op("MatMul", "row head", "logits"),
    ]
    cache, long = ["B", 1, "T", width], TensorProto.INT64
    graph_inputs = [
        value("inputs_embeds", ["B", "S", hidden]),
        value("position_ids", ["B", "S"], long),
        value("last_index", ["B"], long),
        value("seqlens_k", ["B"], TensorProto.INT32),
        value("total_sequence_length", [], TensorProto.INT32),
        *(value(f"past_{part}_0", cache) for part in ("key", "value")),
    ]
    if crosses:
        graph_inputs.append(value("encoder_mask", ["B", "E"], long))
        graph_inputs += [value(f"cross_{part}_0", ["B", heads, "E", width]) for part in ("key", "value")]
    presents = [value(f"present_{part}_0", cache) for part in ("key", "value")]
    return model(nodes, graph_inputs, [value("logits", ["B", sizes.words]), *presents], constants)


def encoder(rng: np.random.Generator, sizes: Sizes = DEFAULT) -> Model:
    """inputs_embeds (B, S, D), attention_mask (B, S) -> cross_key_0, cross_value_0 (B, H, S, hd)."""
    parts = ("key", "value")
    constants = {part: normal(rng, (sizes.hidden, sizes.joined)) for part in parts}
    constants["heads"] = np.array([0, 0, sizes.heads, sizes.width])
    nodes = []
    for part in parts:
        nodes.append(op("MatMul", f"inputs_embeds {part}", f"{part}s"))
        nodes.append(op("Reshape", f"{part}s heads", f"{part}h"))
        nodes.append(op("Transpose", f"{part}h", f"cross_{part}_0", perm=[0, 2, 1, 3]))
    outputs = [value(f"cross_{part}_0", ["B", sizes.heads, "S", sizes.width]) for part in parts]
    mask = value("attention_mask", ["B", "S"], TensorProto.INT64)
    return model(nodes, [value("inputs_embeds", ["B", "S", sizes.hidden]), mask], outputs, constants)


def embedding(rng: np.random.Generator, sizes: Sizes = DEFAULT) -> Model:
    """token_ids (B, S) -> token_embeds (B, S, D)."""
    token_ids = value("token_ids", ["B", "S"], TensorProto.INT64)
    token_embeds = value("token_embeds", ["B", "S", sizes.hidden])
    table = {"table": normal(rng, (sizes.words, sizes.hidden), 1)}
    return model([op("Gather", "table token_ids", "token_embeds")], [token_ids], [token_embeds], table)


GRAPHS: dict[str, Callable[[np.random.Generator], Model]] = {
    "int4": int4,
    "int8": int8,
    "llm": lambda rng: decoder(rng, False),
    "t5": lambda rng: decoder(rng, True),
}
