"""The native core below the loop: ONNX Runtime found and declared rightly, sessions, their inputs and faults."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from blip2rt.errors import BundleError
from tests.engines.native import Runtime, Session, library_path, runtime

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper

ROOT = Path(__file__).parents[2]
FOLDERS = (
    os.environ.get("ONNXRUNTIME_INCLUDE", "/nonexistent"),
    "/usr/include/onnxruntime",
    "/usr/local/include/onnxruntime",
)
HEADERS = [Path(folder) for folder in FOLDERS]


def save_graph(path: Path) -> Path:
    """sum (N, 3) = a (N, 3) + b (3); shape = a's shape; flags = ids > 0"""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["a", "b"], ["sum"]),
            helper.make_node("Shape", ["a"], ["shape"]),
            helper.make_node("Greater", ["ids", "zero"], ["flags"]),
        ],
        "small",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [3]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["M"]),
        ],
        [
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
            helper.make_tensor_value_info("flags", TensorProto.BOOL, ["M"]),
        ],
        [helper.make_tensor("zero", TensorProto.INT64, [], [0])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


def feeds(rows: int = 2) -> dict[str, np.ndarray]:
    return {
        "a": np.arange(rows * 3, dtype=np.float32).reshape(rows, 3),
        "b": np.array([1, 2, 3], np.float32),
        "ids": np.array([-1, 0, 5]),
    }


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return Session(runtime(), str(save_graph(tmp_path_factory.mktemp("graph") / "small.onnx")), 1)


def test_the_version_is_the_librarys() -> None:
    assert library_path().endswith(runtime().version) or library_path().endswith("dylib")


def test_declarations_match_the_real_header() -> None:
    header = next((folder for folder in HEADERS if (folder / "onnxruntime_c_api.h").is_file()), None)
    compiler = shutil.which("c++")
    if header is None or compiler is None:
        pytest.skip("needs a C++ compiler and onnxruntime_c_api.h (Debian: libonnxruntime-dev, or ONNXRUNTIME_INCLUDE)")
    source = ROOT / "tests" / "engines" / "native" / "ort_api_layout.cpp"
    command = [compiler, "-std=c++17", "-fsyntax-only", f"-I{ROOT / 'engines'}", f"-isystem{header}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_session_lists_the_graphs_inputs_and_outputs(session: Session) -> None:
    assert session.inputs == [("a", "float32", [-1, 3]), ("b", "float32", [3]), ("ids", "int64", [-1])]
    assert session.outputs == [("sum", "float32", [-1, 3]), ("shape", "int64", [2]), ("flags", "bool", [-1])]


def test_a_session_computes(session: Session) -> None:
    given = feeds()
    result = session.run(given)
    np.testing.assert_array_equal(result["sum"], given["a"] + given["b"])
    assert result["shape"].tolist() == [2, 3]
    assert result["flags"].tolist() == [False, False, True]
    assert list(session.run(given, ["shape"])) == ["shape"]


def test_empty_strided_and_read_only_arrays_are_accepted(session: Session) -> None:
    assert session.run(feeds(rows=0))["sum"].shape == (0, 3)
    given = feeds()
    given["a"] = np.asfortranarray(given["a"])
    given["b"].setflags(write=False)
    given["ids"] = np.arange(6)[::-2]
    result = session.run(given)
    np.testing.assert_array_equal(result["sum"], given["a"] + given["b"])
    assert result["flags"].tolist() == [True, True, True]


def test_results_outlive_the_session(tmp_path: Path) -> None:
    session = Session(runtime(), str(save_graph(tmp_path / "small.onnx")))
    result = session.run(feeds(rows=1000))["sum"]
    want = result.copy()
    del session
    np.testing.assert_array_equal(result, want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": np.zeros(1)}, "no input named 'c'.*it has a, b, ids"),
        ({"a": np.zeros((2, 3))}, r"'a' is float64 \(2, 3\), but .* takes float32 \(\?, 3\)"),
        ({"a": np.zeros((2, 4), np.float32)}, r"'a' is float32 \(2, 4\)"),
        ({"a": np.zeros(3, np.float32)}, r"'a' is float32 \(3\)"),
        ({"a": [[1.0, 2.0, 3.0]]}, "'a' must be a numpy array"),
        ({"ids": np.array(["x"])}, "'ids'"),
        ({"a": None}, "'a' must be a numpy array"),
    ],
)
def test_bad_feeds_are_named(session: Session, change: dict[str, object], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        session.run({**feeds(), **change})


def test_missing_feeds_and_outputs_are_named(session: Session) -> None:
    given = feeds()
    del given["b"]
    with pytest.raises(RuntimeError, match="input 'b' of .* is missing"):
        session.run(given)
    with pytest.raises(RuntimeError, match="no output named 'x'.*it has sum, shape, flags"):
        session.run(feeds(), ["x"])


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="absent.onnx"):
        Session(runtime(), str(tmp_path / "absent.onnx"))
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(BundleError, match="text.onnx"):
        Session(runtime(), str(tmp_path / "text.onnx"))


def test_a_process_has_one_library() -> None:
    assert Runtime(library_path()).version == runtime().version
    with pytest.raises(RuntimeError, match="already loaded"):
        Runtime("/elsewhere/libonnxruntime.so")


def test_a_wrong_library_is_rejected() -> None:
    code = "from blip2rt._native import Runtime; Runtime({!r})"
    for path, message in (("/nonexistent/lib.so", "cannot load ONNX Runtime"), ("libc.so.6", "is not ONNX Runtime")):
        done = subprocess.run([sys.executable, "-c", code.format(path)], capture_output=True, text=True)
        assert done.returncode == 1
        assert message in done.stderr


def test_threads_share_a_session(session: Session) -> None:
    results: list[bool] = []

    def work(rows: int) -> None:
        given = feeds(rows)
        for _ in range(50):
            results.append(bool((session.run(given)["sum"] == given["a"] + given["b"]).all()))

    threads = [threading.Thread(target=work, args=(rows,)) for rows in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 200
