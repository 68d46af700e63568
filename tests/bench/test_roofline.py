"""`blip2rt-bench --roofline`: lower bounds for boards, counted in graphs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from blip2rt.backends.trt import PlanSizes, plans
from blip2rt.bench import roofline
from blip2rt.bench.cli import main
from blip2rt.bundle import PAST_KEY, PAST_VALUE, Bundle, Component, TensorInfo, read
from blip2rt.errors import OptionError
from tests.seeds import seed_of
from tests.tiny import trt as tiny_trt
from tests.tiny.bundle import Tiny, make_manifest


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_trt.write(tmp_path / "b", tiny_trt.random_llm_weights(np.random.default_rng(seed_of(__name__))), "trt")


def test_step_reads_the_weights_at_three_quarters_of_the_bandwidth(bundle: Path, monkeypatch: Any) -> None:
    made, board = read(bundle), roofline.BOARDS["orin-nano"]
    weights = sum(file.stat().st_size for file in bundle.glob("llm*"))
    assert weights > 10_000
    monkeypatch.setattr(roofline, "BOARDS", {"slow": replace(board, read_bytes=100 * weights)})
    [row] = roofline.estimate(made, ["slow"]).rows
    assert float(row[3]) == pytest.approx(1e3 / 75, abs=0.05)


def test_command_prints_one_row_per_board(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    assert main(["--model", str(bundle), "--roofline", "all", "--markdown", str(page), "--json", "-"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    assert [row["board"] for row in found["boards"]] == [board.name for board in roofline.BOARDS.values()]
    assert all(row["fits"] == "yes" for row in found["boards"]) and "not measured" in found["title"]
    assert page.read_text().count("\n| ") == len(roofline.BOARDS) + 1
    assert main(["--model", str(bundle), "--roofline", "thor"]) == 0 and "SM110" in capsys.readouterr().out


# Bytes of the graphs of BLIP-2 OPT-2.7B by export.synthetic: vision fp16, Q-Former fp32, llm and embed int4.
OPT = {"vision": 1_973_200_000, "qformer": 428_500_000, "embed": 94_000_000, "llm": 1_522_400_000}


def opt(folder: Path, weights: dict[str, int]) -> Bundle:
    """A bundle with OPT-2.7B's sizes but without weights: everything that an estimate reads."""
    import onnx
    from onnx.external_data_helper import set_external_data

    folder.mkdir()
    for name, size in weights.items():
        tensor = onnx.TensorProto(name="all", data_type=onnx.TensorProto.UINT8, dims=[size])
        tensor.raw_data = b""
        set_external_data(tensor, "weights.data", 0, size)
        tensor.ClearField("raw_data")
        graph = onnx.helper.make_graph([], name, [], [], [tensor])
        (folder / f"{name}.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())

    def component(name: str, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> Component:
        return Component(f"{name}.onnx", "", *(tuple(TensorInfo(*port) for port in each) for each in (inputs, outputs)))

    features = ("vision_features", "float32", ("B", 257, 1408))
    prefix, tokens = ("prefix_embeds", "float32", ("B", 32, 2560)), ("token_ids", "int64", ("B", "S"))
    cache = [(each.format(i), "float16", ("B", 32, "T", 80)) for i in range(32) for each in (PAST_KEY, PAST_VALUE)]
    components = {
        "vision": component("vision", (("pixels", "float32", ("B", 3, 224, 224)),), (features,)),
        "qformer": component("qformer", (features,), (prefix,)),
        "embed": component("embed", (tokens,), (("token_embeds", "float32", ("B", "S", 2560)),)),
        "llm": component("llm", (("past_mask", "float32", ("B", "T")), *cache), ()),
    }
    manifest = make_manifest({}, True, False)
    assert manifest.llm is not None
    sizes = {"layers": 32, "kv_heads": 32, "head_dim": 80, "hidden_size": 2560, "vocab_size": 50304}
    llm = replace(manifest.llm, **sizes, prefix_length=32, max_positions=2048)
    return Bundle(folder, replace(manifest, target="trt", components=components, llm=llm))


def test_opt_in_int4_fits_a_board_of_8_gb(tmp_path: Path) -> None:
    """With three beams and 256 positions; with the language model in fp16 it does not fit."""
    sizes = PlanSizes(max_beams=3)

    def needed(name: str, **weights: int) -> int:
        made = opt(tmp_path / name, {**OPT, **weights})
        return plans.estimate(made, plans.resolve(made, sizes)).running

    orin = roofline.BOARDS["orin-nano"]
    half, bytes_8 = needed("fp16"), needed("int8", vision=OPT["vision"] // 2)
    assert bytes_8 + 0.9e9 < half <= orin.memory - roofline._SYSTEM_BYTES
    assert sum(OPT.values()) + 0.8e9 < half
    assert needed("llm", llm=5_300_000_000) > orin.memory
    page = " ".join((Path(__file__).parents[2] / "docs" / "jetson.md").read_text().split())
    assert f"{half / 1e9:.1f} GB with the encoder in fp16" in page and f"{bytes_8 / 1e9:.1f} GB in int8" in page


def test_too_small_boards_do_not_fit(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = roofline.Board("small", "SM87", 1e9, memory=2e9 + 1000)
    monkeypatch.setattr(roofline, "BOARDS", {"small": small})
    assert roofline.estimate(read(bundle), ["small"]).rows[0][-1] == "no"


def test_bundle_of_the_target_ort_is_rejected(tiny: Tiny) -> None:
    with pytest.raises(OptionError, match="--roofline needs a captioning bundle for TensorRT"):
        roofline.estimate(read(tiny.path), ["thor"])
