"""The native core below the loop: ONNX Runtime found and declared rightly, sessions, their inputs and faults."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from blip2rt.errors import BundleError
from tests.engines.native import Runtime, Session, library_path, runtime

onnx = pytest.importorskip("onnx")
from onnx import parser

ROOT = Path(__file__).parents[2]
INSTALLED = "/usr/include/onnxruntime", "/usr/local/include/onnxruntime"
HEADERS = [Path(folder) for folder in (os.environ.get("ONNXRUNTIME_INCLUDE", "/nonexistent"), *INSTALLED)]


def save_graph(path: Path) -> Path:
    """sum (N, 3) = a (N, 3) + b (3); shape = a's shape; flags = ids > 0"""
    source = """<ir_version: 9, opset_import: ["" : 19]>
        small (float[N, 3] a, float[3] b, int64[M] ids) => (float[N, 3] sum, int64[2] shape, bool[M] flags)
        <int64 zero = {0}> { sum = Add(a, b)  shape = Shape(a)  flags = Greater(ids, zero) }"""
    onnx.save(parser.parse_model(source), path)
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
        ({"a": [[1.0, 2.0, 3.0]]}, "'a' must be a numpy array"),
        ({"ids": np.array(["x"])}, "'ids'"),
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
