"""The int4 product of the core: kernels against plain arithmetic, and as an operator inside ONNX Runtime's graphs."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.native import Session, runtime

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parent.parent
VERSION = tuple(int(part) for part in runtime().version.split(".")[:2])


@pytest.mark.parametrize(
    ("compiler", "runner"),
    [
        (["c++", "-fsanitize=address,undefined"], []),
        (["aarch64-linux-gnu-g++", "-static"], ["qemu-aarch64", "-cpu", "max"]),
    ],
    ids=["here", "aarch64"],
)
def test_kernels(compiler: list[str], runner: list[str], tmp_path: Path) -> None:
    for program in compiler[:1] + runner[:1]:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    sources = [ROOT / "tests" / "native" / "int4_check.cpp", *sorted((ROOT / "engines").glob("int4_*.cpp"))]
    program, seed = str(tmp_path / "int4_check"), str(random.SystemRandom().randrange(2**31))
    subprocess.run(
        [*compiler, "-std=c++17", "-O1", f"-I{ROOT / 'engines'}", *map(str, sources), "-o", program], check=True
    )
    done = subprocess.run([*runner, program, seed], capture_output=True, text=True)
    assert done.returncode == 0, f"seed {seed}: {done.stdout}{done.stderr}"
    assert done.stdout.split() or not runner, "no kernel ran"


def save_matmul(path: Path, k: int, n: int, block: int, cast: bool = True) -> None:
    """y = x (.., K) times an int4 matrix and a plain one that shares nothing with it, weights in a file beside."""
    rng, blocks = np.random.default_rng(k), -(-k // block)
    scales = rng.uniform(0.01, 0.1, (n, blocks)).astype(np.float16 if cast else np.float32)
    constants = {
        "codes": rng.integers(0, 256, (n, blocks, block // 2), dtype=np.uint8),
        "scales": scales,
        "zeros": rng.integers(0, 256, (n, (blocks + 1) // 2), dtype=np.uint8),
    }
    kind = {"domain": "com.microsoft", "K": k, "N": n, "bits": 4, "block_size": block, "accuracy_level": 4}
    used = ["x", "codes", "wide" if cast else "scales", "zeros"]
    nodes = [helper.make_node("MatMulNBits", used, ["product"], **kind), helper.make_node("Neg", ["product"], ["y"])]
    if cast:
        nodes.insert(0, helper.make_node("Cast", ["scales"], ["wide"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "int4",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "S", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "S", n])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save(model, path, save_as_external_data=True, location=path.name + ".data", size_threshold=0)


@pytest.mark.skipif(VERSION < (1, 21), reason="ONNX Runtime before 1.21 keeps its own product")
@pytest.mark.parametrize("threads", [1, 2])
def test_graph_uses_it_and_gives_the_same(threads: int, tmp_path: Path) -> None:
    rng = np.random.default_rng()
    for block in (32, 64, 128):
        k, n = int(rng.integers(1, 40)) * 32 + int(rng.integers(0, 2)), int(rng.integers(1, 300))
        save_matmul(tmp_path / f"{block}.onnx", k, n, block)
        ours, theirs = (Session(runtime(), str(tmp_path / f"{block}.onnx"), threads, own) for own in (True, False))
        if ours.int4_kernel is None:
            pytest.skip("this processor has none of our kernels")
        assert theirs.int4_kernel is None
        for batch, length in ((1, 1), (5, 1), (2, 11)):
            x = rng.standard_normal((batch, length, k)).astype(np.float32)
            expected = theirs.run({"x": x})["y"]
            np.testing.assert_allclose(
                ours.run({"x": x})["y"], expected, atol=2e-2 * expected.std(), err_msg=f"{k}, {n}"
            )
        assert ours.run({"x": np.zeros((2, 0, k), np.float32)})["y"].shape == (2, 0, n)


def test_other_products_stay_with_onnx_runtime(tmp_path: Path) -> None:
    save_matmul(tmp_path / "float_scales.onnx", 64, 8, 32, cast=False)
    session = Session(runtime(), str(tmp_path / "float_scales.onnx"), 1)
    assert session.int4_kernel is None
    assert np.isfinite(session.run({"x": np.ones((1, 1, 64), np.float32)})["y"]).all()


def test_a_damaged_graph_is_onnx_runtimes_to_name(tmp_path: Path) -> None:
    save_matmul(tmp_path / "whole.onnx", 64, 8, 32)
    whole = (tmp_path / "whole.onnx").read_bytes()
    for length in range(1, len(whole), max(1, len(whole) // 40)):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        try:
            Session(runtime(), str(tmp_path / "cut.onnx"), 1)
        except RuntimeError:
            continue
