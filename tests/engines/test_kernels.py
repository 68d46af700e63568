"""The kernels: compared with plain arithmetic, and inside ONNX Runtime's graphs with its own operators. (Attention to a
cache inside a graph: tests/engines/test_generate.py.)"""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.compiled import compiled
from tests.engines.native import GraphError, Session, runtime
from tests.seeds import new_seed

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, numpy_helper

from tests.engines.native import graphs
from tests.engines.native.graphs import Constants, op

pytestmark = pytest.mark.long(40, "kernels compiled on their own: shapes that no model has")

ROOT = Path(__file__).parents[2]

PLAIN = ["c++"]
# Without UBSan's checks that ASan makes too, or that a crash shows: they would double the time.
SANITIZED = ["c++", "-fsanitize=address,undefined", "-fno-sanitize=null,object-size,alignment"]
AARCH64 = ["aarch64-linux-gnu-g++", "-static"]
EMULATED = ["qemu-aarch64", "-cpu", "max"]
# Processors without AVX, without AVX2, with AVX2, and without ARM's dot product -> the kernels that they can run.
OLD_PROCESSORS: dict[str, dict[str, set[str]]] = {
    "Nehalem": {"attention": {"plain"}},
    "SandyBridge": {"attention": {"plain"}},
    "Haswell": {"attention": {"avx2", "plain"}, **{kind: {"avx2"} for kind in ("int4", "int8", "resize")}},
    "cortex-a53": {"attention": {"plain"}, "resize": {"neon"}},
}
KINDS = ("int4", "int8", "attention", "resize", "encoder_attention")


