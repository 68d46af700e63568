"""The kernels: compared with plain arithmetic, and inside ONNX Runtime's graphs with its own operators. (Attention to a
cache inside a graph: tests/engines/test_generate.py.)"""

import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.compiled import compiled
from tests.engines.native import Session, runtime
from tests.seeds import new_seed

onnx = pytest.importorskip("onnx")
from onnx import TensorProto

from tests.engines.native import graphs
from tests.engines.native.graphs import Constants, op

pytestmark = pytest.mark.long(30, "kernels compiled on their own: shapes that no model has")

ROOT = Path(__file__).parents[2]

PLAIN = ["c++"]
# Without UBSan's checks that ASan makes too, or that a crash shows: they would double the time.
SANITIZED = ["c++", "-fsanitize=address,undefined", "-fno-sanitize=null,object-size,alignment"]
AARCH64 = ["aarch64-linux-gnu-g++", "-static"]
WASM = ["em++", "-msimd128", "-sALLOW_MEMORY_GROWTH"]
EMULATED = ["qemu-aarch64", "-cpu", "max"]
# Processors without AVX, without AVX2, with AVX2, and without ARM's dot product -> the kernels that they can run.
OLD_PROCESSORS: dict[str, dict[str, set[str]]] = {
    "Nehalem": {"attention": {"plain"}, "int4": {"sse41"}, "int8": {"sse41"}},
    "SandyBridge": {"attention": {"plain"}, "int4": {"sse41"}, "int8": {"sse41"}},
    "Haswell": {"attention": {"avx2", "plain"}, "int4": {"avx2", "sse41"}, "int8": {"avx2", "sse41"}},
    "cortex-a53": {"attention": {"plain"}, "int4": {"neon"}, "int8": {"neon"}},
}
KINDS = ("int4", "int8", "attention", "encoder_attention")


@pytest.mark.parametrize(
    ("kind", "compiler", "runner"),
    [
        *(pytest.param(kind, PLAIN, [], id=kind) for kind in KINDS),
        *(pytest.param(kind, AARCH64, EMULATED, id=f"{kind}-aarch64") for kind in KINDS[:3]),
        *(pytest.param(kind, WASM, ["node"], id=f"{kind}-wasm") for kind in KINDS[:3]),
        *(pytest.param(kind, SANITIZED, [], id=f"{kind}-sanitized", marks=pytest.mark.slow) for kind in KINDS),
    ],
)
def test_kernels_match_plain_arithmetic(kind: str, compiler: list[str], runner: list[str]) -> None:
    done = run_check(kind, compiler, runner)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert done.stdout.split() or not runner, "no kernel ran"


@pytest.mark.parametrize("processor", OLD_PROCESSORS)
def test_old_processors_run_only_their_kernels(processor: str) -> None:
    compiler, emulator = (AARCH64, "qemu-aarch64") if processor == "cortex-a53" else (PLAIN, "qemu-x86_64")
    if compiler is PLAIN and platform.machine() != "x86_64":
        pytest.skip("needs a compiler for x86-64")
    for kind in KINDS:
        names = OLD_PROCESSORS[processor].get(kind, set())
        few = ["50"] if kind == "attention" else []  # of 400 cases, which take a minute to emulate
        done = run_check(kind, compiler, [emulator, "-cpu", processor], few)
        assert (done.returncode, set(done.stdout.split())) == (0, names), f"{kind}: {done.stdout}{done.stderr}"


def run_check(
    kind: str, compiler: list[str], runner: list[str], cases: Sequence[str] = ()
) -> subprocess.CompletedProcess:
    """Run a check program, which prints the kernels that it found right."""
    for program in compiler[:1] + runner[:1]:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    folder, pattern = ("attention", f"{kind}*.cpp") if kind.endswith("attention") else (kind, "*.cpp")
    kernels = sorted((ROOT / "engines" / "kernels" / folder).glob(pattern))
    sources = [ROOT / "tests" / "engines" / "native" / f"{kind}_check.cpp", *kernels]
    program = compiled([*compiler, "-std=c++17", "-O1", f"-I{ROOT / 'engines'}"], sources)
    return subprocess.run([*runner, str(program), str(new_seed()), *cases], capture_output=True, text=True)


def save(path: Path, nodes: list[onnx.NodeProto], k: int, n: int, constants: Constants) -> None:
    """x (B, S, K) -> y (B, S, N), with the constants in an external file."""
    x, y = graphs.value("x", ["B", "S", k]), graphs.value("y", ["B", "S", n])
    model = graphs.model(nodes, [x], [y], constants)
    onnx.save(model, path, save_as_external_data=True, location=path.name + ".data", size_threshold=128)


def both_sessions(path: Path, threads: int = 1, option: str = "custom_int4") -> list[Session]:
    """The graph with our operators, and with ONNX Runtime's."""
    return [Session(runtime(), str(path), threads, trusted=True, **{option: ours}) for ours in (True, False)]


INT8, HALF_PRECISION = 4, 2  # accuracy_level: the precision of activations


def save_int4(path: Path, k: int, n: int, block: int, level: int = INT8) -> None:
    """y = -x times an int4 matrix."""
    constants = graphs.int4_constants(np.random.default_rng(k), k, n, block)
    kind = {"K": k, "N": n, "bits": 4, "block_size": block, "accuracy_level": level}
    nodes = [op("Cast", "scales", "wide", to=TensorProto.FLOAT)]
    nodes += [op("MatMulNBits", "x codes wide zeros", "product", **kind), op("Neg", "product", "y")]
    save(path, nodes, k, n, constants)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("level", "tolerance"), [(INT8, 2e-2), (HALF_PRECISION, 2e-3)])
