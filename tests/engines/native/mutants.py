"""`python -m tests.engines.native.mutants SEED COUNT FOLDER FIRST`: graphs with random alterations.

Each one is loaded and run. It fails with an error, or gives the same results as ONNX Runtime's own operators.
FOLDER contains the altered graph while it runs.
"""

from __future__ import annotations

import contextlib
import random
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.engines.native import Generator, GraphError, Session, runtime
from tests.engines.native.graphs import (
    DEFAULT,
    GRAPHS,
    OVERFLOWS,
    SAFE_CODE,
    VERSION,
    Model,
    embedding,
    encoder,
    value,
)
from tests.engines.native.own_operators import START, scores

Texts = list[list[list[list[int]]]]  # by options, image and rank: token ids
SIZES = [0, 1, -1, 2, 3, 7, 31, 33, 64, 128, 1000, 2**16, 2**31 - 1, 2**31, 2**32, 2**62, -(2**31), 2**63 - 1, -(2**63)]
ATTRIBUTES = ["softcap", "rotary_interleaved", "axis", "allowzero", "smooth_softmax", "x", "num_heads"]
if VERSION >= (1, 24):
    ATTRIBUTES.append("local_window_size")  # older releases had one more position in a window
K, WIDTH, D, WORDS, POSITIONS = DEFAULT.k, DEFAULT.width, DEFAULT.hidden, DEFAULT.words, DEFAULT.positions