@pytest.mark.parametrize(
    ("kind", "compiler", "runner"),
    [
        *(pytest.param(kind, PLAIN, [], id=kind) for kind in KINDS),
        *(pytest.param(kind, AARCH64, EMULATED, id=f"{kind}-aarch64") for kind in KINDS[:4]),
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
) -> subprocess.CompletedProcess[str]:
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


def both_sessions(path: Path, threads: int = 1, option: str = "custom_int8") -> list[Session]:
    """The graph with our operators, and with ONNX Runtime's."""
    return [Session(runtime(), str(path), threads, trusted=True, **{option: ours}) for ours in (True, False)]


INT8, HALF_PRECISION = 4, 2  # accuracy_level: the precision of activations


def save_int4(path: Path, k: int, n: int, block: int, cast: bool = True, level: int = INT8) -> None:
    """y = -x times an int4 matrix."""
    constants = graphs.int4_constants(np.random.default_rng(k), k, n, block)
    nodes = [op("Cast", "scales", "wide", to=TensorProto.FLOAT)] if cast else []
    if not cast:
        constants["wide"] = constants.pop("scales").astype(np.float32)
    kind = {"K": k, "N": n, "bits": 4, "block_size": block, "accuracy_level": level}
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
        ours, theirs = both_sessions(tmp_path / f"{block}.onnx", threads, "custom_int4")
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


def save_int8(
    path: Path,
    k: int,
    n: int,
    bias: bool = True,
    by_columns: bool = False,
    largest: bool = False,
) -> Constants:
    """y = -(x times an int8 matrix (N, K), plus a bias). Returns the constants. largest: codes and scales are."""
    rng = np.random.default_rng(n)
    constants = {
        "codes": rng.integers(-127, 128, (n, k), dtype=np.int8),
        "scales": rng.uniform(0.001, 0.01, n).astype(np.float32),
    }
    if largest:
        constants = {"codes": np.full((n, k), 127, np.int8), "scales": np.full(n, 0.01, np.float32)}
    if bias:
        constants["bias"] = graphs.normal(rng, (n,), 1)
    inputs = "x columns scales _ bias" if bias else "x columns scales"
    if by_columns:
        constants["columns"] = constants.pop("codes").T.copy()
    nodes = [] if by_columns else [op("Transpose", "codes", "columns", perm=[1, 0])]
    save(path, [*nodes, op("DynamicQuantizeMatMul", inputs, "product"), op("Neg", "product", "y")], k, n, constants)
    return constants


@pytest.mark.parametrize("threads", [1, 2])
def test_int8_products_are_more_exact_than_onnx_runtimes(threads: int, tmp_path: Path) -> None:
    """They have a scale per row instead of one for all."""
    rng = np.random.default_rng(new_seed())
    for bias in (True, False):
        k, n = int(rng.integers(8, 600)), int(rng.integers(1, 300))
        constants = save_int8(tmp_path / f"{bias}.onnx", k, n, bias)
        ours, theirs = both_sessions(tmp_path / f"{bias}.onnx", threads)
        assert theirs.custom_kernels == []
        if not ours.custom_kernels:
            pytest.skip("this processor has none of our kernels")
        assert [kernel.split()[0] for kernel in ours.custom_kernels] == ["int8"]
        weights = constants["codes"] * constants["scales"].astype(float)[:, None]
        for batch, length in ((1, 1), (2, 40)):
            x = rng.standard_normal((batch, length, k)).astype(np.float32) * rng.uniform(0.1, 2, (batch, length, 1))
            x = x.astype(np.float32)
            exact = -(x.astype(float) @ weights.T + constants.get("bias", 0))
            errors = [np.abs(session.run({"x": x})["y"] - exact).mean() for session in (ours, theirs)]
            usual = np.sqrt((x.astype(float) ** 2).mean() * (weights**2).mean() * k)  # size of such a product
            assert errors[0] <= 1.05 * errors[1] + 1e-6 and errors[0] < 0.02 * usual + 1e-6, (k, n, errors)
        assert ours.run({"x": np.zeros((2, 0, k), np.float32)})["y"].shape == (2, 0, n)


def save_static(path: Path, k: int, n: int) -> None:
    """y = x, rounded to 1 / 255, times an int8 matrix (K, N) of the largest codes."""
    constants = {
        "codes": np.full((k, n), 127, np.int8),
        "scales": np.full(n, 0.01, np.float32),
        "zeros": np.zeros(n, np.int8),
        "step": np.float32(1 / 255),
        "least": np.uint8(0),
    }
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
    if kind == "dynamic":
        save_int8(tmp_path / "graph.onnx", k, n, bias=False, largest=True)
    else:
        save_static(tmp_path / "graph.onnx", k, n)
    session = Session(runtime(), str(tmp_path / "graph.onnx"), 1, custom_int8=own)
    for rows in (1, 3, 40):
        got = session.run({"x": np.ones((1, rows, k), np.float32)})["y"]
        np.testing.assert_allclose(np.abs(got), 127 * 0.01 * k, rtol=1e-5)


@pytest.mark.parametrize("change", ["float_scales", "by_columns"])
def test_unsupported_products_use_onnx_runtime(change: str, tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    if change == "float_scales":
        save_int4(path, 64, 8, 32, cast=False)
    else:
        save_int8(path, 64, 8, **{change: True})
    session = Session(runtime(), str(path), 1, custom_int8=True)
    assert session.custom_kernels == []
    assert np.isfinite(session.run({"x": np.ones((1, 1, 64), np.float32)})["y"]).all()


def test_two_products_share_codes(tmp_path: Path) -> None:
    """ONNX Runtime keeps one of the products, and cannot use unsigned codes for it; small codes do not overflow."""
    rng = np.random.default_rng(new_seed())
    k, n = 70, 50
    constants = {
        "codes": rng.integers(-graphs.SAFE_CODE, graphs.SAFE_CODE + 1, (n, k), dtype=np.int8),
        "scales": rng.uniform(0.001, 0.01, n).astype(np.float32),
        "zeros": np.zeros(n, np.int8),
    }
    nodes = [
        op("Transpose", "codes", "columns", perm=[1, 0]),
        op("DynamicQuantizeMatMul", "x columns scales", "ours"),
        op("DynamicQuantizeMatMul", "x columns scales zeros", "theirs"),
        op("Add", "ours theirs", "y"),
    ]
    save(tmp_path / "two.onnx", nodes, k, n, constants)
    x = rng.standard_normal((1, 1, k)).astype(np.float32)
    both = [session.run({"x": x})["y"] for session in both_sessions(tmp_path / "two.onnx")]
    np.testing.assert_allclose(*both, atol=1e-4 * np.abs(both[1]).max())


VISION = graphs.Sizes(k=16, heads=3, width=10, positions=21)


def save_attention(path: Path, change: str = "") -> Constants:
    """x (B, 21, 16) -> y (B, 21, 30), the attention of a vision transformer; `change` names a deviation from it."""
    model = graphs.int8(np.random.default_rng(new_seed()), VISION)
    graph, n, positions = model.graph, VISION.joined, VISION.positions
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    constants["bias"] = np.zeros(3 * n, np.float32)
    nodes = list(graph.node)
    split, softmax, scaled = (graphs.node(model, kind) for kind in ("Split", "Softmax", "Mul"))
    last = nodes[-1]
    if change == "one-head":
        constants |= {"joined": np.array([-1, 1, positions * n]), "flat": np.array([-1, positions, n])}
        last.output[0] = "row"
        nodes.append(op("Reshape", "row flat", "y"))
    elif change == "split-of-images":  # Split's default axis
        constants |= {name: constants[name][:n] for name in ("codes", "scales", "bias")}
        del split.attribute[:]
        split.attribute.append(onnx.helper.make_attribute("num_outputs", 3))
    elif change == "other-order":
        split.output[:] = ["k", "q", "v"]
    elif change == "other-axis":
        softmax.attribute[0].i = 2
    elif change == "read-twice":
        last.output[0] = "once"
        nodes += [op("ReduceMean", "weights", "mean", keepdims=0), op("Add", "once mean", "y")]
    elif change == "scale-of-an-input":
        nodes.insert(nodes.index(scaled), op("ReduceMax", "x", "largest", keepdims=0))
        scaled.input[1] = "largest"
    save(path, nodes, VISION.k, n, constants)
    return constants


def attention(x: np.ndarray, constants: Constants) -> np.ndarray:
    """Attention of x (B, S, K), in float64."""
    qkv = x.astype(float) @ (constants["codes"].T * constants["scales"].astype(float)) + constants["bias"]
    query, key, value = qkv.reshape(*x.shape[:2], 3, VISION.heads, VISION.width).transpose(2, 0, 3, 1, 4)
    scores = query @ key.transpose(0, 1, 3, 2) * float(constants["scale"])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ value).transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)


