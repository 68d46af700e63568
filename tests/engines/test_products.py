"""The arithmetic of the core: kernels against plain arithmetic, and products inside ONNX Runtime's graphs. (Attention
inside a graph: tests/engines/test_generate.py.)"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.compiled import compiled
from tests.engines.native import Session, runtime
from tests.seeds import new_seed

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper

from tests.engines.native import mutants

pytestmark = pytest.mark.long(40)

ROOT = Path(__file__).parents[2]

PLAIN = ["c++"]
# A null pointer ends the program, and ASan sees a read beyond an object: UBSan would take as long again for both.
SANITIZED = ["c++", "-fsanitize=address,undefined", "-fno-sanitize=null,object-size,alignment"]
AARCH64 = ["aarch64-linux-gnu-g++", "-static"]
EMULATED = ["qemu-aarch64", "-cpu", "max"]
KINDS = ("int4", "int8", "attention", "resize", "encoder_attention")


@pytest.mark.parametrize(
    ("kind", "compiler", "runner"),
    [
        *(pytest.param(kind, PLAIN, [], id=kind) for kind in KINDS),
        *(pytest.param(kind, AARCH64, EMULATED, id=f"{kind}-aarch64") for kind in KINDS[:4]),
        *(pytest.param(kind, SANITIZED, [], id=f"{kind}-sanitized", marks=pytest.mark.slow) for kind in KINDS),
    ],
)
def test_kernels_compute_what_plain_arithmetic_does(kind: str, compiler: list[str], runner: list[str]) -> None:
    for program in compiler[:1] + runner[:1]:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    folder, pattern = ("attention", f"{kind}*.cpp") if kind.endswith("attention") else (kind, "*.cpp")
    kernels = sorted((ROOT / "engines" / "kernels" / folder).glob(pattern))
    sources = [ROOT / "tests" / "engines" / "native" / f"{kind}_check.cpp", *kernels]
    program = compiled([*compiler, "-std=c++17", "-O1", f"-I{ROOT / 'engines'}"], sources)
    done = subprocess.run([*runner, str(program), str(new_seed())], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert done.stdout.split() or not runner, "no kernel ran"


def save_graph(path: Path, nodes: list[onnx.NodeProto], k: int, n: int, constants: dict[str, np.ndarray]) -> None:
    """x (B, S, K) -> y (B, S, N), the constants in a file beside."""
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "S", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "S", n])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save(model, path, save_as_external_data=True, location=path.name + ".data", size_threshold=128)


INT8, HALF_PRECISION = 4, 2  # accuracy_level: what activations may be rounded to


def save_matmul(path: Path, k: int, n: int, block: int, cast: bool = True, level: int = INT8) -> None:
    """y = x (.., K) times an int4 matrix and a plain one that shares nothing with it, weights in a file beside."""
    rng, blocks = np.random.default_rng(k), -(-k // block)
    scales = rng.uniform(0.01, 0.1, (n, blocks)).astype(np.float16 if cast else np.float32)
    constants = {
        "codes": rng.integers(0, 256, (n, blocks, block // 2), dtype=np.uint8),
        "scales": scales,
        "zeros": rng.integers(0, 256, (n, (blocks + 1) // 2), dtype=np.uint8),
    }
    kind = {"domain": "com.microsoft", "K": k, "N": n, "bits": 4, "block_size": block, "accuracy_level": level}
    used = ["x", "codes", "wide" if cast else "scales", "zeros"]
    nodes = [helper.make_node("MatMulNBits", used, ["product"], **kind), helper.make_node("Neg", ["product"], ["y"])]
    if cast:
        nodes.insert(0, helper.make_node("Cast", ["scales"], ["wide"], to=TensorProto.FLOAT))
    save_graph(path, nodes, k, n, constants)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("level", "tolerance"), [(INT8, 2e-2), (HALF_PRECISION, 2e-3)])
def test_int4_products_of_a_graph_are_ours_and_equal_onnx_runtimes(
    level: int, tolerance: float, threads: int, tmp_path: Path
) -> None:
    """Of half precision ONNX Runtime is exact. An outlier costs the others of its block their precision, too."""
    rng = np.random.default_rng(new_seed())
    for block in (32, 64, 128):
        k, n = int(rng.integers(1, 40)) * 32 + int(rng.integers(0, 2)), int(rng.integers(16, 300))
        save_matmul(tmp_path / f"{block}.onnx", k, n, block, level=level)
        ours, theirs = (
            Session(runtime(), str(tmp_path / f"{block}.onnx"), threads, custom_int4=own) for own in (True, False)
        )
        if not ours.custom_kernels:
            pytest.skip("this processor has none of our kernels")
        assert theirs.custom_kernels == []
        for batch, length in ((1, 1), (5, 1), (2, 11)):
            x = rng.standard_normal((batch, length, k)).astype(np.float32)
            if level == HALF_PRECISION:
                x[..., rng.integers(k)] *= 30
            expected = theirs.run({"x": x})["y"]
            np.testing.assert_allclose(
                ours.run({"x": x})["y"], expected, atol=tolerance * expected.std(), err_msg=f"{k}, {n}"
            )
        assert ours.run({"x": np.zeros((2, 0, k), np.float32)})["y"].shape == (2, 0, n)


def test_other_int4_products_stay_with_onnx_runtime(tmp_path: Path) -> None:
    save_matmul(tmp_path / "float_scales.onnx", 64, 8, 32, cast=False)
    session = Session(runtime(), str(tmp_path / "float_scales.onnx"), 1)
    assert session.custom_kernels == []
    assert np.isfinite(session.run({"x": np.ones((1, 1, 64), np.float32)})["y"]).all()


def save_dynamic(
    path: Path,
    k: int,
    n: int,
    bias: bool = True,
    zero_points: bool = False,
    by_columns: bool = False,
    largest: bool = False,
) -> dict[str, np.ndarray]:
    """y = -(x (.., K) times an int8 matrix (N, K), and a bias); returns the constants. largest: of codes and scales."""
    rng = np.random.default_rng(n)
    constants = {
        "codes": rng.integers(-127, 128, (n, k), dtype=np.int8),
        "scales": rng.uniform(0.001, 0.01, n).astype(np.float32),
    }
    inputs = ["x", "columns", "scales", "", ""]
    if largest:
        constants = {"codes": np.full((n, k), 127, np.int8), "scales": np.full(n, 0.01, np.float32)}
    if bias:
        constants["bias"] = rng.normal(size=n).astype(np.float32)
        inputs[4] = "bias"
    if zero_points:
        constants["zeros"] = np.zeros(n, np.int8)
        inputs[3] = "zeros"
    while not inputs[-1]:
        inputs.pop()
    if by_columns:
        constants["columns"] = constants.pop("codes").T.copy()
    nodes = [] if by_columns else [helper.make_node("Transpose", ["codes"], ["columns"], perm=[1, 0])]
    nodes += [
        helper.make_node("DynamicQuantizeMatMul", inputs, ["product"], domain="com.microsoft"),
        helper.make_node("Neg", ["product"], ["y"]),
    ]
    save_graph(path, nodes, k, n, constants)
    return constants


@pytest.mark.parametrize("threads", [1, 2])
def test_int8_is_nearer_to_exact_than_onnx_runtimes(threads: int, tmp_path: Path) -> None:
    """A scale for each row in place of one for all."""
    rng = np.random.default_rng(new_seed())
    for bias in (True, False):
        k, n = int(rng.integers(8, 600)), int(rng.integers(1, 300))
        constants = save_dynamic(tmp_path / f"{bias}.onnx", k, n, bias)
        ours, theirs = (
            Session(runtime(), str(tmp_path / f"{bias}.onnx"), threads, custom_int8=own) for own in (True, False)
        )
        assert theirs.custom_kernels == []
        if not ours.custom_kernels:
            pytest.skip("this processor has none of our kernels")
        assert [kernel.split()[0] for kernel in ours.custom_kernels] == ["int8"]
        for batch, length in ((1, 1), (2, 40)):
            x = rng.standard_normal((batch, length, k)).astype(np.float32) * rng.uniform(0.1, 2, (batch, length, 1))
            x = x.astype(np.float32)
            exact = -(
                x.astype(float) @ (constants["codes"].T * constants["scales"].astype(float)) + constants.get("bias", 0)
            )
            errors = [np.abs(session.run({"x": x})["y"] - exact).mean() for session in (ours, theirs)]
            weights = constants["codes"] * constants["scales"][:, None]
            usual = np.sqrt((x.astype(float) ** 2).mean() * (weights**2).mean() * k)  # size of such a product
            assert errors[0] <= 1.05 * errors[1] + 1e-6 and errors[0] < 0.02 * usual + 1e-6, (k, n, errors)
        assert ours.run({"x": np.zeros((2, 0, k), np.float32)})["y"].shape == (2, 0, n)


def save_static(path: Path, k: int, n: int) -> None:
    """y = x (.., K), rounded to 1 / 255, times an int8 matrix (K, N) of the largest codes."""
    constants = {
        "codes": np.full((k, n), 127, np.int8), "scales": np.full(n, 0.01, np.float32), "zeros": np.zeros(n, np.int8),
        "step": np.float32(1 / 255), "least": np.uint8(0),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "least"], ["whole"]),
        helper.make_node("DequantizeLinear", ["whole", "step", "least"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["weights"], axis=1),
        helper.make_node("MatMul", ["rounded", "weights"], ["y"]),
    ]
    save_graph(path, nodes, k, n, constants)


@pytest.mark.parametrize("own", [True, False], ids=["ours", "theirs"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_the_largest_int8_products_are_exact(kind: str, own: bool, tmp_path: Path) -> None:
    """255 * 127 twice is more than 16 bits hold, in which AVX2 adds them: ONNX Runtime's was a half of the sum."""
    if mutants.OVERFLOWS and (kind == "static" or not own):
        pytest.skip("this ONNX Runtime cannot be told")
    k, n = 96, 40
    if kind == "dynamic":
        save_dynamic(tmp_path / "graph.onnx", k, n, bias=False, largest=True)
    else:
        save_static(tmp_path / "graph.onnx", k, n)
    session = Session(runtime(), str(tmp_path / "graph.onnx"), 1, custom_int8=own)
    for rows in (1, 3, 40):
        got = session.run({"x": np.ones((1, rows, k), np.float32)})["y"]
        np.testing.assert_allclose(np.abs(got), 127 * 0.01 * k, rtol=1e-5)


