"""Fuzz the core's operators against ONNX Runtime's own: `python -m tests.fuzz.operators [--seconds N] [--count N]`.

Each case is a graph of random shapes, blocks and values (MatMulInt4, MatMulInt8 with the attention of an image encoder,
Attention with and without CrossAttention); half of them are mutated. Valid graphs must agree with ONNX Runtime's own
operators within rounding; mutated ones must agree or raise an error. Graphs run in a separate process; if it crashes,
ONNX Runtime must crash on the same graph. Findings are saved in build/fuzz/operators.
"""

import argparse
import contextlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from blip2rt.errors import BundleError
from tests.engines.native import Generator, GraphError, Session, graphs, runtime
from tests.engines.native.graphs import Model, model, value
from tests.engines.native.own_operators import START, scores
from tests.fuzz import mutants
from tests.seeds import session_seed

ROOT = Path(__file__).parents[2]
FOUND = ROOT / "build" / "fuzz" / "operators"
SIGNALS = (-4, -6, -7, -8, -11)  # of a crashed process
MICROSOFT = {"domain": "com.microsoft"}
Texts = list[list[list[list[int]]]]  # by options, image and rank: token ids

# What the core raises for a graph that it does not run, or whose outputs are not what it promises.
REJECTIONS = (BundleError, GraphError, RuntimeError, MemoryError)


@dataclass
class Case:
    """A graph, and how to run it. bound: tolerance to ONNX Runtime's outputs, (N) or one for all."""

    graph: Model
    feeds: list[np.ndarray]  # values of x, one per run; none: run by the loop
    columns: np.ndarray | None = None  # sums of absolute weights per output, (N)
    terms: np.ndarray | float = 0.0  # sums of the codes' and zero points' terms, (N)
    block: int = 0  # activations are rounded in blocks of this size; 0: by row
    width: int = 16  # of the loop's heads
    kv_heads: int = 1
    crosses: bool = False
    encoder: Model | None = None
    embed: Model | None = None


def numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Activations: mostly normal, sometimes constant, zero, tiny, huge, or with outliers."""
    x = rng.standard_normal(shape)
    kind = rng.integers(8)
    if kind == 0:
        x *= 0
    elif kind == 1:
        x = np.full(shape, rng.normal())
    elif kind == 2:
        x *= 10.0 ** rng.integers(-30, 8)
    elif kind == 3:
        x *= rng.random(shape) < 0.1
    elif kind == 4:
        x = np.abs(x)
    elif kind == 5 and x.size:
        x.flat[rng.integers(x.size)] = 300
    return x.astype(np.float32)


def batch(rng: np.random.Generator, last: int) -> tuple[int, ...]:
    """A shape of 1 to 4 axes whose product is small; an axis may be 0."""
    axes = [int(rng.choice([0, 1, 1, 2, 3, 5, 17])) for _ in range(rng.integers(0, 4))]
    return (*axes, last) if axes else (int(rng.choice([0, 1, 2, 16, 33, 70])), last)


def int4(rng: np.random.Generator) -> Case:
    """x (..., K) -> y (..., N) by MatMulNBits."""
    k, n = int(rng.integers(1, 400)), int(rng.integers(1, 200))
    block, bits = int(rng.choice([16, 32, 32, 64, 128, 256])), int(rng.choice([4, 4, 4, 4, 8]))
    blocks = -(-k // block)
    codes = rng.integers(0, 256, (n, blocks, block * bits // 8), dtype=np.uint8)
    scales = (rng.uniform(-0.1, 0.1, (n, blocks)) * (rng.random((n, blocks)) < 0.9)).astype(np.float16)
    if rng.random() < 0.5:
        scales = scales.reshape(-1)
    constants: dict[str, np.ndarray] = {"codes": codes, "scales": scales}
    nodes, inputs, scale = [], ["x", "codes", "scales", "zeros"], scales
    if rng.random() < 0.8:
        nodes.append(helper.make_node("Cast", ["scales"], ["wide"], to=TensorProto.FLOAT))
        inputs[2] = "wide"
    else:
        constants["scales"] = scales.astype(np.float32)
    packed = rng.integers(0, 256, (n, -(-blocks * bits // 8)), dtype=np.uint8)
    zero = unpacked(packed, bits)[:, :blocks]
    constants["zeros"] = packed if rng.random() < 0.5 else packed.reshape(-1)
    level = int(rng.choice([0, 1, 4, 4, 4]))
    kind = {**MICROSOFT, "K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": level}
    nodes.append(helper.make_node("MatMulNBits", inputs, ["y"], **kind))
    plain, steps = unpacked(codes.reshape(n, -1), bits).reshape(n, blocks, block), scale.reshape(n, blocks, 1)
    columns, terms = (
        (np.abs(part) * np.abs(steps.astype(np.float64))).reshape(n, -1)[:, :k].sum(1)
        for part in (plain - zero[..., None], plain + zero[..., None])
    )
    return product(rng, k, n, nodes, constants, columns=columns, terms=terms, block=block)


def product(rng: np.random.Generator, k: int, n: int, nodes: list[Any], constants: Any, **bounds: Any) -> Case:
    """A graph x (..., K) -> y (..., N), with two random x."""
    shape = batch(rng, k)
    axes = [f"a{i}" for i in range(len(shape) - 1)]
    graph = model(nodes, [value("x", [*axes, k])], [value("y", [*axes, n])], constants)
    return Case(graph, [numbers(rng, shape) for _ in range(2)], **bounds)


def unpacked(codes: np.ndarray, bits: int) -> np.ndarray:
    """(N, bytes) -> (N, numbers), the low half of a byte first."""
    wide = codes.astype(np.int64)
    return wide if bits == 8 else np.stack([wide & 15, wide >> 4], axis=-1).reshape(len(codes), -1)


def int8(rng: np.random.Generator) -> Case:
    """x (..., K) -> y (..., N) by DynamicQuantizeMatMul."""
    k, n = int(rng.integers(1, 500)), int(rng.integers(1, 200))
    constants = {
        "codes": rng.integers(-graphs.LARGEST_CODE, graphs.LARGEST_CODE + 1, (n, k), dtype=np.int8),
        "scales": rng.uniform(0, 0.01, n).astype(np.float32),
    }
    inputs = ["x", "columns", "scales"]
    if rng.random() < 0.5:
        constants["bias"] = rng.normal(0, 1, n).astype(np.float32)
        inputs += ["", "bias"]
    nodes = [helper.make_node("Transpose", ["codes"], ["columns"], perm=[1, 0])]
    nodes.append(helper.make_node("DynamicQuantizeMatMul", inputs, ["y"], **MICROSOFT))
    columns = np.abs(constants["codes"].astype(np.float64)).sum(1) * constants["scales"]
    return product(rng, k, n, nodes, constants, columns=columns)


def encoder_attention(rng: np.random.Generator) -> Case:
    """graphs.int8, the products and attention of an image encoder, with random sizes."""
    width = int(rng.choice([1, 4, 8, 16, 24, 32, 48, 64, 88, 96]))
    sizes = graphs.Sizes(
        heads=int(rng.integers(1, 5)), width=width, positions=int(rng.integers(1, 70)), k=int(rng.integers(1, 90))
    )
    graph = graphs.int8(rng, sizes)
    x = rng.standard_normal((int(rng.choice([1, 1, 2, 3])), sizes.positions, sizes.k)).astype(np.float32)
    return Case(graph, [x])


def attention(rng: np.random.Generator) -> Case:
    """graphs.decoder, a one-layer language model, with random sizes, run by the loop."""
    crosses = bool(rng.random() < 0.4)
    width = 16 if crosses else int(rng.choice([8, 16, 24, 32, 48, 64, 80]))
    sizes = graphs.Sizes(
        heads=int(rng.integers(1, 5)), width=width, hidden=int(rng.integers(4, 40)), words=int(rng.integers(8, 60))
    )
    graph, embed, encoder = (
        graphs.decoder(rng, crosses, sizes),
        graphs.embedding(rng, sizes),
        graphs.encoder(rng, sizes),
    )
    node = graphs.node(graph, "GroupQueryAttention")
    for attribute in node.attribute:
        if attribute.name == "scale":
            attribute.f = float(rng.choice([0.0, 0.1, 0.3, 1.0]))
        if attribute.name == "do_rotary" and (rng.random() < 0.4 or width % 16):
            attribute.i = 0
            del node.input[7:]
    if rng.random() < 0.3:
        node.attribute.append(helper.make_attribute("softcap", float(rng.choice([1.0, 5.0]))))
    if rng.random() < 0.3:
        node.attribute.append(helper.make_attribute("local_window_size", int(rng.choice([1, 2, 5, 100]))))
    return Case(graph, [], width=width, crosses=crosses, embed=embed, encoder=encoder if crosses else None)


KINDS = {"int4": int4, "int8": int8, "encoder_attention": encoder_attention, "attention": attention}


def answers(case: Case, folder: Path, ours: bool, texts: Texts | None = None) -> tuple[list[np.ndarray], list[str]]:
    """Run the graph in the folder. Return its outputs, and the kernels of ours that ran. `texts`: what ours says."""
    options = {"custom_int4": ours, "custom_int8": ours, "custom_attention": ours}
    session = Session(runtime(), str(folder / "graph.onnx"), 1, **options)
    if case.embed is None:
        return [session.run({"x": x})["y"] for x in case.feeds], session.custom_kernels
    embed = Session(runtime(), str(folder / "embed.onnx"), 1)
    encoder = Session(runtime(), str(folder / "encoder.onnx"), 1) if case.crosses else None
    table = case.embed.graph.initializer[0].dims
    rng = np.random.default_rng(len(case.graph.graph.node))
    prefix = rng.standard_normal((3, int(rng.integers(1, 6)), table[1])).astype(np.float32)
    prompts, found = [[2, 3, 4, 5, 6], [4], []], []
    texts = [] if texts is None else texts
    for number, given in enumerate(({"max_new_tokens": 1}, {"max_new_tokens": 2, "forced_prefix": [5, 6, 7]})):
        if ours:
            generator = Generator(embed, session, 1, case.kv_heads, case.width, table[1], table[0], encoder, START)
            images = generator.generate(prefix, prompts, {"num_beams": 4, "num_return_sequences": 4, **given})
            texts.append([[tokens for tokens, _ in beams] for beams in images])
            found += [score for beams in images for _, score in beams]
        else:
            written = texts[number] if texts else [[[5, 6]]] * 3
            found += scores((embed, session, encoder), prefix, prompts, written, given.get("forced_prefix", ()))
    return [np.array(found, np.float32)], session.custom_kernels


def bounds(case: Case, x: np.ndarray) -> np.ndarray | float:
    """Return the tolerance of a product: both sides round activations to 8 bits, by block, row or tensor."""
    assert case.columns is not None
    if not x.size:
        return 0.0
    largest = max(float(x.max()), 0.0) - min(float(x.min()), 0.0)
    return 1.1 * largest / 127 * case.columns + 1e-5 * largest * case.columns + 1e-6 * (1 + largest * case.terms)


def moved(case: Case, folder: Path, number: int) -> float:
    """Return how far ONNX Runtime's own output moves on average if its input changes by the rounding to 8 bits.

    It moves far if large terms of a mutated graph cancel.
    """
    x, rng = case.feeds[number], np.random.default_rng(number)
    step = float(x.max() - x.min()) / 127
    shaken = [x, *((x + rng.uniform(-step, step, x.shape)).astype(np.float32) for _ in range(10))]
    (answer, *others), _ = answers(replace(case, feeds=shaken), folder, False)
    return max(float(np.abs(each - answer).mean()) for each in others)


def check(case: Case, folder: Path, altered: bool) -> list[str]:
    """Return which of our kernels ran; none if the graph is rejected. Raise AssertionError for a wrong output."""
    texts: Texts = []
    try:
        got, kernels = answers(case, folder, True, texts)
    except REJECTIONS as error:
        with contextlib.suppress(*REJECTIONS):
            answers(case, folder, False)
            assert altered, f"our operators reject a valid graph: {error}"
        return []
    try:
        want, _ = answers(case, folder, False, texts)
    except REJECTIONS:
        return kernels  # ONNX Runtime checks some nodes less strictly next to our operators
    for number, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        assert mine.shape == theirs.shape, (mine.shape, theirs.shape)
        if not theirs.size or not np.isfinite(theirs).all() or graphs.VERSION < (1, 24):  # older ones round otherwise
            continue
        assert np.isfinite(mine).all() or altered, (mine, theirs)
        if altered or case.columns is None:
            loose = 0.05 if altered or case.embed is None else 2e-3
            if case.embed is not None and altered and not np.isfinite(mine).all():
                continue
            far, limit = np.abs(mine - theirs).mean(), loose * np.abs(theirs).max() + 1e-4
            near = far <= limit or (case.feeds and far <= moved(case, folder, number))
            # AMX rounds to two bfloat16, which shows where a graph adds so much to all keys that they hardly differ.
            assert near or (altered and "encoder attention amx" in kernels), (mine, theirs)
        else:
            far = np.abs(mine.astype(np.float64) - theirs) - bounds(case, case.feeds[number])
            assert (far <= 0).all(), (float(far.max()), mine, theirs)
    return kernels


def make(seed: int, number: int, folder: Path, sound: bool) -> tuple[str, Case, bool]:
    """Make case `number` of a seed and write its graphs. Return its kind, the case, and whether it is mutated."""
    rng, draw = np.random.default_rng([seed, number]), random.Random(f"{seed} {number}")
    kind = draw.choice(list(KINDS))
    case = KINDS[kind](rng)
    altered = draw.random() < 0.5 and not sound
    for _ in range(draw.choice([1, 1, 2, 3]) if altered else 0):
        with contextlib.suppress(Exception):  # onnx cannot read or write it
            mutants.mutate(case.graph, draw)
    for name, graph in (("graph", case.graph), ("embed", case.embed), ("encoder", case.encoder)):
        if graph is not None:
            (folder / f"{name}.onnx").write_bytes(graph.SerializeToString())
    if altered and draw.random() < 0.2:
        graph = folder / "graph.onnx"
        graph.write_bytes(mutants.damage(graph.read_bytes(), draw))
    return kind, case, altered


def work(args: argparse.Namespace) -> None:
    """Run graphs in this process; print each case's number first."""
    seed, number, folder = args.seed, args.first, args.folder
    (folder / "a.data").write_bytes(bytes(5000))
    end, ran = time.monotonic() + args.seconds, dict.fromkeys(KINDS, 0)
    while time.monotonic() < end and number < args.count:
        kind, case, altered = make(seed, number, folder, args.sound)
        print(number, kind, "altered" if altered else "sound", flush=True)
        try:
            ran[kind] += bool(check(case, folder, altered))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, try {number}, {kind}: {error}") from None
        number += 1
    print("ran", number, *(f"{kind}:{count}" for kind, count in ran.items()), flush=True)