def test_int4_products_match_onnx_runtime(level: int, tolerance: float, threads: int, tmp_path: Path) -> None:
    """ONNX Runtime's half precision is exact. An outlier costs the rest of its block precision, too."""
    rng = np.random.default_rng(new_seed())
    for block in (32, 64, 128):
        k, n = int(rng.integers(1, 40)) * 32 + int(rng.integers(0, 2)), int(rng.integers(16, 300))
        save_int4(tmp_path / f"{block}.onnx", k, n, block, level=level)
        ours, theirs = both_sessions(tmp_path / f"{block}.onnx", threads)
        if not ours.custom_kernels:
            pytest.skip("this processor has none of our kernels")
        assert theirs.custom_kernels == []
        for batch, length in ((1, 1), (5, 1), (2, 11)):
            x = rng.standard_normal((batch, length, k)).astype(np.float32)
            if level == HALF_PRECISION:
                x[..., rng.integers(k)] *= 30
            got, expected = (session.run({"x": x})["y"] for session in (ours, theirs))
            np.testing.assert_allclose(got, expected, atol=tolerance * expected.std(), err_msg=f"{k}, {n}")
        assert ours.run({"x": np.zeros((2, 0, k), np.float32)})["y"].shape == (2, 0, n)


def test_weights_may_be_anywhere_in_their_file(tmp_path: Path) -> None:
    """They are read in place, or copied if their numbers would not be aligned."""
    path, moved = tmp_path / "product.onnx", tmp_path / "moved.onnx"
    save_int4(path, 96, 40, 32)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        entries = {entry.key: entry for entry in tensor.external_data}
        if entries:
            entries["location"].value = "moved.data"
            entries["offset"].value = str(int(entries["offset"].value) + 1)
    moved.write_bytes(model.SerializeToString())
    (tmp_path / "moved.data").write_bytes(b"?" + (tmp_path / "product.onnx.data").read_bytes())
    x = {"x": np.random.default_rng(0).standard_normal((1, 3, 96)).astype(np.float32)}
    results = [Session(runtime(), str(each), 1, trusted=True).run(x)["y"] for each in (path, moved)]
    np.testing.assert_array_equal(*results)


def save_largest(path: Path, dynamic: bool, k: int, n: int) -> None:
    """y = x times an int8 matrix (K, N) of the largest codes; static: x is rounded to 1 / 255."""
    constants = {"codes": np.full((k, n), 127, np.int8), "scales": np.full(n, 0.01, np.float32)}
    nodes = [op("DynamicQuantizeMatMul", "x codes scales", "y")]
    if dynamic:
        constants["rows"] = constants.pop("codes").T.copy()
        nodes.insert(0, op("Transpose", "rows", "codes", perm=[1, 0]))
    else:
        constants |= {"zeros": np.zeros(n, np.int8), "step": np.float32(1 / 255), "least": np.uint8(0)}
        nodes = [
            op("QuantizeLinear", "x step least", "whole"),
            op("DequantizeLinear", "whole step least", "rounded"),
            op("DequantizeLinear", "codes scales zeros", "weights", axis=1),
            op("MatMul", "rounded weights", "y"),
        ]
    save(path, nodes, k, n, constants)


@pytest.mark.parametrize("own", [True, False], ids=["ours", "theirs"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_the_largest_int8_products_are_exact(kind: str, own: bool, tmp_path: Path) -> None:
    """Twice 255 * 127 overflows 16 bits, in which AVX2 adds products: ONNX Runtime's result was half of the sum."""
    if graphs.OVERFLOWS and (kind == "static" or not own):
        pytest.skip("this ONNX Runtime has no option against overflow")
    k, n = 96, 40
    save_largest(tmp_path / "graph.onnx", kind == "dynamic", k, n)
    session = Session(runtime(), str(tmp_path / "graph.onnx"), 1, custom_int8=own)
    for rows in (1, 3, 40):
        got = session.run({"x": np.ones((1, rows, k), np.float32)})["y"]
        np.testing.assert_allclose(got, 127 * 0.01 * k, rtol=1e-5)


def scale_by_input(model: onnx.ModelProto) -> None:
    scaled = graphs.node(model, "Mul")
    model.graph.node.insert(list(model.graph.node).index(scaled), op("ReduceMax", "x", "largest", keepdims=0))
    graphs.node(model, "Mul").input[1] = "largest"


OTHER_ATTENTION: dict[str, Callable[[onnx.ModelProto], object]] = {
    "order": lambda model: graphs.node(model, "Split").output.__setitem__(slice(None), ["k", "q", "v"]),
    "axis": lambda model: setattr(graphs.node(model, "Softmax").attribute[0], "i", 2),
    "scale of an input": scale_by_input,
}


@pytest.mark.parametrize("change", list(OTHER_ATTENTION))
def test_other_attention_is_left_to_onnx_runtime(change: str, tmp_path: Path) -> None:
    model = graphs.int8(np.random.default_rng(new_seed()))
    OTHER_ATTENTION[change](model)
    (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
    ours, theirs = both_sessions(tmp_path / "other.onnx", option="custom_int8")
    assert not any(kernel.startswith("encoder attention ") for kernel in ours.custom_kernels)
    shape = (3, graphs.DEFAULT.positions, graphs.DEFAULT.k)
    x = np.random.default_rng(new_seed()).standard_normal(shape).astype(np.float32)
    expected = theirs.run({"x": x})["y"]
    assert np.abs(ours.run({"x": x})["y"] - expected).mean() < 0.05 * expected.std()