def has_encoder_attention(session: Session) -> bool:
    return any(kernel.startswith("encoder attention ") for kernel in session.custom_kernels)


@pytest.mark.parametrize("threads", [1, 2])
def test_encoder_attention_is_as_exact_as_onnx_runtimes(threads: int, tmp_path: Path) -> None:
    constants = save_attention(tmp_path / "attention.onnx")
    ours, theirs = both_sessions(tmp_path / "attention.onnx", threads)
    if not has_encoder_attention(ours):
        pytest.skip("this processor has none of our kernels")
    for batch in (1, 3):
        x = np.random.default_rng(new_seed()).standard_normal((batch, VISION.positions, 16)).astype(np.float32)
        exact = attention(x, constants)
        errors = [np.abs(session.run({"x": x})["y"] - exact).mean() for session in (ours, theirs)]
        assert errors[0] <= 1.2 * errors[1] and errors[0] < 0.02 * exact.std(), errors
    together = {"x": x.reshape(1, -1, 16)}  # images one after the other, which the graph separates
    assert np.abs(ours.run(together)["y"] - exact).mean() < 0.02 * exact.std()
    assert ours.run({"x": np.zeros((0, VISION.positions, 16), np.float32)})["y"].shape == (0, VISION.positions, 30)


@pytest.mark.parametrize(
    "change", ["other-order", "other-axis", "read-twice", "one-head", "scale-of-an-input", "split-of-images"]
)
def test_unsupported_attention_uses_onnx_runtime(change: str, tmp_path: Path) -> None:
    save_attention(tmp_path / "other.onnx", change)
    ours, theirs = both_sessions(tmp_path / "other.onnx")
    assert not has_encoder_attention(ours)
    x = np.random.default_rng(new_seed()).standard_normal((3, VISION.positions, 16)).astype(np.float32)
    expected = theirs.run({"x": x})["y"]
    assert np.abs(ours.run({"x": x})["y"] - expected).mean() < 0.05 * expected.std()


def test_truncated_graphs_raise_no_crash(tmp_path: Path) -> None:
    save_int4(tmp_path / "whole.onnx", 64, 8, 32)
    whole = (tmp_path / "whole.onnx").read_bytes()
    for length in range(1, len(whole), max(1, len(whole) // 40)):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        try:
            Session(runtime(), str(tmp_path / "cut.onnx"), 1, custom_int8=True)
        except (GraphError, RuntimeError):
            continue
