"""A graph's inputs and outputs read without the package onnx equal those read with it."""

from __future__ import annotations

from typing import Any

import pytest

onnx = pytest.importorskip("onnx")

from blip2rt.bundle import read
from blip2rt.native import native
from tests.trt.machine import Case, Machine


def shape(value: Any) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def dtype(value: Any) -> str:
    return str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def test_graph_inputs_and_outputs_match_onnx(native_case: Case) -> None:
    for component in read(native_case.trt).manifest.components:
        file = native_case.trt / f"{component}.onnx"
        graph = onnx.load(file, load_external_data=False).graph
        for got, want in zip(native.graph_tensors(file.read_bytes()), (graph.input, graph.output), strict=True):
            assert got == [(value.name, dtype(value), shape(value)) for value in want]


def test_fixing_axes_changes_nothing_else(native_case: Case) -> None:
    text = (native_case.trt / "llm.onnx").read_bytes()
    fixed, model = native.with_axis_sizes(text, {"T": 300, "S": 1}), onnx.load_from_string(text)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in ("T", "S"):
                dim.dim_value = {"T": 300, "S": 1}[dim.dim_param]
    assert onnx.load_from_string(fixed) == model
    assert native.with_axis_sizes(text, {}) == text


def test_in_place_cache_has_a_fixed_length_before_parsing(native_case: Case, machine: Machine) -> None:
    """The plans' length, while axes that vary between profiles stay dynamic."""
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
    ends = {name: shape for name, _, shape in native.graph_tensors(model)[0]}
    assert ends["past_key_0"][0] == "B" and ends["past_key_0"][2] == 48 and ends["inputs_embeds"][:2] == ["B", "S"]