def mutate(model: Model, rng: random.Random) -> None:
    """Make one change to the model's structure."""
    graph = model.graph
    node = rng.choice(graph.node)
    tensor = rng.choice(graph.initializer)

    def attribute() -> None:
        if node.attribute:
            changed = rng.choice(node.attribute)
            if changed.type == onnx.AttributeProto.INT:
                changed.i = rng.choice([changed.i + 1, changed.i - 1, changed.i * 2, changed.i // 2, rng.choice(SIZES)])
            elif changed.type == onnx.AttributeProto.FLOAT:
                changed.f = rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf"), changed.f / 2])
            elif changed.ints:
                changed.ints[rng.randrange(len(changed.ints))] = rng.choice([0, 1, 2, 3, -1, 9])
            if rng.random() < 0.15:
                changed.type = rng.randrange(0, 15)

    def add_attribute() -> None:
        node.attribute.append(helper.make_attribute(rng.choice(ATTRIBUTES), rng.choice([0, 1, 2, -1, -7, 0.5])))

    def dims() -> None:
        if rng.random() < 0.3 and len(tensor.dims) > 1:
            order = list(tensor.dims)
            rng.shuffle(order)
            tensor.dims[:] = order
        elif tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice([*SIZES, tensor.dims[0] + 1, tensor.dims[0] // 2])

    def resize() -> None:
        array = numpy_helper.to_array(tensor)
        if array.ndim:
            axis = rng.randrange(array.ndim)
            size = max(0, array.shape[axis] + rng.choice([-1, 1, -array.shape[axis] // 2]))
            shape = [*array.shape[:axis], size, *array.shape[axis + 1 :]]
            tensor.CopyFrom(numpy_helper.from_array(np.resize(array, shape), tensor.name))

    def numbers() -> None:
        array = numpy_helper.to_array(tensor).copy()
        if array.size and array.dtype == np.int64:
            array.flat[rng.randrange(array.size)] = rng.choice(SIZES)
        elif array.size and array.dtype.kind == "f":
            array.flat[rng.randrange(array.size)] = rng.choice([0, np.nan, np.inf, 6e4])
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    def dtype() -> None:
        if rng.random() < 0.5:
            tensor.data_type = rng.randrange(0, 24)
        else:
            array = numpy_helper.to_array(tensor)
            kind = rng.choice([np.float16, np.float32, np.float64, np.int8, np.uint8, np.int64])
            with np.errstate(all="ignore"):
                tensor.CopyFrom(numpy_helper.from_array(array.astype(kind), tensor.name))

    def wires() -> None:
        side = rng.choice([node.input, node.output])
        names = [name for one in graph.node for name in (*one.input, *one.output)] + [""]
        how = rng.randrange(4)
        if how == 0 and side:
            del side[rng.randrange(len(side))]
        elif how == 1:
            side.append(rng.choice(names))
        elif side:
            side[rng.randrange(len(side))] = rng.choice(names)

    def drop_names() -> None:
        del rng.choice([node.input, node.output])[:]

    def copy_node() -> None:
        graph.node.add().CopyFrom(node)

    def feed_constant() -> None:
        graph.input.append(value(tensor.name, list(tensor.dims), tensor.data_type))
        if rng.random() < 0.5:
            graph.initializer.remove(tensor)

    def rename() -> None:
        node.op_type = rng.choice([one.op_type for one in graph.node] + ["Attention", "MatMulInt4", "Identity"])
        node.domain = rng.choice(["", "com.microsoft", "blip2rt", "ai.onnx"])

    def ports() -> None:
        port = rng.choice([*graph.input, *graph.output])
        shape = port.type.tensor_type.shape.dim
        if rng.random() < 0.3:
            port.type.tensor_type.elem_type = rng.randrange(0, 17)
        elif shape:
            shape[rng.randrange(len(shape))].dim_value = rng.choice([0, 1, 2, 7, WIDTH * 2, 2**40])

    def move_outside() -> None:
        tensor.data_location = TensorProto.EXTERNAL
        location = rng.choice(["a.data", "../a", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", ""])
        entries = {"location": location, "offset": str(rng.choice(SIZES)), "length": str(rng.choice(SIZES))}
        for key, text in entries.items():
            tensor.external_data.add(key=key, value=text)
        if rng.random() < 0.5:
            tensor.ClearField("raw_data")

    def opset() -> None:
        model.opset_import[rng.randrange(len(model.opset_import))].version = rng.choice([1, 10, 11, 13, 18, 21, 2**31])

    weighted = [attribute] * 5 + [dims] * 4 + [wires] * 4 + [resize] * 3 + [numbers, dtype, ports] * 2
    rng.choice([*weighted, add_attribute, drop_names, copy_node, feed_constant, rename, move_outside, opset])()


def damage(data: bytes, rng: random.Random) -> bytes:
    """Change some bytes: tags, wire types, lengths."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(changed))
        how = rng.randrange(4)
        if how == 0:
            changed[at] = rng.randrange(256)
        elif how == 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif how == 2:
            changed[at:at] = rng.choice([b"\x0b", b"\x0c", b"\x00", b"\xff" * 10, b"\x08\x01", b"\x0d\0\0\0\0"])
        else:
            del changed[at : at + rng.choice([1, 1, 8])]
    return bytes(changed)


def answer(folder: Path, graph: str, ours: bool, seed: int, texts: Texts | None = None) -> list[np.ndarray]:
    """Run the altered graph, with our operators or without. Ours append to `texts`, which the others then score."""
    rng = np.random.default_rng(seed)
    options = {"custom_int4": ours, "custom_int8": ours, "custom_attention": ours}
    session = Session(runtime(), str(folder / "mutant.onnx"), 1, **options)
    if graph in ("int4", "int8"):
        shapes = [(1, K), (3, K), (20, K)] if graph == "int4" else [(1, POSITIONS, K), (3, POSITIONS, K)]
        feeds = [{"x": rng.standard_normal(shape).astype(np.float32)} for shape in shapes]
        return [session.run(feed)["y"] for feed in feeds]
    embed = Session(runtime(), str(folder / "embed.onnx"), 1)
    source = Session(runtime(), str(folder / "encoder.onnx"), 1) if graph == "t5" else None
    prefix, prompts = rng.standard_normal((2, 3, D)).astype(np.float32), [[2, 3], [4]]
    texts = [] if texts is None else texts
    if not ours:
        written = texts or [[[[5, 6]], [[7]]]]
        return [np.concatenate([scores((embed, session, source), prefix, prompts, each) for each in written])]
    generator = Generator(embed, session, 1, 1, WIDTH, D, WORDS, source, START)
    results: list[float] = []
    for given in ({}, {"num_beams": 3, "num_return_sequences": 3}):
        images = generator.generate(prefix, prompts, {"max_new_tokens": 6, **given})
        texts.append([[tokens for tokens, _ in beams] for beams in images])
        results += [score for beams in images for _, score in beams]
    return [np.array(results)]


def is_tame(path: Path) -> bool:
    """Return whether weights are so small that rounding does not decide a softmax, and codes so small that sums do not
    overflow in older ONNX Runtimes."""
    with contextlib.suppress(Exception):  # onnx cannot read what the core can
        graph = onnx.load(path, load_external_data=False).graph
        arrays = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
        codes = [array.astype(int) for array in arrays if array.dtype == np.int8]
        if OVERFLOWS and any(np.abs(array).max(initial=0) > SAFE_CODE for array in codes):
            return False
        return all(np.abs(array).max(initial=0) < 1e3 for array in arrays if array.dtype.kind == "f")
    return True


def check(folder: Path, graph: str, seed: int) -> bool:
    """Return whether the altered graph runs. Raises AssertionError where it says something else than it should."""
    texts: Texts = []
    try:
        got = answer(folder, graph, True, seed, texts)
    except (GraphError, RuntimeError, MemoryError):
        return False
    try:
        want = answer(folder, graph, False, seed, texts)
    except (GraphError, RuntimeError, MemoryError):
        return False  # it checks some nodes less strictly where a graph has operators of ours
    tame = is_tame(folder / "mutant.onnx")
    for mine, theirs in zip(got, want, strict=True):
        assert mine.shape == theirs.shape, (mine.shape, theirs.shape)
        if tame and np.isfinite(theirs).all() and theirs.size:
            bound = 0.05 * np.abs(theirs).max() + 1e-4
            assert np.abs(mine - theirs).mean() <= bound, (mine, theirs)
    return True


def main(seed: int, count: int, folder: Path, first: int) -> None:
    rng = random.Random(seed)
    weights = np.random.default_rng(seed)
    (folder / "embed.onnx").write_bytes(embedding(weights).SerializeToString())
    (folder / "encoder.onnx").write_bytes(encoder(weights).SerializeToString())
    (folder / "a.data").write_bytes(bytes(5000))
    ran = 0
    for number in range(count):
        graph = rng.choice(list(GRAPHS))
        model = GRAPHS[graph](weights)
        for _ in range(0 if number < 8 else rng.choice([1, 1, 1, 2, 3])):
            with contextlib.suppress(Exception):  # onnx cannot read or write some changes
                mutate(model, rng)
        data = model.SerializeToString()
        if number >= 8 and rng.random() < 0.2:
            data = damage(data, rng)
        if number < first:
            continue
        (folder / "mutant.onnx").write_bytes(data)
        print(number, graph, flush=True)
        try:
            ran += check(folder, graph, seed)
        except AssertionError as error:
            raise AssertionError(f"mutant {number} of {graph}: {error}") from None
        assert number >= 8 or ran == number - first + 1, "a valid graph is rejected"
    print("ran", ran, flush=True)


if __name__ == "__main__":
    location = Path(sys.argv[3])
    if sys.argv[4] in GRAPHS:  # run the folder's graph again, with ONNX Runtime's own operators
        with contextlib.suppress(GraphError, RuntimeError, MemoryError):
            answer(location, sys.argv[4], False, int(sys.argv[1]))
    else:
        main(int(sys.argv[1]), int(sys.argv[2]), location, int(sys.argv[4]))