@pytest.mark.parametrize("change", ["zero_points", "by_columns"])
def test_other_int8_products_stay_with_onnx_runtime(change: str, tmp_path: Path) -> None:
    save_dynamic(tmp_path / "other.onnx", 64, 8, **{change: True})
    session = Session(runtime(), str(tmp_path / "other.onnx"), 1, custom_int8=True)
    assert session.custom_kernels == []
    assert np.isfinite(session.run({"x": np.ones((1, 1, 64), np.float32)})["y"]).all()


def test_codes_that_two_products_read_are_turned_once(tmp_path: Path) -> None:
    """Two products with the same weights, of which ONNX Runtime keeps one. It cannot turn those unsigned; with
    small codes nothing overflows anywhere."""
    rng = np.random.default_rng(new_seed())
    k, n = 70, 50
    constants = {
        "codes": rng.integers(-mutants.LARGE, mutants.LARGE + 1, (n, k), dtype=np.int8),
        "scales": rng.uniform(0.001, 0.01, n).astype(np.float32),
        "zeros": np.zeros(n, np.int8),
    }
    nodes = [helper.make_node("Transpose", ["codes"], ["columns"], perm=[1, 0])]
    for name, more in (("ours", []), ("theirs", ["zeros"])):
        inputs = ["x", "columns", "scales", *more]
        nodes.append(helper.make_node("DynamicQuantizeMatMul", inputs, [name], domain="com.microsoft"))
    save_graph(tmp_path / "two.onnx", [*nodes, helper.make_node("Add", ["ours", "theirs"], ["y"])], k, n, constants)
    x = rng.standard_normal((1, 1, k)).astype(np.float32)
    both = [
        Session(runtime(), str(tmp_path / "two.onnx"), 1, custom_int8=own).run({"x": x})["y"] for own in (True, False)
    ]
    np.testing.assert_allclose(*both, atol=1e-4 * np.abs(both[1]).max())


