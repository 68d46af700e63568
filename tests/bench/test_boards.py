"""`blip2rt-bench --roofline`: least times of boards, counted from graphs; nothing runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from blip2rt.bench import boards, costs
from blip2rt.bench.cli import main
from blip2rt.bundle import read
from blip2rt.errors import OptionError
from tests.seeds import seed_of
from tests.tiny import trt as tiny_trt
from tests.tiny.bundle import Tiny


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_trt.write(tmp_path / "b", tiny_trt.weights_of(np.random.default_rng(seed_of(__name__))), "trt")


def test_a_step_is_the_weights_at_three_quarters_of_the_bandwidth(bundle: Path) -> None:
    """Of ten million times the weights, so that there is something to see in milliseconds."""
    made = read(bundle)
    weights = costs.of_graph(made.graph("llm"), {"inputs_embeds": 1}, 1, 1)
    assert weights.weight_bytes > 10_000
    large = costs.Cost(weights.weight_bytes * 10_000_000)
    seconds, what = costs.limit(large, boards.BOARDS["orin-nano"].rates)
    assert what == "memory" and seconds == pytest.approx(large.weight_bytes / (0.75 * 102e9))


def test_weights_of_4_bits_are_multiplied_in_floats(tmp_path: Path) -> None:
    """No tensor core multiplies them as they are; those of 8 bits behind a DequantizeLinear it does."""
    import onnx
    from onnx import TensorProto, helper

    for kind, dtype, macs in (("int4", TensorProto.INT4, (0, 64)), ("int8", TensorProto.INT8, (64, 0))):
        stored = [helper.make_tensor("q", dtype, (8, 8), np.zeros(64, np.int8)),
                  onnx.numpy_helper.from_array(np.ones(8, np.float32), "s")]  # fmt: skip
        nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=1),
                 helper.make_node("MatMul", ["x", "w"], ["y"])]  # fmt: skip
        path = tmp_path / f"{kind}.onnx"
        onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [], stored)), path)
        cost = costs.of_graph(path, {"x": 1}, 1)
        assert (cost.int8_macs, cost.float_macs) == macs
        assert cost.weight_bytes == (32 if kind == "int4" else 64) + 8 * 4


def test_the_command_prints_a_row_a_board(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    assert main(["--model", str(bundle), "--roofline", "all", "--markdown", str(page), "--json", "-"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    assert [row["board"] for row in found["boards"]] == [board.name for board in boards.BOARDS.values()]
    assert all(row["fits"] == "yes" for row in found["boards"]) and "not measured" in found["title"]
    assert page.read_text().count("\n| ") == len(boards.BOARDS) + 1
    assert main(["--model", str(bundle), "--roofline", "thor"]) == 0 and "SM110" in capsys.readouterr().out


def test_boards_that_are_too_small_say_so(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = boards.Board("small", "SM87", 1e9, 1e12, 1e12, memory=2e9 + 1000)
    monkeypatch.setattr(boards, "BOARDS", {"small": small})
    assert boards.roofline(read(bundle), ["small"]).rows[0][-1] == "no"


def test_a_bundle_of_the_target_ort_is_refused(tiny: Tiny) -> None:
    with pytest.raises(OptionError, match="--roofline counts what TensorRT runs"):
        boards.roofline(read(tiny.path), ["thor"])