def run(seed: int, seconds: float = 1e9, count: int = 2**31) -> str:
    """Fuzz for a while; return a summary. Raise AssertionError for a finding and keep its graphs."""
    end, first, endings = time.monotonic() + seconds, 0, 0
    with tempfile.TemporaryDirectory(prefix="blip2rt-fuzz-") as name:
        folder = Path(name)

        def process(*words: object) -> subprocess.CompletedProcess[str]:
            words = ("--folder", name, "--seed", seed, "--count", count, *words)
            command = [sys.executable, "-m", "tests.fuzz.operators", *map(str, words)]
            return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

        while True:
            done = process("--first", first, "--seconds", max(0.0, end - time.monotonic()))
            last = done.stdout.split("\n")[-2:][0]
            if done.returncode == 0:
                return f"seed {seed}: {last}; {endings} graphs crash ONNX Runtime itself"
            number = int((last.split() or ["-1"])[0])
            if done.returncode not in SIGNALS or process("--theirs", number).returncode not in SIGNALS:
                kept = FOUND / f"seed-{seed}-{number}"
                shutil.copytree(folder, kept, dirs_exist_ok=True)
                raise AssertionError(f"{last}: {done.returncode}, see {kept}: {done.stderr[-3000:]}")
            endings, first = endings + 1, number + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=session_seed())
    parser.add_argument("--count", type=int, default=2**31)
    parser.set_defaults(sound=False)  # True: nothing is mutated
    for hidden, kind in (("--first", int), ("--theirs", int), ("--folder", Path)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.theirs is not None:  # the same case with ONNX Runtime's operators only
        _, case, _ = make(args.seed, args.theirs, args.folder, args.sound)
        with contextlib.suppress(*REJECTIONS):
            answers(case, args.folder, False)
    elif args.first is not None:
        work(args)
    else:
        print(f"operators: {run(args.seed, args.seconds, args.count)}, nothing found")


if __name__ == "__main__":
    main()