POSITIONS, HEADS, WIDTH = 21, 3, 10


def save_attention(path: Path, change: str = "") -> dict[str, np.ndarray]:
    """x (B, 21, 16) -> y (B, 21, 30), as a vision transformer attends; `change` names what is otherwise."""
    rng = np.random.default_rng(new_seed())
    k, n = 16, HEADS * WIDTH
    constants = {
        "codes": rng.integers(-127, 128, (3 * n, k), dtype=np.int8),
        "scales": rng.uniform(0.001, 0.003, 3 * n).astype(np.float32),
        "heads": np.array([-1, POSITIONS, HEADS, WIDTH]),
        "joined": np.array([-1, POSITIONS, n]),
        "scale": np.float32(WIDTH**-0.5),
    }
    if change == "one-head":
        constants["joined"] = np.array([-1, 1, POSITIONS * n])
        constants["flat"] = np.array([-1, POSITIONS, n])
    names, split = ["query", "key", "value"], {"axis": 2}
    if change == "split-of-images":  # what Split is about when it does not say
        constants["codes"], constants["scales"], split = constants["codes"][:n], constants["scales"][:n], {}
    if change == "other-order":
        names = ["key", "query", "value"]
    turned = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}
    nodes = [
        helper.make_node("Transpose", ["codes"], ["columns"], perm=[1, 0]),
        helper.make_node("DynamicQuantizeMatMul", ["x", "columns", "scales"], ["qkv"], domain="com.microsoft"),
        helper.make_node("Split", ["qkv"], names, num_outputs=3, **split),
    ]
    for name, order in turned.items():
        nodes.append(helper.make_node("Reshape", [name, "heads"], [f"{name}_heads"]))
        nodes.append(helper.make_node("Transpose", [f"{name}_heads"], [f"{name}_turned"], perm=order))
    axis = 2 if change == "other-axis" else -1
    nodes += [
        helper.make_node("MatMul", ["query_turned", "key_turned"], ["scores"]),
        helper.make_node("Mul", ["scores", "scale"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["weights"], axis=axis),
        helper.make_node("MatMul", ["weights", "value_turned"], ["sum"]),
        helper.make_node("Transpose", ["sum"], ["back"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["back", "joined"], ["y"]),
    ]
    if change == "read-twice":
        nodes[-1].output[0] = "once"
        nodes.append(helper.make_node("ReduceMean", ["weights"], ["mean"], keepdims=0))
        nodes.append(helper.make_node("Add", ["once", "mean"], ["y"]))
    if change == "one-head":
        nodes[-1].output[0] = "row"
        nodes.append(helper.make_node("Reshape", ["row", "flat"], ["y"]))
    if change == "scale-of-an-input":
        nodes.insert(-4, helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0))
        scaled = next(node for node in nodes if node.output[0] == "scaled")
        scaled.input[1] = "largest"
    save_graph(path, nodes, k, n, constants)
    return constants


def attention(x: np.ndarray, constants: dict[str, np.ndarray]) -> np.ndarray:
    """Attention of x (B, S, K), in float64."""
    qkv = x.astype(float) @ (constants["codes"].T * constants["scales"].astype(float))
    query, key, value = qkv.reshape(*x.shape[:2], 3, HEADS, WIDTH).transpose(2, 0, 3, 1, 4)
    scores = query @ key.transpose(0, 1, 3, 2) * float(constants["scale"])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ value).transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_encoders_attention_equals_onnx_runtimes(threads: int, tmp_path: Path) -> None:
    constants = save_attention(tmp_path / "attention.onnx")
    ours, theirs = (
        Session(runtime(), str(tmp_path / "attention.onnx"), threads, custom_int8=own) for own in (True, False)
    )
    if not any(kernel.startswith("encoder attention ") for kernel in ours.custom_kernels):
        pytest.skip("this processor has none of our kernels")
    for batch in (1, 3):
        x = np.random.default_rng(new_seed()).standard_normal((batch, POSITIONS, 16)).astype(np.float32)
        exact = attention(x, constants)
        errors = [np.abs(session.run({"x": x})["y"] - exact).mean() for session in (ours, theirs)]
        assert errors[0] <= 1.2 * errors[1] and errors[0] < 0.02 * exact.std(), errors
    together = {"x": x.reshape(1, -1, 16)}  # images one behind the other: the graph puts them apart again
    assert np.abs(ours.run(together)["y"] - exact).mean() < 0.02 * exact.std()
    assert ours.run({"x": np.zeros((0, POSITIONS, 16), np.float32)})["y"].shape == (0, POSITIONS, HEADS * WIDTH)


@pytest.mark.parametrize(
    "change", ["other-order", "other-axis", "read-twice", "one-head", "scale-of-an-input", "split-of-images"]
)
def test_another_attention_stays_with_onnx_runtime(change: str, tmp_path: Path) -> None:
    save_attention(tmp_path / "other.onnx", change)
    ours, theirs = (Session(runtime(), str(tmp_path / "other.onnx"), 1, custom_int8=own) for own in (True, False))
    assert not any(kernel.startswith("encoder attention ") for kernel in ours.custom_kernels)
    x = np.random.default_rng(new_seed()).standard_normal((3, POSITIONS, 16)).astype(np.float32)
    expected = theirs.run({"x": x})["y"]
    assert np.abs(ours.run({"x": x})["y"] - expected).mean() < 0.05 * expected.std()


def test_a_damaged_graph_is_onnx_runtimes_to_name(tmp_path: Path) -> None:
    save_matmul(tmp_path / "whole.onnx", 64, 8, 32)
    whole = (tmp_path / "whole.onnx").read_bytes()
    for length in range(1, len(whole), max(1, len(whole) // 40)):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        try:
            Session(runtime(), str(tmp_path / "cut.onnx"), 1, custom_int8=True)
        except RuntimeError:
            continue
