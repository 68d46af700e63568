"""A graph's inputs and outputs without the package onnx, held to that package; and ONNX Runtime in TensorRT's place as
far as it goes without a GPU (tests/trt/test_gpu_day.py runs it whole)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

onnx = pytest.importorskip("onnx")

from blip2rt import cuda_libraries, wire
from blip2rt.backends.trt import builder, by_onnxruntime, gpu, plans
from blip2rt.bundle import read
from blip2rt.errors import BackendError
from tests.trt.gpu_stand_in import Driver, TensorRTRtx
from tests.trt.machine import Case, Machine

H100 = gpu.Gpu("NVIDIA H100", (9, 0), 80 << 30, (13, 0), False, 132)


def shape(value: Any) -> tuple[int | str, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


def test_ends_are_those_that_onnx_reads(native_case: Case) -> None:
    for component in read(native_case.trt).manifest.components:
        file = native_case.trt / f"{component}.onnx"
        graph = onnx.load(file, load_external_data=False).graph
        for got, want in zip(wire.ends(file.read_bytes()), (graph.input, graph.output), strict=True):
            assert [(end.name, end.dtype, end.shape) for end in got] == [
                (value.name, value.type.tensor_type.elem_type, shape(value)) for value in want
            ]


def test_axes_are_fixed_and_all_else_stays(native_case: Case) -> None:
    text = (native_case.trt / "llm.onnx").read_bytes()
    fixed, model = wire.with_sizes(text, {"T": 300, "S": 1}), onnx.load_from_string(text)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in ("T", "S"):
                dim.dim_value = {"T": 300, "S": 1}[dim.dim_param]
    assert onnx.load_from_string(fixed) == model
    assert wire.with_sizes(text, {}) == text


def test_a_cache_that_is_written_has_its_length_before_it_is_parsed(native_case: Case, machine: Machine) -> None:
    """That of the plans, and no axis that a profile leaves free."""
    seen: list[bytes] = []
    real = machine.trt.OnnxParser

    def parser(network: Any, log: Any) -> Any:
        made = real(network, log)
        parse = made.parse
        made.parse = lambda model, path: seen.append(model) or parse(model, path)
        return made

    machine.trt.OnnxParser = parser  # type: ignore[method-assign]
    machine.load(native_case)
    [model] = seen
    ends = {end.name: end.shape for end in wire.ends(model)[0]}
    assert ends["past_key_0"][0] == "B" and ends["past_key_0"][2] == 48 and ends["inputs_embeds"][:2] == ("B", "S")


def test_onnxruntime_is_taken_where_there_is_no_tensorrt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only with a CUDA provider. blip2rt-build and its check take TensorRT alone."""
    import onnxruntime

    monkeypatch.setattr(builder, "MODULES", ("a_tensorrt_that_is_not_there",))
    if by_onnxruntime.CUDA not in onnxruntime.get_available_providers():
        with pytest.raises(BackendError, match="or onnxruntime-gpu to do without"):
            builder.load_runner(None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [by_onnxruntime.CUDA])
    loaded: list[str] = []
    monkeypatch.setattr(cuda_libraries, "preload", lambda: loaded.append("NVIDIA's"))  # which pip's wheel cannot find
    found = builder.load_runner(None)
    assert loaded
    assert builder.identity(found) == f"onnxruntime {onnxruntime.__version__} with CUDAExecutionProvider"
    assert "in TensorRT's place: a_tensorrt" in caplog.text and not builder.builds_for_any(found)
    with pytest.raises(BackendError, match="is not installed"):
        builder.load_tensorrt()


def test_onnxruntime_is_taken_where_tensorrt_does_not_know_the_card(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As tensorrt-rtx does not know an H100. One that it knows is its own."""
    rtx = TensorRTRtx(Driver())
    monkeypatch.setattr(builder, "load_tensorrt", lambda name=None: rtx)
    monkeypatch.setattr(by_onnxruntime, "find", lambda: None)
    monkeypatch.setattr(gpu, "find", lambda: H100)
    with pytest.raises(BackendError, match="tensorrt_rtx 1.7.0 does not know SM90"):
        plans.runner()
    monkeypatch.setattr(by_onnxruntime, "find", lambda: "in its place")
    assert plans.runner() == "in its place" and "does not know SM90" in caplog.text
    monkeypatch.setattr(gpu, "find", lambda: replace(H100, compute_capability=(8, 6)))
    assert plans.runner() is rtx


def test_a_plan_whose_graph_is_gone_is_refused(tmp_path: Path) -> None:
    import onnxruntime

    executor = by_onnxruntime.Executor(onnxruntime, "CPUExecutionProvider")
    log = builder.logger(executor)
    plan = json.dumps({"path": str(tmp_path / "llm.onnx"), "profiles": [{}]}).encode()
    assert executor.Runtime(log).deserialize_cuda_engine(plan) is None
    assert "is not there any more" in log.because()
